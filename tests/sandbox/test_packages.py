"""What programs can import: the same in both executors, loaded before the fork, and not charged to a call."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from harness import ATTACKS, strike

from grpo_tir.errors import DataError
from grpo_tir.executor.image import read_names
from grpo_tir.executor.pool import Pool
from grpo_tir.types import ToolCall, ToolResult

USES = {
    "gmpy2": ("import gmpy2\nprint(gmpy2.is_prime(2**61 - 1), gmpy2.isqrt(10**20))", "True 10000000000"),
    "scipy.optimize": ("import scipy.optimize as s\nprint(round(s.brentq(lambda x: x**2 - 9, 0, 8), 6))", "3.0"),
    "scipy.integrate": ("import scipy.integrate as s\nprint(round(s.quad(lambda x: x**2, 0, 3)[0], 6))", "9.0"),
    "scipy.stats": ("from scipy import stats\nprint(stats.norm.cdf(0))", "0.5"),
    "networkx": ("import networkx as nx\nprint(nx.shortest_path_length(nx.cycle_graph(7), 0, 4))", "3"),
    "pandas": ("import pandas as pd\nprint(pd.DataFrame({'a': [1, 2]})['a'].sum())", "3"),
    "matplotlib": ("import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.savefig('x.png')\n"
                   "print(open('x.png', 'rb').read(4))", r"b'\x89PNG'"),
    "sympy without gmpy2": ("import sympy\nprint(type(sympy.Integer(3).p).__name__)", "int"),
}  # fmt: skip


@pytest.mark.docker
@pytest.mark.parametrize(("code", "says"), USES.values(), ids=USES)
def test_the_image_has_what_models_import(code: str, says: str, docker_executor: Pool) -> None:
    result = docker_executor.run(code, timeout=10)
    assert (result.status, result.stdout) == ("ok", says + "\n"), result.stderr


@pytest.mark.docker
def test_only_programs_that_name_scipy_are_forked_from_the_larger_process(docker_executor: Pool) -> None:
    look = "import os, sys\nprint(os.getppid(), 'pan' + 'das' in sys.modules)"
    large = {docker_executor.run(f"{look}  # {name}").stdout for name in ("scipy", "networkx", "pylab")}
    small = {docker_executor.run(f"{look}  # {name}").stdout for name in ("numpy", "scipyx")}
    session = [ToolCall("import scipy", ToolResult("ok", seconds=0.01))]
    assert docker_executor.run(look, earlier=session).stdout in large
    (first,), (second,) = large, small
    assert first.endswith(" True\n") and second.endswith(" False\n") and first.split()[0] != second.split()[0]


@pytest.mark.docker
def test_what_is_loaded_before_the_fork_is_not_charged_to_the_call(docker_executor: Pool) -> None:
    """The limit is 256 MB of its own."""
    fits = docker_executor.run("import scipy\nprint(len(bytearray(200 << 20)))", timeout=10)
    assert (fits.status, fits.stdout) == ("ok", f"{200 << 20}\n"), fits.stderr
    assert "MemoryError" in docker_executor.run("import scipy\nbytearray(300 << 20)", timeout=10).stderr


@pytest.mark.docker
@pytest.mark.parametrize(
    "attack", [pytest.param(a, marks=pytest.mark.slow, id=a.name) for a in ATTACKS if a.quick]
)
def test_attack_on_the_larger_process_harms_nobody(attack: Any, docker_executor: Pool) -> None:
    """The neighbour and the canaries are children of the other."""
    session = {"earlier": [ToolCall("pass  # scipy", ToolResult("ok", seconds=0.01))]}
    assert strike(docker_executor, attack, **session) == []


def test_the_process_executor_hides_what_the_image_does_not_have(process_executor: Pool) -> None:
    code = "import {0}\nprint({0}.__name__)"
    for name in ("yaml", "pytest", "grpo_tir"):
        result = process_executor.run(code.format(name))
        assert f"ModuleNotFoundError: No module named '{name}'" in result.stderr
    for name in ("numpy", "sympy", "mpmath", "sqlite3"):
        assert process_executor.run(code.format(name), timeout=5).stdout == f"{name}\n"
    own = "open('yaml.py', 'w').write('x = 7')\nimport yaml\nprint(yaml.x)"
    assert process_executor.run(own).stdout == "7\n", "a program's own module keeps its name"


def test_pins_and_extra_agree_with_the_list(repository: Path) -> None:
    lines = (repository / "sandbox/packages.txt").read_text().splitlines()
    listed = dict(line.split("==") for line in lines if "==" in line)
    pins = dict(
        line.split("==") for line in (repository / "constraints.txt").read_text().splitlines() if "==" in line
    )
    assert {name: pins.get(name) for name in listed} == listed
    config = configparser.ConfigParser()
    config.read(repository / "setup.cfg")
    needs = config["options"]["install_requires"] + config["options.extras_require"]["executor"]
    direct = [line.partition("==")[0] for line in lines[: lines.index("# what they bring")] if "==" in line]
    assert set(direct) - {"mpmath"} <= set(re.findall(r"^[\w.-]+", needs, re.MULTILINE)), "mpmath comes with sympy"


@pytest.mark.parametrize(("text", "words"), [(None, "cannot read"), ("# nothing\n\n", "names no package")])
def test_a_bad_list_is_one_line_and_exit_2(text: str | None, words: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "list").write_text(text)
    command = [sys.executable, "-m", "grpo_tir", "sandbox", "build", "--packages", str(tmp_path / "list")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1
    with pytest.raises(DataError):
        read_names(tmp_path / "list")


def test_names_are_read_from_a_requirements_file(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("# x\nnumpy==2.4.6\n\nscikit-learn>=1 ; python_version > '3.10'\n--no-deps\n")
    assert read_names(tmp_path / "list") == ["numpy", "scikit-learn"]

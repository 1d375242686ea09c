"""The wheel, installed into an empty environment and run from an empty folder, has all that the checkout has.

The environment is empty but for a `.pth` file that lends it the heavy dependencies of the one that runs these
tests: seconds instead of a second gigabyte of torch. The editable installation there is a `.pth` too, and those
are not followed twice, so `import grpo_tir` can only find the wheel (the first test makes sure).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

WHAT_A_WHEEL_IS_MADE_OF = ("src", "recipes", "sandbox", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")


@dataclass
class Installed:
    """The wheel's file, the environment that it alone was installed into, and a folder with nothing in it."""

    wheel: Path
    environment: Path
    folder: Path

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        program = str(self.environment / "bin" / command[0])
        return subprocess.run(
            [program, *command[1:]], cwd=self.folder, env=inherited, capture_output=True, text=True, timeout=300
        )

    def python(self, code: str) -> str:
        done = self.run("python", "-c", code)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Installed:
    base = tmp_path_factory.mktemp("wheel")
    source = base / "source"
    for name in WHAT_A_WHEEL_IS_MADE_OF:
        original = repository / name
        if original.is_dir():
            shutil.copytree(original, source / name, ignore=shutil.ignore_patterns("*.egg-info", "build"))
        else:
            shutil.copy(original, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    # the wheel is built from the sdist, so that what holds for one holds for the other
    _succeed(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(base / "dist"), str(source))
    shutil.rmtree(source)  # what still works now does not depend on it
    (wheel,) = (base / "dist").glob("*.whl")

    environment = base / "environment"
    _succeed(sys.executable, "-m", "venv", "--without-pip", str(environment))
    _succeed(*pip, "--python", str(environment / "bin" / "python"), "install", "--no-deps", str(wheel))
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    (base / "empty").mkdir()
    return Installed(wheel, environment, base / "empty")


def _succeed(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_package_that_runs_is_the_wheels(installed: Installed) -> None:
    assert Path(installed.python("import grpo_tir; print(grpo_tir.__file__)")).is_relative_to(
        installed.environment
    )


def test_the_wheel_holds_nothing_beside_the_package(installed: Installed) -> None:
    names = zipfile.ZipFile(installed.wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"grpo_tir"}
    assert not [name for name in names if "__pycache__" in name or name.endswith((".pyc", "~"))]


def test_sdist_and_wheel_can_be_published(installed: Installed) -> None:
    files = sorted(installed.wheel.parent.iterdir())
    assert [file.suffix for file in files] == [".whl", ".gz"]
    _succeed(sys.executable, "-m", "twine", "check", "--strict", *map(str, files))


def test_the_version_is_written_in_one_place(installed: Installed, repository: Path) -> None:
    """`grpo_tir.__version__`: the wheel has it, and no other file of the project repeats it."""
    version = installed.python("import grpo_tir; print(grpo_tir.__version__)")
    assert installed.wheel.name.split("-")[1] == version
    assert version == installed.python("from importlib.metadata import version; print(version('grpo-tir'))")
    for name in ("setup.cfg", "pyproject.toml", "CITATION.cff", "README.md"):
        assert not re.search(rf"\b{re.escape(version)}\b", (repository / name).read_text()), name


def test_only_the_extra_train_requires_torch(installed: Installed) -> None:
    """So that executor and grader can be installed alone."""
    needs = installed.python("from importlib.metadata import requires; print(*requires('grpo-tir'), sep='\\n')")
    for name in ("accelerate", "jinja2", "tensorboard", "torch", "transformers"):
        lines = [line for line in needs.splitlines() if re.match(rf"{name}\b", line)]
        assert lines and all("extra == " in line for line in lines), lines
        assert any(re.search("extra == .train.", line) for line in lines)


@pytest.mark.parametrize("command", [["grpo-tir", "--help"], ["python", "-m", "grpo_tir", "--help"]])
def test_help_runs_from_an_empty_folder(command: list[str], installed: Installed) -> None:
    done = installed.run(*command)
    assert done.returncode == 0, done.stderr
    assert "grpo-tir train" in done.stdout


@pytest.mark.parametrize("name", ["recipes", "sandbox"])
def test_every_packaged_file_arrives_unchanged(name: str, installed: Installed, repository: Path) -> None:
    found = Path(installed.python(f"from grpo_tir.utils import resources; print(resources.{name}_dir())"))
    assert found.is_relative_to(installed.environment)
    assert contents(found) == contents(repository / name)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_every_recipe_loads_by_its_name_and_its_path_in_the_checkout(
    installed: Installed, repository: Path
) -> None:
    recipes = [path.relative_to(repository) for path in (repository / "recipes").glob("**/*.yaml")]
    recipes = [path for path in recipes if path.parts[1] not in ("accelerate", "deepspeed")]
    assert recipes
    names = [str(path) for path in recipes] + [
        str(path.relative_to("recipes").with_suffix("")) for path in recipes
    ]
    installed.python(
        "from grpo_tir.utils.recipe import load_config\n"
        "from grpo_tir.utils.recipe import find_recipe\n"
        f"for name in {names}: load_config(find_recipe(name))"
    )


def test_every_module_can_be_imported(installed: Installed, repository: Path) -> None:
    source = repository / "src"
    modules = {".".join(path.relative_to(source).with_suffix("").parts) for path in source.rglob("*.py")}
    modules = {name.removesuffix(".__init__") for name in modules if not name.endswith("__main__")}
    installed.python(f"import importlib\nfor name in {sorted(modules)}: importlib.import_module(name)")


def test_bad_input_is_one_line_and_exit_code_2(installed: Installed) -> None:
    done = installed.run("grpo-tir", "train", "recipes/quickstrat.yaml")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "did you mean `quickstart`?" in done.stderr


STRICT = """[mypy]
strict = True
[mypy-torch.*,transformers.*,accelerate.*,tokenizers.*,sympy.*,docker.*]
follow_imports = skip
"""  # torch and transformers would cost a minute, and prove nothing about this package


@pytest.mark.parametrize(
    ("line", "faults"),
    [
        ("", ""),
        ('Config(train="runs")', 'Argument "train" to "Config" has incompatible type "str"'),
        ("train('runs', 1).step(2)", 'Too many arguments for "step" of "Trainer"'),
    ],
)
def test_a_users_program_passes_mypy_strict(
    line: str, faults: str, installed: Installed, repository: Path, tmp_path: Path
) -> None:
    """The annotations reach a user (py.typed), and a wrong use of them is reported."""
    (tmp_path / "strict.ini").write_text(STRICT)
    text = (repository / "tests/e2e/user_program.py").read_text()
    (tmp_path / "program.py").write_text(f"{text}\n\n{line}\n")
    found = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "strict.ini", "--no-color-output", "program.py"]
        + ["--python-executable", str(installed.environment / "bin/python")]
        + ["--cache-dir", str(installed.folder.parent / "mypy")],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == bool(faults) and faults in found.stdout, found.stdout + found.stderr

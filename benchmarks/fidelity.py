"""Count how often a program behaves differently in an executor and in plain Python: doctests of installed
packages.

    python benchmarks/fidelity.py [--programs 2500] [--executors docker process]

Each docstring with examples in the standard library, numpy and sympy gives one program: the examples in order,
each value printed, each expected exception caught. Plain Python is `python main.py` with the same interpreter and
libraries: on this machine for the process executor, in the image for docker.

A difference is another exit code or another stdout. Programs that differ between two runs on the same side are
left out. A difference is *refused* if the sandbox forbids the operation (sockets, files outside, signals, limits),
and *harmful* otherwise. Harmful differences are printed. The last line is JSON.
"""

from __future__ import annotations

import argparse
import ast
import doctest
import json
import random
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from grpo_tir.config import ExecutorConfig
from grpo_tir.executor.open import open_executor
from grpo_tir.types import ToolResult

SKIPPED = {"test", "tests", "idlelib", "lib2to3", "tkinter", "turtledemo", "ensurepip", "site-packages",
           "__pycache__", "conftest.py", "turtle.py", "antigravity.py", "this.py", "webbrowser.py"}  # fmt: skip
REFUSED = re.compile(r"PermissionError|Operation not permitted|Read-only file system|Function not implemented")

PLAIN = """
import json, os, subprocess, sys, tempfile
from concurrent.futures import ThreadPoolExecutor
folder = sys.argv[1]
env = {'PATH': '/usr/local/bin:/usr/bin:/bin', 'LANG': 'C.UTF-8', 'PYTHONHASHSEED': '0', 'OMP_NUM_THREADS': '1',
       'OPENBLAS_NUM_THREADS': '1', 'PYTHONPATH': '/opt/sandbox', 'PYTHONIOENCODING': 'utf-8',
       'SYMPY_GROUND_TYPES': 'python', 'MPMATH_NOGMPY': '1', 'MPLBACKEND': 'Agg'}
def once(code):
    with tempfile.TemporaryDirectory() as place:
        open(place + '/main.py', 'w', encoding='utf-8').write(code)
        env_here = {**env, 'HOME': place, 'TMPDIR': place}
        try:
            done = subprocess.run([sys.executable, '-s', 'main.py'], cwd=place, env=env_here, capture_output=True,
                                  stdin=subprocess.DEVNULL, timeout=60)
        except subprocess.TimeoutExpired:
            return None
        texts = [text.decode('utf-8', 'replace').replace(place, '.') for text in (done.stdout, done.stderr)]
        return [done.returncode, *texts]
with open(folder + '/programs.json') as file: programs = json.load(file)
with ThreadPoolExecutor(os.cpu_count()) as threads: results = list(threads.map(once, programs))
with open(folder + '/plain.json', 'w') as file: json.dump(results, file)
"""


def sources() -> Iterator[tuple[str, str, Path]]:
    """Yield package, module name and file of the installed modules, without importing them."""
    roots = {"stdlib": Path(sysconfig.get_path("stdlib"))}
    for package in ("numpy", "sympy"):
        spec = find_spec(package)
        if spec and spec.origin:
            roots[package] = Path(spec.origin).parent
    for package, root in roots.items():
        top = root if package == "stdlib" else root.parent
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(top).parts
            if not SKIPPED & set(parts) and "-" not in "".join(parts):
                yield (
                    package,
                    ".".join(path.relative_to(top).with_suffix("").parts).removesuffix(".__init__"),
                    path,
                )


def docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            yield text


def program(module: str, docstring: str) -> str | None:
    """Return the examples of a docstring as a program; None if there are none or one is marked to be skipped."""
    try:
        examples = doctest.DocTestParser().get_examples(docstring)
    except ValueError:
        return None
    if not examples or any("SKIP" in example.source for example in examples):
        return None
    package = module.partition(".")[0]
    lines = ["import numpy as np"] if package == "numpy" else [f"from {package} import *"]
    lines += (
        [f"import {module}", f"from {module} import *"] if not module.rpartition(".")[2].startswith("__") else []
    )
    for example in examples:
        try:
            body = printing(example.source)
        except SyntaxError:
            body = example.source
        if example.exc_msg is not None:
            indented = "\n".join("    " + line for line in body.splitlines())
            body = f"try:\n{indented}\nexcept Exception as error:\n    print(type(error).__name__, error)"
        lines.append(body)
    return "\n".join(lines) + "\n"


def printing(source: str) -> str:
    """Print the value of an expression unless it is None, as the interactive prompt does."""
    tree = ast.parse(source)
    for index, node in enumerate(tree.body):
        if isinstance(node, ast.Expr):
            shown = ast.parse("if (_ := 0) is not None: print(repr(_))").body[0]
            shown.test.left.value = node.value  # type: ignore[attr-defined]
            tree.body[index] = shown
    return ast.unparse(ast.fix_missing_locations(tree))


def collect(count: int, seed: int) -> list[tuple[str, str]]:
    """Return (package, program) pairs, a third from each package as long as every package has enough."""
    found: dict[str, list[str]] = {}
    for package, module, path in sources():
        for text in docstrings(path):
            if code := program(module, text):
                found.setdefault(package, []).append(code)
    draw = random.Random(seed)
    chosen: list[tuple[str, str]] = []
    for left, (package, codes) in zip(range(len(found), 0, -1), sorted(found.items(), key=lambda i: len(i[1]))):
        some = draw.sample(codes, min(len(codes), (count - len(chosen)) // left))
        chosen += [(package, code) for code in some]
    return chosen


def run_plain(kind: str, programs: list[str]) -> list[Any]:
    """Run each program in plain Python. Returns [exit code, stdout, stderr]; None: more than a minute."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        (Path(folder) / "programs.json").write_text(json.dumps(programs))
        if kind == "process":
            subprocess.run([sys.executable, "-c", PLAIN, folder], check=True)
        else:
            from grpo_tir.executor.docker_client import connect

            connect(None).containers.run(
                ExecutorConfig().image, entrypoint=["python3", "-c", PLAIN, "/exchange"], remove=True,
                network_mode="none", volumes={folder: {"bind": "/exchange", "mode": "rw"}}, tmpfs={"/tmp": ""},
            )  # fmt: skip
        return list(json.loads((Path(folder) / "plain.json").read_text()))


def run_ours(kind: str, programs: list[str]) -> list[ToolResult]:
    config = ExecutorConfig(kind=kind, timeout=60)  # type: ignore[arg-type]
    with open_executor(config, log=lambda _: None) as executor:
        futures = [executor.submit(code) for code in programs]
        return [future.result() for future in futures]


def outcome(code: int | None, stdout: str) -> tuple[int | None, str]:
    """Remove memory addresses, which differ between runs, and the folder."""
    return code, re.sub(r"0x[0-9a-f]{6,}", "0x", re.sub(r"/slots/\d+|/\S*/grpo-tir-\w+/\d+", ".", stdout))


def compare(kind: str, chosen: list[tuple[str, str]]) -> dict[str, Any]:
    """Count the differences for one executor and print the harmful ones."""
    programs = [code for _, code in chosen]
    plain, ours = run_plain(kind, programs), run_ours(kind, programs)
    doubtful = [i for i, (p, o) in enumerate(zip(plain, ours, strict=True))
                if p is None or outcome(p[0], p[1]) != outcome(o.exit_code, o.stdout)]  # fmt: skip
    codes = [programs[i] for i in doubtful]
    again = dict(zip(doubtful, zip(run_plain(kind, codes), run_ours(kind, codes), strict=True), strict=True))
    counts: Counter[str] = Counter()
    for i in range(len(programs)):
        counts[f"{chosen[i][0]} programs"] += 1
        counts["ran to the end"] += plain[i] is not None and plain[i][0] == 0
        if i not in again:
            continue
        first, our, (second, again_our) = plain[i], ours[i], again[i]
        seen = {outcome(o.exit_code, o.stdout) for o in (our, again_our)}
        if first is None or second is None or outcome(*first[:2]) != outcome(*second[:2]) or len(seen) > 1:
            counts["not repeatable"] += 1
        elif our.truncated or REFUSED.search(our.stderr + our.stdout):
            counts["refused"] += 1
        else:
            counts["harmful"] += 1
            print(f"--- {kind}: {our.status}, exit {our.exit_code} for {first[0]}\n{programs[i][:1500]}")
            print(f"plain: {first[1][-300:]!r} {first[2][-200:]!r}")
            print(f"ours:  {our.stdout[-300:]!r} {our.stderr[-200:]!r}")
    return {"programs": len(programs), "harmful": 0, **counts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=2500, help="at most (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: %(default)s)")
    parser.add_argument("--executors", nargs="+", choices=["docker", "process"], default=["docker", "process"])
    args = parser.parse_args()
    chosen = collect(args.programs, args.seed)
    print(json.dumps({"benchmark": "fidelity", **{kind: compare(kind, chosen) for kind in args.executors}}))


if __name__ == "__main__":
    main()

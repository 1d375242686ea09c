"""The direction of imports, held by the syntax of every file and by what an interpreter really loads."""

from __future__ import annotations

import ast
import configparser
import os
import subprocess
import sys
from pathlib import Path

import pytest

from grpo_tir.cli import COMMANDS

SOURCE = Path(__file__).resolve().parents[2] / "src" / "grpo_tir"

# A module imports from its own row or from below. A name stands for itself and all inside it; the longest counts.
LAYERS = [
    ["types", "config", "errors", "utils", "grading", "learning.certificate", "minimal"],
    ["tools.protocol", "tools.python", "tools.formats", "executor.protocol", "monitor.alarms"],
    ["data", "rollouts.rewards", "learning.advantages", "learning.turns", "learning.loss", "learning.packing"],
    ["learning.fast_softmax", "learning.prepare", "learning.logprobs", "learning.batching"],
    ["executor", "tools", "generation", "engine", "learning.lora", "testing"],
    ["rollouts.policy", "rollouts.rollout", "rollouts.sample", "rollouts.standalone", "distributed"],
    ["monitor", "checkpoint", "learning"],
    ["rollouts.batch", "rollouts.collect", "evaluation.held_out"],
    ["train", "parts"],
    ["evaluation", "curation", "diagnostics", "report"],
    ["cli", "commands", "__main__"],
]
# The trainer's rooms, and what surrounds them. Nothing of the trainer imports what surrounds it, except `grading`
# (a library that imports nothing of ours but errors) and the held-out evaluation.
TRAINER = ["data", "rollouts", "generation", "engine", "tools", "executor", "learning", "distributed"]
TRAINER += [
    "checkpoint",
    "monitor",
    "utils",
    "train",
    "parts",
    "types",
    "config",
    "errors",
    "grading",
    "evaluation.held_out",
]
TORCH_FREE = ["types", "config", "errors", "utils", "grading", "distributed.launcher", "tools.python", "cli"]
TORCH_FREE += ["tools.protocol", "tools.formats", "tools.named", "tools.functions"]
TORCH_FREE += ["executor.protocol", "monitor.metrics", "monitor.alarms", "monitor.run_log"]
TORCH_FREE += ["rollouts.rewards", "learning.certificate", "data.prompts", "data.problems", "data.benchmarks"]
TORCH_FREE += ["curation.limr", "curation.balance", "curation.build", "curation.sources", "diagnostics.memory"]
TORCH_FREE += ["utils.hub", "utils.files", "utils.resources"]
HEAVY = {"torch", "transformers", "accelerate", "deepspeed", "docker", "sympy", "math_verify", "numpy"}


def modules() -> dict[str, Path]:
    """Name below `grpo_tir` -> file; the package itself is the empty name."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imports(path: Path) -> set[str]:
    """Full names of all that a file imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} line {node.lineno}: imports are written out, not relative"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def graph() -> dict[str, set[str]]:
    """Module -> the modules of ours that it imports."""
    known = modules()
    edges: dict[str, set[str]] = {}
    for name, path in known.items():
        ours = {full.removeprefix("grpo_tir.") for full in imports(path) if full.startswith("grpo_tir.")}
        # `from grpo_tir.errors import DataError` names a thing in `errors`, `from grpo_tir import errors` itself.
        edges[name] = {target if target in known else target.rpartition(".")[0] for target in ours} - {name, ""}
        assert edges[name] <= set(known), f"{name} imports what is not there: {edges[name] - set(known)}"
    return edges


def layer(module: str) -> int:
    rows = {entry: row for row, entries in enumerate(LAYERS) for entry in entries if in_package(module, entry)}
    assert rows, f"{module} has no row: decide what it may import and add it to LAYERS"
    return rows[max(rows, key=len)]


def users(package: str) -> set[str]:
    return {name for name, path in modules().items() if any(in_package(full, package) for full in imports(path))}


def in_package(module: str, entry: str) -> bool:
    return module == entry or module.startswith(f"{entry}.")


def test_imports_go_down_or_sideways() -> None:
    upward = [
        f"{module} imports {target}"
        for module, targets in graph().items()
        if module
        for target in targets
        if layer(target) > layer(module)
    ]
    assert not upward


def test_the_trainer_imports_nothing_that_surrounds_it() -> None:
    outside = {
        f"{module} imports {target}"
        for module, targets in graph().items()
        if any(in_package(module, room) for room in TRAINER)
        for target in targets
        if not any(in_package(target, room) for room in TRAINER) and target != "evaluation"
    }
    assert not outside


def test_no_two_modules_import_each_other() -> None:
    """No cycle of top-level packages within a row; inside a package too."""
    edges = graph()
    done: set[str] = set()

    def walk(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, f"a cycle: {' -> '.join([*trail[trail.index(module) :], module])}"
        if module not in done:
            for target in sorted(edges[module]):
                walk(target, (*trail, module))
            done.add(module)

    for module in edges:
        walk(module, ())


@pytest.mark.parametrize("package", ["accelerate", "deepspeed"])
def test_only_distributed_knows_the_launcher(package: str) -> None:
    assert all(in_package(user, "distributed") for user in users(package))


def test_only_the_docker_client_knows_docker() -> None:
    """Its two halves: one runs containers, the other builds their image."""
    assert users("docker") <= {"executor.docker_client", "executor.image"}


@pytest.mark.parametrize("module", TORCH_FREE)
def test_importing_it_loads_no_torch(module: str) -> None:
    loaded = python(f"import sys, grpo_tir.{module}; print(*sys.modules)").split()
    heavy = {"torch", "transformers", "accelerate"} & set(loaded)
    assert not heavy


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_loads_nothing_heavy(command: str) -> None:
    """Not timed: what takes the time is torch, sympy and their like, so they are looked for by name."""
    code = f"""if True:
        import contextlib, io, sys
        from grpo_tir.cli import main
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
            main([*{command.split()}, "--help"])
        assert "grpo-tir {command}" in out.getvalue()
        print(*sys.modules)
    """
    heavy = HEAVY & set(python(code).split())
    assert not heavy


def test_every_package_is_in_the_wheel() -> None:
    """setup.cfg lists packages by hand, because two of them lie outside src."""
    setup = configparser.ConfigParser()
    setup.read(SOURCE.parents[1] / "setup.cfg", encoding="utf-8")
    listed = set(setup["options"]["packages"].split()) - {"grpo_tir._recipes", "grpo_tir._sandbox"}
    present = {".".join(path.parent.relative_to(SOURCE.parent).parts) for path in SOURCE.rglob("__init__.py")}
    assert listed == present
    bare = [path for path in SOURCE.rglob("*.py") if not (path.parent / "__init__.py").exists()]
    assert not bare, "a folder of modules without __init__.py is left out of the wheel"


def python(code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE.parent)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout

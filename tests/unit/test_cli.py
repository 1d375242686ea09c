"""The command line: what it takes apart, what it answers, with which exit code."""

from __future__ import annotations

import errno
import subprocess
import sys
import types
from typing import Any

import pytest

from grpo_tir import cli
from grpo_tir.errors import ExecutorOutage, UserError


@pytest.mark.parametrize(
    "arguments, rest, overrides",
    [
        (["recipe", "--optim.lr", "1e-6", "--resume"], ["recipe", "--resume"], ["--optim.lr", "1e-6"]),
        (["--optim.lr=1e-6", "recipe.yaml"], ["recipe.yaml"], ["--optim.lr=1e-6"]),
        (["--algorithm.kl_coef", "-0.5", "r"], ["r"], ["--algorithm.kl_coef", "-0.5"]),
        (["r", "--train.deterministic", "--resume"], ["r", "--resume"], ["--train.deterministic"]),
        (["--out=a.json", "--data", "b.jsonl"], ["--out=a.json", "--data", "b.jsonl"], []),
    ],
)
def test_overrides_are_told_from_a_command_s_own_arguments(
    arguments: list[str], rest: list[str], overrides: list[str]
) -> None:
    assert cli.split_overrides(arguments) == (rest, overrides)


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # to import it is an error
from grpo_tir.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("arguments", ["train small_0.5b", "eval x --bench aime24"])
def test_without_torch_a_command_ends_with_one_line(arguments: str) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, *arguments.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    want = "grpo-tir: torch is not installed, and this command needs it: pip install 'grpo-tir[train]'\n"
    assert (done.returncode, done.stderr) == (2, want)


def run(monkeypatch: pytest.MonkeyPatch, error: BaseException | None) -> int:
    def fail(_: Any) -> int:
        if error is not None:
            raise error
        return 7

    module = types.SimpleNamespace(add_arguments=lambda parser: None, run=fail)
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: module)
    return cli.main(["train"])


@pytest.mark.parametrize(
    "error, code",
    [
        (None, 7),
        (UserError("what, where, mend"), 2),
        (ExecutorOutage("ours"), 1),
        (OSError(errno.ENOSPC, "No space left on device"), 2),
        (PermissionError(errno.EACCES, "Permission denied", "runs/x"), 2),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(
    error: BaseException | None, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, error) == code
    said = capsys.readouterr().err.splitlines()
    if error is not None and not isinstance(error, KeyboardInterrupt):
        assert len(said) == 1 and said[0].startswith("grpo-tir: ")


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    for bug in (ValueError("x"), OSError(errno.EINVAL, "Invalid argument")):
        with pytest.raises(type(bug)):
            run(monkeypatch, bug)


def test_unknown_command_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trian"]) == 2
    assert "unknown command `trian`; did you mean `train`?" in capsys.readouterr().err


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    text = capsys.readouterr().out
    assert all(f"grpo-tir {name}" in text for name in cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_its_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0
    assert f"usage: grpo-tir {name}" in capsys.readouterr().out


def test_closed_pipe_is_no_error() -> None:
    """`grpo-tir --help | head -1`"""
    command = f"{sys.executable} -m grpo_tir --help | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr

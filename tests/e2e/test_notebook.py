"""The library in a notebook: the tutorial runs, and a program trains, is interrupted and goes on in one kernel."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jupytext
import pytest
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient

from grpo_tir.utils.files import read_jsonl
from quickstart import build
from quickstart.base_model import PretrainConfig, build_model
from quickstart.world import WorldConfig, make_documents, make_problems


def run_tutorial(repository: Path, folder: Path, steps: int) -> str:
    """Execute the tutorial in `folder`. Returns all that it printed and displayed."""
    notebook = jupytext.read(repository / "docs/tutorial.py")
    environment = {**os.environ, "TUTORIAL_STEPS": str(steps), "PYTHONPATH": str(repository / "src")}
    client = NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(folder)}})
    client.execute(env=environment)  # raises the error of a cell that fails
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = [output.get("text") or str(output.get("data", {}).get("text/html", "")) for output in outputs]
    return "\n".join(shown)


def test_the_tutorial_runs(repository: Path, tmp_path: Path) -> None:
    """With a base model of 250 steps, not 3,600: it already calls the tool, and knows no answer."""
    world = WorldConfig(seed=1)
    home = tmp_path / f".cache/grpo-tir/quickstart-1-{build._fingerprint(world)}"
    home.mkdir(parents=True)
    train, held_out, keys = make_problems(world)
    build.write_problems(home / "train.jsonl", train)
    build.write_problems(home / "eval.jsonl", held_out[:50])
    pages = list(make_documents(world, keys))[-5000:]
    quiet = {"log": lambda line: None, "progress": False}
    build_model(pages, home / "model", 1, config=PretrainConfig(steps=250), **quiet)

    shown = run_tutorial(repository, tmp_path, steps=2)
    assert "gradient at tool and prompt tokens: 0.000000" in shown
    assert 'class="tool" title="tool, id' in shown, "the tokens that the tool wrote have their own colour"
    assert [line["step"] for line in read_jsonl(tmp_path / "runs/tutorial/metrics.jsonl")] == [0, 1, 2]
    assert "runs/tutorial/report.html" in shown and (tmp_path / "runs/tutorial/report.html").is_file()


@pytest.mark.slow
def test_the_tutorial_teaches_the_tool(repository: Path, tmp_path: Path) -> None:
    run_tutorial(repository, tmp_path, steps=30)
    history = read_jsonl(tmp_path / "runs/tutorial/metrics.jsonl")
    assert history[0]["eval/accuracy"] < 0.1 and history[-1]["eval/accuracy"] > 0.7
    assert history[-1]["tools/code_ratio"] > 0.7


@dataclass
class Kernel:
    """A notebook kernel: run a cell, or interrupt it as the stop button does."""

    manager: Any
    client: Any

    def run(self, code: str, interrupt_at: str | None = None) -> tuple[str, str]:
        """Run a cell; interrupt it once it has printed `interrupt_at`. Returns its text and its error."""
        request = self.client.execute(code)
        text, error, deadline = "", "", time.monotonic() + 120
        while time.monotonic() < deadline:
            message = self.client.get_iopub_msg(timeout=120)
            if message["parent_header"].get("msg_id") != request:
                continue
            kind, content = message["msg_type"], message["content"]
            text += content["text"] if kind == "stream" else ""
            error += content["ename"] if kind == "error" else ""
            if interrupt_at is not None and interrupt_at in text:
                self.manager.interrupt_kernel()
                interrupt_at = None
            if kind == "status" and content["execution_state"] == "idle":
                return text, error
        raise TimeoutError(text)


@pytest.fixture
def kernel(repository: Path, tmp_path: Path) -> Iterator[Kernel]:
    environment = {**os.environ, "PYTHONPATH": str(repository / "src"), "OMP_NUM_THREADS": "1"}
    manager, client = start_new_kernel(env=environment, cwd=str(tmp_path))
    yield Kernel(manager, client)
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def test_a_program_trains_twice_in_one_kernel_and_goes_on_after_an_interrupt(
    kernel: Kernel, repository: Path, tmp_path: Path
) -> None:
    program = (repository / "tests/e2e/user_program.py").read_text().partition("\n\n\nif __name__")[0]
    assert not kernel.run(program)[1]
    # 1. Twice in one kernel: the second run is the first one again, and the tool was called in both.
    (first, error), (second, _) = (kernel.run(f"train({name!r}, 2)") for name in ("first", "second"))
    assert not error and history(first) == history(second)
    assert [step for step, _, calls in history(first) if calls > 0] == [1, 2]
    # 2. Interrupted: `train` returns with a checkpoint, and a later one goes on from there.
    text, error = kernel.run("trainer = train('third', 500)", interrupt_at="step    2/500")
    assert not error and "SIGINT: saving and stopping" in text
    done = history(text)[-1][0]
    assert 2 <= done < 500 and (tmp_path / f"third/checkpoints/step_{done:06d}").is_dir()
    assert kernel.run("print(trainer.exit_code, trainer.steps_done)") == (f"130 {done}\n", "")
    text, error = kernel.run(f"train('third', {done + 1}, resume=True)")
    assert not error and [step for step, _, _ in history(text)] == list(range(1, done + 2))
    assert history(text)[:2] == history(first)
    # 3. The kernel's own handler is back.
    waiting = "print('waiting', flush=True); import time; time.sleep(100)"
    assert kernel.run(waiting, interrupt_at="waiting") == ("waiting\n", "KeyboardInterrupt")


def history(text: str) -> list[Any]:
    """Return what the program printed of its history."""
    line = next(line for line in text.splitlines() if line.startswith("[("))
    return list(eval(line))

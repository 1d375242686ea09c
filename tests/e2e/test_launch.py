"""`accelerate launch` with two real processes: the same weights as one process, a clean stop, checkpoints."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from grpo_tir.distributed.runtime import Runtime
from recorded_update import SETTINGS, resume, weights_of
from training_run import LAUNCH, environment, finish, launcher, metrics_without_time, prepare, start, wait_for

TESTS = Path(__file__).resolve().parents[1]
LAUNCHES = ["cpu", "zero1", pytest.param("zero2", marks=pytest.mark.slow), "zero3"]
"""ZeRO-2 differs from ZeRO-1 by where gradients are summed only, so it is left to `make test-all`."""


def record(out: Path, *others: Path, launch: tuple[str, ...] = ()) -> dict[str, Any]:
    """Run `recorded_update.py` and read what it found."""
    command = [sys.executable, *launch, str(TESTS / "recorded_update.py"), str(out), *map(str, others)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    results: dict[str, Any] = torch.load(out)
    return results


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """The updates by one process, and its checkpoint."""
    folder = tmp_path_factory.mktemp("alone")
    return record(folder / "alone.pt"), folder / "alone" / "step_000002"


@pytest.fixture(scope="module", params=LAUNCHES)
def launched(
    request: pytest.FixtureRequest, alone: tuple[dict[str, Any], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path]:
    """The same updates by two processes, sharded or not."""
    recipe: str = request.param
    folder = tmp_path_factory.mktemp(recipe)
    if recipe != "cpu":
        pytest.importorskip("deepspeed", reason="DeepSpeed is not installed: make test EXTRAS=dev,deepspeed")
    results = record(folder / "two.pt", alone[1], launch=launcher(recipe))
    assert (results["world"], results["stage"]) == (2, int(recipe[-1]) if recipe != "cpu" else 0)
    return results, folder / "two" / "step_000002"


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    ours, theirs = ours.nan_to_num(), theirs.nan_to_num()
    return float((ours - theirs).norm() / theirs.norm().clamp(min=1e-12))


def test_two_processes_learn_what_one_does(
    alone: tuple[dict[str, Any], Path], launched: tuple[dict[str, Any], Path]
) -> None:
    """Four updates of uneven rows: every gradient, the weights after them and all metrics."""
    for name in SETTINGS:
        one, two = alone[0][name], launched[0][name]
        assert one["moved"] > 1e-3, name
        for ours, theirs in zip(two["gradients"], one["gradients"], strict=True):
            assert distance(ours, theirs) < 1e-5, name
        assert distance(two["weights"], one["weights"]) < 1e-6, name
        assert (one["weights"] - two["weights"]).norm() / one["moved"] < 1e-2, name
        for ours, theirs in zip(two["metrics"], one["metrics"], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5, nan_ok=True), name


def test_rows_are_dealt_anew_by_length_and_the_gradient_stays(
    alone: tuple[dict[str, Any], Path], launched: tuple[dict[str, Any], Path]
) -> None:
    """Two ranks sampled three groups and two; they learn from equal numbers of tokens, within one short row, and
    each gets the learner's log-probs of its own rollouts back."""
    level, stay = launched[0]["token"], launched[0]["rows stay"]
    for ours, theirs in zip(level["gradients"], stay["gradients"], strict=True):
        assert distance(ours, theirs) < 1e-5
    uneven, even = ([abs(a - b) / (a + b) for a, b in zip(*each["tokens"], strict=True)] for each in (stay, level))
    assert max(even) < 0.03 < 0.1 < max(uneven)
    for ours, theirs in zip(level["old_logprobs"], alone[0]["token"]["old_logprobs"], strict=True):
        assert ours[:2] == theirs[:2] and ours[2] == pytest.approx(theirs[2], abs=1e-4)


def test_a_gpu_samples_from_bf16_weights_that_are_never_whole_in_float32(
    launched: tuple[dict[str, Any], Path],
) -> None:
    """Under ZeRO-3 the copy is gathered in parts. The updates after it go on (the other tests)."""
    found = launched[0]["decoded"]
    assert found["same"] and len(found["tokens"]) == 3
    if launched[0]["stage"] == 3:
        assert found["freed"] and len(found["gathered"]) > 5
        assert sum(found["gathered"]) == len(launched[0]["token"]["weights"])
        assert max(found["gathered"]) <= 3000
    else:
        assert not found["gathered"] and not found["freed"]


def test_gradient_does_not_depend_on_the_micro_batches(launched: tuple[dict[str, Any], Path]) -> None:
    """Budgets of 1, 64 and 256 tokens, and a head that runs in chunks."""
    reference, *others = (
        launched[0][name] for name in ("token", "one row at a time", "four times the budget", "head in chunks")
    )
    for other in others:
        for ours, theirs in zip(other["gradients"], reference["gradients"], strict=True):
            assert distance(ours, theirs) < 1e-5
        assert distance(other["weights"], reference["weights"]) < 1e-6


def test_step_without_a_finite_gradient_moves_nothing(launched: tuple[dict[str, Any], Path]) -> None:
    metrics = launched[0]["a step without a finite gradient"]["metrics"]
    assert [line["skipped_updates"] for line in metrics] == [0, 1, 0, 0]


def test_checkpoint_goes_on_to_the_last_bit_and_in_any_other_launch(
    alone: tuple[dict[str, Any], Path], launched: tuple[dict[str, Any], Path]
) -> None:
    """By the launch that wrote it, by one process, and the other way round."""
    results, checkpoint = launched
    assert torch.equal(results[f"resumed from {checkpoint}"], results["token"]["weights"])
    assert distance(results[f"resumed from {alone[1]}"], alone[0]["token"]["weights"]) < 1e-6
    by_one = weights_of(resume(Runtime("fp32"), checkpoint))
    assert distance(by_one, results["token"]["weights"]) < 1e-6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("launch"))


def launch(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return start(folder, *arguments, launcher=(*LAUNCH, "-m", "grpo_tir"))


def test_launched_run_equals_a_plain_one_and_says_everything_once(folder: Path) -> None:
    options = ("--train.steps", "2", "--optim.lr", "1e-4")
    code, out, err = finish(launch(folder, "--train.output_dir", "two", *options))
    assert code == 0, out + err
    assert out.count("2 processes") == 1 and out.count("saved") == 2 and out.count("step    1/2") == 1
    code, out, err = finish(start(folder, "--train.output_dir", "one", *options))
    assert code == 0, out + err
    for ours, theirs in zip(
        metrics_without_time(folder / "two"), metrics_without_time(folder / "one"), strict=True
    ):
        assert ours.keys() == theirs.keys()
        for name in ours.keys() - {"certificate/used"}:  # rounding itself, on a scale of its own
            same = ours[name] == theirs[name]  # null, too
            assert same or ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5), name
    final = "checkpoints/step_000002/model.safetensors"
    two, one = (
        torch.cat([tensor.flatten().double() for _, tensor in sorted(load_file(folder / run / final).items())])
        for run in ("two", "one")
    )
    assert (two - one).norm() / one.norm() < 1e-5


@pytest.mark.parametrize("everybody", [True, False], ids=["Ctrl-C to all", "SIGTERM to the launcher"])
def test_signal_to_a_launch_saves_a_checkpoint_that_resumes(everybody: bool, folder: Path) -> None:
    run = folder / ("ctrl_c" if everybody else "term")
    process = launch(folder, "--train.output_dir", run.name, "--train.steps", "10000", "--train.save_every", "0")
    wait_for(lambda: (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size, process)
    if everybody:  # as a terminal does
        os.killpg(process.pid, signal.SIGINT)
    else:
        os.kill(process.pid, signal.SIGTERM)
    code, out, err = finish(process, timeout=120)
    assert code != 0
    done = len(metrics_without_time(run))
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"step_{done:06d}"], out + err
    if not everybody:
        return  # what was saved is resumed once
    code, out, err = finish(
        launch(folder, "--train.output_dir", run.name, "--train.steps", str(done + 1), "--resume")
    )
    assert code == 0, out + err
    assert f"resuming after step {done}" in out
    assert [line["step"] for line in metrics_without_time(run)] == list(range(1, done + 2))

"""SIGKILL at named moments in every phase: resumed, the run ends as if it had never been killed.

Real processes, real kills; `strike.py` only chooses the moment. `make test` runs a few, `make test-faults` all.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from grpo_tir.checkpoint.load import find_fault, list_checkpoints
from training_run import finish, launcher, metrics_without_time, prepare, start, weights_hash

STRIKE = str(Path(__file__).with_name("strike.py"))
# Two waves to a step and rank, two steps to a checkpoint, of which one is kept, and two evaluations.
RECIPE = {
    "--rollout.max_rows": "2",
    "--train.steps": "4",
    "--train.save_every": "2",
    "--train.save_total_limit": "1",
    "--train.rollouts_every": "1",
    "--train.eval_every": "2",
    "--train.eval_size": "2",
}
FAST = ["decode:40", "optimizer:2", "exported:1"]
MOMENTS = {
    "the evaluation before training": "held-out decode:10",
    "prefill of the first wave": "prefill:1",
    "decoding the first wave": "decode:10",
    "prefill of a later wave": "prefill:9",
    "decoding after a checkpoint": "decode:150",
    "a program in flight": "call:3",
    "a result just recorded": "answer:9",
    "a torn line of the journal": "journal:12",
    "grading in the first step": "reward:2",
    "grading at the end of a batch": "reward:12",
    "backward, first step": "backward:1",
    "backward, after a checkpoint": "backward:3",
    "before the optimizer's step": "optimizer:1",
    "after the optimizer's step": "stepped:2",
    "a torn line of the rewards": "metrics:2",
    "a torn line of the metrics": "metrics:3",
    "the evaluation at a checkpoint": "evaluated:2",
    "the copy for a checkpoint": "snapshot:1",
    "saving: weights written": "exported:1",
    "saving: optimizer written": "optimizer saved:2",
    "saving: not yet renamed": "manifest:1",
    "saving: the old one not yet removed": "listed:2",
    "saving: the journal not yet pruned": "whole:2",
    "saving: all done": "pruned:2",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("kill"))


def run(
    folder: Path, name: str, *arguments: str, moment: str = "", how: str = "kill", launch: str = "", rank: int = 0
) -> str:
    """One run to its end, or to its fault at `moment` of `rank`; returns what it said. With `launch`, a file for
    accelerate, of two processes."""
    options = [word for pair in {**RECIPE, "--data.eval": "held_out.jsonl"}.items() for word in pair]
    strike = {"STRIKE": f"{moment} {how}"} if moment else {}
    strike["STRIKE_RANK"] = str(rank)
    program = (*(launcher(launch) if launch else ()), STRIKE)
    process = start(folder, "--train.output_dir", name, *options, *arguments, launcher=program, **strike)
    code, out, err = finish(process)
    assert not moment or f"strike: {moment} {how}" in err, "that moment never came:\n" + out + err
    assert code == ({"kill": -signal.SIGKILL, "term": 128 + signal.SIGTERM}[how] if moment else 0), out + err
    return out


def outcome(run: Path) -> dict[str, Any]:
    """All that must not depend on how often a run was killed."""
    rollouts = {path.name: path.read_text() for path in sorted((run / "rollouts").iterdir())}
    for name, text in rollouts.items():
        lines = [json.loads(line) for line in text.splitlines()]
        for line in lines:
            for call in line["calls"]:
                call.pop("seconds")
        rollouts[name] = lines
    return {
        "weights": [(path.name, weights_hash(path)) for path in list_checkpoints(run / "checkpoints")],
        "faults": [find_fault(path) for path in list_checkpoints(run / "checkpoints")],
        "metrics": metrics_without_time(run),
        "rewards": (run / "problem_rewards.jsonl").read_text(),
        "rollouts": rollouts,
    }


@pytest.fixture(scope="module")
def uninterrupted(folder: Path) -> dict[str, Any]:
    """The run that was left alone."""
    run(folder, "whole")
    found = outcome(folder / "whole")
    assert [line["step"] for line in found["metrics"]] == [0, 1, 2, 3, 4]
    assert [name for name, _ in found["weights"]] == ["step_000004"]
    return found


def test_a_run_killed_again_and_again_ends_as_if_it_had_been_left_alone(
    folder: Path, uninterrupted: dict[str, Any]
) -> None:
    """In the middle of decoding, before an optimizer step (of what the journal gave back), and during a save."""
    name = "thrice"
    for moment in FAST:
        run(folder, name, "--resume", moment=moment)
    assert "rollouts taken from the journal" in run(folder, name, "--resume")
    assert outcome(folder / name) == uninterrupted


def test_sigterm_while_sampling_or_evaluating_saves_and_nothing_is_missing_afterwards(
    folder: Path, uninterrupted: dict[str, Any]
) -> None:
    """The batch that was being sampled is finished after the resume; an evaluation cut short is made up for."""
    for moment in ("decode:40", "evaluating:1"):
        out = run(folder, "terminated", "--resume", moment=moment, how="term")
        assert "SIGTERM: saving and stopping" in out and "saved terminated/checkpoints/step_" in out
    run(folder, "terminated", "--resume")
    assert outcome(folder / "terminated") == uninterrupted


def test_a_run_that_carries_groups_over_ends_as_if_it_had_been_left_alone(folder: Path) -> None:
    """Killed while it decodes, and after the journal gave back two steps; then stopped. A turn of step 2 is drawn
    by the weights of two steps, and so are the responses that checkpoint 2 carries."""
    options = ["--rollout.carry_over=0.5", "--algorithm.importance_cap=2", "--rollout.max_rows=0"]
    options += ["--rollout.prompts_per_step=4", "--rollout.max_completion_length=120"]
    run(folder, "carries", *options)
    found = outcome(folder / "carries")
    second, third = (found["rollouts"][f"step_00000{step}.jsonl"] for step in (2, 3))
    assert {1, 2} in [set(segment["versions"]) for line in second for segment in line["segments"]]
    assert {2, 3} in [{v for segment in line["segments"] for v in segment["versions"]} for line in third]
    for moment, how in (("decode:60", "kill"), ("optimizer:2", "kill"), ("decode:80", "term")):
        run(folder, "struck", *options, "--resume", moment=moment, how=how)
    run(folder, "struck", *options, "--resume")
    assert outcome(folder / "struck") == found


@pytest.mark.slow
@pytest.mark.parametrize("what", MOMENTS)
def test_killed_at(what: str, folder: Path, uninterrupted: dict[str, Any]) -> None:
    name = what.replace(" ", "_").replace(":", "").replace(",", "")
    run(folder, name, moment=MOMENTS[what])
    run(folder, name, "--resume")
    assert outcome(folder / name) == uninterrupted


OF_TWO = {
    "cpu": [
        ("decode:10", 1),
        ("call:2", 0),
        ("reward:3", 1),
        ("backward:2", 1),
        ("stepped:2", 0),
        ("exported:1", 0),
        ("evaluated:2", 1),
    ],
    "zero1": [("optimizer saved:1", 1)],
    "zero3": [("decode:10", 1), ("backward:3", 0), ("exported:1", 1)],
}


@pytest.fixture(scope="module")
def two_uninterrupted(folder: Path) -> Callable[[str], dict[str, Any]]:
    """Two processes that were left alone."""

    @cache
    def left_alone(launch: str) -> dict[str, Any]:
        run(folder, launch, launch=launch)
        return outcome(folder / launch)

    return left_alone


@pytest.mark.slow
@pytest.mark.parametrize("launch, moment, rank", [(kind, *each) for kind in OF_TWO for each in OF_TWO[kind]])
def test_two_processes_killed_at(
    launch: str, moment: str, rank: int, folder: Path, two_uninterrupted: Callable[[str], dict[str, Any]]
) -> None:
    name = f"{launch}_{moment.replace(':', '_').replace(' ', '_')}"
    run(folder, name, moment=moment, launch=launch, rank=rank)
    run(folder, name, "--resume", launch=launch)
    assert outcome(folder / name) == two_uninterrupted(launch)

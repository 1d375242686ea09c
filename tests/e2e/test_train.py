"""A real run goes through; stopped by a signal it goes on. (Kills: tests/faults/test_kill.py)"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from training_run import ROWS, finish, metrics_without_time, prepare, start, wait_for, weights_hash


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("train"))


@pytest.fixture(scope="module")
def uninterrupted(folder: Path) -> Path:
    """Three steps in one go, for every other run to be held against."""
    code, out, err = finish(start(folder, "--train.output_dir", "whole"))
    assert code == 0, out + err
    return folder / "whole"


def steps(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").glob("step_*"))


def rollouts(run: Path, step: int) -> list[dict[str, Any]]:
    lines = (run / "rollouts" / f"step_{step:06d}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def check_run(run: Path) -> None:
    """What any three steps of this recipe must have left behind."""
    metrics = metrics_without_time(run)
    assert [line["step"] for line in metrics] == [1, 2, 3]
    assert all(line["loss"] is not None and line["grad_norm"] > 0 for line in metrics)
    assert steps(run) == ["step_000001", "step_000002", "step_000003"]
    trajectories = rollouts(run, 1)
    assert len(trajectories) == ROWS
    calls = [call for trajectory in trajectories for call in trajectory["calls"]]
    statuses = {call["status"] for call in calls if call["code"]}
    assert statuses == {"ok", "error"}, "programs that run and programs that fail"
    for trajectory in trajectories:
        assert sum(len(segment["token_ids"]) for segment in trajectory["segments"]) <= 60
        assert trajectory["prompt_ids"]


def test_three_steps_with_the_torl_template(uninterrupted: Path) -> None:
    check_run(uninterrupted)
    hashes = [weights_hash(uninterrupted / "checkpoints" / step) for step in steps(uninterrupted)]
    assert len(set(hashes)) == 3, "a step that moves nothing"
    # the certificate: what was sampled is what was trained
    for line in metrics_without_time(uninterrupted):
        assert line["sampling/sampling_logp_difference/max"] < 1e-3


def test_every_checkpoint_loads_with_plain_transformers(uninterrupted: Path) -> None:
    path = uninterrupted / "checkpoints" / "step_000003"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    ids = tokenizer("1 + 1", return_tensors="pt")["input_ids"]
    assert model.generate(ids, max_new_tokens=3).shape[1] > ids.shape[1]
    assert (path / "recipe.yaml").is_file()


def test_resuming_a_finished_run_changes_nothing(uninterrupted: Path, folder: Path) -> None:
    before = (uninterrupted / "metrics.jsonl").read_text()
    code, out, err = finish(start(folder, "--train.output_dir", "whole", "--resume"))
    assert code == 0, out + err
    assert (uninterrupted / "metrics.jsonl").read_text() == before
    assert steps(uninterrupted)[-1] == "step_000003"


def test_signal_ends_the_run_with_a_checkpoint_and_the_shell_s_code(folder: Path) -> None:
    """SIGTERM; the next test sends Ctrl-C, and tests/unit/distributed/test_signals.py both."""
    run = folder / "terminated"
    process = start(folder, "--train.output_dir", run.name, "--train.steps", "10000", "--train.save_every", "0")
    wait_for(lambda: (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size, process)
    os.kill(process.pid, signal.SIGTERM)
    ended, out, err = finish(process, timeout=90)
    assert ended == 143, out + err
    assert "Traceback" not in err
    assert "SIGTERM: saving and stopping" in out
    (saved,) = steps(run)
    done = len(metrics_without_time(run))
    assert saved == f"step_{done:06d}", "the checkpoint is of the last step that was taken"


def test_second_signal_ends_the_run_at_once(folder: Path) -> None:
    (folder / "hold_at").write_text("1")
    (folder / "held").unlink(missing_ok=True)
    process = start(folder, "--train.output_dir", "impatient")
    wait_for((folder / "held").exists, process)
    os.kill(process.pid, signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):  # it waits for the reward that is held
        process.wait(timeout=2)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(timeout=20) == 130
    (folder / "hold_at").unlink()
    process.communicate()


@pytest.mark.docker
def test_three_steps_with_the_container_executor_killed_and_resumed(folder: Path, uninterrupted: Path) -> None:
    """The same programs print the same in the container: the very weights of the process executor come out."""
    arguments = ("--train.output_dir", "docker", "--executor.kind", "docker")
    (folder / "hold_at").write_text(str(ROWS + 2))
    (folder / "held").unlink(missing_ok=True)
    process = start(folder, *arguments)
    wait_for(lambda: (folder / "held").exists() and steps(folder / "docker"), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (folder / "hold_at").unlink()
    code, out, err = finish(start(folder, *arguments, "--resume"))
    assert code == 0, out + err
    check_run(folder / "docker")
    final = "checkpoints/step_000003"
    assert weights_hash(folder / "docker" / final) == weights_hash(uninterrupted / final)

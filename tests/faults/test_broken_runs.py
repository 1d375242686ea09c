"""A disk that fills up and a gradient that is no number: nothing good is lost, and what went wrong can be seen."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from grpo_tir import cli
from grpo_tir.checkpoint.load import find_fault, list_checkpoints
from grpo_tir.distributed.runtime import Runtime
from grpo_tir.rollouts.batch import Batch
from grpo_tir.utils.files import read_jsonl
from tiny_policy import save_byte_model


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run of four rollouts a step without a tool, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    rows = [{"id": str(i), "problem": f"{i} + {i}?", "answer": str(2 * i)} for i in range(4)]
    Path("problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "model": {"path": str(save_byte_model(tmp_path / "model", num_hidden_layers=1))},
        "data": {"train": "problems.jsonl", "template": "plain"},
        "rollout": {"prompts_per_step": 2, "samples_per_prompt": 2, "max_completion_length": 8},
        "tool": {"max_tool_calls": 0},
        "train": {"steps": 3, "save_every": 1, "rollouts_every": 0, "output_dir": "run", "report_to": []},
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(settings))
    return "recipe.yaml"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_while_saving_ends_the_run_and_leaves_the_old_checkpoint_good(
    recipe: str, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["train", recipe, f"--train.output_dir={small_disk / 'run'}", "--resume"]
    assert cli.main([*options, "--train.steps=1"]) == 0
    (old,) = list_checkpoints(small_disk / "run/checkpoints")
    size = sum(path.stat().st_size for path in old.iterdir())
    (small_disk / "filling").write_bytes(bytes(shutil.disk_usage(small_disk).free - size // 2))
    assert cli.main(options) == 2
    said = capsys.readouterr().err
    assert "cannot save the checkpoint" in said and "earlier checkpoints are untouched" in said
    assert list_checkpoints(small_disk / "run/checkpoints") == [old] and find_fault(old) is None
    # with room again, the run goes on from there, with what the journal holds
    (small_disk / "filling").unlink()
    assert cli.main(options) == 0
    assert "rollouts taken from the journal" in capsys.readouterr().out
    assert [line["step"] for line in read_jsonl(small_disk / "run/metrics.jsonl")] == [1, 2, 3]


@pytest.mark.parametrize("background", ["true", "false"])
def test_a_run_stopped_while_sampling_keeps_what_was_finished(
    background: str, recipe: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not deterministic: no whole waves are needed."""
    finish, seen = Batch.finish, [0]

    def interrupted(batch: Batch, rollout: Any) -> None:
        seen[0] += 1
        if seen[0] == 7:  # the third of four in step 2
            raise KeyboardInterrupt
        finish(batch, rollout)

    monkeypatch.setattr(Batch, "finish", interrupted)
    options = ["train", recipe, "--train.rollouts_every=1", f"--train.save_in_background={background}"]
    assert cli.main(options) == 130
    finished = [line for line in read_jsonl(Path("run/journal/step_000002.rank0.jsonl")) if "rollout" in line]
    assert len(finished) == 3
    assert cli.main([*options, "--resume"]) == 0
    assert "step 2: 3 of 4 rollouts taken from the journal" in capsys.readouterr().out
    trained = {(row["group"], row["sample"]): row for row in read_jsonl(Path("run/rollouts/step_000002.jsonl"))}
    for line in finished:
        kept = trained[tuple(line["rollout"])]
        ids = [[segment["token_ids"] for segment in row["segments"]] for row in (line, kept)]
        assert ids[0] == ids[1]
    assert [row["step"] for row in read_jsonl(Path("run/metrics.jsonl"))] == [1, 2, 3]
    assert not list(Path("run/journal").iterdir()), "what a checkpoint has made certain is forgotten"


def poison(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Gradients of these steps are NaN, from the backward pass on."""
    backward, seen = Runtime.backward, [0]

    def poisoned(runtime: Runtime, module: Any, loss: torch.Tensor) -> None:
        seen[0] += 1
        backward(runtime, module, loss * torch.nan if seen[0] in steps else loss)

    monkeypatch.setattr(Runtime, "backward", poisoned)


def weights(step: int) -> bytes:
    return Path(f"run/checkpoints/step_{step:06d}/model.safetensors").read_bytes()


def test_a_step_without_a_finite_gradient_is_skipped_counted_and_written_down(
    recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, {2})
    assert cli.main(["train", recipe, "--optim.lr=0.01"]) == 0
    assert [line["skipped_updates"] for line in read_jsonl(Path("run/metrics.jsonl"))] == [0, 1, 0]
    assert weights(1) == weights(2) != weights(3)
    batch: list[dict[str, Any]] = torch.load("run/dumps/step_000002/rank0.pt", weights_only=True)
    assert len(batch) == 4 and all(len(row["token_ids"]) == len(row["loss_mask"]) for row in batch)
    # whole, for `grpo-tir replay`, though no step but the first would have been written down
    assert sorted(path.name for path in Path("run/rollouts").iterdir()) == [
        "step_000001.jsonl",
        "step_000002.jsonl",
    ]


def test_too_many_in_a_row_end_the_run_with_the_reason_and_the_batch(
    recipe: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    poison(monkeypatch, {2, 3})
    assert cli.main(["train", recipe, "--train.max_skipped=2"]) == 1
    said = capsys.readouterr().err
    assert "2 optimizer steps in a row had a gradient norm of nan" in said and "run/dumps/step_000003" in said
    assert len(read_jsonl(Path("run/rollouts/step_000003.jsonl"))) == 4
    assert find_fault(list_checkpoints(Path("run/checkpoints"))[-1]) is None

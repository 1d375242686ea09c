"""`grpo-tir replay` on a real run: as it was, and with each thing changed that it is there to see."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from grpo_tir.cli import main
from grpo_tir.config import Config
from grpo_tir.diagnostics.replay import to_rollout
from grpo_tir.monitor.run_log import trajectory
from grpo_tir.report.traces import full_rollout
from grpo_tir.train import train
from grpo_tir.utils.files import read_jsonl
from scripted import CALL, play_one
from tiny_policy import change
from training_run import prepare


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps, all written down; checkpoints of the steps 2 and 3."""
    folder = tmp_path_factory.mktemp("replay")
    problems = folder / "problems.jsonl"
    problems.write_text("".join(json.dumps({"problem": f"{n}?", "answer": str(n)}) + "\n" for n in range(4)))
    prepare(folder)
    config = change(
        Config(), model__path=str(folder / "model"), data__train=str(problems), data__template="plain",
        rollout__prompts_per_step=2, rollout__samples_per_prompt=4, rollout__max_completion_length=60,
        tool__max_tool_calls=2, executor__kind="process", executor__slots=2, optim__lr=0.01,
        train__output_dir=str(folder / "run"), train__steps=3, train__save_every=2, train__rollouts_every=1,
        train__report_to=[], train__sample_every=0,
    )  # fmt: skip
    assert train(config) == 0
    return folder / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy that may be spoilt."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def records(run: Path, step: int) -> list[dict[str, Any]]:
    return read_jsonl(run / "rollouts" / f"step_{step:06d}.jsonl")


def with_a_program_that_runs(run: Path, step: int) -> tuple[str, dict[str, Any]]:
    """GROUP.SAMPLE and the record of a response one of whose calls ran."""
    record = next(r for r in records(run, step) if any(call.get("status") == "ok" for call in r["calls"]))
    return f"{record['group']}.{record['sample']}", record


def spoil(run: Path, step: int, changed: dict[str, Any]) -> None:
    path = run / "rollouts" / f"step_{step:06d}.jsonl"
    rows = [
        changed if (r["group"], r["sample"]) == (changed["group"], changed["sample"]) else r
        for r in records(run, step)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("step", [1, 3])
def test_an_honest_record_replays_to_the_letter(step: int, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Step 1 against the base model, step 3 against the checkpoint of step 2."""
    name, record = with_a_program_that_runs(run, step)
    assert main(["replay", str(run), str(step), name]) == 0
    said = capsys.readouterr().out
    trained = sum(len(s["token_ids"]) for s in record["segments"] if s["kind"] == "model")
    assert f"ids and mask   as sampled: {trained} tokens trained" in said
    assert "log-probs      agree" in said
    assert said.count("the same") == len(record["calls"])


def test_without_the_weights_of_the_step_before_it_says_so(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(run), "2", "1", "--no-code"]) == 0
    assert "log-probs      not recomputed: there is no " in capsys.readouterr().out


def test_an_output_that_differs_is_shown_as_a_diff(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, record = with_a_program_that_runs(run, 1)
    call = next(call for call in record["calls"] if call["status"] == "ok")
    printed, call["stdout"] = call["stdout"].strip(), "41.5\n"
    spoil(run, 1, record)
    assert main(["replay", str(run), "1", name, "--no-logprobs"]) == 1
    said = capsys.readouterr().out
    assert "DIFFERS: now ok" in said and "    -41.5\n" in said and f"    +{printed}\n" in said


def test_an_id_that_is_not_the_sampled_one_violates_the_certificate(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, record = with_a_program_that_runs(run, 1)
    record["segments"][0]["token_ids"][0] ^= 1
    spoil(run, 1, record)
    assert main(["replay", str(run), "1", name, "--no-code"]) == 1
    assert "VIOLATED: this record: the ids to be trained are not" in capsys.readouterr().out


def test_a_tool_segment_taken_for_the_model_s_violates_it_too(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, record = with_a_program_that_runs(run, 1)
    segment = next(segment for segment in record["segments"] if segment["kind"] == "tool")
    segment |= {"kind": "model", "logprobs": [0.0] * len(segment["token_ids"])}
    spoil(run, 1, record)
    assert main(["replay", str(run), "1", name, "--no-code", "--no-logprobs"]) == 1
    assert "tool tokens are in the loss" in capsys.readouterr().out


def test_other_weights_than_those_that_sampled_are_seen(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, _ = with_a_program_that_runs(run, 3)
    shutil.rmtree(run / "checkpoints" / "step_000002")
    (run / "checkpoints" / "step_000003").rename(run / "checkpoints" / "step_000002")
    assert main(["replay", str(run), "3", name, "--no-code"]) == 1
    assert "log-probs      VIOLATED" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("9", "1"), "recorded: 1, 2, 3"),
        (("1", "7.0"), "give GROUP.SAMPLE (0.0, 0.1, 0.2, …, 1.2, 1.3) or a line from 1 to 8"),
        (("1", "9"), "or a line from 1 to 8"),
    ],
)
def test_what_was_not_recorded_is_named(
    arguments: tuple[str, str], says: str, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", str(finished), *arguments]) == 2
    assert says in capsys.readouterr().err


def test_no_run_directory_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(tmp_path / "nowhere"), "1", "1"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_record_and_its_rollout_are_the_same() -> None:
    rollout = play_one([CALL, "\\boxed{42}"])
    again = to_rollout(json.loads(json.dumps(trajectory(rollout, 1))))
    assert again.segments == rollout.segments and again.stamps == rollout.stamps
    assert (again.prompt_ids, again.group, again.sample) == (rollout.prompt_ids, rollout.group, rollout.sample)


def test_the_learner_s_log_probs_are_recorded_beside_the_generator_s(finished: Path) -> None:
    """What the report colours by: their ratio, 1 where generator and learner agree."""
    for record in records(finished, 2):
        for segment in record["segments"]:
            assert len(segment["old_logprobs"]) == len(segment["logprobs"])
            assert all(map(lambda a, b: abs(a - b) < 1e-3, segment["old_logprobs"], segment["logprobs"]))
    shown = full_rollout(records(finished, 2)[0])
    ratios = [ratio for segment in shown["segments"] for ratio in segment.get("ratios", [])]
    assert ratios and all(math.isclose(ratio, 1000, abs_tol=2) for ratio in ratios)

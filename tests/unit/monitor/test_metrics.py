"""What is measured of a step, by rollouts whose numbers can be counted by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from grpo_tir.monitor.metrics import (
    eval_metrics,
    step_metrics,
    summarize,
    tool_metrics,
    update_metrics,
)
from grpo_tir.monitor.run_log import RunLog, trajectory
from grpo_tir.types import Problem, Reward, Rollout, ToolCall, ToolResult
from grpo_tir.utils.files import read_jsonl
from scripted import BLOCK, CALL, SHOWN, ids, play_one, rollout_of, stdout

OK = ToolCall("print(6*7)", ToolResult("ok", "42\n"), 0.5)
FAILED = ToolCall("x", ToolResult("error", "", "Traceback\nNameError: name 'x' is not defined\n", 1), 1.5)
NO_CODE = ToolCall(None, None)
END = "so \\boxed{42}"


def scored(rollout: Rollout, value: float, correct: float, group: int = 0) -> Rollout:
    rollout.reward, rollout.group = Reward(value, {"correct": correct}), group
    return rollout


def test_a_rollout_in_numbers() -> None:
    rollout = scored(rollout_of(CALL, SHOWN, END, calls=[OK]), 1.0, 1.0, group=3)
    row = summarize(rollout, max_tool_calls=1)
    length = len(CALL + SHOWN + END)
    expected = {
        "group": 3, "problem_id": "p", "valid": True, "reward": 1.0, "correct": 1.0, "length": length,
        "tool_tokens": len(SHOWN), "cut": False, "calls": 1, "no_code_calls": 0, "written": 1, "before_answer": 1,
        "executed": 1, "passed": 1, "wait": 0.5, "wanted_after_limit": 0, "fake_outputs": 0,
        "outages": 0, "errors": [],
    }  # fmt: skip
    assert expected.items() <= row.items()


def test_a_summary_travels_as_json() -> None:
    row = summarize(scored(rollout_of(CALL, SHOWN, END, calls=[OK]), 1.0, 1.0), 1)
    assert json.loads(json.dumps(row)) == row


@pytest.mark.parametrize(
    ("turns", "written", "before"),
    [
        ([END], 0, 0),
        ([BLOCK + END], 1, 1),
        ([END + "\n" + BLOCK], 1, 0),
        ([BLOCK + END + "\n" + BLOCK], 2, 1),
        ([CALL, SHOWN, BLOCK + END + "\n" + BLOCK], 3, 2),
        ([CALL, SHOWN, "no answer"], 1, 1),
        (["\\boxed{1} " + CALL, SHOWN, BLOCK + END], 2, 2),  # the last box is the answer
        (["\\boxed{1}\n" + BLOCK + END + "\n" + BLOCK], 2, 1),  # within a turn, too
        (["```python\nopen"], 0, 0),
    ],
)
def test_blocks_written_and_those_before_the_answer(turns: list[str], written: int, before: int) -> None:
    row = summarize(rollout_of(*turns), 1)
    assert (row["written"], row["before_answer"]) == (written, before)


NATIVE = '<tool_call>{"name": "python", "arguments": {"code": "1"}}</tool_call>'


@pytest.mark.parametrize(
    ("turns", "calls", "fake"),
    [
        ([CALL, SHOWN, END], [OK], 0),
        ([CALL, SHOWN, CALL + "\n7\n```\n" + END], [OK], 1),
        ([CALL + "\n7\n```\n" + CALL], [], 2),  # c = 0: every output is made up
        ([CALL, SHOWN, CALL, SHOWN], [OK, OK], 0),
        ([CALL], [OK], 0),  # answered, but the budget left no room to show it
        ([NATIVE, "<tool_response>42</tool_response>", f"{NATIVE}<tool_response>7</tool_response>"], [OK], 1),
    ],
)
def test_outputs_that_the_model_made_up(turns: list[str], calls: list[ToolCall], fake: int) -> None:
    assert summarize(rollout_of(*turns, calls=calls), 1)["fake_outputs"] == fake


@pytest.mark.parametrize(
    ("turns", "calls", "limit", "wanted"),
    [
        ([CALL, SHOWN, BLOCK + BLOCK + END], [OK], 1, 2),
        ([CALL, SHOWN, BLOCK + END], [OK], 2, 0),  # it might still have called
        ([BLOCK + END], [], 0, 1),
        ([CALL, SHOWN[:3]], [OK], 1, 0),  # cut inside the output of its one call: nothing came after it
        ([CALL], [OK], 1, 0),
    ],
)
def test_code_that_is_written_after_the_last_call(
    turns: list[str], calls: list[ToolCall], limit: int, wanted: int
) -> None:
    assert summarize(rollout_of(*turns, calls=calls), limit)["wanted_after_limit"] == wanted


def test_figure_five_of_the_paper_from_four_responses() -> None:
    rollouts = [
        scored(rollout_of(CALL, SHOWN, END, calls=[OK]), 1.0, 1.0),
        scored(rollout_of(CALL, "\nNameError\n```\n", CALL, calls=[FAILED]), -1.0, 0.0),  # the second is not run
        scored(rollout_of("words ```output", "\n[no code block found]\n```\n", END, calls=[NO_CODE]), 1.0, 1.0),
        scored(rollout_of("\\boxed{41}"), -1.0, 0.0),
    ]
    metrics = tool_metrics([summarize(r, 1) for r in rollouts])
    assert metrics["tools/code_ratio"] == 2 / 4
    assert metrics["tools/pass_ratio"] == 1 / 2
    assert metrics["tools/executed_ratio"] == 2 / 3
    assert metrics["tools/pass_ratio_right"] == 1.0
    assert metrics["tools/pass_ratio_wrong"] == 0.0
    assert metrics["tools/calls_mean"] == 3 / 4
    assert metrics["tools/no_code_calls"] == 1
    assert metrics["tools/wanted_after_limit"] == 1
    assert metrics["time/tool_wait"] == pytest.approx(2.0 / 3)
    assert metrics["tools/error/NameError"] == 1.0


def test_how_the_tool_was_used_from_four_responses() -> None:
    error = "\nNameError\n```\n"
    rollouts = [
        # fails, mends it, and says what the tool said
        scored(rollout_of(CALL, error, CALL, SHOWN, END, calls=[FAILED, OK]), 1.0, 1.0),
        # fails and gives up; the answer stands against no output
        scored(rollout_of(CALL, error, "\\boxed{1}", calls=[FAILED]), -1.0, 0.0),
        # makes a second output up, and contradicts the real one
        scored(rollout_of(CALL, SHOWN, CALL + "\n7\n```\n\\boxed{7}", calls=[OK]), -1.0, 0.0),
        # answers first and writes code behind it
        scored(rollout_of(END + "\n" + BLOCK), 1.0, 1.0),
    ]
    metrics = tool_metrics([summarize(r, 2) for r in rollouts])
    assert metrics["tools/recovery_ratio"] == 1 / 2  # of two failed calls
    assert metrics["tools/contradiction_ratio"] == 1 / 2  # of two answers after an output
    assert metrics["tools/fake_outputs"] == 1
    assert metrics["tools/code_before_answer_ratio"] == 5 / 6  # blocks: 2 + 1 + 2, and one too late
    tool = 2 * len(error) + 2 * len(SHOWN)
    model = 5 * len(CALL) + 2 * len(END) + len("\\boxed{1}") + len("\n7\n```\n\\boxed{7}") + 1 + len(BLOCK)
    assert metrics["tools/token_share"] == pytest.approx(tool / (tool + model))  # a byte is a token here


def test_each_share_has_its_own_denominator() -> None:
    """5 rollouts, 7 blocks, 4 calls, of which 3 had code, 2 of them passed."""
    rollouts = [
        rollout_of(CALL, SHOWN, END, calls=[OK]),
        rollout_of(CALL, "\nNameError\n```\n", CALL, SHOWN, END, calls=[FAILED, OK]),
        rollout_of("```output", "\n[no code block found]\n```\n", END, calls=[NO_CODE]),
        rollout_of(END + "\n" + BLOCK + BLOCK),
        rollout_of(BLOCK + BLOCK),
    ]
    metrics = tool_metrics([summarize(scored(r, 1.0, 1.0), 2) for r in rollouts])
    assert metrics["tools/code_ratio"] == 4 / 5  # of rollouts
    assert metrics["tools/calls_mean"] == 4 / 5
    assert metrics["tools/executed_ratio"] == 3 / 7  # of blocks written
    assert metrics["tools/code_before_answer_ratio"] == 5 / 7
    assert metrics["tools/pass_ratio"] == 2 / 3  # of calls with code
    assert metrics["time/tool_wait"] == pytest.approx(2.5 / 4)  # of all calls


LOST = ToolCall("x", ToolResult("infrastructure"))


@pytest.mark.parametrize(
    ("calls", "failed", "recovered"),
    [
        ([FAILED], 1, 0),
        ([FAILED, OK], 1, 1),
        ([OK, FAILED], 1, 0),  # a good call before it mends nothing
        ([FAILED, FAILED], 2, 0),  # nor does another failure behind it
        ([FAILED, FAILED, OK], 2, 2),
        ([FAILED, OK, FAILED], 2, 1),
        ([FAILED, NO_CODE], 1, 0),
        ([FAILED, LOST], 1, 0),
        ([OK, OK], 0, 0),
    ],
)
def test_a_failed_call_recovers_only_by_a_good_one_behind_it(
    calls: list[ToolCall], failed: int, recovered: int
) -> None:
    row = summarize(rollout_of(*[CALL, SHOWN] * len(calls), END, calls=calls), 3)
    assert (row["failed"], row["recovered"]) == (failed, recovered)


def test_a_share_of_nothing_is_null_and_never_zero() -> None:
    metrics = tool_metrics([summarize(scored(rollout_of("words"), -1.0, 0.0), 1)])
    assert metrics["tools/code_ratio"] == 0.0
    for name in ("pass_ratio", "executed_ratio", "code_before_answer_ratio", "pass_ratio_right"):
        assert metrics[f"tools/{name}"] is None, name
    assert metrics["time/tool_wait"] is None
    assert step_metrics([])["reward"] is None


def test_step_metrics_leave_out_what_was_set_aside_and_count_it() -> None:
    lost = ToolCall("x", ToolResult("infrastructure"))
    rollouts = [
        scored(rollout_of("a" * 10), 1.0, 1.0, group=0),
        scored(rollout_of("a" * 20, finish_reason="length"), -1.0, 0.0, group=0),
        rollout_of("a" * 999, calls=[lost], valid=False, finish_reason="aborted", group=0),
        scored(rollout_of("a" * 30), -1.0, 0.0, group=1),
        scored(rollout_of("a" * 40), -1.0, 0.0, group=1),
    ]
    metrics = step_metrics([summarize(r, 1) for r in rollouts])
    assert metrics["reward"] == -0.5
    assert metrics["accuracy"] == 0.25
    assert metrics["reward_std"] == pytest.approx(math.sqrt(2) / 2)  # of two groups: sqrt(2) and 0
    assert metrics["frac_reward_zero_std"] == 0.5
    assert metrics["completions/mean_length"] == 25
    assert (metrics["completions/min_length"], metrics["completions/max_length"]) == (10, 40)
    assert metrics["completions/clipped_ratio"] == 0.25
    assert metrics["completions/mean_terminated_length"] == pytest.approx(80 / 3)
    assert (metrics["rollouts/sampled"], metrics["rollouts/lost"], metrics["rollouts/unjudged"]) == (5, 1, 0)
    assert metrics["tools/outages"] == 1
    assert metrics["rollouts/distinct_ratio"] == 1.0
    copies = [scored(rollout_of(text), 1.0, 1.0, group=0) for text in ("ab", "ab", "ba")]
    copies += [scored(rollout_of("c"), 1.0, 1.0, group=1), scored(rollout_of("c"), 1.0, 1.0, group=1)]
    assert step_metrics([summarize(r, 1) for r in copies])["rollouts/distinct_ratio"] == (2 / 3 + 1 / 2) / 2


def test_accuracy_is_of_the_correctness_flag_not_of_the_reward() -> None:
    rollouts = [
        scored(rollout_of("a"), value, correct) for value, correct in ((-0.5, 1.0), (0.5, 0.0), (0.3, 0.0))
    ]
    metrics = step_metrics([summarize(r, 1) for r in rollouts])
    assert (metrics["accuracy"], metrics["reward"]) == (pytest.approx(1 / 3), pytest.approx(0.1))


NATIVE = '<tool_call>{"name": "python", "arguments": {"code": "1"}}</tool_call>'


@pytest.mark.parametrize(
    ("turns", "calls", "fake"),
    [
        ([BLOCK, "```output\n42\n```\n", END], [OK], 0),
        (["```output\n7\n```\n" + BLOCK, "```output\n42\n```\n", END], [OK], 1),  # before the block that it calls
        ([BLOCK, "```output\n42\n```\n", "```output\n7\n```\n" + END], [OK], 1),
        ([BLOCK, "\n```output\n42\n```\n", BLOCK, "\n```output\n42\n```\n", END], [OK, OK], 0),
    ],
)
def test_outputs_made_up_where_the_tool_writes_the_marker(
    turns: list[str], calls: list[ToolCall], fake: int
) -> None:
    """With `tool.stop: fence`."""
    assert summarize(rollout_of(*turns, calls=calls), 1)["fake_outputs"] == fake


def test_means_of_an_update_by_hand() -> None:
    """Three optimizer steps over 10 tokens, one of which was skipped."""
    sums = {"loss": 6, "grad_norm": 4, "entropy": 20, "clipped_low": 1, "clipped_high": 2, "kl": 5, "gap": 0.5}
    totals = {**sums, "gap_max": 0.4, "tokens": 10, "steps": 2, "skipped": 1, "tolerance_used": 0.1}
    totals |= {"responses": 8, "far": 2, "masked": 1, "opens": 4}
    metrics = update_metrics(totals, updates=3, learning_rate=1e-6)
    assert (metrics["loss"], metrics["grad_norm"], metrics["skipped_updates"]) == (2, 2, 1)
    assert (metrics["entropy"], metrics["kl"]) == (2, 0.5)
    assert (metrics["clip_ratio/low_mean"], metrics["clip_ratio/high_mean"]) == (0.1, 0.2)
    assert metrics["sampling/sampling_logp_difference/mean"] == 0.05
    assert metrics["sampling/sampling_logp_difference/max"] == 0.4
    assert (metrics["sampling/sequence_ratio_far"], metrics["sampling/sequence_masked"]) == (2 / 8, 1 / 8)
    assert metrics["tools/call_probability"] == 4 / 8


def test_a_trajectory_holds_every_token_and_can_be_written() -> None:
    rollout = play_one([CALL, END], stdout("é\n"))
    rollout.reward, rollout.advantage = Reward(1.0, {"correct": 1.0}), 0.7
    item = json.loads(json.dumps(trajectory(rollout, step=5)))
    assert [token for segment in item["segments"] for token in segment["token_ids"]] == rollout.token_ids
    assert [segment["kind"] for segment in item["segments"]] == ["model", "tool", "model"]
    assert [len(segment["logprobs"]) for segment in item["segments"]] == [len(ids(CALL)), 0, len(ids(END)) + 1]
    assert item["calls"][0]["stdout"] == "é\n"
    assert (item["step"], item["reward"], item["advantage"]) == (5, 1.0, 0.7)


def test_a_resumed_log_forgets_the_steps_of_an_abandoned_future(tmp_path: Path) -> None:
    log = RunLog(tmp_path, [])
    for step in (1, 2, 3):
        log.metrics(step, {"reward": float(step)})
        log.rollouts(step, [{"step": step}])
        log.rewards(step, [summarize(scored(rollout_of("a"), 1.0, 1.0), 1)], 5)
    log.sync()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "rew')  # torn by a kill
    log = RunLog(tmp_path, [], resume_at=2)
    log.metrics(3, {"reward": -3.0})
    log.sync()
    assert [row["reward"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [1.0, 2.0, -3.0]
    assert [row["step"] for row in read_jsonl(tmp_path / "problem_rewards.jsonl")] == [1, 2]
    names = sorted(path.name for path in (tmp_path / "rollouts").iterdir())
    assert names == ["step_000001.jsonl", "step_000002.jsonl"]


def test_problem_rewards_hold_the_valid_samples_of_each_group(tmp_path: Path) -> None:
    rollouts = [
        scored(rollout_of("a"), value, float(value > 0), group=g) for g, value in ((7, 1.0), (7, -1.0), (8, 1.0))
    ]
    rollouts.append(rollout_of("a", valid=False, group=8))
    log = RunLog(tmp_path, [])
    log.rewards(1, [summarize(r, 1) for r in rollouts], problems=8)
    log.sync()
    rows = read_jsonl(tmp_path / "problem_rewards.jsonl")
    assert [(row["epoch"], row["problem_id"], row["rewards"], row["correct"]) for row in rows] == [
        (0, "p", [1.0, -1.0], [1.0, 0.0]),
        (1, "p", [1.0], [1.0]),
    ]


def test_each_source_has_its_own_accuracy_code_ratio_and_recovery() -> None:
    """Source a: right after a repaired call, wrong after one that is not. Source b: one right answer in words."""
    rollouts = [
        scored(rollout_of(CALL, SHOWN, CALL, SHOWN, END, calls=[FAILED, OK]), 1.0, 1.0),
        scored(rollout_of(CALL, SHOWN, END, calls=[FAILED]), -1.0, 0.0),
        scored(rollout_of(END), 1.0, 1.0),
    ]
    for rollout, source in zip(rollouts, "aab"):
        rollout.problem = Problem("p", "?", "42", source)
    rows = [summarize(rollout, 2) for rollout in rollouts]
    expected = {
        "by_source/a/accuracy": 0.5,
        "by_source/a/code_ratio": 1.0,
        "by_source/a/recovery_ratio": 0.5,
        "by_source/b/accuracy": 1.0,
        "by_source/b/code_ratio": 0.0,
        "by_source/b/recovery_ratio": None,
    }
    assert expected.items() <= step_metrics(rows).items()
    assert {f"eval/{name}": value for name, value in expected.items()}.items() <= eval_metrics(rows).items()
    assert not any("by_source" in name for name in step_metrics(rows[:2])), "one source is the whole batch"

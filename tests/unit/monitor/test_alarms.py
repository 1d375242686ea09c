"""Each alarm by a history made by hand, beside a history that just misses it; a healthy run raises none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from grpo_tir.config import Config
from grpo_tir.monitor.alarms import find_alarms, grad_norm_spiked
from grpo_tir.monitor.console import Console
from grpo_tir.report.read import alarm_stretches
from grpo_tir.utils.files import read_jsonl
from tiny_policy import change

HEALTHY: dict[str, float | None] = {
    "loss": 0.0, "grad_norm": 0.3, "entropy": 0.3, "accuracy": 0.4, "tools/code_ratio": 0.8,
    "completions/clipped_ratio": 0.1, "skipped_updates": 0.0, "certificate/used": 0.01,
    "sampling/sampling_logp_difference/mean": 1e-5,
    "rollouts/sampled": 2048.0, "rollouts/lost": 0.0, "rollouts/unjudged": 0.0,
}  # fmt: skip


def history(*values: Any, name: str, **same: float) -> list[dict[str, float | None]]:
    """A step for each value of one metric; the others as they should be."""
    return [{**HEALTHY, **same, name: value, "step": i} for i, value in enumerate(values, start=1)]


def names(lines: list[dict[str, float | None]], config: Config | None = None) -> list[str]:
    return [alarm.name for alarm in find_alarms(lines, config or Config())]


CASES: list[tuple[str, str, list[float], list[float]]] = [
    # code ratio: 0.8 at best, so 0.4 is the edge; 5 steps of it after 5 of the best
    ("code ratio", "tools/code_ratio", [0.8] * 5 + [0.39] * 5, [0.8] * 5 + [0.41] * 5),
    ("code ratio", "tools/code_ratio", [0.0] * 10, [0.02] * 10),
    ("entropy", "entropy", [0.5] * 5 + [0.049] * 5, [0.5] * 5 + [0.051] * 5),
    ("entropy", "entropy", [0.2] * 5 + [0.61] * 5, [0.2] * 5 + [0.59] * 5),
    # 2048 responses a step: 0.1 expected calls are a probability of 4.88e-5
    ("call probability", "tools/call_probability", [0.3] * 5 + [4.8e-5] * 5, [0.3] * 5 + [4.9e-5] * 5),
    ("cut off", "completions/clipped_ratio", [0.51], [0.49]),
    # executor.max_outage 0.05: a fifth of it, 1% of 2048, is 20.48
    ("outages", "rollouts/lost", [21.0], [20.0]),
    ("unjudged", "rollouts/unjudged", [21.0], [20.0]),
    ("log-prob mismatch", "certificate/used", [0.51], [0.49]),
    ("gradient spike", "grad_norm", [0.3] * 8 + [3.1], [0.3] * 8 + [2.9]),
    ("skipped update", "skipped_updates", [1.0], [0.0]),
]


@pytest.mark.parametrize("alarm, metric, bad, good", CASES)
def test_an_alarm_rings_beyond_its_edge_and_not_before_it(
    alarm: str, metric: str, bad: list[float], good: list[float]
) -> None:
    assert names(history(*bad, name=metric)) == [alarm]
    assert names(history(*good, name=metric)) == []


def test_every_alarm_says_what_was_seen() -> None:
    for alarm, metric, bad, _ in CASES:
        (found,) = find_alarms(history(*bad, name=metric), Config())
        assert found.name == alarm and any(character.isdigit() for character in found.text), found.text


def test_a_policy_that_is_right_may_be_sure_of_itself() -> None:
    assert names(history(*[0.5] * 5, *[0.01] * 5, name="entropy", accuracy=0.95)) == []


def decay(steps: int, end: float) -> list[float]:
    """Entropy that falls by the same factor at each step, from 0.5 to `end` times that."""
    return [0.5 * end ** (step / (steps - 1)) for step in range(steps)]


@pytest.mark.parametrize("accuracy", [0.4, 0.95])
def test_entropy_that_dies_slowly_is_seen_at_any_accuracy(accuracy: float) -> None:
    """In 1,200 steps to 0.8% of the start. The last 500 steps alone fall to 13% of theirs."""
    lines = history(*decay(1200, 0.008), name="entropy", accuracy=accuracy)
    assert names(lines) == ["entropy"]
    assert alarm_stretches(lines[-700:], Config()) == [], "against a start 700 steps ago there is nothing to see"
    first, last, _ = alarm_stretches(lines, Config())[-1]
    assert last == 1200 and 1100 < first < 1200
    assert names(history(*decay(1200, 0.02), name="entropy", accuracy=accuracy)) == []


def test_an_entropy_of_nothing_at_the_start_is_no_measure() -> None:
    assert names(history(*[0.0] * 5, *[0.2] * 5, name="entropy")) == []


def test_without_a_tool_nobody_misses_code() -> None:
    lines = history(*[0.25] * 5, *[0.0] * 10, name="tools/code_ratio")
    assert names(lines, change(Config(), tool__max_tool_calls=0)) == []


def test_one_bad_batch_of_a_share_is_noise() -> None:
    assert names(history(*[0.8] * 9, 0.1, name="tools/code_ratio")) == []
    assert names(history(*[0.0] * 4, 0.9, name="completions/clipped_ratio")) == []


def test_evaluations_and_an_empty_history_raise_nothing() -> None:
    assert names([]) == []
    assert names([{"step": 0, "eval/accuracy": 0.1}]) == []


def test_what_a_metric_lacks_is_not_taken_for_zero() -> None:
    assert names([{"step": 1, "loss": 0.1}]) == []
    assert names(history(*[0.8] * 5, *[None] * 5, name="tools/code_ratio")) == []


def test_a_spike_needs_to_know_what_is_usual() -> None:
    assert not grad_norm_spiked(history(0.1, 5.0, name="grad_norm"))
    assert grad_norm_spiked(history(*[0.1] * 8, 5.0, name="grad_norm"))


def test_stretches_name_the_first_and_last_step_of_each_time_it_rang() -> None:
    lines = history(0.9, 0.9, 0.0, 0.0, 0.0, 0.0, 0.0, 0.9, 0.9, 0.9, name="completions/clipped_ratio")
    # means over up to five steps: .9 .9 .6 .45 .36 .18 0 .18 .36 .54
    found = [(first, last) for first, last, _ in alarm_stretches(lines, Config())]
    assert found == [(1, 3), (10, 10)]


@pytest.mark.parametrize("name, calls", [("tool", 1), ("control", 0)])
def test_a_healthy_run_raises_none(name: str, calls: int) -> None:
    """The two runs of `make train SEED=1`, as they were measured (a few metrics of each step)."""
    lines = read_jsonl(Path(__file__).with_name("quickstart_metrics.jsonl"))
    run = [{key: value for key, value in line.items() if key != "run"} for line in lines if line["run"] == name]
    assert len(run) == 61
    assert alarm_stretches(run, change(Config(), tool__max_tool_calls=calls)) == []


def test_the_console_says_it_once_and_when_it_is_over(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    bad = find_alarms(history(0.9, name="completions/clipped_ratio"), Config())
    for alarms in (bad, bad, [], bad):
        console.alarms(alarms)
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said] == ["ALARM", "over", "ALARM"]
    assert "90% of responses are cut off" in said[0]

"""What stands on the console: one line a step, how far, how long, and in words why nothing was learnt."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest

from grpo_tir.monitor import console
from grpo_tir.monitor.console import Console, span, why_no_loss
from grpo_tir.types import Reward
from scripted import CALL, SHOWN, rollout_of

STEP: dict[str, Any] = {
    "reward": -0.25, "accuracy": 0.375, "tools/code_ratio": 0.5, "tools/pass_ratio": None, "loss": -0.02,
    "completions/mean_length": 31.4, "completions/clipped_ratio": 0.0, "entropy": 0.3, "grad_norm": 0.4,
    "time/step": 2.0, "frac_reward_zero_std": 0.5,
}  # fmt: skip


class Clock:
    """Time that goes on only when it is told to."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(console, "time", clock)
    return clock


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_step_is_one_line_with_what_is_left(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    shown = Console()
    shown.start(4, 0)
    for step, seconds in ((1, 10.0), (2, 20.0), (4, 30.0)):
        clock.now += seconds
        shown.step(step, 4, STEP)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "step    1/4  reward -0.25  right 0.38  code 0.50  pass -  tokens 31  cut 0.00  entropy 0.30  grad 0.40"
        "  s 2.0  left 30 s"
    )
    assert lines[1].endswith("  left 30 s")  # two steps of 15 s on average
    assert lines[2].endswith("  s 2.0"), "after the last step nothing is left"


def test_what_was_before_the_start_does_not_count(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """A resumed run first prints the step whose evaluation was interrupted."""
    shown = Console()
    clock.now += 600.0
    shown.step(3, 6, STEP)
    shown.start(6, 3)
    clock.now += 10.0
    shown.step(4, 6, STEP)
    assert capsys.readouterr().out.splitlines()[-1].endswith("  left 20 s")


def test_without_a_terminal_a_long_step_says_every_minute_how_far_it_is(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = Console()
    shown.start(4, 0)
    for second in range(150):
        clock.now += 1
        shown.progress(second, 2048, 3)
    assert capsys.readouterr().out.splitlines() == [
        "           59 of 2048 rollouts done, 3 calls in flight",
        "           119 of 2048 rollouts done, 3 calls in flight",
    ]


def test_a_terminal_has_a_bar_that_names_the_rollouts_of_the_step(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    shown = Console()
    shown.start(60, 11)
    clock.now += 1
    shown.progress(58, 128, 3)
    clock.now += 0.1
    shown.progress(59, 128, 2)  # too soon to be drawn again
    shown.step(12, 60, STEP)
    shown.finish()
    drawn = screen.getvalue()
    assert re.search(r"training  18%\|.*\| 11/60 \[00:00<.*\], 58 of 128 rollouts, 3 calls in flight", drawn)
    assert "59 of" not in drawn and "12/60" in drawn
    assert capsys.readouterr().out.startswith("step   12/60")


def test_a_notebook_has_the_bar_too(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("builtins.get_ipython", lambda: None, raising=False)
    shown = Console()
    shown.start(60, 11)
    shown.finish()
    assert "11/60" in capsys.readouterr().err


def test_other_ranks_are_silent(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    shown = Console(active=False)
    shown.start(2, 0)
    shown.progress(1, 2, 0)
    shown.step(1, 2, STEP)
    shown.finish()
    assert capsys.readouterr().out == screen.getvalue() == ""


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({}, None),
        ({"frac_reward_zero_std": 1.0, "loss": 0.0, "accuracy": 0.0}, "the problems are too hard, or no"),
        ({"frac_reward_zero_std": 1.0, "loss": 0.0, "accuracy": 1.0}, "every response is right"),
        ({"frac_reward_zero_std": 1.0, "loss": 0.0, "accuracy": 0.5}, "so every advantage is 0"),
        ({"frac_reward_zero_std": None, "reward": None, "loss": 0.0}, "no response could be scored"),
        ({"loss": 0.0, "grad_norm": 0.0}, "no response was left to learn from"),
        ({"loss": 2e-9}, "as expected: the ratio is 1"),
        ({"loss": None, "skipped_updates": 1.0}, None),  # that rings an alarm of its own
        ({"loss": 0.0, "grad_norm": None, "skipped_updates": 1.0}, None),
    ],
)
def test_a_loss_of_zero_is_explained(changed: dict[str, Any], says: str | None) -> None:
    reason = why_no_loss({**STEP, **changed})
    assert (reason is None) if says is None else (says in (reason or ""))


def test_a_reason_is_said_once_for_each_stretch(capsys: pytest.CaptureFixture[str]) -> None:
    """A single step without it ends no stretch; ten do."""
    shown, flat = Console(), {**STEP, "frac_reward_zero_std": 1.0, "loss": 0.0}
    for step, metrics in enumerate((flat, flat, STEP, flat, *[STEP] * 9, flat), start=1):
        shown.step(step, 20, metrics)
    said = capsys.readouterr().out.splitlines()
    explained = [number for number, line in enumerate(said) if not line.startswith("step")]
    assert explained == [1, len(said) - 1] and len(said) == 14 + 2


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (99, "99 s"), (100, "2 min"), (5940, "99 min"), (6000, "1 h 40 min"), (200_000, "2 d 8 h")],
)
def test_spans_read_as_people_say_them(seconds: float, words: str) -> None:
    assert span(seconds) == words


def test_a_sample_trajectory_tells_the_model_from_the_tool(capsys: pytest.CaptureFixture[str]) -> None:
    rollout = rollout_of(CALL, SHOWN, "so \\boxed{42}")
    rollout.reward = Reward(1.0, {"correct": 1.0})
    Console().trajectory(rollout)
    assert capsys.readouterr().out.splitlines() == [
        f"--- one rollout (reward +1.0, {rollout.finish_reason})",
        "    6*7?", "  | ```python", "  | print(6*7)", "  | ```", "  | ```output", "  > 42",
        "  > ```", "  | so \\boxed{42}", "--- gold answer: 42",
    ]  # fmt: skip

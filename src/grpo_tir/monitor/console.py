"""Print the progress of a run.

    step   12/60  reward -0.34  right 0.33 …  left 4 min        one line per step; alarms and reasons follow it
    training  20%|████      | 12/60 [01:10<04:40], 58 of 128 rollouts, 3 calls in flight
                                                                on a terminal or in a notebook: a bar of all steps

Without a terminal, a long step prints a progress line every minute.
"""

import builtins
import sys
import time
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from grpo_tir.monitor.alarms import Alarm
from grpo_tir.types import Rollout

BAR = "{desc} {percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}"
REFRESH = 0.2
"""Seconds between two updates of the bar. `progress` is called far more often."""
LINE_INTERVAL = 60.0
"""Seconds between two progress lines within a step, without a terminal."""
REASON_GAP = 10
"""The reason for a loss of 0 is printed again only if it did not hold for this number of steps."""


class Console:
    """Print on the main process only: a bar to stderr, lines to stdout."""

    def __init__(self, active: bool = True) -> None:
        self.active = active
        self.bar: Any = None
        self.done = 0
        """Steps taken since `started`."""
        self.started = self.shown = time.monotonic()
        """`shown` is the time of the last line of a step, or of the last progress update."""
        self.reasons: dict[str, int] = {}
        """Last step at which each reason held."""
        self.active_alarms: set[str] = set()
        self.shows_bars = sys.stderr.isatty() or hasattr(builtins, "get_ipython")

    def log(self, text: str) -> None:
        """Print a line without breaking the bar."""
        if self.active:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def start(self, total: int, done: int) -> None:
        """Start the clock and, on a terminal or in a notebook, the bar. `done` steps were taken before."""
        self.started = self.shown = time.monotonic()
        self.done = 0
        if self.active and self.shows_bars:
            self.bar = tqdm(total=total, initial=done, desc="training", bar_format=BAR, file=sys.stderr)

    def progress(self, finished: int, total: int, waiting: int) -> None:
        """Show the progress within a step: finished rollouts of `total`, and calls in flight."""
        now = time.monotonic()
        if not self.active or now - self.shown < (REFRESH if self.bar is not None else LINE_INTERVAL):
            return
        self.shown = now
        if self.bar is None:
            self.log(f"           {finished} of {total} rollouts done, {waiting} calls in flight")
            return
        self.bar.set_postfix_str(f"{finished} of {total} rollouts, {waiting} calls in flight")

    def step(self, step: int, steps: int, metrics: dict[str, Any]) -> None:
        """Print the line of a step and, if its loss is 0 or undefined, the reason."""
        if self.bar is not None:
            self.bar.update()
        self.shown = time.monotonic()
        self.done += 1
        parts = [f"step {step:>4}/{steps}"]
        for label, name, form in COLUMNS:
            value = metrics.get(name)
            parts.append(f"{label} {form.format(value) if value is not None else '-'}")
        left = (self.shown - self.started) / self.done * (steps - step)
        self.log("  ".join([*parts, *([f"left {span(left)}"] if steps > step else [])]))
        reason = why_no_loss(metrics)
        if reason:
            if step - self.reasons.get(reason, -REASON_GAP) >= REASON_GAP:
                self.log(f"           {reason}")
            self.reasons[reason] = step
        if metrics.get("eval/accuracy") is not None:
            self.log(f"           held-out accuracy {metrics['eval/accuracy']:.3f} (greedy)")

    def alarms(self, alarms: Iterable[Alarm]) -> None:
        """Print each alarm once for each stretch of steps in which it holds."""
        now = {alarm.name: alarm.text for alarm in alarms}
        for name, text in now.items():
            if name not in self.active_alarms:
                self.log(f"  ALARM    {text}")
        for name in self.active_alarms - set(now):
            self.log(f"  over     the alarm about: {name}")
        self.active_alarms = set(now)

    def trajectory(self, rollout: Rollout) -> None:
        """Print problem and response. Each line has a mark: `|` for the model, `>` for the tool."""
        reward = f"{rollout.reward.value:+.1f}" if rollout.reward else "none"
        lines = [f"--- one rollout (reward {reward}, {rollout.finish_reason})"]
        lines += [f"    {line}" for line in rollout.problem.problem.splitlines()]
        lines += segment_lines((segment.kind, segment.text) for segment in rollout.segments)
        self.log("\n".join([*lines, f"--- gold answer: {rollout.problem.answer}"]))

    def finish(self) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


COLUMNS = [
    ("reward", "reward", "{:+.2f}"),
    ("right", "accuracy", "{:.2f}"),
    ("code", "tools/code_ratio", "{:.2f}"),
    ("pass", "tools/pass_ratio", "{:.2f}"),
    ("tokens", "completions/mean_length", "{:.0f}"),
    ("cut", "completions/clipped_ratio", "{:.2f}"),
    ("entropy", "entropy", "{:.2f}"),
    ("grad", "grad_norm", "{:.2f}"),
    ("s", "time/step", "{:.1f}"),
]


def why_no_loss(metrics: dict[str, Any]) -> str | None:
    """Explain why a step has no gradient, or why its loss is 0 although it has one. None for other steps."""
    if metrics.get("reward") is None:
        return "nothing to learn from: no response could be scored (rollouts/lost, rollouts/unjudged)"
    if metrics.get("frac_reward_zero_std") == 1:
        right = metrics.get("accuracy")
        every = {
            0: "; every response is wrong: the problems are too hard, or no \\boxed{} is written",
            1: "; every response is right",
        }
        words = every.get(right, "") if right is not None else ""
        return f"loss 0: in every group all rewards are equal, so every advantage is 0{words}"
    if metrics.get("skipped_updates") or metrics.get("loss") is None:
        return None
    if metrics["loss"] == 0 and not metrics.get("grad_norm"):
        return (
            "loss 0: no response was left to learn from, because drop_flat_groups, mask_overlong or "
            "mask_void_turns left all of them out"
        )
    if abs(metrics["loss"]) < 1e-6:
        return (
            "loss 0, as expected: the ratio is 1, and the advantages of a group sum to 0. The gradient is not 0: "
            "see grad"
        )
    return None


def span(seconds: float) -> str:
    """Format seconds as `45 s`, `12 min`, `3 h 05 min` or `2 d 7 h`."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def segment_lines(segments: Iterable[tuple[str, str]]) -> list[str]:
    """Return the marked lines of (kind, text) segments."""
    signs = {"model": "  | ", "tool": "  > "}
    return [signs[kind] + line for kind, text in segments for line in text.strip("\n").split("\n")]

"""Find faults of a run from its metrics.

Training with a tool can fail without an error: the executor loses calls, the policy stops calling the tool, or the
budget cuts off every answer. Each rule reads the history up to a step and returns a text if it holds *at* that
step. Console and report use the same rules. A run without faults, such as the quickstart, raises no alarm.

A history is the list of lines of metrics.jsonl, in order. Means are over `WINDOW` steps, because a single batch of
a hundred rollouts is too noisy.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from grpo_tir.config import Config

Line = Mapping[str, float | None]

WINDOW = 5
"""Number of steps in a mean: 640 rollouts in the quickstart, where the standard error of a share is below .02."""
MEMORY = 500
"""Number of last steps that a rule reads, so that its cost does not grow with the run."""
COLLAPSED_CODE = 0.5
"""Alarm below this share of the highest code ratio. In the paper it stays above 4/5 (Figure 5)."""
COLLAPSED_ENTROPY = 0.1
"""Alarm below this share of the initial entropy. The quickstart ends near 0.15, with nine of ten answers right."""
SOLVED = 0.9
"""Accuracy from which low entropy is expected."""
DEAD_ENTROPY = 0.01
"""Alarm below this share of the run's initial entropy, at any accuracy: nearly all samples are then equal."""
RISEN_ENTROPY = 3.0
"""Alarm above this multiple of the run's initial entropy (verl#2738). The highest in the quickstart is 1.2."""
FEW_CALLS = 0.1
"""Alarm if fewer calls than this are expected in a batch: the policy then cannot learn from its calls."""
CUT_OFF = 0.5
"""Alarm above this share of responses cut off: the reward then mostly measures length (trl#5697, trl#6263)."""
SPIKE = 10.0
"""Alarm above this multiple of the median gradient norm. The highest multiple in the quickstart is below 4."""
LOST = 0.2
"""Alarm above this share of `executor.max_outage`: by default, at 1% lost rollouts. The run stops at 5%."""
TOLERANCE_USED = 0.5
"""Alarm above this share of the certificate's tolerance. The run stops above 1."""


@dataclass(frozen=True)
class Alarm:
    """A rule that holds at a step."""

    name: str
    text: str
    """The measured value, its limit, and where to look."""


def find_alarms(history: Sequence[Line], config: Config) -> list[Alarm]:
    """Return the alarms at the last step of `history`. Lines without a training step (evaluations) are skipped."""
    trained = trained_lines(history)
    if not trained:
        return []
    # A rule sees the first `WINDOW` steps too: a slow decay is seen only against the start of the run.
    seen = [*trained[:WINDOW], *trained[WINDOW:][-MEMORY:]]
    texts = {name: rule(seen, config) for name, rule in RULES.items()}
    return [Alarm(name, text) for name, text in texts.items() if text]


def grad_norm_spiked(history: Sequence[Line]) -> bool:
    """True if the last gradient norm is above `SPIKE` times the median of the 8 to 20 norms before it."""
    norms = _known(history, "grad_norm")[-21:]
    usual = statistics.median(norms[:-1]) if len(norms) > 8 else 0.0
    return bool(usual and norms[-1] > SPIKE * usual)


def _code(history: Sequence[Line], config: Config) -> str | None:
    ratios = _known(history[-MEMORY:], "tools/code_ratio")
    if not config.tool.max_tool_calls or len(ratios) < 2 * WINDOW:
        return None
    now = statistics.fmean(ratios[-WINDOW:])
    best = max(statistics.fmean(ratios[i : i + WINDOW]) for i in range(len(ratios) - WINDOW))
    if best >= 0.2 and now < COLLAPSED_CODE * best:
        return (
            f"the policy stops writing code: {now:.0%} of responses over {WINDOW} steps, {best:.0%} at best. "
            "Check whether its programs fail (tools/pass_ratio) or code is penalized (reward.code_penalty)"
        )
    if best < 0.01 and now < 0.01:
        return (
            f"almost no response has code ({now:.1%}), so the policy cannot learn to use it. Check that the "
            "prompt asks for a ```python block (data.template)"
        )
    return None


def _entropy(history: Sequence[Line], config: Config) -> str | None:
    values, right = _known(history[-MEMORY:], "entropy"), _known(history, "accuracy")[-WINDOW:]
    if len(values) < 2 * WINDOW or not right:
        return None
    first, now = statistics.fmean(values[:WINDOW]), statistics.fmean(values[-WINDOW:])
    if now < COLLAPSED_ENTROPY * first and statistics.fmean(right) < SOLVED:
        return (
            f"entropy has collapsed: {now:.3f} nats, {first:.3f} at first, with {statistics.fmean(right):.0%} "
            "right: the samples of a group become equal. Lower optim.lr, or raise algorithm.clip_high"
        )
    start = statistics.fmean(_known(history, "entropy")[:WINDOW])
    if now < DEAD_ENTROPY * start:
        return (
            f"entropy has died: {now:.3g} nats, {start:.3f} at the start of the run, with "
            f"{statistics.fmean(right):.0%} right: nothing new is tried. Take harder problems, or end the run"
        )
    if start and now > RISEN_ENTROPY * start:
        return (
            f"entropy rises: {now:.3f} nats, {start:.3f} at the start of the run: responses become random. Lower "
            "optim.lr or algorithm.clip_high, and look at the samples"
        )
    return None


def _call_probability(history: Sequence[Line], config: Config) -> str | None:
    values, sampled = _known(history, "tools/call_probability")[-WINDOW:], history[-1].get("rollouts/sampled")
    if len(values) < WINDOW or not sampled or statistics.fmean(values) * sampled >= FEW_CALLS:
        return None
    return (
        f"a response calls the tool with probability {statistics.fmean(values):.1e}: among {sampled:.0f} rollouts "
        "hardly one does, so the policy cannot learn from it. Check data.template, or return to a checkpoint"
    )


def _cut_off(history: Sequence[Line], config: Config) -> str | None:
    shares = _known(history, "completions/clipped_ratio")[-WINDOW:]
    if not shares or statistics.fmean(shares) <= CUT_OFF:
        return None
    return (
        f"{statistics.fmean(shares):.0%} of responses are cut off by rollout.max_completion_length "
        f"{config.rollout.max_completion_length}: raise it, or check that the policy ends its responses"
    )


def _lost(name: str, text: str, history: Sequence[Line], config: Config) -> str | None:
    """Return a text if the lost share of the batch is above `LOST` of the limit that stops the run."""
    lost, sampled = history[-1].get(name), history[-1].get("rollouts/sampled")
    if not lost or not sampled or lost / sampled <= LOST * config.executor.max_outage:
        return None
    stops = f" (the run stops above {config.executor.max_outage:.0%}, executor.max_outage)"
    return text.format(f"{lost:.0f} of {sampled:.0f} rollouts") + stops


def _mismatch(history: Sequence[Line], config: Config) -> str | None:
    used, gap = (history[-1].get(name) for name in ("certificate/used", MEAN_GAP))
    if used is None or gap is None or used <= TOLERANCE_USED:
        return None
    return (
        f"generator and learner disagree about log-probs by {gap:.2g} nats per token, {used:.0%} of the tolerance "
        "at which the run stops. Check that both have the same precision"
    )


def _spike(history: Sequence[Line], config: Config) -> str | None:
    if not grad_norm_spiked(history):
        return None
    norm = history[-1]["grad_norm"]
    return (
        f"the gradient norm jumped to {norm:.3g}, more than {SPIKE:.0f} times its median: the batch is saved in "
        "rollouts/, for `grpo-tir replay`"
    )


def _skipped(history: Sequence[Line], config: Config) -> str | None:
    skipped = history[-1].get("skipped_updates")
    if not skipped:
        return None
    return f"{skipped:.0f} optimizer step(s) had no finite gradient and were skipped: the batch is saved in dumps/"


MEAN_GAP = "sampling/sampling_logp_difference/mean"
RULES: dict[str, Callable[[Sequence[Line], Config], str | None]] = {
    "code ratio": _code,
    "entropy": _entropy,
    "call probability": _call_probability,
    "cut off": _cut_off,
    "outages": partial(_lost, "rollouts/lost", "the executor lost {}: see `grpo-tir sandbox status`"),
    "unjudged": partial(_lost, "rollouts/unjudged", "the grader could not judge {}: check their gold answers"),
    "log-prob mismatch": _mismatch,
    "gradient spike": _spike,
    "skipped update": _skipped,
}


def trained_lines(history: Sequence[Line]) -> list[Line]:
    """Return the lines with a training step."""
    return [line for line in history if line.get("loss") is not None or line.get("skipped_updates")]


def _known(history: Sequence[Line], name: str) -> list[float]:
    return [value for line in history if (value := line.get(name)) is not None]

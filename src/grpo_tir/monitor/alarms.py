"""What has gone wrong with a run, in words, from its metrics alone.

Training with a tool fails without a sound: the executor is down and the score drifts, the policy stops calling,
the budget cuts every answer. Each rule below looks at the history up to a step and says whether it holds *at* that
step; console and report ask the same rules, so they say the same. A healthy run, the quickstart's, raises none.

A history is the lines of metrics.jsonl in order. Means are over `WINDOW` steps: one batch of a hundred rollouts is
too noisy to ring a bell.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from grpo_tir.config import Config

Line = Mapping[str, float | None]

WINDOW = 5
"""Steps of a mean: 640 rollouts in the quickstart, where the standard error of a share is then below .02."""
MEMORY = 500
"""Steps that are looked back on, so that asking costs the same late in a run as early."""
COLLAPSED_CODE = 0.5
"""Of its own best: the paper's code ratio never falls below 4/5 of it (Figure 5)."""
COLLAPSED_ENTROPY = 0.1
"""Of what it was at first. The quickstart ends near 0.15 of it, with nine of ten answers right."""
SOLVED = 0.9
"""Accuracy from which a policy may well be sure of itself."""
CUT_OFF = 0.5
"""Share of responses beyond the budget: the reward then mostly measures length (trl#5697, #6263)."""
SPIKE = 10.0
"""Times the median of the steps before. The quickstart's largest is below 4."""
LOST = 0.2
"""Of `executor.max_outage`, the share at which the run stops: 1% by default."""
TOLERANCE_USED = 0.5
"""Of the certificate's tolerance, above which the run stops."""


@dataclass(frozen=True)
class Alarm:
    """One thing that is wrong at a step."""

    name: str
    text: str
    """What was seen, against what, and where to look."""


def find_alarms(history: Sequence[Line], config: Config) -> list[Alarm]:
    """Alarms that hold at the last step of `history`; lines without a step of training (evaluations) are passed
    over."""
    trained = [line for line in history if line.get("loss") is not None or line.get("skipped_updates")][-MEMORY:]
    if not trained:
        return []
    texts = {name: rule(trained, config) for name, rule in RULES.items()}
    return [Alarm(name, text) for name, text in texts.items() if text]


def alarm_stretches(history: Sequence[Line], config: Config) -> list[tuple[int, int, Alarm]]:
    """(first step, last step, the alarm as it stood first) for each unbroken stretch of an alarm, oldest first."""
    stretches: list[tuple[int, int, Alarm]] = []
    open_at: dict[str, int] = {}  # name to its place in `stretches`
    for end in range(1, len(history) + 1):
        step = int(history[end - 1].get("step") or 0)
        held = {alarm.name: alarm for alarm in find_alarms(history[max(0, end - MEMORY - 1) : end], config)}
        open_at = {name: place for name, place in open_at.items() if name in held}
        for name, alarm in held.items():
            if name in open_at:
                first, _, began = stretches[open_at[name]]
                stretches[open_at[name]] = (first, step, began)
            else:
                open_at[name] = len(stretches)
                stretches.append((step, step, alarm))
    return stretches


def grad_norm_spiked(history: Sequence[Line]) -> bool:
    """Whether the last gradient norm stands out from the twenty before it; what is usual takes eight to know."""
    norms = _known(history, "grad_norm")[-21:]
    usual = statistics.median(norms[:-1]) if len(norms) > 8 else 0.0
    return bool(usual and norms[-1] > SPIKE * usual)


def _code(history: Sequence[Line], config: Config) -> str | None:
    ratios = _known(history, "tools/code_ratio")
    if not config.tool.max_tool_calls or len(ratios) < 2 * WINDOW:
        return None
    now = statistics.fmean(ratios[-WINDOW:])
    best = max(statistics.fmean(ratios[i : i + WINDOW]) for i in range(len(ratios) - WINDOW))
    if best >= 0.2 and now < COLLAPSED_CODE * best:
        return (
            f"the policy stops writing code: {now:.0%} of responses over {WINDOW} steps, {best:.0%} at best. "
            "Do its programs fail (tools/pass_ratio), or is code punished (reward.code_penalty)?"
        )
    if best < 0.01 and now < 0.01:
        return (
            f"hardly a response holds code ({now:.1%}): what is never tried cannot be rewarded. Does the "
            "prompt ask for a ```python block (data.template)?"
        )
    return None


def _entropy(history: Sequence[Line], config: Config) -> str | None:
    values, right = _known(history, "entropy"), _known(history, "accuracy")[-WINDOW:]
    if len(values) < 2 * WINDOW or not right:
        return None
    first, now = statistics.fmean(values[:WINDOW]), statistics.fmean(values[-WINDOW:])
    if now < COLLAPSED_ENTROPY * first and statistics.fmean(right) < SOLVED:
        return (
            f"entropy has collapsed: {now:.3f} nats, {first:.3f} at first, with {statistics.fmean(right):.0%} "
            "right: samples of a problem become alike and teach nothing. Lower optim.lr, or raise clip_high"
        )
    return None


def _cut_off(history: Sequence[Line], config: Config) -> str | None:
    shares = _known(history, "completions/clipped_ratio")[-WINDOW:]
    if not shares or statistics.fmean(shares) <= CUT_OFF:
        return None
    return (
        f"{statistics.fmean(shares):.0%} of responses are cut off by rollout.max_completion_length "
        f"{config.rollout.max_completion_length}: raise it, or look whether the policy ends at all"
    )


def _outages(history: Sequence[Line], config: Config) -> str | None:
    return _lost(history, config, "rollouts/lost", "the executor lost {}: see `grpo-tir sandbox status`")


def _unjudged(history: Sequence[Line], config: Config) -> str | None:
    return _lost(history, config, "rollouts/unjudged", "the grader could not judge {}: look at their gold answers")


def _lost(history: Sequence[Line], config: Config, name: str, text: str) -> str | None:
    """A share of the batch that was set aside, above a fifth of what stops the run."""
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
        f"generator and learner disagree about log-probs by {gap:.2g} nats a token, {used:.0%} of the tolerance "
        "at which the run stops: is the precision of both the same?"
    )


def _spike(history: Sequence[Line], config: Config) -> str | None:
    if not grad_norm_spiked(history):
        return None
    norm = history[-1]["grad_norm"]
    return (
        f"the gradient norm jumped to {norm:.3g}, more than {SPIKE:.0f} times its median: the batch is kept in "
        "rollouts/, see `grpo-tir replay`"
    )


def _skipped(history: Sequence[Line], config: Config) -> str | None:
    skipped = history[-1].get("skipped_updates")
    if not skipped:
        return None
    return f"{skipped:.0f} optimizer step(s) had no finite gradient and were skipped: the batch is kept in dumps/"


MEAN_GAP = "sampling/sampling_logp_difference/mean"
RULES: dict[str, Callable[[Sequence[Line], Config], str | None]] = {
    "code ratio": _code,
    "entropy": _entropy,
    "cut off": _cut_off,
    "outages": _outages,
    "unjudged": _unjudged,
    "log-prob mismatch": _mismatch,
    "gradient spike": _spike,
    "skipped update": _skipped,
}


def _known(history: Sequence[Line], name: str) -> list[float]:
    return [value for line in history if (value := line.get(name)) is not None]

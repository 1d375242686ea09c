"""Find faults of a run from its metrics.

Training with a tool can fail without an error: the executor loses calls, the policy stops calling the tool, or the
budget cuts off every answer. Each rule reads the history up to a step and returns a text if it holds *at* that
step. Console and report use the same rules. A run without faults, such as the quickstart, raises no alarm.

A history is the list of lines of metrics.jsonl, in order. Means are over `WINDOW` steps, because a single batch of
a hundred rollouts is too noisy.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
    found = _code_alarms(seen, config) | _entropy_alarms(seen) | _batch_alarms(seen, config)
    return [Alarm(name, text) for name, text in found.items()]


def grad_norm_spiked(history: Sequence[Line]) -> bool:
    """True if the last gradient norm is above `SPIKE` times the median of the 8 to 20 norms before it."""
    norms = _known(history, "grad_norm")[-21:]
    usual = statistics.median(norms[:-1]) if len(norms) > 8 else 0.0
    return bool(usual and norms[-1] > SPIKE * usual)


def _code_alarms(history: Sequence[Line], config: Config) -> dict[str, str]:
    found: dict[str, str] = {}
    ratios = _known(history[-MEMORY:], "tools/code_ratio")
    if config.tool.max_tool_calls and len(ratios) >= 2 * WINDOW:
        now = statistics.fmean(ratios[-WINDOW:])
        best = max(statistics.fmean(ratios[i : i + WINDOW]) for i in range(len(ratios) - WINDOW))
        if best >= 0.2 and now < COLLAPSED_CODE * best:
            found["code ratio"] = (
                f"the policy stops writing code: {now:.0%} of responses over {WINDOW} steps, {best:.0%} at best. "
                "Check whether its programs fail (tools/pass_ratio) or code is penalized (reward.code_penalty)"
            )
        elif best < 0.01 and now < 0.01:
            found["code ratio"] = (
                f"almost no response has code ({now:.1%}), so the policy cannot learn to use it. Check that the "
                "prompt asks for a ```python block (data.template)"
            )
    return found


def _entropy_alarms(history: Sequence[Line]) -> dict[str, str]:
    found: dict[str, str] = {}
    values, accuracies = _known(history[-MEMORY:], "entropy"), _known(history, "accuracy")[-WINDOW:]
    if len(values) < 2 * WINDOW or not accuracies:
        return found
    first, now, right = map(statistics.fmean, (values[:WINDOW], values[-WINDOW:], accuracies))
    start = statistics.fmean(_known(history, "entropy")[:WINDOW])
    if now < COLLAPSED_ENTROPY * first and right < SOLVED:
        found["entropy"] = (
            f"entropy has collapsed: {now:.3f} nats, {first:.3f} at first, with {right:.0%} right: the samples of "
            "a group become equal. Lower optim.lr, or raise algorithm.clip_high"
        )
    elif now < DEAD_ENTROPY * start:
        found["entropy"] = (
            f"entropy has died: {now:.3g} nats, {start:.3f} at the start of the run, with {right:.0%} right: "
            "nothing new is tried. Take harder problems, or end the run"
        )
    elif start and now > RISEN_ENTROPY * start:
        found["entropy"] = (
            f"entropy rises: {now:.3f} nats, {start:.3f} at the start of the run: responses become random. Lower "
            "optim.lr or algorithm.clip_high, and look at the samples"
        )
    return found


def _batch_alarms(history: Sequence[Line], config: Config) -> dict[str, str]:
    found: dict[str, str] = {}
    last = history[-1]
    calls, sampled = _known(history, "tools/call_probability")[-WINDOW:], last.get("rollouts/sampled")
    if len(calls) == WINDOW and sampled and statistics.fmean(calls) * sampled < FEW_CALLS:
        found["call probability"] = (
            f"a response calls the tool with probability {statistics.fmean(calls):.1e}: among {sampled:.0f} "
            "rollouts hardly one does, so the policy cannot learn from it. Check data.template, or return to a "
            "checkpoint"
        )
    cut_off = _known(history, "completions/clipped_ratio")[-WINDOW:]
    if cut_off and statistics.fmean(cut_off) > CUT_OFF:
        found["cut off"] = (
            f"{statistics.fmean(cut_off):.0%} of responses are cut off by rollout.max_completion_length "
            f"{config.rollout.max_completion_length}: raise it, or check that the policy ends its responses"
        )
    for name, metric, text in (
        ("outages", "rollouts/lost", "the executor lost {}: see `grpo-tir sandbox status`"),
        ("unjudged", "rollouts/unjudged", "the grader could not judge {}: check their gold answers"),
    ):
        lost, limit = last.get(metric), config.executor.max_outage
        if lost and sampled and lost / sampled > LOST * limit:
            stops = f" (the run stops above {limit:.0%}, executor.max_outage)"
            found[name] = text.format(f"{lost:.0f} of {sampled:.0f} rollouts") + stops
    used, gap = last.get("certificate/used"), last.get("sampling/sampling_logp_difference/mean")
    if used is not None and gap is not None and used > TOLERANCE_USED:
        found["log-prob mismatch"] = (
            f"generator and learner disagree about log-probs by {gap:.2g} nats per token, {used:.0%} of the "
            "tolerance at which the run stops. Check that both have the same precision"
        )
    if grad_norm_spiked(history):
        found["gradient spike"] = (
            f"the gradient norm jumped to {last['grad_norm']:.3g}, more than {SPIKE:.0f} times its median: the "
            "batch is saved in rollouts/, for `grpo-tir replay`"
        )
    if skipped := last.get("skipped_updates"):
        found["skipped update"] = (
            f"{skipped:.0f} optimizer step(s) had no finite gradient and were skipped: the batch is saved in "
            "dumps/"
        )
    return found


def trained_lines(history: Sequence[Line]) -> list[Line]:
    """Return the lines with a training step."""
    return [line for line in history if line.get("loss") is not None or line.get("skipped_updates")]


def _known(history: Sequence[Line], name: str) -> list[float]:
    return [value for line in history if (value := line.get(name)) is not None]

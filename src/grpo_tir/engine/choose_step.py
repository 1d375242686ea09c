"""Choose the decode step by measurement: the fastest one that agrees with the eager step.

Each candidate decodes a few tokens of the first rollout batch: its own prompts, rows and draws. A candidate that
fails (no compiler, an operator that cannot be captured) or disagrees is not used.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from grpo_tir.engine.engine import STEPS, Engine
from grpo_tir.engine.scheduler import SequenceState
from grpo_tir.generation.protocol import Request

TRIAL_TOKENS = 2 * STEPS + 1
"""Tokens for each row: one block to compile and capture, one to time. Rows keep their budgets, so that the steps
have the shapes of the batch and are not compiled again for it."""
MEAN_GAP = 0.03
"""Largest mean gap of log-probs, in nats: the bf16 tolerance of `learning.certificate`."""


@dataclass
class Choice:
    """The step to decode with, and what was measured."""

    mode: str
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds of a step, by candidate."""
    refused: dict[str, str] = field(default_factory=dict)
    """Why a candidate is not used."""

    def describe(self) -> str:
        """Return one line."""
        parts = [f"{mode} {seconds * 1e3:.1f} ms" for mode, seconds in self.seconds.items()]
        parts += [f"{mode} not used: {reason}" for mode, reason in self.refused.items()]
        return f"decode step: {self.mode} ({', '.join(parts)})"


def choose_step(
    make_engine: Callable[[str], Engine],
    requests: Sequence[Request],
    modes: Sequence[str] = ("captured", "compiled"),
) -> Choice:
    """Time the eager step and each of `modes` on the first tokens of the rows of a batch, none of which is paused
    for a call. `make_engine` makes an engine with a given step."""
    seconds, wanted = time_step(make_engine("eager"), requests)
    choice = Choice("eager", {"eager": seconds})
    for mode in modes:
        engine = make_engine(mode)
        seconds, found = time_step(engine, requests)
        if reason := engine.failed or _disagreement(wanted, found):
            choice.refused[mode] = reason
        else:
            choice.seconds[mode] = seconds
    choice.mode = min(choice.seconds, key=lambda mode: choice.seconds[mode])
    return choice


def time_step(engine: Engine, requests: Sequence[Request]) -> tuple[float, list[SequenceState]]:
    """Decode `TRIAL_TOKENS` tokens of each running row. Returns the seconds of a step, and all rows. The first
    block is not timed, and neither is the compilation for fewer rows, once some have ended."""
    for each in requests:
        engine.submit(Request(each.row, each.prompt_ids, each.key, each.budget, False))
    rows = list(engine.scheduler.rows.values())
    engine.ready = lambda: True  # return after every forward or block
    started, setup, before = _now(engine), 0.0, 0
    while not before or (
        engine.counts["forwards"] < before + TRIAL_TOKENS  # with `max_rows`, new rows begin all the time
        and any(len(row.logprobs) < TRIAL_TOKENS for row in engine.scheduler.running_rows())
    ):
        engine.step()
        if not engine.scheduler.rows:
            break
        if not before and (engine.counts["blocks"] or engine.counts["forwards"] >= STEPS):
            started, setup, before = _now(engine), engine.setup_seconds, engine.counts["forwards"]
    took = _now(engine) - started - (engine.setup_seconds - setup)
    seconds = took / max(engine.counts["forwards"] - before, 1)
    engine.close()
    return seconds, rows


def _now(engine: Engine) -> float:
    if engine.model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _disagreement(wanted: list[SequenceState], found: list[SequenceState]) -> str | None:
    """Return how the log-probs differ, or None. Each row is compared up to the first token that differs, because
    rounding alone can change a token."""
    gaps: list[float] = []
    for ours, theirs in zip(wanted, found, strict=True):
        for a, b, p, q in zip(ours.drawn, theirs.drawn, ours.logprobs, theirs.logprobs):
            if a != b:
                break
            gaps.append(abs(p - q))
    if len(gaps) < sum(bool(row.logprobs) for row in wanted):
        return "it draws other tokens"
    mean = sum(gaps) / len(gaps)
    return f"its log-probs differ by {mean:.2g} nats" if not mean <= MEAN_GAP else None

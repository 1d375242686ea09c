"""Check that the trained tokens are the sampled tokens: the token certificate.

    sampled    ids of the generator, each segment stamped    model 12 crc │ tool 5 crc │ model 9 crc
    trained    ids and loss mask of the learner's sample     1 1 1 … 1 1  │ 0 … 0      │ 1 1 … 1

1. After the prompt, the trained ids are those of the stamped segments, in the same order, and no others.
2. Every model token is in the loss. No token of the prompt or of the tool is.
3. The log-probs of generator and learner agree, up to their numerical precision.

A segment is stamped when it enters a rollout. The stamps are checked when the learner makes its samples. The first
two checks find any change of an id or of the mask in between: re-tokenization, a mask shifted by a round (bugs 1,
3 and 4 of the reference), or a reward function that edits its rollout. The third check finds a generator that
sampled at another temperature, with a penalty, from stale weights, or after another prompt.

This module imports only the standard library.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from grpo_tir.errors import CertificateError
from grpo_tir.types import Stamp, stamp

TOLERANCE = {"fp32": 1e-3, "bf16": 0.03}
"""Maximum mean gap of log-probs over a batch, in nats per token, by the lower of the two precisions. Measured on
the quickstart's model: 5e-7 in fp32, 6e-4 in bf16. Rounding errors grow with the model: in bf16, TRL with vLLM
reports 0.012. vime reports 0.011 for Qwen3-4B, and 0.036 in a run whose gap grew during training
(vllm-project/vime#64). The limit 0.03 is 2.5 times the normal gap, and below that of the growing one."""
SINGLE = 10.0
"""Factor on the tolerance for a single response, whose mean is over few tokens."""
SLOPE_TOLERANCE = 0.02
"""Largest deviation from 1 of the slope of the generator's log-probs over the learner's. On the quickstart's model
it is 0.046 if tokens are sampled at temperature 0.9 instead of 1, while the gap (0.016) is still within the
tolerance of bf16. With correct sampling in bf16 it is 0.0003."""


def check_tokens(
    stamps: Sequence[Stamp], prompt: int, token_ids: Sequence[int], loss_mask: Sequence[int], where: str
) -> None:
    """Run the first two checks on one sample.

    Args:
        stamps: stamps of the response's segments, in order.
        prompt: number of prompt tokens.
        token_ids, loss_mask: (T,) ids and mask that are about to be trained.
        where: name of the rollout, for the error.

    Raises:
        CertificateError: the ids are not the sampled ones, or the mask does not match the kind of a segment.
    """
    if any(loss_mask[:prompt]):
        raise CertificateError(f"{where}: {sum(loss_mask[:prompt])} prompt tokens are in the loss")
    start = prompt
    for number, part in enumerate(stamps):
        end = start + part.length
        if stamp(part.kind, token_ids[start:end]) != part:
            raise CertificateError(
                f"{where}: the ids to be trained are not the ids that were {_VERB[part.kind]} "
                f"(segment {number}, tokens {start} to {end})"
            )
        inside = sum(loss_mask[start:end])
        if inside != (part.length if part.kind == "model" else 0):
            wrong = inside if part.kind == "tool" else part.length - inside
            fault = "tool tokens are in the loss" if part.kind == "tool" else "sampled tokens are not in the loss"
            raise CertificateError(f"{where}: {wrong} {fault} (segment {number}, tokens {start} to {end})")
        start = end
    if start != len(token_ids) or start != len(loss_mask):
        raise CertificateError(
            f"{where}: {len(token_ids)} tokens are to be trained, {start} were sampled or inserted"
        )


_VERB = {"model": "sampled", "tool": "inserted"}


@dataclass(frozen=True)
class Agreement:
    """Agreement of the learner's log-probs (x) with the generator's (y), as sums over the tokens of a batch."""

    tokens: float
    gap: float
    """Sum of |x - y|."""
    square: float
    """Sum of (x - y)^2."""
    x: float
    y: float
    xx: float
    xy: float
    worst: float
    """The largest mean of |x - y| over one response."""

    def slope(self) -> tuple[float, float]:
        """Return the least-squares slope of y over x, and the maximum deviation from 1 that rounding explains: the
        ratio of rounding noise to the variance of x, plus four standard errors. A lower sampling temperature
        raises the slope, also for a confident policy, whose mean gap stays small."""
        spread = self.xx - self.x**2 / max(self.tokens, 1.0)
        if spread <= 0:
            return 1.0, math.inf
        noise = self.square / spread
        slope = (self.xy - self.x * self.y / self.tokens) / spread
        return slope, noise + 4 * math.sqrt(noise / self.tokens)

    def used(self, tolerance: float) -> float:
        """Return the largest ratio of a value to its tolerance: mean gap, worst response, slope. Above 1 fails."""
        slope, rounding = self.slope()
        limit = SLOPE_TOLERANCE * max(1.0, tolerance / TOLERANCE["bf16"])
        mean = self.gap / max(self.tokens, 1.0)
        return max(mean / tolerance, self.worst / (SINGLE * tolerance), abs(slope - 1) / (limit + rounding))


def check_logprobs(found: Agreement, tolerance: float) -> None:
    """Run the third check before one optimizer step. A NaN passes: `Learner.step` skips a gradient with NaN.

    Raises:
        CertificateError: `tolerance` is exceeded, the largest mean gap over the batch in nats per token.
    """
    if found.used(tolerance) > 1:
        raise CertificateError(
            f"the generator's log-probs are not the learner's: they differ by {found.gap / found.tokens:.3g} "
            "nats per token over the batch "
            f"and {found.worst:.3g} in the worst response (train.logprob_tolerance allows "
            f"{tolerance:g} and {SINGLE * tolerance:g}), and their slope is {found.slope()[0]:.3f} instead of 1. "
            "Check that temperature, weights and precision are the same. No step was taken"
        )

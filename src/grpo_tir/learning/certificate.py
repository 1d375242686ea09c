"""Check that the trained tokens are the sampled tokens: the token certificate.

    sampled    the generator's ids, stamped as they come     model 12 crc │ tool 5 crc │ model 9 crc
    trained    the ids and the mask of the learner's row     1 1 1 … 1 1  │ 0 … 0      │ 1 1 … 1

1. The row holds every stamped segment, id for id and in order, and nothing else after the prompt.
2. No token of prompt or tool is in the loss, and every sampled token is.
3. The log-probs of generator and learner agree, up to their numerical precision.

Stamps are made where tokens enter a rollout, and checked where the learner makes its rows. A change of an id or of
the mask in between is found: re-tokenization, a mask shifted by a round (bugs 1, 3 and 4 of the reference), a
reward function that edits its rollout. The third check finds a generator that drew at another temperature, with a
penalty, from stale weights, or after another prompt.

This module imports only the standard library.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from grpo_tir.errors import CertificateError
from grpo_tir.types import Stamp, stamp

TOLERANCE = {"fp32": 1e-3, "bf16": 0.05}
"""Largest mean gap of log-probs over a batch, in nats a token, by the lower of the two precisions. The
quickstart's model has 5e-7 in fp32 and 6e-4 in bf16. Larger models add up more rounding errors."""
SINGLE = 10.0
"""Factor on the tolerance for a single response, whose mean is over few tokens."""
STEEP = 0.02
"""Largest deviation from 1 of the slope of the generator's log-probs over the learner's. On the quickstart's model
it is 0.046 if tokens are drawn at temperature 0.9 instead of 1, while the gap (0.016) is still within the
tolerance of bf16. With correct draws in bf16 it is 0.0003."""


def check_tokens(
    stamps: Sequence[Stamp], prompt: int, token_ids: Sequence[int], loss_mask: Sequence[int], where: str
) -> None:
    """Run the first two checks on one row.

    Args:
        stamps: of the response's segments, in order.
        prompt: tokens before the response.
        token_ids, loss_mask: of the row that is about to be trained.
        where: name of the rollout, for the error.

    Raises:
        CertificateError: the row is not what was sampled, or the mask is not its kind.
    """
    if any(loss_mask[:prompt]):
        raise CertificateError(f"{where}: {sum(loss_mask[:prompt])} prompt tokens are in the loss")
    start = prompt
    for number, piece in enumerate(stamps):
        end = start + piece.length
        if stamp(piece.kind, token_ids[start:end]) != piece:
            raise CertificateError(
                f"{where}: the ids to be trained are not the ids that were {_VERB[piece.kind]} "
                f"(piece {number}, tokens {start} to {end})"
            )
        inside = sum(loss_mask[start:end])
        if inside != (piece.length if piece.kind == "model" else 0):
            wrong = inside if piece.kind == "tool" else piece.length - inside
            fault = "tool tokens are in the loss" if piece.kind == "tool" else "sampled tokens are not in the loss"
            raise CertificateError(f"{where}: {wrong} {fault} (piece {number}, tokens {start} to {end})")
        start = end
    if start != len(token_ids) or start != len(loss_mask):
        raise CertificateError(
            f"{where}: {len(token_ids)} tokens are to be trained, {start} were sampled or inserted"
        )


_VERB = {"model": "sampled", "tool": "inserted"}


@dataclass(frozen=True)
class Agreement:
    """Log-probs of one batch, the learner's (x) and the generator's (y), as sums over its tokens."""

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
        """Least-squares slope of y over x, and how far rounding alone may bend it: by its share of the variance of
        x, and four standard errors. A lower temperature makes log-probs steeper, however small the gap it leaves
        between a sure policy's; rounding does not."""
        spread = self.xx - self.x**2 / max(self.tokens, 1.0)
        if spread <= 0:
            return 1.0, math.inf
        noise = self.square / spread
        slope = (self.xy - self.x * self.y / self.tokens) / spread
        return slope, noise + 4 * math.sqrt(noise / self.tokens)

    def used(self, tolerance: float) -> float:
        """The largest share of its tolerance: of the mean gap, of the worst response, of the slope."""
        slope, bend = self.slope()
        steep = STEEP * max(1.0, tolerance / TOLERANCE["bf16"])
        mean = self.gap / max(self.tokens, 1.0)
        return max(mean / tolerance, self.worst / (SINGLE * tolerance), abs(slope - 1) / (steep + bend))


def check_logprobs(found: Agreement, tolerance: float) -> None:
    """The third check, for one optimizer step. NaN passes: a step that is not finite has a guard of its own.

    Args:
        tolerance: of the mean gap over the batch, nats a token.

    Raises:
        CertificateError: some tolerance is used up.
    """
    if found.used(tolerance) > 1:
        raise CertificateError(
            f"the generator's log-probs are not the learner's: they differ by {found.gap / found.tokens:.3g} "
            "nats a token over the batch "
            f"and {found.worst:.3g} in the worst response (train.logprob_tolerance allows "
            f"{tolerance:g} and {SINGLE * tolerance:g}), and are {found.slope()[0]:.3f} times as steep. Same "
            "temperature, same weights, same precision? No step was taken"
        )

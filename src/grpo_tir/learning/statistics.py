"""Measure the updates on one rollout batch: the sums behind their metrics, and how well the log-probs of generator
and learner agree.

Shapes: B rows, T tokens.
"""

import math

import torch

from grpo_tir.config import Config
from grpo_tir.distributed.runtime import Runtime
from grpo_tir.learning.batching import MicroBatch, pad
from grpo_tir.learning.certificate import TOLERANCE, Agreement, check_logprobs
from grpo_tir.learning.loss import sequence_ratio
from grpo_tir.learning.packing import upload
from grpo_tir.monitor.metrics import update_metrics


class UpdateStatistics:
    """Sum over the micro-batches of this rank. Sums stay on the device: a read in a micro-batch would make the GPU
    wait. `counts_calls`: measure the probability of a tool call."""

    def __init__(self, runtime: Runtime, config: Config, counts_calls: bool) -> None:
        self.runtime, self.config = runtime, config
        options = config.algorithm
        optional = {"kl": options.kl_coef, "masked": options.sequence_mask, "opens": counts_calls}
        names = ["loss", "tokens", "entropy", "gap", "clipped_low", "clipped_high", "responses", "far"]
        names += [name for name, reported in optional.items() if reported]
        self.sums: dict[str, float | torch.Tensor] = dict.fromkeys(names, 0.0)
        self.gap_max = torch.zeros((), device=runtime.device)
        self.agreements: list[tuple[torch.Tensor, torch.Tensor]] = []
        """`agreement` of the micro-batches of one optimizer step."""
        self.tolerance = config.train.logprob_tolerance or TOLERANCE["bf16" if runtime.bf16 else "fp32"]
        self.tolerance_used = 0.0
        self.norms: list[float] = []
        """Gradient norms of the optimizer steps."""

    def add(self, **numbers: torch.Tensor) -> None:
        """Add to the sums. Those that this run does not report are ignored."""
        for name, number in numbers.items():
            if name in self.sums:
                self.sums[name] = self.sums[name] + number.detach().double()

    def compare(self, batch: MicroBatch, old_logprobs: torch.Tensor) -> None:
        """Add the gap between the log-probs (B, T) of learner and generator, before any update."""
        gap = old_logprobs - batch.sampled_logprobs
        gaps = torch.where(batch.loss_mask.bool(), gap.abs(), 0.0)
        ratio = sequence_ratio(gap, batch.loss_mask)  # (B,); 1 for an idle row
        far = (ratio < 1 / 3) | (ratio > 3)
        self.add(gap=gaps.sum(), far=far.sum(), responses=batch.loss_mask.any(1).sum())
        self.gap_max = torch.maximum(self.gap_max, gaps.max())
        self.agreements.append(agreement(batch, old_logprobs))

    def certify(self) -> None:
        """Check before an optimizer step that the log-probs of generator and learner agree over all ranks.

        Raises:
            CertificateError: they do not.
        """
        sums, worst = (torch.stack(column) for column in zip(*self.agreements, strict=True))
        self.agreements.clear()
        *totals, most = torch.cat([sums.sum(0), worst.max()[None]]).tolist()  # the only read of a mini-batch
        found = Agreement(*self.runtime.sum(totals), *self.runtime.max([most]))
        self.tolerance_used = max(self.tolerance_used, found.used(self.tolerance))
        check_logprobs(found, self.tolerance)

    def report(self, learning_rate: float) -> dict[str, float]:
        """Return the metrics of the optimizer steps. All ranks must call it together."""
        sums = self.runtime.sum([float(value) for value in self.sums.values()])
        totals = dict(zip(self.sums, sums, strict=True))
        finite = [norm for norm in self.norms if math.isfinite(norm)]  # equal on all ranks
        skipped = len(self.norms) - len(finite)
        totals |= {"grad_norm": sum(finite), "steps": float(len(finite)), "skipped": float(skipped)}
        totals["gap_max"] = self.runtime.max([self.gap_max.item()])[0]
        totals["tolerance_used"] = self.tolerance_used
        updates = self.config.algorithm.mini_batches * self.config.algorithm.epochs
        return update_metrics(totals, updates, learning_rate)


def agreement(batch: MicroBatch, old_logprobs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compare the log-probs (B, T) of learner and generator where they must agree. Returns the sums of
    `Agreement`, (7,) float64, and the largest mean gap of a row, (), both on the device."""
    compared = [row.compared or [False] * len(row.token_ids) for row in batch.rows]
    kept = upload(pad(compared, False), batch.loss_mask.device)  # (B, T)
    x, y = (torch.where(kept, values, 0.0).double() for values in (old_logprobs, batch.sampled_logprobs))
    gap = (x - y).abs()
    sums = torch.stack([kept.sum(), gap.sum(), (gap**2).sum(), x.sum(), y.sum(), (x**2).sum(), (x * y).sum()])
    return sums, (gap.sum(1) / kept.sum(1).clamp(min=1)).max()


def first_probability(
    probs: torch.Tensor, input_ids: torch.Tensor, token: int | None, loss_mask: torch.Tensor
) -> torch.Tensor:
    """Sum the probabilities (B, T) of a token over the model tokens up to its first occurrence: (B,).

    Its mean over responses sampled from the policy is the probability that a response has the token. It is above 0
    even if no response of a batch has it.
    """
    mask = loss_mask.bool()
    found = (mask & input_ids.eq(-1 if token is None else token)).long()  # (B, T)
    return torch.where(mask & (found.cumsum(1) == found), probs, 0.0).sum(1)

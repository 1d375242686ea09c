"""Turn rollouts of any length into padded micro-batches of bounded size.

    prompt₀ response₀            │ loss_mask 0 0 0 1 1 1 0 0 1 1
    prompt₁ response₁ pad pad    │           0 0 1 1 1 1 1 1 0 0

Rows are sorted by length and cut into micro-batches of at most `micro_batch_tokens` tokens. If the model can pack
(`packing.py`), padding is not computed and does not count. The gradient does not depend on the cut, because the
denominator is that of the whole optimizer step.

Shapes: B rows, T tokens (prompt and response).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from grpo_tir.learning.certificate import Agreement, check_tokens
from grpo_tir.types import Rollout


@dataclass
class TrainingSample:
    """One rollout as a training row: prompt and response."""

    token_ids: list[int]
    loss_mask: list[int]
    sampled_logprobs: list[float]
    """(T,) recorded by the generator; 0.0 at prompt and tool tokens."""
    advantage: float
    old_logprobs: torch.Tensor | None = None
    """(T,) of the learner before the first of several updates; None with one update."""
    ref_logprobs: torch.Tensor | None = None
    """(T,) of the reference policy; None without `kl_coef`."""
    rollout: Rollout | None = None
    """Rollout that the row was made from; None for an idle row."""
    certified: bool = False
    """True if the rollout has stamps, so that its log-probs come from the generator."""

    @property
    def prompt(self) -> tuple[int, ...]:
        """Tokens that packed rows of one prompt share: all before the token that predicts the first model
        token."""
        return tuple(self.token_ids[: max(self.loss_mask.index(1) - 1, 0)]) if any(self.loss_mask) else ()


@dataclass
class MicroBatch:
    """Right-padded rows on the device."""

    input_ids: torch.Tensor  # (B, T)
    attention_mask: torch.Tensor  # (B, T)
    loss_mask: torch.Tensor  # (B, T)
    sampled_logprobs: torch.Tensor  # (B, T)
    advantages: torch.Tensor  # (B,)
    rows: Sequence[TrainingSample]

    def agreement(self, old_logprobs: torch.Tensor) -> Agreement:
        """Compare the learner's log-probs (B, T) with the generator's, at model tokens of certified rows."""
        certified = torch.tensor([row.certified for row in self.rows], device=self.loss_mask.device)
        kept = self.loss_mask.bool() & certified[:, None]  # (B, T)
        x, y = (torch.where(kept, values, 0.0).double() for values in (old_logprobs, self.sampled_logprobs))
        gap = (x - y).abs()
        sums = torch.stack([kept.sum(), gap.sum(), (gap**2).sum(), x.sum(), y.sum(), (x**2).sum(), (x * y).sum()])
        worst = (gap.sum(1) / kept.sum(1).clamp(min=1)).max().item()
        return Agreement(*[*sums.tolist(), worst])

    def remember(self, old_logprobs: torch.Tensor) -> None:
        """Store the learner's log-probs (B, T) in each rollout, for the log."""
        for row, values in zip(self.rows, old_logprobs.cpu()):
            if row.rollout:
                row.rollout.old_logprobs = values[len(row.rollout.prompt_ids) : len(row.token_ids)]

    def stack(self, vectors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Stack per-row vectors (T_i,) into one zero-padded tensor (B, T)."""
        return _pad([vector.tolist() for vector in vectors], 0.0).to(self.input_ids.device)


def to_row(rollout: Rollout) -> TrainingSample:
    """Join prompt and response into one row. The prompt is never in the loss.

    Raises:
        CertificateError: the row differs from what was sampled.
    """
    prompt = len(rollout.prompt_ids)
    row = TrainingSample(
        rollout.prompt_ids + rollout.token_ids,
        [0] * prompt + rollout.loss_mask,
        [0.0] * prompt + rollout.logprobs,
        rollout.advantage,
        rollout=rollout,
    )
    assert len(row.token_ids) == len(row.loss_mask) == len(row.sampled_logprobs), "ids, mask and log-probs drifted"
    if rollout.stamps:  # made by hand, as tests do, a rollout has none and claims nothing
        where = f"group {rollout.group}, sample {rollout.sample}"
        check_tokens(rollout.stamps, prompt, row.token_ids, row.loss_mask, where)
        row.certified = True
    return row


REPEATED = 8
"""A prompt that more rows attend to costs only keys and values: 1/8 of the memory of its tokens."""


def plan_micro_batches(
    rows: Sequence[TrainingSample], max_tokens: int, packed: bool = False
) -> list[list[TrainingSample]]:
    """Group rows into micro-batches of at most `max_tokens`, longest first, so that memory runs out at once or
    never.

    A row longer than `max_tokens` is alone in its batch. Without `packed`, each row counts as long as the longest
    of its batch. With `packed`, rows have no padding, stay beside the rows of their prompt, and count the prompt
    once plus 1/8 of it for each further row."""
    prompts = [row.prompt if packed else () for row in rows]
    longest: dict[tuple[int, ...], int] = {}
    for row, prompt in zip(rows, prompts, strict=True):
        longest[prompt] = max(longest.get(prompt, 0), len(row.token_ids))
    pairs = sorted(
        zip(rows, prompts, strict=True), key=lambda pair: (-longest[pair[1]], pair[1], -len(pair[0].token_ids))
    )
    batches: list[list[TrainingSample]] = []
    size = 0  # tokens of the batch that is being filled
    last: tuple[int, ...] | None = None  # prompt of its last row
    for row, prompt in pairs:
        whole = len(row.token_ids)
        cost = whole if packed or not batches else len(batches[-1][0].token_ids)
        cost -= len(prompt) - len(prompt) // REPEATED if prompt == last else 0
        if not batches or size + cost > max_tokens:
            batches.append([])
            size, cost = 0, whole
        batches[-1].append(row)
        size, last = size + cost, prompt
    return batches


def collate(rows: Sequence[TrainingSample], device: torch.device) -> MicroBatch:
    """Pad rows to the longest. Padding is masked by length, whatever its token id (bug 6)."""
    return MicroBatch(
        _pad([row.token_ids for row in rows], 0).to(device),
        _pad([[1] * len(row.token_ids) for row in rows], 0).to(device),
        _pad([row.loss_mask for row in rows], 0).to(device),
        _pad([row.sampled_logprobs for row in rows], 0.0).to(device),
        torch.tensor([row.advantage for row in rows], dtype=torch.float32, device=device),
        rows,
    )


def idle_row() -> TrainingSample:
    """Make a row without loss, for a rank that has fewer micro-batches than the others."""
    return TrainingSample([0, 0], [0, 0], [0.0, 0.0], 0.0)


def _pad(rows: Sequence[Sequence[float]], value: float) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])

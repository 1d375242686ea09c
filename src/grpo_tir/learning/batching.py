"""From rollouts of any length to rectangles of a bounded size.

    prompt₀ response₀            │ loss_mask 0 0 0 1 1 1 0 0 1 1
    prompt₁ response₁ pad pad    │           0 0 1 1 1 1 1 1 0 0

Rows are sorted by length and cut into micro-batches of at most `micro_batch_tokens` tokens. Where the model can
pack (`packing.py`) the padding is never computed and does not count.
The gradient does not depend on the cut: the denominator is that of the whole optimizer step.

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
    """One rollout as training sees it."""

    token_ids: list[int]
    loss_mask: list[int]
    sampled_logprobs: list[float]
    """Recorded by the generator; 0.0 at prompt and tool tokens."""
    advantage: float
    old_logprobs: torch.Tensor | None = None
    """(T,) of the learner before the first of several updates."""
    ref_logprobs: torch.Tensor | None = None
    """(T,) of the reference policy, with `kl_coef`."""
    rollout: Rollout | None = None
    """Where it comes from; None for an idle row."""
    certified: bool = False
    """Its rollout was stamped as it was sampled, so its log-probs are the generator's."""

    @property
    def prompt(self) -> tuple[int, ...]:
        """What packed rows of one prompt share: all before the token that predicts the first of the model."""
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
        """The learner's log-probs (B, T) against the generator's, at the model tokens of certified rows."""
        certified = torch.tensor([row.certified for row in self.rows], device=self.loss_mask.device)
        kept = self.loss_mask.bool() & certified[:, None]  # (B, T)
        x, y = (torch.where(kept, values, 0.0).double() for values in (old_logprobs, self.sampled_logprobs))
        gap = (x - y).abs()
        sums = torch.stack([kept.sum(), gap.sum(), (gap**2).sum(), x.sum(), y.sum(), (x**2).sum(), (x * y).sum()])
        worst = (gap.sum(1) / kept.sum(1).clamp(min=1)).max().item()
        return Agreement(*[*sums.tolist(), worst])

    def remember(self, old_logprobs: torch.Tensor) -> None:
        """Give each rollout the learner's log-probs (B, T) of its response, for the record."""
        for row, values in zip(self.rows, old_logprobs.cpu()):
            if row.rollout:
                row.rollout.old_logprobs = values[len(row.rollout.prompt_ids) : len(row.token_ids)]

    def stack(self, vectors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Per-row (T_i,) vectors as one zero-padded (B, T) tensor."""
        return _pad([vector.tolist() for vector in vectors], 0.0).to(self.input_ids.device)


def to_row(rollout: Rollout) -> TrainingSample:
    """Prompt and response in one sequence; the prompt is never in the loss.

    Raises:
        CertificateError: the row is not what was sampled.
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
"""A prompt that is attended to again costs its keys and values: an eighth of the memory of its tokens."""


def plan_micro_batches(
    rows: Sequence[TrainingSample], max_tokens: int, packed: bool = False
) -> list[list[TrainingSample]]:
    """Longest first, so that running out of memory happens at once; a row that is longer than `max_tokens`
    goes alone. Rows are as long as the longest of their batch, but for `packed` ones: those have no padding, stay
    with the rows of their prompt and pay for it once, and an eighth of it for each further row."""
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
    """Pad to the longest row. Padding is masked by length, whatever id it has (bug 6)."""
    return MicroBatch(
        _pad([row.token_ids for row in rows], 0).to(device),
        _pad([[1] * len(row.token_ids) for row in rows], 0).to(device),
        _pad([row.loss_mask for row in rows], 0).to(device),
        _pad([row.sampled_logprobs for row in rows], 0.0).to(device),
        torch.tensor([row.advantage for row in rows], dtype=torch.float32, device=device),
        rows,
    )


def idle_row() -> TrainingSample:
    """A row without weight, for a rank that has fewer micro-batches than the others."""
    return TrainingSample([0, 0], [0, 0], [0.0, 0.0], 0.0)


def _pad(rows: Sequence[Sequence[float]], value: float) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])

"""Turn rollouts of any length into padded micro-batches of bounded size.

    prompt₀ response₀            │ loss_mask 0 0 0 1 1 1 0 0 1 1
    prompt₁ response₁ pad pad    │           0 0 1 1 1 1 1 1 0 0

Rows are sorted by length and split into micro-batches of at most `micro_batch_tokens` tokens. If the model can
pack (`packing.py`), padding is not computed and does not count. The gradient does not depend on the split, because
the denominator is that of the full optimizer step.

Shapes: B rows, T tokens (prompt and response).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from grpo_tir.learning.certificate import check_tokens
from grpo_tir.learning.packing import upload
from grpo_tir.types import Rollout


@dataclass
class TrainingSample:
    """A rollout as one sequence of prompt and response: one row of a batch. T is its length."""

    token_ids: list[int]
    loss_mask: list[int]
    sampled_logprobs: list[float]
    """(T,) log-probs recorded by the generator; 0.0 at prompt and tool tokens."""
    advantages: list[float]
    """(T,) equal at all tokens of a turn."""
    old_logprobs: torch.Tensor | None = None
    """(T,) log-probs of the learner before the first update; None with one update."""
    ref_logprobs: torch.Tensor | None = None
    """(T,) log-probs of the reference policy; None without `kl_coef`."""
    rollout: Rollout | None = None
    """Rollout of this sample; None for an idle row."""
    compared: list[bool] = field(default_factory=list)
    """(T,) True where generator and learner must agree: at model tokens that the current weights drew, once the
    stamps of the rollout were checked. Empty if there are none."""

    @property
    def prompt(self) -> tuple[int, ...]:
        """Tokens that packed rows of the same prompt share: the prompt without its last token, which predicts the
        first model token."""
        return tuple(self.token_ids[: max(self.loss_mask.index(1) - 1, 0)]) if any(self.loss_mask) else ()


@dataclass
class MicroBatch:
    """Right-padded samples on the device, one per row."""

    input_ids: torch.Tensor  # (B, T)
    attention_mask: torch.Tensor  # (B, T)
    loss_mask: torch.Tensor  # (B, T)
    sampled_logprobs: torch.Tensor  # (B, T)
    advantages: torch.Tensor  # (B, T)
    old_logprobs: torch.Tensor | None  # (B, T)
    ref_logprobs: torch.Tensor | None  # (B, T)
    rows: Sequence[TrainingSample]
    host: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    """The first three, on the host: from them `TokenLogprobs` plans its layout without waiting for the device."""

    def remember(self, old_logprobs: torch.Tensor) -> None:
        """Store the learner's log-probs (B, T) in the rollouts, for the run's log."""
        for row, values in zip(self.rows, old_logprobs):
            if row.rollout:
                row.rollout.old_logprobs = values[len(row.rollout.prompt_ids) : len(row.token_ids)]


def to_row(rollout: Rollout, version: int = 0) -> TrainingSample:
    """Join prompt and response of a rollout that has ended. The prompt is never in the loss. `version` is the
    training step of the current weights.

    Raises:
        CertificateError: the tokens or the loss mask differ from what was sampled.
    """
    prompt = len(rollout.prompt_ids)
    row = TrainingSample(
        rollout.prompt_ids + rollout.token_ids,
        [0] * prompt + rollout.loss_mask,
        [0.0] * prompt + rollout.logprobs,
        [0.0] * prompt + rollout.advantages,
        rollout=rollout,
    )
    assert len(row.token_ids) == len(row.loss_mask) == len(row.sampled_logprobs), "ids, mask, log-probs differ"
    if rollout.stamps:  # a rollout made by hand, as in tests, has none
        where = f"group {rollout.group}, sample {rollout.sample}"
        check_tokens(rollout.stamps, prompt, row.token_ids, row.loss_mask, where)
        tokens = zip(rollout.loss_mask, rollout.versions, strict=True)
        row.compared = [False] * prompt + [bool(mask) and not 0 < drawn < version for mask, drawn in tokens]
    return row


SHARED_PROMPT_DIVISOR = 8
"""Each further row that attends to a shared prompt adds 1/8 of the prompt's memory: only keys and values."""


def plan_micro_batches(
    rows: Sequence[TrainingSample], max_tokens: int, packed: bool = False
) -> list[list[TrainingSample]]:
    """Split rows into micro-batches of at most `max_tokens` tokens, longest first. So if memory is too small, it
    is the first micro-batch that fails.

    A row longer than `max_tokens` gets its own batch. Without `packed`, each row counts with the length of the
    longest in its batch. With `packed`, there is no padding, rows of the same prompt are neighbours, and the
    prompt counts once, plus 1/8 for each further row."""
    # 1. Sort by the longest row of a prompt, then by prompt, then by length.
    prompts = [row.prompt if packed else () for row in rows]
    longest: dict[tuple[int, ...], int] = {}
    for row, prompt in zip(rows, prompts, strict=True):
        longest[prompt] = max(longest.get(prompt, 0), len(row.token_ids))
    pairs = sorted(
        zip(rows, prompts, strict=True), key=lambda pair: (-longest[pair[1]], pair[1], -len(pair[0].token_ids))
    )
    # 2. Fill one batch after the other.
    batches: list[list[TrainingSample]] = []
    size = 0  # tokens in the last batch
    last: tuple[int, ...] | None = None  # prompt of the last row
    for row, prompt in pairs:
        length = len(row.token_ids)
        cost = length if packed or not batches else len(batches[-1][0].token_ids)
        cost -= len(prompt) - len(prompt) // SHARED_PROMPT_DIVISOR if prompt == last else 0
        if not batches or size + cost > max_tokens:
            batches.append([])
            size, cost = 0, length
        batches[-1].append(row)
        size, last = size + cost, prompt
    return batches


def collate(rows: Sequence[TrainingSample], device: torch.device) -> MicroBatch:
    """Pad rows to the longest. The attention mask depends on lengths only, not on token ids (bug 6)."""
    input_ids = pad([row.token_ids for row in rows], 0)
    lengths = torch.tensor([len(row.token_ids) for row in rows])
    attention_mask = (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()
    loss_mask = pad([row.loss_mask for row in rows], 0)
    return MicroBatch(
        upload(input_ids, device),
        upload(attention_mask, device),
        upload(loss_mask, device),
        upload(pad([row.sampled_logprobs for row in rows], 0.0), device),
        upload(pad([row.advantages for row in rows], 0.0), device),
        _stack([row.old_logprobs for row in rows], device),
        _stack([row.ref_logprobs for row in rows], device),
        rows,
        (input_ids, attention_mask, loss_mask),
    )


def idle_row() -> TrainingSample:
    """Make a sample without loss, for a rank that has fewer micro-batches than the others."""
    return TrainingSample([0, 0], [0, 0], [0.0, 0.0], [0.0, 0.0])


def _stack(vectors: Sequence[torch.Tensor | None], device: torch.device) -> torch.Tensor | None:
    """Zero-pad vectors (T_i,) to (B, T). None if there are none: with one update, and for an idle row."""
    present = [vector for vector in vectors if vector is not None]
    return upload(pad_sequence(present, batch_first=True), device) if len(present) == len(vectors) else None


def pad(rows: Sequence[Sequence[float]], value: float) -> torch.Tensor:
    """Right-pad rows to the longest: (B, T)."""
    padded = torch.full((len(rows), max(map(len, rows))), value)
    for line, row in zip(padded, rows, strict=True):
        line[: len(row)] = torch.from_numpy(np.array(row))  # five times as fast as a tensor of the list
    return padded

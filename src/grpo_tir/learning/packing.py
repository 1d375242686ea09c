"""Pack rows into one sequence, in which each row attends to itself and its prompt. No layer computes padding, and
none computes a shared prompt twice, except its last token.

    padded    p p p a a a       packed    p p p a a a q q b q c c
              q q b · · ·       position  0 1 2 3 4 5 0 1 2 1 2 3     row 2 attends to the first q of row 1
              q q c c · ·       row       └── 0 ────┘ └─1─┘ └─2─┘

On CUDA one call of a variable-length kernel attends in all rows; elsewhere there is one call per row. The gradient
is that of the padded batch (`optim.packing: false`, which is easier to read).

Shapes: B rows, T tokens, N fed tokens of all rows, M keys of all rows, H query heads, K KV heads, D head size.
"""

import inspect
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

ATTENTION = "grpo_tir_packed"
LONG = 512
"""From this many queries on, `_attend_row` pads the queries instead of using a mask."""


def upload(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor of the host to a device. From pinned memory, a GPU gets it without a wait for all work before
    it, so that the host prepares a micro-batch while the GPU computes the last one."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@dataclass(frozen=True)
class Packing:
    """Positions of each row's queries and keys. Row i has `key_lengths[i]` keys. The last `lengths[i]` of them are
    its own tokens; the others are its prompt, which another row feeds."""

    fed: torch.Tensor  # (B, T) bool: tokens that are fed to the model
    lengths: list[int]
    key_lengths: list[int]
    keys: torch.Tensor | None  # (M,) positions among the fed tokens; None if no prompt is shared
    ends: torch.Tensor  # (2, B + 1) int32 on the device: where each row's queries and keys end
    masks: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls, input_ids: torch.Tensor, attention_mask: torch.Tensor, chosen: torch.Tensor, device: torch.device
    ) -> Self:
        """Plan the packing of right-padded rows (B, T). `chosen` is True at model tokens; the tokens before the
        first are the prompt. Each row feeds its last prompt token, whose output must predict for this row only."""
        # 1. Find rows with the same prompt: the first of them feeds it, the others reuse its keys and values.
        fed = attention_mask.bool().clone()
        prompts = (chosen.int().argmax(1) - 1).clamp(min=0)  # (B,)
        sources: dict[tuple[int, ...], int] = {}
        shared = []  # for each row: (row that feeds its prompt, number of shared tokens)
        for row, (ids, count) in enumerate(zip(input_ids.tolist(), prompts.tolist(), strict=True)):
            source = sources.setdefault(tuple(ids[:count]), row)
            shared.append((source, count if source != row else 0))
            fed[row, : shared[-1][1]] = False
        # 2. Number the fed tokens, and list the keys of each row: its shared prompt, then its own tokens.
        lengths = fed.sum(1).tolist()
        starts = [0, *itertools.accumulate(lengths)]
        keys: list[int] = []
        for row, (source, count) in enumerate(shared):
            keys += [*range(starts[source], starts[source] + count), *range(starts[row], starts[row + 1])]
        # 3. Keep that index only if a prompt is shared. Otherwise the keys of a row are its own tokens, in order.
        key_lengths = [count + length for (_, count), length in zip(shared, lengths, strict=True)]
        index = upload(torch.tensor(keys), device) if len(keys) > starts[-1] else None
        ends = torch.nn.functional.pad(torch.tensor([lengths, key_lengths]).cumsum(1), (1, 0))
        return cls(fed, lengths, key_lengths, index, upload(ends.int(), device))

    def mask(self, queries: int, keys: int, like: torch.Tensor) -> torch.Tensor:
        """Return the mask (queries, keys) to add to the scores if the queries are the last of `keys` tokens. All
        layers share it, so that their backward passes need one copy."""
        if (queries, keys) not in self.masks:
            hidden = torch.full((queries, keys), -torch.inf, dtype=like.dtype, device=like.device)
            self.masks[queries, keys] = hidden.triu_(keys - queries + 1)
        return self.masks[queries, keys]


@contextmanager
def packed_attention(model: Any) -> Iterator[None]:
    """Use `attend_packed` in the model, in a context. Run the backward pass inside: it may recompute forwards."""
    original = model.config._attn_implementation
    model.config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        model.config._attn_implementation = original


def is_packing(model: Any) -> bool:
    """True inside `packed_attention`."""
    return bool(model.config._attn_implementation == ATTENTION)


@torch.compiler.disable
def attend_packed(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    *,
    packing: Packing,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within packed rows: map `query` (1, H, N, D), `key` and `value` (1, K, N, D) to (1, N, H, D). The
    signature is that of `AttentionInterface` in transformers."""
    # 1. Select each row's keys and values, those of its prompt included.
    query, key = query.to(value.dtype), key.to(value.dtype)  # under autocast, RoPE returns float32
    if packing.keys is not None:
        key, value = (_select(tensor, packing.keys) for tensor in (key, value))  # (1, K, M, D)
    # 2. On CUDA, attend in all rows at once; elsewhere, row by row.
    if has_kernel(value):
        return _attend_varlen(query, key, value, packing, scaling), None
    groups = query.shape[1] // key.shape[1]
    parts = []
    splits = (packing.lengths, packing.key_lengths, packing.key_lengths)
    rows = (tensor.split(lengths, dim=2) for tensor, lengths in zip((query, key, value), splits, strict=True))
    for q, k, v in zip(*rows, strict=True):
        k, v = (tensor.repeat_interleave(groups, 1) if groups > 1 else tensor for tensor in (k, v))
        parts.append(_attend_row(q, k, v, packing, scaling))
    return torch.cat(parts, 2).transpose(1, 2), None


def _attend_row(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, packing: Packing, scaling: float | None
) -> torch.Tensor:
    """Attend from the queries of one row to its keys. `is_causal` aligns the first query with the first key. Here
    the last ones must align. Short rows use a mask; long rows are padded with unused queries in front."""
    queries, keys = q.shape[2], k.shape[2]
    if queries < keys < 2 * queries and queries >= LONG:
        q = torch.nn.functional.pad(q, (0, 0, keys - queries, 0))
    mask = packing.mask(queries, keys, q) if q.shape[2] < keys else None
    out = scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, scale=scaling)
    return out[:, :, -queries:]


def _select(tensor: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Select positions in float32 or more, because the gradient of a shared prompt is a sum over its rows."""
    wide = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
    return wide.index_select(2, positions).to(tensor.dtype)


def has_kernel(value: torch.Tensor) -> bool:
    """True if the variable-length kernel supports this device and data type."""
    return value.device.type == "cuda" and value.dtype != torch.float32


def _attend_varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packing: Packing, scaling: float | None
) -> torch.Tensor:
    """Attend with FlashAttention, whose causal mask is aligned to the last key of each row."""
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # (N or M, H or K, D)
    q_ends, k_ends = packing.ends
    q_longest, k_longest = max(packing.lengths), max(packing.key_lengths)
    options: dict[str, Any] = {"window_size": (-1, 0), "scale": scaling}
    if (groups := q.shape[1] // k.shape[1]) > 1:
        if "enable_gqa" in inspect.signature(varlen_attn).parameters:
            options["enable_gqa"] = True
        else:  # torch 2.11
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    out = varlen_attn(q, k, v, q_ends, k_ends, q_longest, k_longest, **options)
    assert isinstance(out, torch.Tensor)
    return out[None]


AttentionInterface.register(ATTENTION, attend_packed)


def pack(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, chosen: torch.Tensor, device: torch.device
) -> tuple[dict[str, Any], torch.Tensor]:
    """Pack right-padded rows (B, T) of the host. Returns the model's inputs (1, N) on `device`, and on the host a
    mask (1, N) of the positions that predict a chosen token."""
    packing = Packing.of(input_ids, attention_mask, chosen, device)
    fed = packing.fed
    positions = torch.arange(fed.shape[1]).expand_as(fed)
    ids, positions = upload(input_ids[fed][None], device), upload(positions[fed][None], device)
    inputs = {"input_ids": ids, "position_ids": positions, "packing": packing}
    # The first fed token of a row is never chosen, so the last token of the row before predicts no chosen token.
    return inputs, torch.nn.functional.pad(chosen[fed][1:], (0, 1))[None]

"""Store keys and values of many rows, one slot for each row, and compute attention of a ragged batch over them.

One forward feeds every row the tokens that have no KV yet: one token for a row that decodes, a chunk for a row
that starts or returns from its tool. All tokens form one sequence, so that no layer computes padding:

    tokens    b₁ b₂ b₃ │ a  b₄ c       chunk of b without its last token │ the last token of each row, by slot
    slot       1  1  1 │ 0  1  2
    position  40 41 42 │ 7 43  9
                         └─ one attention call for each band of neighbouring slots, up to its longest row

Queries are grouped by their KV head, so that grouped-query attention does not repeat the cache.

Shapes: N tokens, B rows, S slots, L slot width, H query heads, K KV heads, D head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

ATTENTION = "grpo_tir_ragged"


class KVCache:
    """Hold keys and values of `slots` x `width` tokens for each layer."""

    def __init__(
        self, layers: int, kv_heads: int, head_dim: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.slots, self.width = 0, 0
        empty = torch.zeros(2, 0, kv_heads, 0, head_dim, device=device, dtype=dtype)
        self.layers = [empty] * layers  # each (2, S, K, L, D)

    @property
    def device(self) -> torch.device:
        """Device of the cache."""
        return self.layers[0].device

    def resize(self, slots: int, width: int, live: int) -> None:
        """Resize to `slots` x `width`. The first `live` tokens of each remaining slot are kept."""
        keep = min(slots, self.slots)
        for i, old in enumerate(self.layers):
            # zeros, not empty: masked values are still multiplied by 0, and 0 x NaN is NaN
            new = old.new_zeros(2, slots, old.shape[2], width, old.shape[4])
            new[:, :keep, :, :live] = old[:, :keep, :, :live]
            self.layers[i] = new
        self.slots, self.width = slots, width

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of one slot into another."""
        for layer in self.layers:
            layer[:, target, :, :length] = layer[:, source, :, :length]

    def permute(self, order: list[int], live: int) -> None:
        """Move slot `order[i]` to slot i for every i, the first `live` tokens of each."""
        for layer in self.layers:
            layer[:, : len(order), :, :live] = layer[:, order, :, :live]

    def swap(self, a: int, b: int, length_a: int, length_b: int) -> None:
        """Exchange the first `length_a` tokens of slot `a` with the first `length_b` of slot `b`."""
        for layer in self.layers:
            kept = layer[:, a, :, :length_a].clone()
            layer[:, a, :, :length_b] = layer[:, b, :, :length_b]
            layer[:, b, :, :length_a] = kept


def bands(lengths: list[int]) -> list[tuple[slice, int]]:
    """Split slots into at most four bands of neighbours. Returns the slots and the longest length of each band."""
    size = max(8, -(-len(lengths) // 4))
    starts = range(0, len(lengths), size)
    return [
        (slice(start, min(start + size, len(lengths))), max(lengths[start : start + size])) for start in starts
    ]


@dataclass(frozen=True)
class Chunk:
    """Tokens of one row before the last one fed: `tokens` of the batch are positions `start:stop` of `slot`."""

    tokens: slice
    slot: int
    start: int
    stop: int


class RaggedBatch:
    """Lay out the tokens of one forward. `feeds` holds (first position, token ids) for slot 0, 1, …"""

    def __init__(self, cache: KVCache, feeds: list[tuple[int, list[int]]]) -> None:
        device, dtype = cache.device, cache.layers[0].dtype
        self.cache, self.rows = cache, len(feeds)
        self.chunks: list[Chunk] = []
        ids: list[int] = []
        slots: list[int] = []
        positions: list[int] = []
        # 1. Chunks: all tokens of a row but the last.
        for slot, (start, tokens) in enumerate(feeds):
            if len(tokens) > 1:
                stop = start + len(tokens) - 1
                self.chunks.append(Chunk(slice(len(ids), len(ids) + stop - start), slot, start, stop))
                ids += tokens[:-1]
                slots += [slot] * (stop - start)
                positions += range(start, stop)
        # 2. The last token of each row.
        ids += [tokens[-1] for _, tokens in feeds]
        slots += range(self.rows)
        positions += [start + len(tokens) - 1 for start, tokens in feeds]
        self.input_ids, self.slots, self.positions = torch.tensor([ids, slots, positions]).to(device)  # each (N,)
        # 3. Bands of the last tokens, each with its mask.
        ends = self.positions[-self.rows :, None]  # (B, 1)
        self.bands = [
            (slots, longest, _hide(longest, ends[slots], dtype))
            for slots, longest in bands([position + 1 for position in positions[-self.rows :]])
        ]


def _hide(longest: int, ends: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Make a mask to add to scores, (B, 1, 1, longest): -inf after the row's last position in `ends` (B, 1)."""
    hidden = torch.arange(-(-longest // 8) * 8, device=ends.device) > ends  # CUDA needs strides that 8 divides
    return torch.zeros(hidden.shape, dtype=dtype, device=ends.device).masked_fill(hidden, -torch.inf)[
        :, None, None, :longest
    ]


def ragged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    *,
    ragged: RaggedBatch,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention for transformers: `query` (1, H, N, D), `key` and `value` (1, K, N, D) to (1, N, H, D).
    Registered in `AttentionInterface`."""
    keys, values = ragged.cache.layers[module.layer_idx]  # type: ignore[index]  # each (S, K, L, D)
    # 1. Write keys and values into their slots. Under autocast, RoPE returns float32 queries and keys.
    query, key, value = (tensor.to(keys.dtype) for tensor in (query, key, value))
    keys[ragged.slots, :, ragged.positions] = key[0].transpose(0, 1)
    values[ragged.slots, :, ragged.positions] = value[0].transpose(0, 1)
    heads, kv_heads, dim = query.shape[1], key.shape[1], query.shape[3]
    queries = query[0].unflatten(0, (kv_heads, heads // kv_heads))  # (K, H/K, N, D)
    # 2. Attend from each chunk.
    parts = [
        _attend_chunk(queries[:, :, each.tokens], keys[each.slot], values[each.slot], each, scaling)
        for each in ragged.chunks
    ]
    # 3. Attend from the last tokens, band by band. The heads of a KV group take the axis that is usually time.
    last = queries[:, :, -ragged.rows :].permute(2, 0, 1, 3)  # (B, K, H/K, D)
    for slots, longest, mask in ragged.bands:
        live = (slots, slice(None), slice(longest))
        out = scaled_dot_product_attention(last[slots], keys[live], values[live], attn_mask=mask, scale=scaling)
        parts.append(out.reshape(-1, heads, dim))
    return torch.cat(parts)[None], None


def _attend_chunk(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, chunk: Chunk, scaling: float | None
) -> torch.Tensor:
    """Attend from a chunk of n tokens: `query` (K, H/K, n, D), `keys` and `values` (K, L, D) to (n, H, D)."""
    groups, count = query.shape[1], query.shape[2]
    keys = keys[:, None, : chunk.stop].expand(-1, groups, -1, -1)  # a view: no copy in memory
    values = values[:, None, : chunk.stop].expand(-1, groups, -1, -1)
    mask = None
    if chunk.start > 0:
        mask = torch.ones(count, chunk.stop, dtype=torch.bool, device=query.device).tril(chunk.start)
    out = scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scaling, is_causal=mask is None)
    return out.flatten(0, 1).transpose(0, 1)


AttentionInterface.register(ATTENTION, ragged_attention)

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

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from grpo_tir.engine.paged_cache import PagedCache, Pool

ATTENTION = "grpo_tir_cached"


class KVCache:
    """Hold keys and values of `slots` x `width` tokens for each layer; at most `tokens` of them, if not 0."""

    def __init__(
        self, layers: int, kv_heads: int, head_dim: int, device: torch.device, dtype: torch.dtype, tokens: int = 0
    ) -> None:
        self.device, self.dtype = device, dtype
        self.slots, self.width, self.tokens = 0, 0, tokens
        empty = torch.zeros(2, 0, kv_heads, 0, head_dim, device=device, dtype=dtype)
        self.layers = [empty] * layers  # each (2, S, K, L, D)

    def resize(self, slots: int, width: int, live: int) -> None:
        """Resize to `slots` x `width`. The first `live` tokens of each remaining slot are kept."""
        keep = min(slots, self.slots)
        for i, old in enumerate(self.layers):
            # zeros, not empty: masked values are still multiplied by 0, and 0 x NaN is NaN
            new = old.new_zeros(2, slots, old.shape[2], width, old.shape[4])
            new[:, :keep, :, :live] = old[:, :keep, :, :live]
            self.layers[i] = new
        self.slots, self.width = slots, width

    def limit(self, width: int) -> int:
        """Return the number of slots that `tokens` allows, if the widest has `width` tokens."""
        return self.tokens // max(self.width, width) if self.tokens else 1 << 40

    def fits(self, width: int) -> bool:
        """Return True: `Scheduler.make_room` widens all slots if needed."""
        return True

    def grow(self, slot: int, length: int) -> bool:
        """Return whether the slots are `length` tokens wide. Only `resize` widens them."""
        return length <= self.width

    def clear(self, slot: int) -> None:
        """Do nothing: an empty slot keeps its memory."""

    def copy(self, source: int, target: int, length: int) -> int:
        """Copy the first `length` tokens of one slot into another. Returns their number."""
        for layer in self.layers:
            layer[:, target, :, :length] = layer[:, source, :, :length]
        return length

    def permute(self, order: list[int], live: int) -> None:
        """For every i, move the first `live` tokens of slot `order[i]` to slot i."""
        for layer in self.layers:
            layer[:, : len(order), :, :live] = layer[:, order, :, :live]

    def swap(self, a: int, b: int, length_a: int, length_b: int) -> None:
        """Exchange the first `length_a` tokens of slot `a` with the first `length_b` of slot `b`."""
        for layer in self.layers:
            kept = layer[:, a, :, :length_a].clone() if length_b else layer[:, a, :, :length_a]
            layer[:, a, :, :length_b] = layer[:, b, :, :length_b]
            layer[:, b, :, :length_a] = kept

    def places(self, slots: list[int], positions: list[int]) -> Any:
        """Return where tokens are stored: token n is at position `positions[n]` of slot `slots[n]`."""
        slot, position = torch.tensor([slots, positions]).to(self.device)
        return slot, position

    def write(self, layer: int, places: Any, new: torch.Tensor) -> None:
        """Store keys and values `new`, (2, K, N, D)."""
        keys, values = self.layers[layer]  # each (S, K, L, D)
        slots, positions = places
        keys[slots, :, positions] = new[0].transpose(0, 1)
        values[slots, :, positions] = new[1].transpose(0, 1)

    def view(self, slots: list[int], length: int) -> Any:
        """Return what `read` needs to read the first `length` tokens of some neighbouring slots."""
        return slice(slots[0], slots[-1] + 1), length

    def read(self, layer: int, view: Any) -> torch.Tensor:
        """Return keys and values of the slots of a view, (2, B, K, length, D). Nothing is copied."""
        slots, length = view
        return self.layers[layer][:, slots, :, :length]


def bands(lengths: list[int]) -> list[tuple[slice, int]]:
    """Split slots into at most four bands of neighbours. Returns the slots and the longest length of each band."""
    size = max(8, -(-len(lengths) // 4))
    starts = range(0, len(lengths), size)
    return [
        (slice(start, min(start + size, len(lengths))), max(lengths[start : start + size])) for start in starts
    ]


@dataclass(frozen=True)
class Chunk:
    """All tokens fed to one row except the last: `tokens` of the batch, positions `start:stop` of its slot."""

    tokens: slice
    start: int
    stop: int
    view: Any


class RaggedBatch:
    """Lay out the tokens of one forward. `feeds` holds (slot, first position, token ids) for each row."""

    def __init__(self, cache: KVCache | PagedCache, feeds: list[tuple[int, int, list[int]]]) -> None:
        device, dtype = cache.device, cache.dtype
        self.cache, self.rows = cache, len(feeds)
        self.chunks: list[Chunk] = []
        ids: list[int] = []
        slots: list[int] = []
        positions: list[int] = []
        # 1. Chunks: all tokens of a row but the last.
        for slot, start, tokens in feeds:
            if len(tokens) > 1:
                stop = start + len(tokens) - 1
                part = slice(len(ids), len(ids) + stop - start)
                self.chunks.append(Chunk(part, start, stop, cache.view([slot], stop)))
                ids += tokens[:-1]
                slots += [slot] * (stop - start)
                positions += range(start, stop)
        # 2. The last token of each row.
        ids += [tokens[-1] for _, _, tokens in feeds]
        slots += [slot for slot, _, _ in feeds]
        positions += [start + len(tokens) - 1 for _, start, tokens in feeds]
        self.input_ids, self.positions = torch.tensor([ids, positions]).to(device)  # each (N,)
        self.places = cache.places(slots, positions)
        # 3. Bands of the last tokens, each with its mask.
        ends = self.positions[-self.rows :, None]  # (B, 1)
        self.bands = [
            (rows, cache.view(slots[-self.rows :][rows], longest), _hide(longest, ends[rows], dtype))
            for rows, longest in bands([position + 1 for position in positions[-self.rows :]])
        ]

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layer: int, scaling: float | None
    ) -> torch.Tensor:
        """Compute attention of all tokens: `query` (1, H, N, D), `key`, `value` (1, K, N, D) to (1, N, H, D)."""
        cache = self.cache
        # 1. Write keys and values into their slots. Under autocast, RoPE returns float32 queries and keys.
        query, key, value = (tensor.to(cache.dtype) for tensor in (query, key, value))
        cache.write(layer, self.places, torch.cat([key, value]))
        heads, kv_heads, dim = query.shape[1], key.shape[1], query.shape[3]
        queries = query[0].unflatten(0, (kv_heads, heads // kv_heads))  # (K, H/K, N, D)
        # 2. Attend from each chunk.
        parts = [
            _attend_chunk(queries[:, :, each.tokens], cache.read(layer, each.view)[:, 0], each, scaling)
            for each in self.chunks
        ]
        # 3. Attend from the last tokens, band by band, with the heads of a KV group on the query-length axis.
        last = queries[:, :, -self.rows :].permute(2, 0, 1, 3)  # (B, K, H/K, D)
        for rows, view, mask in self.bands:
            keys, values = cache.read(layer, view)
            out = scaled_dot_product_attention(last[rows], keys, values, attn_mask=mask, scale=scaling)
            parts.append(out.reshape(-1, heads, dim))
        return torch.cat(parts)[None]


def _hide(longest: int, ends: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Make a mask to add to scores, (B, 1, 1, longest): -inf after the row's last position in `ends` (B, 1)."""
    hidden = torch.arange(-(-longest // 8) * 8, device=ends.device) > ends  # CUDA needs strides divisible by 8
    return torch.zeros(hidden.shape, dtype=dtype, device=ends.device).masked_fill(hidden, -torch.inf)[
        :, None, None, :longest
    ]


def cached_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    *,
    batch: Any,
    pool: Pool | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention for transformers by the `attend` of a `RaggedBatch` or a `static_step.StaticBatch`, which
    gets the layer's `pool`. Registered in `AttentionInterface`."""
    return batch.attend(query, key, value, module.layer_idx if pool is None else pool, scaling), None


def _attend_chunk(query: torch.Tensor, cached: torch.Tensor, chunk: Chunk, scaling: float | None) -> torch.Tensor:
    """Attend from a chunk of n tokens: `query` (K, H/K, n, D), `cached` (2, K, L, D) to (n, H, D)."""
    groups, count = query.shape[1], query.shape[2]
    keys, values = cached[:, :, None].expand(-1, -1, groups, -1, -1)  # a view: no copy in memory
    mask = None
    if chunk.start > 0:
        mask = torch.ones(count, chunk.stop, dtype=torch.bool, device=query.device).tril(chunk.start)
    out = scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scaling, is_causal=mask is None)
    return out.flatten(0, 1).transpose(0, 1)


AttentionInterface.register(ATTENTION, cached_attention)

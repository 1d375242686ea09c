"""Decode in steps of fixed shapes, which a GPU can replay without the host.

A decode step of a 1.5B model is over a thousand small kernels. Launched one by one from Python, they took 128 ms
at 256 rows on an H200; replayed from a CUDA graph, 5 ms. All that a step reads and writes has a fixed shape and
address: B rows (the running ones, filled up to a bucket), their newest token, position, draw key and limit, and
the block table of their pages.

    host    upload state ─────────────────────────────── read (steps, B) tokens, log-probs ── stops, next block
    GPU              step step step step step step step
                      └ forward → logits → keyed draw → record, next position, ended rows stay where they are

The host finds the stops after the block, and drops the tokens drawn after a stop. Draws are keyed by position, so
dropped tokens do not change later draws. Known tokens (tool output) are fed in place of drawn ones.

Shapes: B rows of a bucket, W pages of a row, P pages of the pool, K KV heads, H query heads, D head dimension,
V vocabulary.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal, Self

import torch
import torch._dynamo
from torch.nn import ModuleList
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel

from grpo_tir.engine.fast_draw import fast_draw
from grpo_tir.engine.paged_cache import PagedCache, Pool
from grpo_tir.generation.sampling import Sampling, uniforms

Mode = Literal["plain", "captured", "compiled"]
"""`plain`: ordinary operators, as a reference. `captured`: the same step as a CUDA graph, with FlexAttention.
`compiled`: the layers compiled; on CUDA captured too."""

_STATE = ("token", "position", "key", "first", "limit", "live")
"""State of a row: token to feed and its position, key of the draws, length of the prompt, largest length, and 1
until the row has ended."""


@dataclass
class StaticBatch:
    """Hold where the newest token of each row is stored, and attend to the pages of the rows."""

    places: torch.Tensor  # (B,): where the keys and values of the new tokens are stored in the pool
    ends: torch.Tensor  # (B,): positions of the new tokens
    table: torch.Tensor  # (B, W)
    page: int
    mask: BlockMask | None  # for FlexAttention; None: gather the pages

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        pool: Pool,
        scaling: float | None,
    ) -> torch.Tensor:
        """Store the new keys and values in `pool`, and attend to the pages of each row.

        Maps `query` (1, H, B, D), `key` and `value` (1, K, B, D) to (1, B, H, D).
        """
        keys, values = pool
        query, key, value = (tensor.to(keys.dtype) for tensor in (query, key, value))
        keys[:, :, self.places], values[:, :, self.places] = key, value
        heads, kv_heads = query.shape[1], key.shape[1]
        # Put the query heads of a KV group on the query-length axis, so that each page is read once.
        query = query[0].unflatten(0, (kv_heads, heads // kv_heads)).permute(2, 0, 1, 3)  # (B, K, H/K, D)
        if self.mask is not None:
            # FlexAttention must be compiled, with the layer or alone. Uncompiled, it ignores the block tables.
            attention: Any = flex_attention if torch.compiler.is_compiling() else _compiled(flex_attention)
            # torch 2.13's CPU decoding kernel is wrong for a batch of one row. With this size it is not used.
            options = {"PARTITION_SIZE": 1} if keys.device.type == "cpu" else None
            out = attention(query, keys, values, block_mask=self.mask, scale=scaling, kernel_options=options)
        else:
            pools = (each[0].unflatten(1, (-1, self.page)) for each in pool)  # each (K, P, page, D)
            keys, values = (each[:, self.table].flatten(2, 3).transpose(0, 1) for each in pools)  # (B, K, ..., D)
            shown = torch.arange(keys.shape[2], device=keys.device) <= self.ends[:, None]  # (B, W * page)
            out = scaled_dot_product_attention(query, keys, values, attn_mask=shown[:, None, None], scale=scaling)
        return out.reshape(1, len(query), heads, -1)


def block_mask(table: torch.Tensor, last: torch.Tensor, ends: torch.Tensor, group: int, page: int) -> BlockMask:
    """Tell FlexAttention which pages each row reads: all full pages, and its last page up to position `ends`.

    Args:
        table: (B, P): the pages of each row, in its first W columns.
        last: (B, P) int32: its first column is overwritten with the last page of each row.
        ends: (B,): newest position of each row.
        group: H/K, the query heads of a KV head.
        page: tokens of a page.
    """
    full, offset = ends // page, ends % page
    last[:, 0] = table.gather(1, full[:, None])[:, 0]

    def visible(row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, entry: torch.Tensor) -> torch.Tensor:
        return entry % page <= offset[row]

    return BlockMask.from_kv_blocks(
        torch.ones_like(full, dtype=torch.int32)[:, None, None],
        last[:, None, None],
        full.to(torch.int32)[:, None, None],
        table[:, None, None],
        BLOCK_SIZE=page,
        mask_mod=visible,
        seq_lengths=(group, table.shape[1] * page),
        compute_q_blocks=False,
    )


class StaticStep:
    """Decode the rows of one bucket.

    Args:
        model: decoder; see `engine.support`.
        cache: the pool. It must not be allocated anew while this object is used.
        rows: B.
        longest: largest number of tokens of a row.
        block: largest number of steps of a `run`.
        mode: see `Mode`.
        other: another step of the same engine. Their CUDA graphs share memory.

    Raises:
        Exception: of any type, if the step cannot be compiled or captured.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        cache: PagedCache,
        rows: int,
        longest: int,
        block: int,
        sampling: Sampling,
        eos_ids: Iterable[int],
        mode: Mode,
        other: Self | None = None,
    ) -> None:
        self.model, self.cache, self.sampling, self.mode = model, cache, sampling, mode
        self.longest = longest
        device = cache.device
        pinned = device.type == "cuda"
        # 1. What the host writes in one copy: the state of each row, then the known tokens of each step.
        self.host = torch.zeros(len(_STATE) + block, rows, dtype=torch.int64, pin_memory=pinned)
        self.width = min(-(-longest // cache.page), cache.pages)  # W
        self.host_table = torch.zeros(rows, self.width, dtype=torch.int32, pin_memory=pinned)
        self.inputs = self.host.to(device)
        # FlexAttention requires tables as wide as the pool. Only the first W columns are used.
        self.table, self.last = torch.zeros(2, rows, cache.pages, dtype=torch.int32, device=device)
        # 2. What the host reads in one copy: tokens and log-probs, (block, B) each.
        self.record = torch.zeros(2, block, rows, dtype=torch.int32, device=device)
        self.count = torch.zeros(1, dtype=torch.int64, device=device)
        self.ends_row = torch.zeros(model.get_output_embeddings().weight.shape[0], dtype=torch.bool, device=device)
        self.ends_row[torch.tensor(sorted(eos_ids), dtype=torch.int64)] = True
        config = model.config.get_text_config()
        self.group = config.num_attention_heads // cache.layers[0][0].shape[1]
        self.replay: Callable[[], None] | None = None  # not `self._step`: a cycle would keep the pool in memory
        if mode == "plain":
            return
        self._step()  # compiles; `live` is 0 in all rows, so only the scratch page is written
        if device.type == "cuda":
            self.graphs: Any = other.graphs if other else torch.cuda.graph_pool_handle()
            self.replay = self._capture()

    def run(
        self, tables: list[list[int]], state: list[list[int]], known: list[list[int]], steps: int
    ) -> tuple[list[list[int]], list[list[float]]]:
        """Run `steps` steps.

        Args:
            tables: pages of each row.
            state: the values of each row, in the order of `_STATE`.
            known: tokens that are fed after the first one of each row, instead of drawn ones.
            steps: number of steps, at most `block`.

        Returns:
            tokens and their log-probs, (steps, rows) each.
        """
        # 1. Upload. Unused rows of the bucket have `live` = 0 and write to the scratch page.
        self.host.zero_()
        self.host_table.zero_()
        self.host[len(_STATE) :] = -1
        self.host[: len(_STATE), : len(state)] = torch.tensor(state).T
        self.host_table[: len(tables)] = torch.tensor(tables, dtype=torch.int32)
        for row, tokens in enumerate(known):
            if tokens := tokens[:steps]:
                self.host[len(_STATE) : len(_STATE) + len(tokens), row] = torch.tensor(tokens)
        self.inputs.copy_(self.host, non_blocking=True)
        self.table[:, : self.width].copy_(self.host_table, non_blocking=True)
        self.count.zero_()
        # 2. Run.
        for _ in range(steps):
            (self.replay or self._step)()
        # 3. Read.
        tokens, bits = self.record[:, :steps, : len(state)].cpu()
        return tokens.tolist(), bits.view(torch.float32).tolist()

    def _step(self) -> None:
        """Feed each row its token, and draw the next one."""
        token, position = self.inputs[:2]  # each (B,)
        page = self.cache.page
        places = self.table.gather(1, position[:, None] // page)[:, 0] * page + position % page
        mask = block_mask(self.table, self.last, position, self.group, page) if self.mode != "plain" else None
        batch = StaticBatch(places, position, self.table[:, : self.width], page, mask)
        compiled = self.mode == "compiled"
        with _layers(self.model, self.cache.layers, compiled), _many_shapes():
            output = self.model(input_ids=token[None], position_ids=position[None], use_cache=False, batch=batch)
            finish = _compiled(_finish_step) if compiled else _finish_step
            finish(output.logits[0], self.inputs, self.record, self.count, self.ends_row, self.sampling)

    def _capture(self) -> Callable[[], None]:
        """Capture a step as a CUDA graph."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries make their workspaces at their first call on a stream
            self._step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.graphs):
            self._step()
        return graph.replay


def _finish_step(
    logits: torch.Tensor,
    inputs: torch.Tensor,
    record: torch.Tensor,
    count: torch.Tensor,
    ends_row: torch.Tensor,
    sampling: Sampling,
) -> None:
    """Draw from `logits` (B, V), record tokens and log-probs, and advance the position of each live row by 1."""
    token, position, key, first, limit, live = inputs[: len(_STATE)]
    drawn, logprobs = fast_draw(logits, uniforms(key, position + 1 - first), sampling)
    known = inputs[len(_STATE) :].index_select(0, count)[0]
    following = torch.where(known >= 0, known, drawn)
    entry = torch.stack([following.to(torch.int32), logprobs.view(torch.int32)])[:, None]
    record.index_copy_(1, count, entry)
    going = live.bool()
    ended = (known < 0) & (ends_row[following] | (position + 2 >= limit))
    token.copy_(torch.where(going, following, token))
    position.add_(live)
    live.copy_((going & ~ended).to(live.dtype))
    count.add_(1)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, fullgraph=True, dynamic=False)


def _many_shapes() -> AbstractContextManager[Any]:
    """Allow a compiled graph for each bucket and size of the pool; the default is eight."""
    return torch._dynamo.config.patch(recompile_limit=128)


@contextmanager
def _layers(model: PreTrainedModel, pools: list[Pool], compiled: bool) -> Iterator[None]:
    """Give each layer its pool as an argument. All layers then run the same compiled graph."""
    layers = next(each for each in model.modules() if isinstance(each, ModuleList) and len(each) == len(pools))
    for layer, pool in zip(layers, pools):
        forward = type(layer).forward
        layer.forward = partial(_compiled(forward) if compiled else forward, layer, pool=pool)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the instance attribute; the class's method is used again

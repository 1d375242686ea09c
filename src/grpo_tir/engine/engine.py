"""Generate with continuous batching: the fast `Generator`, for rows that pause for a tool.

Every forward feeds each running row the tokens that have no KV yet (`kv_cache.RaggedBatch`). Prefill, decoding and
the return from a tool are therefore the same step:

    row 0   prompt response ▸                1 token
    row 1   prompt response call output▸     the output in one chunk, in the same forward
    row 2   prompt▸                          the prompt, once for all samples of its group

On a GPU, rows decode in blocks of static steps instead (`static_step`). These forwards then feed prompts and long
tool outputs only.

`scheduler.Scheduler` decides which rows run. KV cache and CPU weight copies are freed after the last row, so that
they are never used after an update of the weights.

Shapes: B running rows, N tokens fed, V vocabulary.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from transformers import PreTrainedModel

from grpo_tir.data.tokens import decode
from grpo_tir.engine.decode_weights import BlockedWeights
from grpo_tir.engine.fast_draw import fast_draw
from grpo_tir.engine.kv_cache import RaggedBatch
from grpo_tir.engine.paged_cache import CPU_PAGE, PAGE, PagedCache
from grpo_tir.engine.scheduler import Scheduler, SequenceState
from grpo_tir.engine.support import decoding, make_cache, unsupported_reason
from grpo_tir.errors import ConfigError, ModelError
from grpo_tir.generation.protocol import Request, Stopped
from grpo_tir.generation.sampling import Sampling, uniforms
from grpo_tir.generation.stopping import CodeBlockStopping

if TYPE_CHECKING:
    from grpo_tir.engine.static_step import Mode, StaticStep

__all__ = ["Engine", "unsupported_reason"]

SORT_EVERY = 32
"""Forwards between sorts: a sort copies the cache once, but every forward reads it."""
STEPS = 16
"""Largest number of static steps between two reads of their tokens."""
FED_BY_STEPS = 32
"""Largest number of tokens that static steps feed to a row one by one. A longer text gets a forward."""
SMALLEST_BUCKET = 16
"""Rows of the smallest static step on a GPU: 16 rows take the time of one, and each size is compiled by itself."""
KV_SHARE = 0.85
"""Largest share of the GPU's free memory for the pages."""
CHUNK_TOKENS = 2048
"""Largest number of tokens prefilled in one forward, over all rows. It limits the memory of activations and the
delay of other rows."""


class Engine:
    """Implement `Generator` with continuous batching.

    Args:
        model: any causal language model for which `unsupported_reason` returns None. Training passes a bf16 copy
            on CUDA and the trained model itself on a CPU (`Policy.decoder`).
        stopping: criterion that pauses a row; None pauses no row.
        sampling: distribution that tokens are drawn from.
        eos_ids: tokens that end a row.
        max_rows: largest number of rows that run at the same time; 0 means no limit.
        kv_tokens: capacity of the KV cache in tokens, padding included; 0 means as many as the rows need.
        step: `eager`: forwards of all rows, as above. Other values: `static_step.Mode`; see `choose_step`.
        block: see `STEPS`.
        page: tokens in a page of the KV cache of static steps; 0 means `PAGE`, on a CPU `CPU_PAGE`.
    """

    barrier = False

    def __init__(
        self,
        model: PreTrainedModel,
        stopping: CodeBlockStopping | None,
        sampling: Sampling,
        eos_ids: Sequence[int],
        max_rows: int = 0,
        kv_tokens: int = 0,
        step: Literal["eager"] | Mode = "eager",
        block: int = STEPS,
        page: int = 0,
    ) -> None:
        if reason := unsupported_reason(model):
            raise ModelError(f"the engine cannot decode this model: {reason}; set rollout.generator to `generate`")
        self.model, self.stopping, self.sampling = model, stopping, sampling
        self.eos_ids = frozenset(eos_ids)
        self.closers = stopping.closers if stopping else frozenset()
        self.max_rows, self.kv_tokens = max_rows, kv_tokens
        self.mode, self.block = step, block
        self.page = 0 if step == "eager" else page or (CPU_PAGE if model.device.type == "cpu" else PAGE)
        self.ready: Callable[[], bool] = lambda: False
        self.counts: Counter[str] = Counter()
        """Work done so far: `forwards`, `tokens` fed, `evictions`, `sorts`, `blocks` of static steps, and
        `buckets`: static steps that were made."""
        self.failed: str | None = None
        """Why the engine went back to eager steps; None if it did not."""
        self.pool_tokens = 0
        """Capacity of the last pool of pages, in tokens. A pool of the same size needs no new compilation."""
        self.setup_seconds = 0.0
        """Time in which static steps were compiled and captured."""
        self.submitted = 0
        self.weights = BlockedWeights(model)
        self._clear()

    def _clear(self) -> None:
        self.scheduler = Scheduler(make_cache(self.model, self.kv_tokens, self.page), self.max_rows, self.counts)
        self.static: dict[int, StaticStep] = {}  # by number of rows
        self.weights.drop()
        self.prompts: dict[tuple[int, ...], tuple[int, ...]] = {}  # one object for each prompt, compared by `is`

    # --- the protocol ---------------------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Add a row.

        Raises:
            ConfigError: the row could outgrow the KV cache.
        """
        longest = len(request.prompt_ids) + request.budget
        if self.kv_tokens and longest > self.kv_tokens:
            raise ConfigError(
                f"a KV cache of {self.kv_tokens} tokens cannot hold a row of {longest} "
                f"(prompt {len(request.prompt_ids)} + budget {request.budget}): raise it, or lower the budget"
            )
        prompt = tuple(request.prompt_ids)
        row = SequenceState(request, self.submitted, self.prompts.setdefault(prompt, prompt))
        self.submitted += 1
        self.scheduler.rows[request.row] = row
        self.scheduler.enqueue(row)

    def step(self) -> list[Stopped]:
        """Decode until a row stops or the caller is `ready`. Returns [] at once if no row can continue."""
        if self.page and not self.scheduler.owners and self.scheduler.rows:
            self._allocate()
        with decoding(self.model), self.weights.used():
            while self.scheduler.admit():
                stopped = self._advance()
                if not self.scheduler.rows:
                    self._clear()  # frees the memory for the learner
                if stopped or self.ready():
                    return stopped
        return []

    def resume(self, row: int, token_ids: list[int], may_call: bool) -> None:
        """Insert tokens into a parked row and resume it."""
        state = self.scheduler.rows[row]
        state.tokens += token_ids
        state.may_call = may_call
        state.begin_segment()
        self.scheduler.enqueue(state)

    def drawn(self, row: int) -> tuple[list[int], list[float]]:
        """Return tokens and log-probs of a row that is not parked, sampled since it was submitted or resumed."""
        state = self.scheduler.rows[row]
        return state.drawn, state.logprobs

    def release(self, row: int) -> None:
        """Remove a parked row."""
        self.scheduler.remove(self.scheduler.rows[row])
        if not self.scheduler.rows:
            self._clear()

    def close(self) -> None:
        """Remove all rows and free the cache."""
        self._clear()

    # --- one forward ----------------------------------------------------------------------------------------

    def _advance(self) -> list[Stopped]:
        """Feed every running row, then draw a token for each row that has no more tokens to feed. With static
        steps, a forward feeds long texts only; rows with one token to feed wait for the next block."""
        if self.counts["forwards"] % SORT_EVERY == 0:
            self.scheduler.sort()
        # 1. Choose the tokens to feed.
        feeds = self._feed()
        if not feeds:
            return self._decode_block()
        # 2. Run the model. Its attention writes their KV into the slots.
        batch = RaggedBatch(
            self.scheduler.cache, [(row.slot, row.cached, tokens) for row, tokens in feeds if row.slot is not None]
        )
        output = self.model(
            input_ids=batch.input_ids[None],
            position_ids=batch.positions[None],
            logits_to_keep=batch.rows,
            use_cache=False,
            batch=batch,
        )
        self.counts.update(forwards=1, tokens=len(batch.input_ids))
        # 3. Draw for the rows whose tokens all have KV now.
        due = []
        for n, (row, tokens) in enumerate(feeds):
            row.cached += len(tokens)
            if row.cached == len(row.tokens):
                due.append(n)
        logits = output.logits[0]  # (B, V)
        if 0 < len(due) < len(feeds):
            logits = logits[torch.tensor(due, device=logits.device)]
        return self._sample([feeds[n][0] for n in due], logits) if due else []

    def _feed(self) -> list[tuple[SequenceState, list[int]]]:
        """Return the tokens to feed to each row, and make room for their KV. Returns [] if static steps can feed
        them all."""
        while True:
            room, feeds = CHUNK_TOKENS, []  # room: tokens that may still be prefilled
            rows = self.scheduler.running_rows()
            if self.page and not any(_unfed(row) > FED_BY_STEPS for row in rows):
                return []
            for row in rows:
                if self.page and _unfed(row) == 1:
                    continue  # it decodes in static steps
                tokens = row.tokens[row.cached : row.cached + max(room, 1)]
                room -= len(tokens) if len(tokens) > 1 else 0
                feeds.append((row, tokens))
            if self._grow([(row, row.cached + len(tokens)) for row, tokens in feeds]):
                return feeds

    def _grow(self, lengths: list[tuple[SequenceState, int]]) -> bool:
        """Give each row room for so many tokens. Returns False if that changed which rows run."""
        for row, length in sorted(lengths, key=lambda each: -each[1]):
            assert row.slot is not None
            if not self.scheduler.cache.grow(row.slot, length):
                self.scheduler.make_room(length)
                return False
        return True

    def _sample(self, rows: list[SequenceState], logits: torch.Tensor) -> list[Stopped]:
        """Draw a token for each row from `logits` (B, V). Returns the rows that stop."""
        keys = torch.tensor([row.request.key for row in rows])
        positions = torch.tensor([len(row.tokens) - len(row.prompt) for row in rows])
        ids, logprobs = fast_draw(logits, uniforms(keys, positions).to(logits.device), self.sampling)
        ended = [self._append(*drawn) for drawn in zip(rows, ids.tolist(), logprobs.tolist())]
        return [stopped for stopped in ended if stopped]

    def _append(self, row: SequenceState, token: int, logprob: float) -> Stopped | None:
        """Append a drawn token. If it stops the row, take the row out of the running ones."""
        row.tokens.append(token)
        row.logprobs.append(logprob)
        reason = self._ends(row, token)
        if reason is None:
            return None
        if reason == "call":
            self.scheduler.park(row)
        else:
            self.scheduler.remove(row)
        return Stopped(row.request.row, row.drawn, row.logprobs, reason)

    def _ends(self, row: SequenceState, token: int) -> Literal["eos", "call", "length"] | None:
        """Return why the newest token stops the row, or None. An eos can complete a call. The last token of the
        budget may still be an eos or complete a call."""
        if (
            row.may_call
            and token in self.closers
            and self.stopping
            and self.stopping.stops(row.tokens[row.start :])
        ):
            return "call"
        if token in self.eos_ids:
            return "eos"
        return None if row.budget_left else "length"

    # --- a block of static steps ----------------------------------------------------------------------------

    def _decode_block(self) -> list[Stopped]:
        """Run static steps for all running rows, and append what they drew."""
        # 1. Choose their number, and give every row pages for it.
        while True:
            rows = self.scheduler.running_rows()
            steps = self._steps(rows)
            if self._grow([(row, min(row.cached + steps, _limit(row))) for row in rows]):
                break
        # 2. Run them.
        cache = self.scheduler.cache
        assert isinstance(cache, PagedCache)
        static = self._static_step(len(rows))
        if static is None:
            return []
        tables = cache.table([row.slot for row in rows if row.slot is not None], static.width)
        state = [
            [row.tokens[row.cached], row.cached, row.request.key, len(row.prompt), _limit(row), 1] for row in rows
        ]
        drawn, logprobs = static.run(tables, state, [row.tokens[row.cached + 1 :] for row in rows], steps)
        self.counts.update(forwards=steps, blocks=1)
        # 3. Append the tokens of each row, up to its first stop.
        stopped = []
        for n, row in enumerate(rows):
            for step in range(steps):
                row.cached += 1
                self.counts["tokens"] += 1
                if row.cached < len(row.tokens):
                    continue  # the next token was known
                if stop := self._append(row, drawn[step][n], logprobs[step][n]):
                    stopped.append(stop)
                    break
        return stopped

    def _steps(self, rows: list[SequenceState]) -> int:
        """Return the number of steps before the host reads the tokens. It is 1 if over a quarter of the rows may
        complete a call with the next token: a stopped row wastes the rest of the block."""
        near = sum(
            row.may_call and self.stopping is not None and may_call_next(self.stopping, row.tokens[row.start :])
            for row in rows
        )
        if 4 * near > len(rows):
            return 1
        return min(self.block, max(_limit(row) - row.cached - 1 for row in rows))

    def _static_step(self, running: int) -> StaticStep | None:
        """Return the step for so many rows, rounded up to a power of two; None if it cannot be made."""
        on_gpu = self.scheduler.cache.device.type == "cuda"
        rows = max(1 << (running - 1).bit_length(), SMALLEST_BUCKET if on_gpu else 1)
        longest = max(map(_limit, self.scheduler.rows.values()))
        if rows not in self.static or self.static[rows].longest < longest:  # a longer row was submitted since
            from grpo_tir.engine.static_step import StaticStep  # eager steps do not need it

            cache = self.scheduler.cache
            assert isinstance(cache, PagedCache) and self.mode != "eager"
            shared, started = next(iter(self.static.values()), None), time.perf_counter()
            try:
                self.static[rows] = StaticStep(
                    self.model, cache, rows, longest, self.block, self.sampling, self.eos_ids, self.mode, shared
                )
            except Exception as error:  # compilers and drivers raise anything
                self._use_eager(error)
                return None
            self.setup_seconds += time.perf_counter() - started
            self.counts["buckets"] += 1
        return self.static[rows]

    def _use_eager(self, error: Exception) -> None:
        """Go on with eager steps. Rows keep their tokens; their KV is computed again."""
        self.failed = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        self.mode, self.page = "eager", 0
        old, parked = self.scheduler, {id(row) for row in self.scheduler.rows.values()}
        parked -= {id(row) for row in [*old.queue, *old.running_rows()]}
        rows, prompts = old.rows, self.prompts
        self._clear()
        self.scheduler.rows, self.prompts = rows, prompts
        for row in rows.values():
            row.slot, row.cached = None, 0
            if id(row) not in parked:
                self.scheduler.enqueue(row)

    def _allocate(self) -> None:
        """Allocate the pages: those that all rows can need, or as many as fit into the GPU's free memory. Keep the
        size of the last pool if that is enough and fits: every size is compiled by itself."""
        cache = self.scheduler.cache
        assert isinstance(cache, PagedCache)
        limits = [_limit(row) for row in self.scheduler.rows.values()]
        tokens = self.kv_tokens
        if not tokens:
            wanted, last = sum(-(-limit // self.page) * self.page for limit in limits), self.pool_tokens
            wanted = -(-wanted // _unit(wanted)) * _unit(wanted)
            tokens = max(wanted, last)
            if cache.device.type == "cuda":
                torch.cuda.empty_cache()
                free = int(KV_SHARE * torch.cuda.mem_get_info(cache.device)[0]) // cache.token_bytes
                if tokens > free:
                    most = last if free // 2 < last <= free else free // _unit(free) * _unit(free)
                    tokens = max(wanted if wanted <= free else most, *limits)
        self.pool_tokens = tokens
        cache.allocate(tokens)


def may_call_next(stopping: CodeBlockStopping, token_ids: list[int]) -> bool:
    """True if a segment ends in a part of the marker, so that one more token may complete a call. False without a
    marker."""
    marker = stopping.marker
    tail = decode(stopping.tokenizer, token_ids[-len(marker) :]) if marker else ""
    return any(tail.endswith(marker[:n]) for n in range(1, len(marker)))


def _unit(tokens: int) -> int:
    """Return what to round a size to, so that three bits of it remain: few shapes to compile."""
    return 1 << max(tokens.bit_length() - 3, 0)


def _limit(row: SequenceState) -> int:
    """Return the largest number of tokens of a row, its prompt included."""
    return len(row.prompt) + row.request.budget


def _unfed(row: SequenceState) -> int:
    """Return the number of tokens that have no KV yet."""
    return len(row.tokens) - row.cached

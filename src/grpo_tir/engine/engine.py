"""Generate with continuous batching: the fast `Generator`, for rows that pause for a tool.

Every forward feeds each running row the tokens that have no KV yet (`kv_cache.RaggedBatch`). Prefill, decoding and
the return from a tool are therefore the same step:

    row 0   prompt response ▸                1 token
    row 1   prompt response call output▸     the output in one chunk, in the same forward
    row 2   prompt▸                          the prompt, once for all samples of its group

`scheduler.Scheduler` decides which rows run. KV cache and CPU weight copies are freed after the last row, so that
they are never used after an update of the weights.

Shapes: B running rows, N tokens fed, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from transformers import PreTrainedModel

from grpo_tir.engine.decode_weights import BlockedWeights
from grpo_tir.engine.fast_draw import fast_draw
from grpo_tir.engine.kv_cache import RaggedBatch
from grpo_tir.engine.scheduler import Scheduler, SequenceState
from grpo_tir.engine.support import decoding, make_cache, unsupported_reason
from grpo_tir.errors import ConfigError, ModelError
from grpo_tir.generation.protocol import Request, Stopped
from grpo_tir.generation.sampling import Sampling, uniforms
from grpo_tir.generation.stopping import CodeBlockStopping

__all__ = ["Engine", "unsupported_reason"]

SORT_EVERY = 32  # forwards between sorts: a sort copies the cache once, but every forward reads it
CHUNK_TOKENS = 2048  # prefilled in one forward by all rows: limits activation memory and the delay of other rows


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
    ) -> None:
        if reason := unsupported_reason(model):
            raise ModelError(f"the engine cannot decode this model: {reason}; set rollout.generator to `generate`")
        self.model, self.stopping, self.sampling = model, stopping, sampling
        self.eos_ids = frozenset(eos_ids)
        self.closers = stopping.closers if stopping else frozenset()
        self.max_rows, self.kv_tokens = max_rows, kv_tokens
        self.ready: Callable[[], bool] = lambda: False
        self.counts: Counter[str] = Counter()
        """Work done so far: `forwards`, `tokens` fed, `evictions`, `sorts`."""
        self.submitted = 0
        self.weights = BlockedWeights(model)
        self._clear()

    def _clear(self) -> None:
        self.scheduler = Scheduler(make_cache(self.model), self.max_rows, self.kv_tokens, self.counts)
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
        """Feed every running row, then draw a token for each row that has no more tokens to feed."""
        # 1. Choose the tokens to feed.
        if self.counts["forwards"] % SORT_EVERY == 0:
            self.scheduler.sort()
        feeds = self._feed()
        # 2. Run the model. Its attention writes their KV into the slots.
        batch = RaggedBatch(self.scheduler.cache, feeds)
        output = self.model(
            input_ids=batch.input_ids[None],
            position_ids=batch.positions[None],
            logits_to_keep=batch.rows,
            use_cache=False,
            ragged=batch,
        )
        self.counts.update(forwards=1, tokens=len(batch.input_ids))
        # 3. Draw for the rows whose tokens all have KV now.
        due = []
        for row, (start, tokens) in zip(self.scheduler.running_rows(), feeds):
            row.cached = start + len(tokens)
            if row.cached == len(row.tokens):
                due.append(row)
        logits = output.logits[0]  # (B, V)
        if 0 < len(due) < len(feeds):
            logits = logits[torch.tensor([row.slot for row in due], device=logits.device)]
        return self._sample(due, logits) if due else []

    def _feed(self) -> list[tuple[int, list[int]]]:
        """Return for each running row the position and ids of the tokens to feed. Widens the slots if needed."""
        while True:
            room, feeds = CHUNK_TOKENS, []  # room: tokens that may still be prefilled
            for row in self.scheduler.running_rows():
                tokens = row.tokens[row.cached : row.cached + max(room, 1)]
                room -= len(tokens) if len(tokens) > 1 else 0
                feeds.append((row.cached, tokens))
            width = max(start + len(tokens) for start, tokens in feeds)
            if width <= self.scheduler.cache.width:
                return feeds
            self.scheduler.widen(width)

    def _sample(self, rows: list[SequenceState], logits: torch.Tensor) -> list[Stopped]:
        """Draw a token for each row from `logits` (B, V). Returns the rows that stop."""
        keys = torch.tensor([row.request.key for row in rows])
        positions = torch.tensor([len(row.tokens) - len(row.prompt) for row in rows])
        ids, logprobs = fast_draw(logits, uniforms(keys, positions).to(logits.device), self.sampling)
        stopped = []
        for row, token, logprob in zip(rows, ids.tolist(), logprobs.tolist()):
            row.tokens.append(token)
            row.logprobs.append(logprob)
            if reason := self._ends(row, token):
                if reason == "call":
                    self.scheduler.park(row)
                else:
                    self.scheduler.remove(row)
                stopped.append(Stopped(row.request.row, row.tokens[row.start :], row.logprobs, reason))
        return stopped

    def _ends(self, row: SequenceState, token: int) -> Literal["eos", "call", "length"] | None:
        """Return why the newest token stops the row, or None. The last token of the budget may still be an eos or
        complete a call."""
        if token in self.eos_ids:
            return "eos"
        if (
            row.may_call
            and token in self.closers
            and self.stopping
            and self.stopping.stops(row.tokens[row.start :])
        ):
            return "call"
        return None if row.budget_left else "length"

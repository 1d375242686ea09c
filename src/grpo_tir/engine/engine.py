"""Generate with continuous batching over the live model: the fast generator for rows that pause for a tool.

Every forward feeds each running row the tokens that have no KV yet (`kv_cache.RaggedBatch`). Prefill, decoding and
the return from a tool are therefore the same step:

    row 0   prompt response ▸                1 token
    row 1   prompt response call output▸     the output in one chunk, among the others
    row 2   prompt▸                          the prompt, once for all samples of its group

`scheduler.Scheduler` decides which rows run. Every forward uses the model's own weights, on a CPU in a copy
that is made anew when they change. Nothing is kept after the last row has ended, so nothing can be stale.

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

SORT_EVERY = 32  # forwards: sorting copies the cache once, attention reads it at every one
CHUNK_TOKENS = 2048  # prefilled in one forward, over all rows: bounds its activations and the others' delay


class Engine:
    """Implement `Generator` with continuous batching.

    Args:
        model: any causal language model for which `unsupported_reason` returns None. On CUDA a bf16 copy that
            is refreshed after each update; on CPU the trained weights themselves.
        stopping: criterion that pauses a row; None pauses no row.
        sampling: distribution of the draws.
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
        self.ages = 0
        self.weights = BlockedWeights(model)
        self._clear()

    def _clear(self) -> None:
        self.slots = Scheduler(make_cache(self.model), self.max_rows, self.kv_tokens, self.counts)
        self.weights.drop()
        self.prompts: dict[tuple[int, ...], tuple[int, ...]] = {}  # one object a prompt: compared by identity

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
        row = SequenceState(request, self.ages, self.prompts.setdefault(prompt, prompt))
        self.ages += 1
        self.slots.rows[request.row] = row
        self.slots.enqueue(row)

    def step(self) -> list[Stopped]:
        """Decode until a row stops or the caller is `ready`. Returns [] at once if no row can continue."""
        with decoding(self.model), self.weights.used():
            while self.slots.admit():
                stopped = self._advance()
                if not self.slots.rows:
                    self._clear()  # the learner gets the memory
                if stopped or self.ready():
                    return stopped
        return []

    def resume(self, row: int, token_ids: list[int], may_call: bool) -> None:
        """Insert tokens into a parked row and resume it."""
        state = self.slots.rows[row]
        state.tokens += token_ids
        state.may_call = may_call
        state.begin_segment()
        self.slots.enqueue(state)

    def release(self, row: int) -> None:
        """Remove a parked row."""
        self.slots.remove(self.slots.rows[row])
        if not self.slots.rows:
            self._clear()

    def close(self) -> None:
        """Remove all rows and free the cache."""
        self._clear()

    # --- one forward ----------------------------------------------------------------------------------------

    def _advance(self) -> list[Stopped]:
        """Feed every running row, then draw a token for each row that has no more tokens to feed."""
        if self.counts["forwards"] % SORT_EVERY == 0:
            self.slots.sort()
        feeds = self._feed()
        batch = RaggedBatch(self.slots.cache, feeds)
        output = self.model(
            input_ids=batch.input_ids[None],
            position_ids=batch.positions[None],
            logits_to_keep=batch.rows,
            use_cache=False,
            ragged=batch,
        )
        self.counts.update(forwards=1, tokens=len(batch.input_ids))
        due = []
        for row, (start, tokens) in zip(self.slots.running_rows(), feeds):
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
            room, feeds = CHUNK_TOKENS, []
            for row in self.slots.running_rows():
                tokens = row.tokens[row.cached : row.cached + max(room, 1)]
                room -= len(tokens) if len(tokens) > 1 else 0
                feeds.append((row.cached, tokens))
            width = max(start + len(tokens) for start, tokens in feeds)
            if width <= self.slots.cache.width:
                return feeds
            self.slots.widen(width)

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
                    self.slots.park(row)
                else:
                    self.slots.remove(row)
                stopped.append(Stopped(row.request.row, row.tokens[row.start :], row.logprobs, reason))
        return stopped

    def _ends(self, row: SequenceState, token: int) -> Literal["eos", "call", "length"] | None:
        """Return why the newest token stops the row, or None. An end or a call that just fits the budget is no
        cut."""
        if token in self.eos_ids:
            return "eos"
        if (
            row.may_call
            and token in self.closers
            and self.stopping
            and self.stopping.stops(row.tokens[row.start :])
        ):
            return "call"
        return None if row.left else "length"

"""The readable generator: rounds of Hugging Face `model.generate`.

A round runs every row that is not waiting for a tool until it calls, ends or spends its budget; rows are
left-padded to one width:

    pad pad  prompt₀ ……… response so far │ new tokens … <call>  pad
    pad      prompt₁ ……                  │ new tokens …………………… <eos>
                                     start

Everything is prefilled again in the next round, and a finished row is carried along to the round's end: it is
slow, and it is what a faster engine is held equal to.

Shapes: B rows, T width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from grpo_tir.generation.protocol import Request, Stopped
from grpo_tir.generation.sampling import Sampling, draw, uniforms
from grpo_tir.generation.stopping import CodeBlockStopping


class KeyedDraw(LogitsProcessor):
    """Our sampler as a logits processor: it leaves one finite logit, so that greedy decoding takes the draw."""

    def __init__(self, keys: list[int], offsets: list[int], width: int, sampling: Sampling) -> None:
        self.keys, self.offsets = torch.tensor(keys), torch.tensor(offsets)  # (B,)
        self.width, self.sampling = width, sampling
        self.logprobs: list[list[float]] = []  # a list of B for each step

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """`scores` (B, V) to (B, V) with -inf everywhere but at the drawn token."""
        positions = self.offsets + (input_ids.shape[1] - self.width)
        u = uniforms(self.keys, positions).to(scores.device)
        ids, logprobs = draw(scores, u, self.sampling)
        self.logprobs.append(logprobs.tolist())
        return torch.full_like(scores, -torch.inf).scatter(1, ids[:, None], 0.0)  # type: ignore[return-value]


class RowBudget(StoppingCriteria):
    """Stops each row when it has sampled all that its budget leaves."""

    def __init__(self, widths: list[int]) -> None:
        self.widths = torch.tensor(widths)  # (B,) full width, padding included, at which a row is spent

    def __call__(self, input_ids: torch.LongTensor, scores: Any = None, **_: Any) -> torch.BoolTensor:
        """(B, T) to (B,) bool."""
        return (input_ids.shape[1] >= self.widths).to(input_ids.device)  # type: ignore[return-value]


class _Row:
    """One request and what became of it so far."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.response: list[int] = []
        self.may_call = request.may_call
        self.waiting = False

    @property
    def left(self) -> int:
        return self.request.budget - len(self.response)


class GenerateRounds:
    """`Generator` on `model.generate`. Takes no more than `max_rows` rows into a round (0: all)."""

    barrier = True

    def __init__(
        self,
        model: PreTrainedModel,
        stopping: CodeBlockStopping,
        sampling: Sampling,
        eos_ids: Sequence[int],
        max_rows: int = 0,
    ) -> None:
        self.model, self.stopping, self.sampling = model, stopping, sampling
        self.eos_ids = list(eos_ids)
        self.max_rows = max_rows
        self.ready: Callable[[], bool] = lambda: False  # a round cannot be left early
        self.rows: dict[int, _Row] = {}

    def submit(self, request: Request) -> None:
        """Take on a row."""
        self.rows[request.row] = _Row(request)

    def resume(self, row: int, token_ids: list[int], may_call: bool) -> None:
        """Insert tokens into a parked row and let it go on."""
        state = self.rows[row]
        state.response += token_ids
        state.may_call, state.waiting = may_call, False

    def release(self, row: int) -> None:
        """Forget a row."""
        del self.rows[row]

    def close(self) -> None:
        """Nothing is held between rounds."""
        self.rows.clear()

    @torch.no_grad()
    def step(self) -> list[Stopped]:
        """One round. Returns all of its rows: each has called, ended or run out."""
        rows = [row for row in self.rows.values() if not row.waiting][: self.max_rows or None]
        if not rows:
            return []
        sequences = [row.request.prompt_ids + row.response for row in rows]
        width = max(map(len, sequences))
        pad = self.eos_ids[0]  # never read back: every row is cut at its own explicit length
        inputs = torch.tensor([[pad] * (width - len(ids)) + ids for ids in sequences])  # (B, T)
        attention = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in sequences])  # (B, T)
        sampler = KeyedDraw([r.request.key for r in rows], [len(r.response) for r in rows], width, self.sampling)
        self.stopping.begin(width, [row.may_call for row in rows])
        with _only_our_settings(self.model, self.eos_ids, pad):
            output = self.model.generate(
                inputs.to(self.model.device),
                attention_mask=attention.to(self.model.device),
                max_new_tokens=max(row.left for row in rows),
                logits_processor=LogitsProcessorList([sampler]),
                stopping_criteria=StoppingCriteriaList([self.stopping, RowBudget([width + r.left for r in rows])]),
            )
        new = output[:, width:].tolist()
        return [self._stop(row, new[i], self.stopping.stopped_at[i], i, sampler) for i, row in enumerate(rows)]

    def _stop(self, row: _Row, new: list[int], stopped_at: int | None, i: int, sampler: KeyedDraw) -> Stopped:
        """Cut a row at whatever ended it first. A padding token is never taken for an end (bug 6)."""
        ends = {"length": row.left}
        first_eos = next((n + 1 for n, token in enumerate(new) if token in self.eos_ids), None)
        if first_eos is not None:
            ends["eos"] = first_eos
        if stopped_at is not None:
            ends["call"] = stopped_at - sampler.width
        length = min(ends.values())
        # an end-of-text or a call that just fits the budget is what it is, not a cut
        reason = next(name for name in ("eos", "call", "length") if ends.get(name) == length)
        tokens = new[:length]
        row.response += tokens
        row.waiting = reason == "call"
        if not row.waiting:
            del self.rows[row.request.row]
        logprobs = [sampler.logprobs[n][i] for n in range(length)]
        return Stopped(row.request.row, tokens, logprobs, reason)  # type: ignore[arg-type]


@contextmanager
def _only_our_settings(model: PreTrainedModel, eos_ids: list[int], pad: int) -> Iterator[None]:
    """`generate` back-fills what it is not told from the checkpoint's own generation_config: temperature 0.7,
    a repetition penalty, a top-k (what bites users, 10). For the round, the model has a blank one."""
    theirs = model.generation_config
    model.generation_config = GenerationConfig(eos_token_id=eos_ids, pad_token_id=pad, do_sample=False)
    try:
        yield
    finally:
        model.generation_config = theirs


def find_eos_ids(model: PreTrainedModel, tokenizer: Any) -> list[int]:
    """Every id that ends a response: of the tokenizer, the config and the generation_config, in that order."""
    found: list[int] = []
    for source in (tokenizer, model.config, model.generation_config):
        ids = getattr(source, "eos_token_id", None)
        found += [ids] if isinstance(ids, int) else list(ids or [])
    return list(dict.fromkeys(found))

"""Generate in rounds of Hugging Face `model.generate`: the readable generator.

A round decodes every row that is not waiting for a tool until it calls, ends or spends its budget. Rows are
left-padded to one width:

    pad pad  prompt₀ ……… response so far │ new tokens … <call>  pad
    pad      prompt₁ ……                  │ new tokens …………………… <eos>
                                     start

The next round prefills everything again, and a finished row stays in the batch until the round ends. This is slow.
Tests check that the faster engine gives the same results.

Shapes: B rows, T width, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
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

from grpo_tir.errors import ConfigError
from grpo_tir.generation.protocol import Request, Stopped
from grpo_tir.generation.sampling import Sampling, draw, uniforms
from grpo_tir.generation.stopping import CodeBlockStopping


class KeyedDraw(LogitsProcessor):
    """Draw tokens in a logits processor: leave one finite logit in each row, which greedy decoding then takes."""

    def __init__(self, keys: list[int], offsets: list[int], width: int, sampling: Sampling) -> None:
        self.keys, self.offsets = torch.tensor(keys), torch.tensor(offsets)  # (B,)
        self.width, self.sampling = width, sampling
        self.logprobs: list[list[float]] = []  # a list of B for each step

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Map `scores` (B, V) to (B, V) with -inf everywhere except at the drawn token."""
        positions = self.offsets + (input_ids.shape[1] - self.width)
        u = uniforms(self.keys, positions).to(scores.device)
        ids, logprobs = draw(scores, u, self.sampling)
        self.logprobs.append(logprobs.tolist())
        return torch.full_like(scores, -torch.inf).scatter(1, ids[:, None], 0.0)  # type: ignore[return-value]


class RowBudget(StoppingCriteria):
    """Stop each row when its budget is spent."""

    def __init__(self, widths: list[int]) -> None:
        self.widths = torch.tensor(widths)  # (B,) width, padding included, at which the budget ends

    def __call__(self, input_ids: torch.LongTensor, scores: Any = None, **_: Any) -> torch.BoolTensor:
        """Map `input_ids` (B, T) to (B,) bool: True where the budget is spent."""
        return (input_ids.shape[1] >= self.widths).to(input_ids.device)  # type: ignore[return-value]


class GenerateRounds:
    """Implement `Generator` with `model.generate`. A round takes at most `max_rows` rows; 0 means all."""

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
        self.rows: dict[int, Request] = {}  # with their responses so far
        self.parked: set[int] = set()

    def submit(self, request: Request) -> None:
        """Add a row.

        Raises:
            ConfigError: the row was cut within a turn, which only the engine does.
        """
        if request.cut:
            raise ConfigError("the engine began some responses of the checkpoint: set rollout.generator to engine")
        self.rows[request.row] = request

    def resume(self, row: int, token_ids: list[int], may_call: bool) -> None:
        """Insert tokens into a parked row and resume it."""
        request = self.rows[row]
        self.rows[row] = replace(request, response=[*request.response, *token_ids], may_call=may_call)
        self.parked.remove(row)

    def drawn(self, row: int) -> tuple[list[int], list[float]]:
        """Return nothing: between rounds, a row that is not parked has not been sampled further."""
        return [], []

    def release(self, row: int) -> None:
        """Remove a parked row."""
        del self.rows[row]
        self.parked.remove(row)

    def close(self) -> None:
        """Remove all rows."""
        self.rows.clear()
        self.parked.clear()

    @torch.no_grad()
    def step(self) -> list[Stopped]:
        """Run one round. Returns all its rows: each has called the tool, ended, or spent its budget."""
        # 1. Choose the rows of the round.
        rows = [row for row in self.rows.values() if row.row not in self.parked][: self.max_rows or None]
        if not rows:
            return []
        # 2. Left-pad them to one width.
        sequences = [row.prompt_ids + row.response for row in rows]
        width = max(map(len, sequences))
        pad = self.eos_ids[0]  # not read back: every row is cut at its own length
        inputs = torch.tensor([[pad] * (width - len(ids)) + ids for ids in sequences])  # (B, T)
        attention = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in sequences])  # (B, T)
        # 3. Generate, with draws and stops of each row.
        sampler = KeyedDraw([row.key for row in rows], [len(row.response) for row in rows], width, self.sampling)
        self.stopping.begin(width, [row.may_call for row in rows])
        budgets = RowBudget([width + row.budget - len(row.response) for row in rows])
        with _only_our_settings(self.model, self.eos_ids, pad):
            output = self.model.generate(
                inputs.to(self.model.device),
                attention_mask=attention.to(self.model.device),
                max_new_tokens=max(row.budget - len(row.response) for row in rows),
                logits_processor=LogitsProcessorList([sampler]),
                stopping_criteria=StoppingCriteriaList([self.stopping, budgets]),
            )
        new = output[:, width:].tolist()
        return [self._stop(row, new[i], self.stopping.stopped_at[i], i, sampler) for i, row in enumerate(rows)]

    def _stop(self, row: Request, new: list[int], stopped_at: int | None, i: int, sampler: KeyedDraw) -> Stopped:
        """Cut a row at its first end. Padding never counts as an end (bug 6)."""
        ends = {"length": row.budget - len(row.response)}
        first_eos = next((n + 1 for n, token in enumerate(new) if token in self.eos_ids), None)
        if first_eos is not None:
            ends["eos"] = first_eos
        if stopped_at is not None:
            ends["call"] = stopped_at - sampler.width
        length = min(ends.values())
        # an end-of-text token can complete a call; both take precedence over `length`
        reason = next(name for name in ("call", "eos", "length") if ends.get(name) == length)
        tokens = new[:length]
        if reason == "call":
            self.rows[row.row] = replace(row, response=[*row.response, *tokens])
            self.parked.add(row.row)
        else:
            del self.rows[row.row]
        logprobs = [sampler.logprobs[n][i] for n in range(length)]
        return Stopped(row.row, tokens, logprobs, reason)  # type: ignore[arg-type]


@contextmanager
def _only_our_settings(model: PreTrainedModel, eos_ids: list[int], pad: int) -> Iterator[None]:
    """Replace the model's generation_config by an empty one for a round. Otherwise `generate` takes every option
    that it is not given from the checkpoint: a temperature of 0.7, a repetition penalty, a top-k."""
    previous = model.generation_config
    model.generation_config = GenerationConfig(eos_token_id=eos_ids, pad_token_id=pad, do_sample=False)
    try:
        yield
    finally:
        model.generation_config = previous

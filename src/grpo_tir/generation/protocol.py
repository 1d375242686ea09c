"""Decoding that can pause a row at a tool call and go on after its output.

`generate` is the readable implementation (rounds of Hugging Face `model.generate`). Both it and any faster one
speak `Generator`, ask the same `CodeBlockStopping`, and draw with the same keyed sampler.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True)
class Request:
    """One response to be sampled."""

    row: int
    """The caller's name for it."""
    prompt_ids: list[int]
    key: int
    """`sampling.row_key(seed, group, sample)`: what its draws depend on, besides the position."""
    budget: int
    """Response tokens in all; tokens given to `resume` count."""
    may_call: bool
    """Whether a tool call pauses it."""


@dataclass(frozen=True)
class Stopped:
    """A row that paused or ended, with what was sampled since it was submitted or resumed."""

    row: int
    token_ids: list[int]
    logprobs: list[float]
    """Of each sampled token, under the distribution that it was drawn from."""
    reason: Literal["call", "eos", "length"]
    """`call` parks the row until `resume` or `release`; the others end it."""


class Generator(Protocol):
    """Rows in, stopped rows out. A row that waits for its tool must not hold up the others."""

    barrier: bool
    """True where rows can only go on together, so that results are best collected first."""
    ready: Callable[[], bool]
    """Asked between tokens by a generator without barrier: when true, `step` returns early (even with [])
    because the caller has rows to resume. Set by the caller; the default says False."""

    def submit(self, request: Request) -> None:
        """Take on a row."""

    def step(self) -> list[Stopped]:
        """Decode until at least one row stops or the caller is `ready`; [] at once if no row can go on."""

    def resume(self, row: int, token_ids: list[int], may_call: bool) -> None:
        """Insert tokens into a parked row and let it go on; they must leave room in its budget."""

    def release(self, row: int) -> None:
        """Forget a parked row."""

    def close(self) -> None:
        """Free what is held; idempotent."""

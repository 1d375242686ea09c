"""Define the interface of generators: decode rows, pause a row at a tool call, resume it after its output.

`generation.generate` is the readable implementation, `engine.engine` the fast one. Both implement `Generator`, use
the same `CodeBlockStopping`, and draw with the same keyed sampler.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol


@dataclass(frozen=True)
class Request:
    """A response to sample."""

    row: int
    """Number of the row, chosen by the caller."""
    prompt_ids: list[int]
    key: int
    """`sampling.row_key(seed, group, sample)`: with the position, it keys every draw."""
    budget: int
    """Largest number of response tokens; tokens given to `resume` count."""
    may_call: bool
    """True if a tool call pauses the row."""
    response: list[int] = field(default_factory=list)
    """Response so far, if an earlier step began the row. Its KV is computed again, with the current weights."""
    cut: int = 0
    """Number of its last tokens that belong to an unfinished turn: the end of a step cut it off."""


@dataclass(frozen=True)
class Stopped:
    """A row that paused or ended, with the tokens sampled since it was submitted or resumed."""

    row: int
    token_ids: list[int]
    logprobs: list[float]
    """Log-prob of each sampled token, under the distribution that it was drawn from."""
    reason: Literal["call", "eos", "length"]
    """`call` parks the row until `resume` or `release`. The other reasons end it."""


class Generator(Protocol):
    """Decode submitted rows; return those that stop. A parked row does not delay the others, unless `barrier`."""

    barrier: bool
    """True if all tool results are to be collected before any row is resumed."""
    ready: Callable[[], bool]
    """Set by the caller, and called between tokens by a generator without barrier. If it returns True, `step`
    returns early, perhaps with [], because the caller has rows to resume. Default: always False."""

    def submit(self, request: Request) -> None:
        """Add a row."""

    def step(self) -> list[Stopped]:
        """Decode until a row stops or the caller is `ready`. Returns [] at once if no row can continue."""

    def resume(self, row: int, token_ids: list[int], may_call: bool) -> None:
        """Insert tokens into a parked row and resume it. They must leave room in its budget."""

    def drawn(self, row: int) -> tuple[list[int], list[float]]:
        """Return tokens and log-probs of a row that is not parked, sampled since it was submitted or resumed."""

    def release(self, row: int) -> None:
        """Remove a parked row."""

    def close(self) -> None:
        """Free all memory. May be called again."""

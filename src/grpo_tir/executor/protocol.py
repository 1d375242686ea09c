"""Define the interface of an executor of code."""

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from grpo_tir.types import ToolCall, ToolResult


class Executor(Protocol):
    """Run untrusted programs. Several threads may use one executor."""

    slots: int
    """Programs that run at the same time."""

    def submit(
        self,
        code: str,
        *,
        timeout: float | None = None,
        earlier: Sequence[ToolCall] | None = None,
        echo: bool = False,
    ) -> Future[ToolResult]:
        """Queue a program. Blocks while the queue is full; the future never raises for a fault of the code.

        Args:
            timeout: seconds of CPU time. Default: that of the config.
            earlier: calls of the same session so far. Those that succeeded run again first, without output, so
                that their names exist. [] begins a session. None: no session.
            echo: print the value of a last expression.
        """

    def describe(self) -> dict[str, Any]:
        """Return kind, version, limits and which isolation is (not) in force, for the run's metadata."""

    def close(self) -> None:
        """End everything that runs. May be called again."""

"""The interface of an executor of code."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any, Protocol

from grpo_tir.types import ToolResult


class Executor(Protocol):
    """Runs programs that nobody trusts. Safe to use from several threads."""

    slots: int
    """Programs that run at the same time."""

    def submit(self, code: str, *, timeout: float | None = None) -> Future[ToolResult]:
        """Queue a program. Blocks while the queue is full; the future never raises for a fault of the code."""

    def describe(self) -> dict[str, Any]:
        """Kind, version, limits and which isolation is (not) in force, for the run's metadata."""

    def close(self) -> None:
        """End everything that runs; idempotent."""

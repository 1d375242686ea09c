"""The two seams around tools: what a rollout asks of a tool, what a tool asks of an executor.

    rollout ── find_call(text) ──► Tool ── submit(code) ──► Executor ──► Future[ToolResult]
            ◄── observe(result) ──

An outage never surfaces as text: the executor retries, and only then answers with the status
`infrastructure`, upon which the rollout is set aside.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import Protocol

from grpo_tir.types import ToolResult


class Tool(Protocol):
    """Something a policy can call by writing text."""

    stop: str
    """How a call ends: `output` (the marker "```output") or `fence` (the fence that closes a block)."""

    def find_call(self, text: str) -> str | None:
        """The code that a model segment which has just stopped wants run; None: a marker without code."""

    def submit(self, code: str) -> Future[ToolResult]:
        """Run it."""

    def observe(self, result: ToolResult | None, text: str) -> str:
        """What is inserted after `text`, the segment so far; `result` is None where there was no code."""

    def close(self) -> None:
        """Release the executor."""

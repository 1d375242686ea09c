"""Define the interface of tools. A rollout calls a tool; the tool sends code to an executor.

    rollout ── find_call(text) ──► Tool ── submit(code) ──► Executor ──► Future[ToolResult]
            ◄── observe(result) ──

An outage is never shown to the model as text. The executor retries; if it still fails, the result has the status
`infrastructure`, and the rollout becomes invalid.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import Protocol

from grpo_tir.types import ToolResult


class Tool(Protocol):
    """Run what the policy requests in its text, and format the result for it."""

    stop: str
    """End of a call: `output` (the marker "```output") or `fence` (the fence that closes a block)."""

    def find_call(self, text: str) -> str | None:
        """Return the code to run from the model segment that has just stopped; None for a marker without code."""

    def submit(self, code: str) -> Future[ToolResult]:
        """Run the code. The result may come later."""

    def observe(self, result: ToolResult | None, text: str) -> str:
        """Return the text to insert after `text`, the stopped segment. `result` is None if there was no code."""

    def close(self) -> None:
        """Release the executor."""

"""Define the interface of tools. A rollout calls its session of a tool; the session sends code to an executor.

    rollout ── find_call(text) ──► Session ── submit(code) ──► Executor ──► Future[ToolResult]
            ◄── observe(result) ──

A tool with the method `session(rollout)` gives each rollout a session of its own, which knows the rollout. A
stateless tool has no such method and is the session of all rollouts. With `rollout.carry_over`, the session of a
rollout ends with the step, and the next step opens another. This needs a tool with the attribute `resumable =
True`: its method `session` restores all state from `rollout.calls`.

An outage is never shown to the model as text. The executor retries; if it still fails, the result has the status
`infrastructure`, and the rollout becomes invalid.
"""

from concurrent.futures import Future
from typing import Protocol

from grpo_tir.types import Rollout, ToolResult


class Session(Protocol):
    """Run what the policy requests in the text of a rollout, and format the result for it."""

    def find_call(self, text: str) -> str | list[str] | None:
        """Return the code to run from the model segment that has just stopped; None for a marker without code. A
        list holds the calls of a turn, which run one after another."""

    def submit(self, code: str) -> Future[ToolResult]:
        """Run the code. The result may come later."""

    def observe(self, result: ToolResult | None, text: str) -> str:
        """Return the text to insert after `text`, the stopped segment. `result` is None if there was no code. In
        formats other than `output` and `fence`, return the output only; the format adds the text around it."""

    def close(self) -> None:
        """Release what is held. The session of a rollout is closed when the rollout ends, whatever the reason."""


class Tool(Session, Protocol):
    """Open sessions, or serve all rollouts as one session. `close` also releases the executor."""

    stop: str
    """Name of the format of its calls; see `ToolConfig.format`."""


def open_session(tool: Tool, rollout: Rollout) -> Session:
    """Open the session of a rollout. Return the tool itself if it has no `session`."""
    session: Session = tool.session(rollout) if hasattr(tool, "session") else tool
    return session

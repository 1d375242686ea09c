"""Does the model read what its tool answers?  The same checkpoint with its observations tampered with.

    blanked     every call is answered by the tool's own words for "printed nothing"
    shuffled    every call is answered by the output of another program of the same benchmark

What is lost against the run with true observations is the part of the score that comes from reading them; what
remains above the run without a tool comes from writing code alone. Code is run all the same, so that statuses and
outages stay comparable. Which output a call gets depends on the text that asked for it, never on the batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from grpo_tir.tools.protocol import Tool
from grpo_tir.tools.python import observation as python_observation
from grpo_tir.types import ToolResult

Alter = Callable[[str, str], str]
"""(true observation, segment that asked for it) to the stdout that is shown instead."""


class AlteredTool:
    """A tool whose results are replaced before the model reads them. A marker without code is answered as ever."""

    def __init__(self, tool: Tool, alter: Alter) -> None:
        self.tool, self.alter, self.stop = tool, alter, tool.stop

    def find_call(self, text: str) -> str | None:
        """As the tool does."""
        return self.tool.find_call(text)

    def submit(self, code: str) -> Future[ToolResult]:
        """Run it all the same."""
        return self.tool.submit(code)

    def observe(self, result: ToolResult | None, text: str) -> str:
        """The tool's frame around something that its program did not print."""
        if result is None:
            return self.tool.observe(None, text)
        return self.tool.observe(ToolResult("ok", stdout=self.alter(seen(self.tool, result), text)), text)

    def close(self) -> None:
        """The tool is its owner's to close."""


def seen(tool: Tool, result: ToolResult) -> str:
    """What the model reads of a result, apart from what stands before it."""
    return tool.observe(result, "\n")


def blank(observation: str, segment: str) -> str:
    """Nothing."""
    return ""


def shuffle(tool: Tool, results: Sequence[ToolResult]) -> Alter:
    """Answers by the outputs of other programs: `results` are those of the run with true observations."""
    pool: dict[str, str] = {}
    for result in results:
        pool.setdefault(seen(tool, result), python_observation(result))

    def alter(observation: str, segment: str) -> str:
        others = sorted(text for text in pool if text != observation)
        if not others:
            return ""  # every program printed the same: nothing to mix it up with
        draw = int.from_bytes(hashlib.sha256(segment.encode()).digest()[:8])
        return pool[others[draw % len(others)]]

    return alter

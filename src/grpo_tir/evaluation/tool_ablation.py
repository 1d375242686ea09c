"""Measure whether a model reads the outputs of its tool: evaluate it with changed outputs.

    blanked     every output is replaced by the tool's text for a program that prints nothing
    shuffled    every output is replaced by the output of another program of the same benchmark

The score lost against true outputs comes from reading them. The score left above a run without the tool comes from
writing code alone. The code still runs, so that statuses and outages stay comparable. The replacement depends on
the text of the call, never on the batch.
"""

import copy
import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Self

from grpo_tir.tools.protocol import Session, Tool, open_session
from grpo_tir.tools.python import observation as python_observation
from grpo_tir.types import Rollout, ToolResult

Alter = Callable[[str, str], str]
"""Map (true observation, segment with the call) to the stdout that is shown instead."""


class AlteredTool:
    """Replace the results of a tool before the model reads them. A marker without code gets the usual answer."""

    def __init__(self, tool: Tool, alter: Alter) -> None:
        self.tool, self.alter, self.stop = tool, alter, tool.stop
        self.used: Session = tool

    def session(self, rollout: Rollout) -> Self:
        """Alter the session that the tool opens for the rollout."""
        altered = copy.copy(self)
        altered.used = open_session(self.tool, rollout)
        return altered

    def find_call(self, text: str) -> str | list[str] | None:
        return self.used.find_call(text)

    def submit(self, code: str) -> Future[ToolResult]:
        return self.used.submit(code)

    def observe(self, result: ToolResult | None, text: str) -> str:
        if result is None:
            return self.used.observe(None, text)
        return self.used.observe(ToolResult("ok", stdout=self.alter(seen(self.used, result), text)), text)

    def close(self) -> None:
        """Close the session of a rollout. The owner of the tool closes the tool."""
        if self.used is not self.tool:
            self.used.close()


def seen(tool: Session, result: ToolResult) -> str:
    """Return the observation after a segment that ends in a newline, so that it depends on the result only."""
    return tool.observe(result, "\n")


def shuffle(tool: Tool, results: Sequence[ToolResult]) -> Alter:
    """Make a function that answers with outputs of other programs, from the run with true outputs."""
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

"""Find Python code in the text of the policy, and format what the policy reads of its output.

A model segment ends where the policy asks for output. With the paper's marker (`tool.format: output`):

    Let me compute it.⏎```python⏎print(6*7)⏎```⏎```output   ← sampled, trained
    ⏎42⏎```⏎                                               ← inserted, masked

With the closing fence (`tool.format: fence`) the sampled part ends one line earlier, and "```output" is inserted
too.

Departures from the reference (with the numbers of its bugs): success is the exit code, not the presence of stdout
(9); a program without output gives `[no output]`, not a timeout (8); only failed runs are cut to their
last line (10); a marker without code gets a short notice instead of silently vanishing (13).
"""

import copy
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Self

from grpo_tir.executor.protocol import Executor
from grpo_tir.types import Rollout, ToolResult

CALL_MARKER = "```python"
OUTPUT_MARKER = "```output"
FENCE = "```"
NO_CODE = "[no code block found]"
NO_OUTPUT = "[no output]"
MAX_PART = 256
"""Texts of at least this many characters are cut to their two ends, as in the reference."""


def find_code(text: str) -> str | None:
    """Return the last closed ```python block of one model segment.

    Returns None if the last block is empty or a block is left open, even after a complete block.
    """
    blocks, left_open = _scan(text)
    return blocks[-1] if blocks and blocks[-1].strip() and not left_open else None


def code_blocks(text: str) -> list[str]:
    """Return all closed ```python blocks, in order."""
    return _scan(text)[0]


def _scan(text: str) -> tuple[list[str], bool]:
    """Return the closed blocks, and whether one is left open. A line that starts or ends with "```python" opens; a
    line that starts with "```" closes; an indented fence does neither."""
    blocks: list[str] = []
    code: list[str] | None = None
    for line in text.split("\n"):
        if line.startswith(CALL_MARKER) or line.endswith(CALL_MARKER):
            code = []
        elif code is not None and line.startswith("```"):
            blocks.append("\n".join(code))
            code = None
        elif code is not None:
            code.append(line)
    return blocks, code is not None


def shorten(text: str) -> str:
    """Cut text of 256 or more characters to its first and last 128."""
    return text if len(text) < MAX_PART else f"{text[:128]}...{text[-128:]}"


def observation(result: ToolResult | None) -> str:
    """Return what the model reads of a run: stdout and, after a failure, the last line of stderr."""
    if result is None:
        return NO_CODE
    stdout = shorten(result.stdout.strip())
    if result.status == "ok":
        return stdout or NO_OUTPUT
    parts = [stdout, shorten(error_line(result))]
    return "\n".join(part for part in parts if part)


def error_line(result: ToolResult) -> str:
    """Return the line that names a failure: for some statuses a fixed line, else the last line of stderr."""
    fixed = {
        "timeout": "TimeoutError: the code ran out of time",
        "memory": "MemoryError: the code ran out of memory",
        "output_limit": "OutputLimitError: the code printed too much",
        "killed": f"KilledError: the code was killed by signal {result.signal}",
    }.get(result.status)
    if fixed:
        return fixed
    lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"SystemExit: {result.exit_code}"


@dataclass(eq=False)
class PythonTool:
    """Run code blocks and return output blocks. Owns the executor."""

    executor: Executor
    stop: str = "output"
    """`output` or `fence`; see `ToolConfig.format`."""
    state: str = "fresh"
    """With `replay`, the successful blocks of the rollout run again before each call. They are read from
    `rollout.calls`, so a resumed rollout continues with the same state."""
    echo: bool = False
    """Show the value of a last expression."""
    rollout: Rollout | None = None
    """Rollout of a session; None for the tool itself."""
    resumable = True
    """`session(rollout)` restores all state from `rollout.calls`."""

    def session(self, rollout: Rollout) -> Self:
        """Return this tool if calls are independent, else a copy that knows the rollout."""
        if self.state == "fresh":
            return self
        session = copy.copy(self)  # also of a subclass with other fields
        session.rollout = rollout
        return session

    def find_call(self, text: str) -> str | None:
        """Return the code of a stopped segment. Text after the marker is ignored."""
        if self.stop == "output":
            text = text.partition(OUTPUT_MARKER)[0]  # the last token may hold a second marker
        return find_code(text)

    def submit(self, code: str) -> Future[ToolResult]:
        """Queue the code. Blocks while the executor's queue is full."""
        settings: dict[str, Any] = {"echo": True} if self.echo else {}
        if self.rollout is not None:
            settings["earlier"] = list(self.rollout.calls)
        return self.executor.submit(code, **settings)

    def observe(self, result: ToolResult | None, text: str) -> str:
        """Return the text to insert after the segment `text`."""
        opening = "" if text.endswith("\n") else "\n"
        if self.stop == "fence":
            opening += f"{OUTPUT_MARKER}\n"
        return f"{opening}{observation(result)}\n```\n"

    def close(self) -> None:
        """Close the executor. A session has nothing to close."""
        if self.rollout is None:
            self.executor.close()

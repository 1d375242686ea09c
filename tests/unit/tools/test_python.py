"""Which text is code, and what the model reads of its run, against the facts page."""

from __future__ import annotations

import random

import pytest

from grpo_tir.testing import ScriptedExecutor
from grpo_tir.tools.python import PythonTool, code_blocks, error_line, find_code, observation, shorten
from grpo_tir.types import Problem, Rollout, ToolResult
from scripted import reference_code, stdout

LINES = [
    "```python",
    "```python ",
    "wait ```python",
    "```",
    "```py",
    "```output",
    " ```",
    "```Python",
    "a = 1",
    "",
    " ",
]
LINES += ["print(a)", "  ```python", "``` ", "x```"]


def test_the_code_found_is_the_reference_rules_on_any_text() -> None:
    rng = random.Random(0)
    found = 0
    for _ in range(4000):
        text = "\n".join(rng.choices(LINES, k=rng.randrange(1, 10)))
        expected = reference_code(text)
        assert find_code(text) == (expected.removesuffix("\n") or None), repr(text)
        found += bool(expected)
    assert 200 < found < 3800


def test_all_closed_blocks_are_counted_in_order() -> None:
    text = "```python\na\n```\n```python\n```\nx\n```python\nb\n```output\n```python\nopen"
    assert code_blocks(text) == ["a", "", "b"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [("x" * 255, "x" * 255), ("a" * 128 + "b" * 128, "a" * 128 + "..." + "b" * 128), ("", "")],
)
def test_256_characters_become_259_and_255_stay(text: str, shown: str) -> None:
    assert shorten(text) == shown


def test_a_long_text_keeps_its_two_ends() -> None:
    text = "".join(chr(0x4E00 + i) for i in range(1000))
    assert shorten(text) == text[:128] + "..." + text[-128:]
    assert len(shorten(text)) == 259


@pytest.mark.parametrize("length", [254, 255, 256, 257])
def test_both_parts_of_a_failure_are_shortened_each_for_itself(length: int) -> None:
    result = ToolResult("error", "o" * length + "\n", "Traceback\n  line\n" + "e" * length + "\n\n", 1)
    cut = 255 if length < 256 else 259
    out, error = observation(result).split("\n")
    assert (len(out), len(error)) == (length if length < 256 else cut, length if length < 256 else cut)
    assert set(out) <= {"o", "."}
    assert set(error) <= {"e", "."}


@pytest.mark.parametrize(
    ("result", "shown"),
    [
        (ToolResult("ok", "42\n", "a warning\n", 0), "42"),  # stderr of a run that ended well is not shown
        (ToolResult("ok", "", "a warning\n", 0), "[no output]"),
        (ToolResult("ok", "\n  a\n b \n", "", 0), "a\n b"),
        (ToolResult("error", "", "Traceback\n\nValueError: x\n  \n", 1), "ValueError: x"),
        (ToolResult("error", "a\n", "ValueError: x\n", 1), "a\nValueError: x"),
        (ToolResult("error", "", "", 3), "SystemExit: 3"),
        (ToolResult("error", "a\n", " \n", 3), "a\nSystemExit: 3"),
        (ToolResult("timeout", "a\n", "Terminated\n", None, 9), "a\nTimeoutError: the code ran out of time"),
        (ToolResult("memory", "", "", None, 9), "MemoryError: the code ran out of memory"),
        (ToolResult("output_limit", "a", "", None, 9), "a\nOutputLimitError: the code printed too much"),
        (ToolResult("killed", "", "", None, 11), "KilledError: the code was killed by signal 11"),
        (None, "[no code block found]"),
    ],
)
def test_what_is_shown_of_a_run(result: ToolResult | None, shown: str) -> None:
    assert observation(result) == shown


def test_the_line_that_names_a_failure_is_the_last_one_that_is_not_blank() -> None:
    assert error_line(ToolResult("error", "", "  first\n last \n\n\t\n", 1)) == "last"


@pytest.mark.parametrize(
    ("stop", "text", "inserted"),
    [
        ("output", "```output", "\n42\n```\n"),
        ("output", "```output\n", "42\n```\n"),
        ("fence", "print(1)\n```", "\n```output\n42\n```\n"),
        ("fence", "print(1)\n```\n", "```output\n42\n```\n"),
    ],
)
def test_the_observation_begins_on_a_line_of_its_own(stop: str, text: str, inserted: str) -> None:
    tool = PythonTool(ScriptedExecutor(stdout("42\n")), stop)
    assert tool.observe(ToolResult("ok", "42\n"), text) == inserted


def test_the_marker_is_no_closing_fence() -> None:
    tool = PythonTool(ScriptedExecutor(stdout("")))
    assert tool.find_call("```python\nprint(1)\n```output") is None
    assert tool.find_call("```python\nprint(1)\n```\n```output") == "print(1)"
    assert tool.find_call("```python\nprint(1)\n```\n```output\n") == "print(1)"


def test_a_last_token_that_repeats_the_marker_does_not_close_the_block_by_its_first() -> None:
    assert PythonTool(ScriptedExecutor(stdout(""))).find_call("```python\nprint(1)\n```output```output") is None


def test_the_tool_closes_the_executor_it_holds() -> None:
    closed = []
    executor = ScriptedExecutor(stdout(""))
    executor.close = lambda: closed.append(True)  # type: ignore[method-assign]
    PythonTool(executor).close()
    assert closed == [True]


def test_a_session_of_ones_own_tool_has_all_that_the_tool_has() -> None:
    """A subclass with an `__init__` of its own, as in docs/howto.md, and a field set on the object."""

    class Calculator(PythonTool):
        def __init__(self) -> None:
            super().__init__(ScriptedExecutor(stdout("42")), state="replay")
            self.digits = 3

    rollout = Rollout(Problem("p", "", ""), [])
    session = Calculator().session(rollout)
    assert session.rollout is rollout and session.digits == 3

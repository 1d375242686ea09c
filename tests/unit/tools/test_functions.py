"""Plain functions as tools: what the calculator computes, what a deadline does, and what runs where."""

from __future__ import annotations

import contextlib
import io
import threading
from pathlib import Path

import pytest

from grpo_tir.config import Config
from grpo_tir.errors import ConfigError
from grpo_tir.testing import ScriptedExecutor
from grpo_tir.tools.functions import calculator, call_function, load_functions, program_of, schema_of
from grpo_tir.tools.named import NamedTools
from grpo_tir.tools.open import open_tool
from grpo_tir.types import ToolResult
from scripted import stdout
from tiny_policy import change


@pytest.mark.parametrize(
    ("expression", "value"),
    [("6*7", "42"), (" (3 + 4) * 2**5 / 7", "32.0"), ("-7 // 2", "-4"), ("+7 % 4", "3"), ("2**-1", "0.5")],
)
def test_the_calculator_calculates(expression: str, value: str) -> None:
    assert calculator(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os')",
        "a",
        "(1).real",
        "[1]*9",
        "9**9**9",
        "(9**999)**999",
        "True",
        "'x'*9",
        "1/0",
        "6*",
        "",
        "-" * 999,
        "-" * 9999 + "1",
    ],
)
def test_the_calculator_refuses_all_but_arithmetic(expression: str) -> None:
    result = call_function(calculator, {"expression": expression}, 10)
    assert result.status == "error" and "\n" not in result.stderr


def test_a_function_that_outlives_its_deadline_is_a_timeout_and_holds_nobody_up() -> None:
    release = threading.Event()

    def waits(x: int) -> str:
        release.wait()
        return str(x)

    assert call_function(waits, {"x": 1}, 0.05) == ToolResult("timeout")
    release.set()
    assert call_function(waits, {"x": 1}, 10) == ToolResult("ok", stdout="1")


def test_what_a_function_returns_can_be_encoded() -> None:
    assert call_function(lambda: "\ud800x", {}, 10) == ToolResult("ok", stdout="?x")


TOOLS = '''
def double(x: int) -> int:
    """Double a number.

    Args:
        x: The number.
    """
    import math
    return math.prod([x, 2])


def bare(x):
    return x


double.in_sandbox = True
'''


def test_a_function_marked_for_the_sandbox_runs_there_as_a_program(tmp_path: Path) -> None:
    (tmp_path / "tools.py").write_text(TOOLS)
    (double,) = load_functions([f"{tmp_path}/tools.py:double"]).values()
    executor = ScriptedExecutor(stdout("42\n"))
    names = [f"{tmp_path}/tools.py:double", "calculator"]
    tools = NamedTools(change(Config(), tool__format="tool_call", tool__names=names), executor)
    result = tools.submit('{"name": "double", "arguments": {"x": 21}}').result()
    assert (result.tool, result.stdout, executor.seen) == ("double", "42\n", [program_of(double, {"x": 21})])
    assert tools.submit('{"name": "calculator", "arguments": {"expression": "1"}}').result().stdout == "1"
    assert len(executor.seen) == 1, "the calculator runs in a thread"
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(executor.seen[0], {})
    assert out.getvalue() == "42\n"
    tools.close()


def test_functions_alone_need_no_executor() -> None:
    tool = open_tool(change(Config(), tool__format="tool_call", tool__names=["calculator"]), print)
    assert isinstance(tool, NamedTools) and tool.executor is None
    tool.close()


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["calculator", "calculator"], "`calculator` is a second tool of this name"),
        (["grpo_tir.tools.named:AT_ONCE"], "is no function"),
        (["calculater"], "is not a name"),
    ],
)
def test_a_tool_that_cannot_be_loaded_is_named(names: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_functions(names)


def test_a_function_without_hints_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "tools.py").write_text(TOOLS)
    with pytest.raises(ConfigError, match=r"^tool.names: bare is no tool: [^\n]+$"):
        schema_of(load_functions([f"{tmp_path}/tools.py:bare"])["bare"])

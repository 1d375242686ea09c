"""Make tools of plain Python functions.

A function with type hints and a docstring is a tool: the prompt shows its name, arguments and docstring. It
runs in a thread of the trainer, with a deadline. A function marked by `function.in_sandbox = True` runs in the
sandbox instead, from its own source: it must import what it needs.
"""

import ast
import inspect
import operator
import textwrap
import threading
from collections.abc import Callable, Sequence
from typing import Any

from grpo_tir.errors import ConfigError
from grpo_tir.types import ToolResult
from grpo_tir.utils.resources import load_object

Function = Callable[..., Any]
OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow,
}  # fmt: skip
LARGEST_BITS, LONGEST = 10_000, 1000
"""Limits of the calculator: bits of a power, characters of an expression."""


def python(code: str) -> str:  # type: ignore[empty-body]  # the sandbox runs it
    """Run a Python program and return what it prints.

    Args:
        code: The program. It must print what you want to see.
    """


def calculator(expression: str) -> str:
    """Compute the value of an arithmetic expression.

    Args:
        expression: Numbers, parentheses and the operators + - * / // % **.
    """
    if len(expression) > LONGEST:
        raise ValueError("the expression is too long")
    return str(_value(ast.parse(expression.strip(), mode="eval").body))


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return number
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
            return -_value(operand) if isinstance(sign, ast.USub) else _value(operand)
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in OPERATORS:
            a, b = _value(left), _value(right)
            if isinstance(sign, ast.Pow) and isinstance(a, int) and abs(b) * a.bit_length() > LARGEST_BITS:
                raise ValueError("the power is too large")
            return OPERATORS[type(sign)](a, b)
    raise ValueError(f"{ast.unparse(node)[:60]} is not arithmetic")


def load_functions(names: Sequence[str]) -> dict[str, Function]:
    """Load the tools of `tool.names`, by the name that the model uses.

    Raises:
        ConfigError: there is no such function, or two have the same name.
    """
    functions: dict[str, Function] = {}
    for spec in names:
        function = {"python": python, "calculator": calculator}.get(spec) or load_object(spec)
        if not inspect.isfunction(function) or function.__name__ in functions:
            fault = "is a second tool of this name" if inspect.isfunction(function) else "is no function"
            raise ConfigError(f"tool.names: `{spec}` {fault}")
        functions[function.__name__] = function
    return functions


def schema_of(function: Function) -> dict[str, Any]:
    """Return the JSON schema of a function, from its type hints and docstring.

    Raises:
        ConfigError: the hint or the description of an argument is missing.
    """
    from transformers.utils import get_json_schema  # loads torch

    try:
        schema: dict[str, Any] = get_json_schema(function)
    except Exception as error:
        raise ConfigError(f"tool.names: {function.__name__} is no tool: {str(error).splitlines()[0]}") from None
    return schema


def call_function(function: Function, arguments: dict[str, Any], seconds: float) -> ToolResult:
    """Call a function in a thread of its own. A thread that is still busy after `seconds` is left behind."""
    results: list[ToolResult] = []

    def run() -> None:
        try:
            results.append(ToolResult("ok", stdout=_encodable(str(function(**arguments)))))
        except Exception as error:
            line = f"{type(error).__name__}: {' '.join(str(error).split())}"
            results.append(ToolResult("error", stderr=_encodable(line)))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return results[0] if results else ToolResult("timeout")


def _encodable(text: str) -> str:
    return text.encode(errors="replace").decode()


def program_of(function: Function, arguments: dict[str, Any]) -> str:
    """Return a program that calls the function and prints its result."""
    source = textwrap.dedent(inspect.getsource(function))
    return f"from __future__ import annotations\n{source}\nprint({function.__name__}(**{arguments!r}))"

"""Open the tool of a recipe."""

from collections.abc import Callable
from typing import Any

from grpo_tir.config import Config
from grpo_tir.errors import ConfigError
from grpo_tir.executor.open import open_executor
from grpo_tir.tools.formats import CODE_FORMATS, load_format
from grpo_tir.tools.protocol import Tool
from grpo_tir.tools.python import PythonTool
from grpo_tir.utils.objects import TOOL_METHODS
from grpo_tir.utils.resources import load_object


def open_tool(config: Config, log: Callable[[str], None]) -> Tool | None:
    """Open the recipe's tool and start its executor. Return None if `max_tool_calls` is 0.

    Raises:
        ExecutorUnavailable: the requested executor cannot run on this machine.
        ConfigError: a custom tool cannot be loaded or lacks a method.
    """
    tool = config.tool
    if tool.max_tool_calls == 0:
        return None
    if tool.name == "python" and tool.format in CODE_FORMATS:
        return PythonTool(open_executor(config.executor, log=log), tool.format, tool.state, tool.echo)
    if tool.name == "python":
        from grpo_tir.tools.functions import load_functions  # only a recipe with tools by name loads these two
        from grpo_tir.tools.named import NamedTools

        functions = load_functions(tool.names)
        sandboxed = any(name == "python" or getattr(each, "in_sandbox", False) for name, each in functions.items())
        return NamedTools(config, open_executor(config.executor, log=log) if sandboxed else None)
    made: Tool = load_object(tool.name)(config)
    missing = [name for name in TOOL_METHODS if not hasattr(made, name)]
    if missing:
        raise ConfigError(f"tool.name `{tool.name}` lacks {', '.join(missing)}; see recipes/custom/tool.py")
    return made


def check_resumable(tool: Tool | None, config: Config) -> None:
    """Check that `rollout.carry_over` can open the sessions of a tool again in a later step.

    Raises:
        ConfigError: it cannot.
    """
    if config.rollout.carry_over and hasattr(tool, "session") and not getattr(tool, "resumable", False):
        raise ConfigError(
            "rollout.carry_over: the tool has sessions, which end with the step: set carry_over to 0, or give "
            "the tool `resumable = True` if session(rollout) restores all state from rollout.calls"
        )


def tool_schemas(config: Config) -> list[dict[str, Any]]:
    """Return the JSON schemas that the chat template shows. Empty if the chat template does not render answers.

    Raises:
        ConfigError: there is no such format or tool.
    """
    tool = config.tool
    if not tool.max_tool_calls or tool.name != "python" or not load_format(tool.format).by_template:
        return []
    from grpo_tir.tools.functions import load_functions, schema_of

    return [schema_of(function) for function in load_functions(tool.names).values()]

"""Open the tool of a recipe."""

from __future__ import annotations

from collections.abc import Callable

from grpo_tir.config import Config
from grpo_tir.errors import ConfigError
from grpo_tir.executor.open import open_executor
from grpo_tir.tools.protocol import Tool
from grpo_tir.tools.python import PythonTool
from grpo_tir.utils.objects import TOOL_METHODS
from grpo_tir.utils.resources import load_object


def open_tool(config: Config, log: Callable[[str], None]) -> Tool | None:
    """Open the recipe's tool and start its executor. Returns None if `max_tool_calls` is 0.

    Raises:
        ExecutorUnavailable: the requested executor cannot run on this machine.
        ConfigError: a custom tool cannot be loaded or lacks a method.
    """
    tool = config.tool
    if tool.max_tool_calls == 0:
        return None
    if tool.name == "python":
        return PythonTool(open_executor(config.executor, log=log), tool.stop, tool.state, tool.echo)
    made: Tool = load_object(tool.name)(config)
    missing = [name for name in TOOL_METHODS if not hasattr(made, name)]
    if missing:
        raise ConfigError(f"tool.name `{tool.name}` lacks {', '.join(missing)}; see recipes/custom/tool.py")
    return made

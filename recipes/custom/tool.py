"""Custom tool: a calculator that evaluates the last line before the output marker.

grpo-tir train RECIPE --tool.name recipes/custom/tool.py:Calculator
"""

from __future__ import annotations

from concurrent.futures import Future

from grpo_tir.config import Config
from grpo_tir.executor.open import open_executor
from grpo_tir.tools.python import OUTPUT_MARKER, PythonTool
from grpo_tir.types import ToolResult


class Calculator(PythonTool):
    """Answer `6*7⏎```output` with 42. The expression runs in the executor, as all code of a model does."""

    def __init__(self, config: Config) -> None:
        super().__init__(open_executor(config.executor), stop="output")

    def find_call(self, text: str) -> str | None:
        lines = text.rpartition(OUTPUT_MARKER)[0].strip().splitlines()
        return lines[-1] if lines else None

    def submit(self, code: str) -> Future[ToolResult]:
        return super().submit(f"print({code})")

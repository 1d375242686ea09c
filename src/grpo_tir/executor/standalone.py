"""Run a program outside of any run: `grpo_tir.run_code`."""

import atexit
import functools

from grpo_tir.config import ExecutorConfig
from grpo_tir.executor.open import open_executor
from grpo_tir.executor.pool import Pool
from grpo_tir.types import ToolCall, ToolResult


def run_code(
    code: str, timeout: float = 10.0, session: list[ToolCall] | None = None, echo: bool = False
) -> ToolResult:
    """Run a program in a shared executor (Docker if it can be used, else this machine) and return its result.

    Args:
        code: Python source.
        timeout: seconds of CPU time.
        session: calls so far, to which this call is added. Begin with []. The names of its successful programs
            exist in the new one. None means that the program starts from nothing.
        echo: print the value of a last expression.
    """
    result = _shared_executor().run(code, timeout=timeout, earlier=session, echo=echo)
    if session is not None:
        session.append(ToolCall(code, result, result.seconds))
    return result


@functools.cache
def _shared_executor() -> Pool:
    pool = open_executor(ExecutorConfig(kind="auto"), log=lambda line: None)
    atexit.register(pool.close)
    return pool

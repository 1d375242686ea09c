"""Run the tools that a model calls by name: `python` in the sandbox, and functions.

    call ──► read name and arguments ──► limits ──► sandbox, or a thread with a deadline ──► result, stamped
                └─ a fault is a failed result: one line that the model reads, counted as tools/error/NAME

The stamp is the name of the tool, for limits, state and metrics.
"""

import copy
import dataclasses
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

from grpo_tir.config import Config
from grpo_tir.executor.protocol import Executor
from grpo_tir.tools.arguments import check_call, read_call
from grpo_tir.tools.formats import load_format
from grpo_tir.tools.functions import call_function, load_functions, program_of, schema_of
from grpo_tir.tools.python import NO_OUTPUT, observation
from grpo_tir.types import Rollout, ToolCall, ToolResult

AT_ONCE = 64
"""Largest number of functions that run at the same time."""


class NamedTools:
    """Find and run calls of several tools. Owns the executor.

    Args:
        config: the section `tool` is read, and the time limit of the executor, which holds for functions too.
        executor: runs `python` and the functions marked `in_sandbox`; None if there are none.
    """

    resumable = True
    """`session(rollout)` restores all state from `rollout.calls`."""

    def __init__(self, config: Config, executor: Executor | None) -> None:
        self.settings, self.executor = config.tool, executor
        self.stop, self.format = config.tool.format, load_format(config.tool.format)
        self.functions = load_functions(config.tool.names)
        self.schemas = {name: schema_of(function) for name, function in self.functions.items()}
        self.limits = dict(zip(self.functions, config.tool.calls_by_tool))
        self.seconds = config.executor.timeout * config.executor.wall_factor
        self.threads = ThreadPoolExecutor(AT_ONCE, "tool")
        self.rollout: Rollout | None = None

    def session(self, rollout: Rollout) -> Self:
        """Return a copy that knows the rollout."""
        bound = copy.copy(self)
        bound.rollout = rollout
        return bound

    def find_call(self, text: str) -> list[str]:
        """Return the calls of a stopped segment."""
        return self.format.find(text)

    def submit(self, call: str) -> Future[ToolResult]:
        """Start a call. The result is an error if tool or arguments are wrong, or a limit is reached."""
        name, stamped = "", Future[ToolResult]()
        try:
            name, arguments = self.read(call)
            check_call(name, arguments, self.schemas)
            earlier = self.rollout.calls if self.rollout else []
            used = sum(one.result is not None and one.result.tool == name for one in earlier)
            if used >= self.limits.get(name, used + 1):
                raise ValueError(f"CallLimit: {name} can be called {used} times")
        except ValueError as fault:
            stamped.set_result(ToolResult("error", stderr=str(fault), tool=name if name in self.functions else ""))
            return stamped
        self._start(name, arguments).add_done_callback(lambda done: stamp(done, name, stamped))
        return stamped

    def read(self, call: str) -> tuple[str, dict[str, Any]]:
        """Return name and arguments of a call."""
        if self.format.parse == "json":
            return read_call(call, self.schemas)
        (name, schema), *_ = self.schemas.items()
        return name, {next(iter(schema["function"]["parameters"]["properties"])): call}

    def _start(self, name: str, arguments: dict[str, Any]) -> Future[ToolResult]:
        function = self.functions[name]
        if name != "python" and not getattr(function, "in_sandbox", False):
            return self.threads.submit(call_function, function, arguments, self.seconds)
        assert self.executor is not None
        if name != "python":
            return self.executor.submit(program_of(function, arguments))
        settings: dict[str, Any] = {"echo": True} if self.settings.echo else {}
        if self.rollout is not None and self.settings.state == "replay":
            settings["earlier"] = [
                ToolCall(self.read(call.code)[1]["code"], call.result)
                for call in self.rollout.calls
                if call.code is not None
                and call.result
                and call.result.tool == name
                and call.result.status == "ok"
            ]
        return self.executor.submit(arguments["code"], **settings)

    def observe(self, result: ToolResult | None, text: str) -> str:
        """Return what the model reads of a result. The output of a function is not shortened."""
        shown = observation(result)
        if result is not None and result.status == "ok" and result.tool != "python":
            shown = result.stdout.strip() or NO_OUTPUT
        return shown

    def close(self) -> None:
        """End executor and threads. A session has nothing to close."""
        if self.rollout is None:
            self.threads.shutdown(wait=False, cancel_futures=True)
            if self.executor is not None:
                self.executor.close()


def stamp(done: Future[ToolResult], name: str, stamped: Future[ToolResult]) -> None:
    """Set the result of `done` on `stamped`, with the name of its tool."""
    if done.cancelled():
        stamped.cancel()
    elif error := done.exception():
        stamped.set_exception(error)
    else:
        stamped.set_result(dataclasses.replace(done.result(), tool=name))

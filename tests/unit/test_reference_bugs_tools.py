"""Bugs 14, 15 and 16 of the reference: limits of time and of output, by programs that are really run."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from grpo_tir.config import ExecutorConfig
from grpo_tir.executor.open import open_executor
from grpo_tir.executor.pool import Pool
from grpo_tir.tools.python import observation
from grpo_tir.types import ToolCall

LIMIT = 0.5
WALL = 3.0


@pytest.fixture(scope="module")
def executor() -> Iterator[Pool]:
    config = ExecutorConfig(kind="process", slots=2, timeout=LIMIT, wall_factor=WALL)
    with open_executor(config, log=lambda line: None) as pool:
        yield pool


def test_bug_14_a_run_that_takes_too_long_is_a_timeout_and_no_outage(executor: Pool) -> None:
    """The client waits longer than the run may take, so the run's own end is what is reported."""
    result = executor.submit("import time\nprint('half', flush=True)\ntime.sleep(60)").result(60)
    assert result.status == "timeout"
    assert observation(result) == "half\nTimeoutError: the code ran out of time"


def test_bug_14_a_timeout_that_had_printed_something_has_failed(executor: Pool) -> None:
    result = executor.submit("print('half', flush=True)\nwhile True: pass").result(60)
    assert result.stdout == "half\n"
    assert ToolCall("x", result).failed


def test_bug_15_the_deadline_ends_a_call_while_it_runs(executor: Pool) -> None:
    result = executor.submit("import time\ntime.sleep(60)").result(60)
    assert result.status == "timeout"
    assert LIMIT <= result.seconds < LIMIT * WALL + 2


def test_bug_15_hanging_calls_do_not_add_up_without_end(executor: Pool) -> None:
    """Six that hang in two slots take three limits, and a good one behind them is answered."""
    started = time.monotonic()
    futures = [executor.submit("import time\ntime.sleep(60)") for _ in range(6)]
    last = executor.submit("print(42)").result(120)
    assert (last.status, last.stdout) == ("ok", "42\n")
    assert {future.result(60).status for future in futures} == {"timeout"}
    assert time.monotonic() - started < 3 * LIMIT * WALL + 15


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_bug_16_output_beyond_a_pipe_is_drained_while_the_program_runs(executor: Pool, stream: str) -> None:
    """200 KB do not fit into a pipe of 64 KB: read only after exit, the program would stall to its time-out."""
    code = f"import sys\nsys.{stream}.write('x' * 200_000)\nsys.{stream}.flush()\nprint('done')"
    result = executor.submit(code).result(60)
    assert result.status == "ok"
    assert result.truncated
    assert len(getattr(result, stream)) <= 1 << 16

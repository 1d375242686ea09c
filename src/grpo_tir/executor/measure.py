"""Measure an executor: latency with one call in flight, calls per second with many."""

from __future__ import annotations

import statistics
import time
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

from grpo_tir.executor.protocol import Executor
from grpo_tir.types import ToolResult

PROGRAMS = {
    "print": "print(6 * 7)",
    "numpy": "import numpy as np\nprint(np.linalg.det(np.arange(9).reshape(3, 3) + np.eye(3)))",
    "sympy": "from sympy import symbols, solve\nx = symbols('x')\nprint(solve(x**3 - 6*x**2 + 11*x - 6, x))",
}
"""Typical programs of a model: an exact value, an array, an equation."""


def measure(executor: Executor, calls: int = 200) -> dict[str, Any]:
    """Measure p50 and p99 of `print` in milliseconds, and calls per second of each program at 1 to 64 in
    flight."""
    latencies = sorted(timed(executor, PROGRAMS["print"]) for _ in range(calls))
    rates = {name: {n: rate(executor, code, n, calls) for n in (1, 4, 16, 64)} for name, code in PROGRAMS.items()}
    return {
        "p50_ms": round(statistics.median(latencies) * 1e3, 2),
        "p99_ms": round(latencies[int(0.99 * (len(latencies) - 1))] * 1e3, 2),
        "calls_per_second": rates,
    }


def timed(executor: Executor, code: str) -> float:
    began = time.perf_counter()
    demand(executor.submit(code).result())
    return time.perf_counter() - began


def rate(executor: Executor, code: str, in_flight: int, calls: int) -> float:
    """Measure calls per second with a constant number of calls in flight."""
    began = time.perf_counter()
    flight: set[Future[ToolResult]] = set()
    for _ in range(calls):
        if len(flight) == in_flight:
            done, flight = wait(flight, return_when=FIRST_COMPLETED)
            for future in done:
                demand(future.result())
        flight.add(executor.submit(code))
    for future in flight:
        demand(future.result())
    return round(calls / (time.perf_counter() - began), 1)


def demand(result: ToolResult) -> None:
    if result.status != "ok":
        raise RuntimeError(f"a benchmark program came back {result.status}: {result.stderr[-200:]}")

"""Compare the container executor with a bare preloaded fork, `docker exec`, and a new interpreter per call.

    python benchmarks/sandbox.py [--calls 200]

All of them run the same programs with the same Python, in the same image, on the same engine:
- floor: a process with numpy and sympy loaded forks a child per call; no limits, no isolation;
  sympy's caches are as warm as ours.
- ours: `open_executor`; its CPU time is the container's (counted by the engine) plus the client's.
- new interpreter: a temporary file and `python FILE` per call, in one container (as SandboxFusion does).
- docker exec: one per call.
CPU milliseconds hardly change on a busy machine; rates and latencies do. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from grpo_tir.config import ExecutorConfig
from grpo_tir.executor.docker_client import connect
from grpo_tir.executor.open import open_executor
from grpo_tir.executor.protocol import Executor
from grpo_tir.types import ToolResult

PROGRAMS = {
    "print": "print(6 * 7)",
    "numpy": "import numpy as np\nprint(np.linalg.det(np.arange(9).reshape(3, 3) + np.eye(3)))",
    "sympy": "from sympy import symbols, solve\nx = symbols('x')\nprint(solve(x**3 - 6*x**2 + 11*x - 6, x))",
}
"""Typical programs of a model: an exact value, an array, an equation."""

FLOOR = """
import json, os, resource, sys, time
sys.path.insert(0, '/opt/sandbox')
import numpy, numpy.random, sympy, gc
x = sympy.Symbol('x'); sympy.solve(x**2 - 3 * x + 2, x); str(sympy.simplify(sympy.sin(x)**2 + sympy.cos(x)**2))
gc.collect(); gc.freeze()
def cpu():
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
def once(code):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(write, 1)
        exec(code, {'__name__': '__main__'})
        sys.stdout.flush()
        os._exit(0)
    os.close(write)
    while os.read(read, 65536): pass
    os.close(read)
    os.waitpid(pid, 0)
programs, calls = json.loads(sys.argv[1])
found = {}
for name, code in programs.items():
    once(code)
    began, wall = cpu(), time.perf_counter()
    for _ in range(calls): once(code)
    found[name] = [(cpu() - began) / calls * 1e3, calls / (time.perf_counter() - wall)]
print(json.dumps(found))
"""
NEW_INTERPRETER = """
import json, os, resource, subprocess, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
def once(code):
    with tempfile.NamedTemporaryFile('w', suffix='.py') as file:
        file.write(code); file.flush()
        done = subprocess.run([sys.executable, file.name], capture_output=True, env={'PYTHONPATH': '/opt/sandbox',
                              'OPENBLAS_NUM_THREADS': '1', 'PATH': '/usr/bin:/bin'})
        assert done.returncode == 0, done.stderr
programs, calls = json.loads(sys.argv[1])
found = {}
for name, code in programs.items():
    begun = resource.getrusage(resource.RUSAGE_CHILDREN)
    rates = {}
    for flight in (1, 4, 16, 64):
        began = time.perf_counter()
        with ThreadPoolExecutor(flight) as threads: list(threads.map(once, [code] * calls))
        rates[flight] = calls / (time.perf_counter() - began)
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    found[name] = [(sum(ended[:2]) - sum(begun[:2])) / calls / 4 * 1e3, rates]
print(json.dumps(found))
"""


def in_container(engine: Any, script: str, calls: int) -> dict[str, Any]:
    """Return the output of a script in a new container of our image."""
    output = engine.containers.run(
        ExecutorConfig().image, entrypoint=["python3", "-c", script], command=[json.dumps([PROGRAMS, calls])],
        remove=True, network_mode="none", tmpfs={"/tmp": ""},
    )  # fmt: skip
    return dict(json.loads(output))


def our_cpu(engine: Any, executor: Any, code: str, calls: int) -> float:
    """Return CPU milliseconds per call, summed over supervisor, zygote, children and this process."""
    container = executor.workers[0].connection.container

    def used() -> float:
        stats = engine.api.stats(container, stream=False, one_shot=True)
        return float(stats["cpu_stats"]["cpu_usage"]["total_usage"]) / 1e6 + time.process_time() * 1e3

    rate(executor, code, 1, 3)
    began = used()
    rate(executor, code, 1, calls)
    return (used() - began) / calls


def exec_rate(engine: Any, calls: int, in_flight: int) -> float:
    """Return calls per second by `docker exec`, for a program that only prints."""
    container = engine.containers.run(
        ExecutorConfig().image, entrypoint=["sleep", "600"], detach=True, network_mode="none"
    )
    try:
        began = time.perf_counter()
        with ThreadPoolExecutor(in_flight) as threads:
            list(threads.map(lambda _: container.exec_run(["python3", "-c", PROGRAMS["print"]]), range(calls)))
        return round(calls / (time.perf_counter() - began), 1)
    finally:
        container.remove(force=True)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=200, help="calls per measurement (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=3, help="alternations of floor and ours (default: %(default)s)"
    )
    args = parser.parse_args()
    engine = connect(None)
    with open_executor(ExecutorConfig(timeout=30), log=lambda _: None) as executor:
        floors, ours = [], []
        for _ in range(args.rounds):
            floors.append(in_container(engine, FLOOR, args.calls))
            ours.append({name: our_cpu(engine, executor, code, args.calls) for name, code in PROGRAMS.items()})
        speed = measure(executor, args.calls)
    fresh = in_container(engine, NEW_INTERPRETER, max(args.calls // 8, 16))
    execs = {flight: exec_rate(engine, 16, flight) for flight in (1, 16)}

    floor = {name: statistics.median(found[name][0] for found in floors) for name in PROGRAMS}
    our = {name: statistics.median(found[name] for found in ours) for name in PROGRAMS}
    print(f"{platform.machine()}, {engine.info()['NCPU']} cores, Docker {engine.info()['ServerVersion']}\n")
    print("CPU ms per call      print   numpy   sympy")
    for label, row in (("floor", floor), ("ours", our), ("new interpreter", {n: fresh[n][0] for n in PROGRAMS})):
        print(f"{label:18}" + "".join(f"{row[name]:8.1f}" for name in PROGRAMS))
    print("\ncalls per second at 1 / 4 / 16 / 64 in flight")
    for name in PROGRAMS:
        one, two = (" / ".join(f"{value:.0f}" for value in rates.values())
                    for rates in (speed["calls_per_second"][name], fresh[name][1]))  # fmt: skip
        print(f"{name:8} ours {one:28} new interpreter {two}")
    print(f"print    docker exec, 1 / 16 in flight: {execs[1]} / {execs[16]}")
    print(f"latency of print, one in flight: p50 {speed['p50_ms']} ms, p99 {speed['p99_ms']} ms")
    fastest = {name: max(speed["calls_per_second"][name].values()) for name in PROGRAMS}
    print(json.dumps({
        "cpu_over_floor_print": round(our["print"] / floor["print"], 2),
        "cpu_over_floor_numpy": round(our["numpy"] / floor["numpy"], 2),
        "cpu_over_floor_sympy": round(our["sympy"] / floor["sympy"], 2),
        "rate_over_new_interpreter_sympy": round(fastest["sympy"] / max(fresh["sympy"][1].values()), 2),
        "rate_over_new_interpreter_print": round(fastest["print"] / max(fresh["print"][1].values()), 2),
        "p50_ms": speed["p50_ms"], "p99_ms": speed["p99_ms"],
    }))  # fmt: skip


if __name__ == "__main__":
    main()

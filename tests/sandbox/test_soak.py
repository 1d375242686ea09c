"""Many calls at once, one in twenty hostile: nothing lost, doubled, mixed up, or blamed on the wrong one.

GRPO_TIR_SOAK=2000 runs the long form, and GRPO_TIR_SOAK_LOAD=6 keeps six loops busy beside it. The wall limit is
twice the CPU limit, as in the recipes: what waits for a core must be no timeout for that.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from grpo_tir.config import ExecutorConfig
from grpo_tir.errors import ExecutorUnavailable
from grpo_tir.executor.open import open_executor
from grpo_tir.types import ToolResult

CALLS = int(os.environ.get("GRPO_TIR_SOAK", "1024"))
LOAD = int(os.environ.get("GRPO_TIR_SOAK_LOAD", "0"))
IN_FLIGHT = 64
HOSTILE = [
    ("while True: pass", {"timeout"}),
    ("import os\nwhile True: os.fork()", {"error", "timeout"}),
    ("while True: print('x' * 1000)", {"output_limit"}),
    ("a = []\nwhile True: a.append(bytearray(1 << 22))", {"error"}),
    ("import os, signal\nos.kill(-1, signal.SIGKILL)", {"ok"}),
    ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", {"killed"}),
    ("import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(1000)", {"ok"}),
    ("for i in range(30): open(f'f{i}', 'wb').write(bytes(1 << 20))", {"error"}),
    ("import ctypes; ctypes.string_at(0)", {"killed"}),
]


def program(number: int) -> tuple[str, set[str], str | None]:
    """Code, allowed statuses, expected output (None: any)."""
    if number % 20 == 7:
        code, statuses = HOSTILE[number // 20 % len(HOSTILE)]
        return f"# {number}\n{code}", statuses, None
    if number % 3 == 0:
        return f"print({number}, {number} ** 2)", {"ok"}, f"{number} {number**2}\n"
    if number % 3 == 1:
        return (
            f"import numpy as np\nprint(int(np.arange({number} + 1).sum()))",
            {"ok"},
            f"{number * (number + 1) // 2}\n",
        )
    if number % 30 == 2:  # a tenth to a half of its limit
        return (
            f"import time\nwhile time.process_time() < {0.2 + number % 9 / 10}: pass\nprint({number})",
            {"ok"},
            f"{number}\n",
        )
    code = f"import sympy as s\nx = s.Symbol('x')\nprint(s.solve(x**2 - {2 * number} * x + {number**2 - 1}, x))"
    return code, {"ok"}, f"[{number - 1}, {number + 1}]\n"


@pytest.fixture
def busy() -> Iterator[None]:
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(LOAD)]
    yield
    for loop in loops:
        loop.kill()
        loop.wait()


@pytest.mark.parametrize("kind", [pytest.param("docker", marks=pytest.mark.docker), "process"])
def test_a_thousand_calls_with_hostile_ones_among_them(kind: Any, busy: None) -> None:
    try:
        executor = open_executor(ExecutorConfig(kind=kind, timeout=2, wall_factor=2, memory_mb=256))
    except ExecutorUnavailable as error:
        if os.environ.get("GRPO_TIR_REQUIRE_DOCKER") == "1":
            pytest.fail(f"GRPO_TIR_REQUIRE_DOCKER=1, but {error}", pytrace=False)
        pytest.skip(str(error))
    numbers = list(range(CALLS))
    random.Random(0).shuffle(numbers)
    room, answers = threading.BoundedSemaphore(IN_FLIGHT), []
    with executor:
        futures = {}
        for number in numbers:
            room.acquire()
            future = executor.submit(program(number)[0])
            future.add_done_callback(lambda f, n=number: (answers.append(n), room.release()))
            futures[number] = future
        results = {number: future.result(600) for number, future in futures.items()}
        free = executor.workers[0].free
        counts, starts = dict(executor.counts), executor.workers[0].facts["starts"]
    assert sorted(answers) == list(range(CALLS)), "every call is answered, and once"
    assert wrong(results) == {}
    assert (free, starts, counts["lost"], counts["runners_lost"]) == (executor.slots, 1, 0, 0)
    print(Counter(result.status for result in results.values()), counts)


def wrong(results: dict[int, ToolResult]) -> dict[int, tuple[str, ToolResult]]:
    found = {}
    for number, result in results.items():
        code, statuses, stdout = program(number)
        if result.status not in statuses or (stdout is not None and result.stdout != stdout):
            found[number] = (code, result)
    return found

"""Who is blamed on a busy machine: a call that waits for a core is told from one that sleeps."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from grpo_tir.config import ExecutorConfig
from grpo_tir.executor.open import open_executor
from grpo_tir.utils.resources import sandbox_dir

WORK = "import time\nwhile time.process_time() < 0.6: pass\nprint('done')"
HOG = "import os\nfor _ in range(30):\n    if not os.fork(): break\nwhile True: pass"

linux = pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="this kernel counts no run delay")


@pytest.fixture
def one_core() -> Iterator[None]:
    """All that the test starts shares one core, however many the machine has."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    yield
    os.sched_setaffinity(0, cores)


@linux
def test_a_starved_call_is_no_timeout_and_a_sleeping_one_is(one_core: None) -> None:
    """Six calls of 0.6 CPU seconds need 3.6 s on one core; the wall limit is 1.2 s. Sleep does not put it off."""
    with open_executor(ExecutorConfig(kind="process", slots=7, timeout=2, wall_factor=0.6)) as pool:
        futures = [pool.submit(WORK) for _ in range(6)]
        sleeper = pool.submit("import time; time.sleep(30)")
        results = [future.result(60) for future in futures]
        assert {result.status for result in results} == {"ok"}
        assert max(result.seconds for result in results) > 1.3, "nobody was starved: the test proves nothing"
        assert sleeper.result(60).status == "timeout"


@linux
def test_cpu_of_all_processes_is_summed_while_they_run() -> None:
    """Thirty processes that may burn 1 s each would take 15 s on two cores."""
    with open_executor(ExecutorConfig(kind="process", slots=1, timeout=1, wall_factor=20)) as pool:
        result = pool.run(HOG)
    assert (result.status, result.seconds < 6) == ("timeout", True), result


@linux
@pytest.mark.parametrize("kind", ["process", pytest.param("docker", marks=pytest.mark.docker)])
def test_tasks_of_a_hog_weigh_as_much_as_one(kind: Any, request: pytest.FixtureRequest) -> None:
    """31 tasks: weight 1/31 each is nice 15 (1.25 a step)."""
    if kind == "docker":
        request.getfixturevalue("docker_executor")  # skips or fails as the other tests do
    with open_executor(ExecutorConfig(kind=kind, slots=2, timeout=4, wall_factor=4)) as pool:
        hog = pool.submit(HOG + "  # hog")
        found: list[int] = []
        until = time.monotonic() + 10
        while not hog.done() and len(found) < 20 and time.monotonic() < until:
            time.sleep(0.1)
            found = [nice for nice in map(nice_of, os.listdir("/proc")) if 13 <= nice <= 17]
        pool.close()
    assert len(found) >= 20


def nice_of(pid: str) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[16])
    except (OSError, IndexError):
        return 0


@pytest.fixture
def usage(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(sandbox_dir()))
    import usage

    return usage


def test_one_look_credits_one_core_of_waiting_and_counts_the_demand(usage: Any, monkeypatch: Any) -> None:
    """Ten threads that all waited 0.25 of 0.25 s: 0.25 s are credited, and the demand is 10."""
    figures = {tid: (0.0, 0.0) for tid in range(10)}
    monkeypatch.setattr(usage, "threads", lambda pid: list(figures.items()))
    monkeypatch.setattr(usage, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    clock = [100.0]
    seen = usage.Usage()
    clock[0] += 0.25
    figures = {tid: (0.0, 0.25) for tid in range(10)}
    assert (seen.update({1: 0.5}), seen.waited, seen.cpu) == (10, 0.25, 0.5)
    clock[0] += 0.25
    assert (seen.update({1: 0.5}), seen.waited) == (0, 0.25), "nothing new: it slept"
    clock[0] += 0.25
    figures[0] = (0.0, 0.6)
    assert (seen.update({1: 0.5}), round(seen.waited, 6)) == (1, 0.6), "a wait of three looks that has ended"
    assert seen.share(1) is False and seen.share(31) is True and seen.nice == 15
    assert seen.share(2) is False and seen.nice == 15, "it can only rise"


def test_no_victim_of_memory_is_blamed_beside_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(sandbox_dir()))
    import runner

    supervisor = runner.Supervisor.__new__(runner.Supervisor)
    supervisor.ooms, supervisor.running, supervisor.config = 0, {0: None, 1: None}, {"memory_mb": 1}
    monkeypatch.setattr(runner, "oom_kills", lambda: 3)
    call = runner.Call({"id": 1, "code": "", "cpu": 1, "wall": 1})
    assert supervisor.blame(call)[0] == "infrastructure"
    call.alone = True
    assert supervisor.blame(call) == ("memory", None)

"""Hostile programs against the container, against the process executor, and against no protection at all."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from attacks.catalogue import Attack
from harness import ATTACKS, BARE_NEIGHBOUR, LIGHT_CANARY, LIGHT_CANARY_SAYS, faults, strike

from grpo_tir.executor.pool import Pool
from grpo_tir.types import ToolResult

BARE = (Path(__file__).parent / "bare.py").read_text()
POWERS = [
    "SYS_ADMIN",
    "SYS_PTRACE",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_MODULE",
    "SYS_TIME",
    "IPC_LOCK",
    "DAC_READ_SEARCH",
]
QUICK = [a for a in ATTACKS if a.quick]


@pytest.mark.docker
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: a.name)
def test_attack_on_the_container_harms_nobody(attack: Attack, docker_executor: Pool) -> None:
    assert strike(docker_executor, attack) == []


@pytest.mark.docker
def test_after_all_attacks_the_runner_is_as_it_was(docker_executor: Pool, docker_engine: Any) -> None:
    """Same zygotes since the first call, every slot free, no process but the runner's own, nothing lost."""
    worker = docker_executor.workers[0]
    wait_for_pong(docker_executor)
    assert worker.facts["starts"] == 1 and worker.starts == 1
    assert worker.facts["free"] == docker_executor.slots
    assert docker_executor.counts["lost"] == docker_executor.counts["runners_lost"] == 0
    top = docker_engine.api.top(worker.connection.container)["Processes"]  # type: ignore[union-attr]
    assert len(top) <= 3 and {process[0] for process in top} == {"root"}, top


@pytest.mark.parametrize("attack", QUICK, ids=lambda a: a.name)
def test_attack_on_the_process_executor_harms_nobody(attack: Attack, process_executor: Pool) -> None:
    facts = process_executor.workers[0].facts
    if facts["walls"] == "none":
        pytest.skip("this machine grants no namespaces, and the executor says so")
    if attack.needs and facts["cell"] == "namespace":
        pytest.skip("process 1 of a pid namespace cannot signal itself")
    assert strike(process_executor, attack) == []


@pytest.mark.docker
def test_attacks_succeed_where_nothing_protects(docker_engine: Any, docker_executor: Pool) -> None:
    """A predicate that holds without the walls proves nothing about them."""
    chosen = [attack for attack in ATTACKS if not attack.anywhere]
    assert len(chosen) >= 70
    harmless = Attack("harmless", "ok", "print(1)", "1\n")
    assert strike_bare(docker_engine, docker_executor, harmless) == [], "the judge must be able to acquit"
    with ThreadPoolExecutor(3) as threads:
        outcomes = list(threads.map(lambda attack: strike_bare(docker_engine, docker_executor, attack), chosen))
    for attack, found in zip(chosen, outcomes, strict=True):
        print(f"{attack.name}: {found[0][:100] if found else 'HOLDS WITHOUT PROTECTION'}")
    assert [attack.name for attack, found in zip(chosen, outcomes, strict=True) if not found] == []


def strike_bare(engine: Any, executor: Pool, attack: Attack) -> list[str]:
    """One disposable container with limits on processes, memory and time, and all else open."""
    container = engine.containers.run(
        executor.config.image, entrypoint=["timeout", "-s", "KILL", "12", "python3", "-c", BARE],
        command=[json.dumps([BARE_NEIGHBOUR, attack.code, LIGHT_CANARY])],
        detach=True, mem_limit="512m", memswap_limit="512m", pids_limit=256, network_mode="host",
        ipc_mode="private", cap_add=POWERS, environment={"LEFT_TOKEN": "x"},
        security_opt=["seccomp=unconfined", "apparmor=unconfined"],
    )  # fmt: skip
    try:
        container.wait(timeout=150)
        output = container.logs(stdout=True, stderr=False)
    finally:
        container.remove(force=True)
    try:
        results = json.loads(output)
    except ValueError:
        return ["the runner itself is gone, or what it said is broken"]
    attacked, neighbour, canary = (ToolResult(**results[key]) for key in ("attack", "neighbour", "canary"))
    left = [f"left behind: processes {results['left']}"] if results["left"] else []
    return left + faults(attack, attacked, neighbour, [canary], LIGHT_CANARY_SAYS)


def wait_for_pong(pool: Pool) -> None:
    worker = pool.workers[0]
    worker.facts.pop("free", None)
    until = time.monotonic() + 10
    while "free" not in worker.facts and time.monotonic() < until:
        time.sleep(0.05)

"""Open the executor that a recipe asks for, or raise one line with the reason."""

import dataclasses
from collections.abc import Callable
from typing import Any

from grpo_tir.config import ExecutorConfig
from grpo_tir.errors import ExecutorUnavailable
from grpo_tir.executor.pool import Pool
from grpo_tir.executor.wire import Host


def open_executor(config: ExecutorConfig, *, log: Callable[[str], Any] = print) -> Pool:
    """Return a pool that serves. `auto` is docker if an engine answers and has the image, else this machine.

    Raises:
        ExecutorUnavailable: one line with reason and remedy.
    """
    kind, hosts = config.kind, list[Host]()
    if kind != "process":
        try:
            from grpo_tir.executor.docker_client import DockerHost

            hosts, kind = [DockerHost(config, host) for host in (config.hosts or (None,))], "docker"
        except ExecutorUnavailable as error:
            if config.kind == "docker":
                raise
            log(f"executor: no docker here ({error}); running programs as processes of this machine")
    if not hosts:
        from grpo_tir.executor.process_client import LocalHost

        kind, hosts = "process", [LocalHost(config)]
    limits = {key: value for key, value in dataclasses.asdict(config).items() if key not in ("kind", "hosts")}
    pool = Pool(hosts, config, {"kind": kind, "limits": limits})
    try:
        pool.wait_ready()
    except BaseException:
        pool.close()
        raise
    log(isolation_line(pool))
    return pool


def isolation_line(pool: Pool) -> str:
    """Describe in one line what isolates a program from this machine."""
    facts = pool.workers[0].facts
    walls, cell, seccomp = facts["walls"], facts["cell"], facts["seccomp"]
    inside = {
        "uid": "a user id per slot",
        "namespace": "user, pid and mount namespaces per call",
        "group": "NOT in force: own user id or namespaces per call",
    }[cell]
    outside = {
        "container": "a closed container (no network, read-only root, no capabilities, memory and pids capped)",
        "namespaces": "namespaces (no network, own pids and mounts, tmpfs); NOT in force: one memory cap for all",
        "none": "rlimits only; NOT in force: own mounts and pids: programs can read your files",
    }[walls]
    network = "" if walls != "none" else "; no sockets" if seccomp else "; NOT in force: network ban"
    filtered = "seccomp" if seccomp else "NOT in force: seccomp"
    missing = f"; programs cannot import {', '.join(facts['missing'])}" if facts["missing"] else ""
    return (
        f"executor: {pool.description['kind']}, {pool.slots} slots, in {outside}{network}; {inside}; "
        f"{filtered}{missing}"
    )

"""Measure CPU time and time spent waiting for a core of all processes of a call, from /proc.

A task runs, waits for a core (its run delay), or sleeps. Time spent waiting for a core does not count against the
wall limit. The demand of a call is the average number of its tasks that ran or waited for a core. It decides the
nice value of its tasks.
"""

from __future__ import annotations

import math
import os
import time

TICK = os.sysconf("SC_CLK_TCK")
NICEST = 19


class Usage:
    """Usage of one call, updated by `Zygote.look`."""

    def __init__(self) -> None:
        self.began = self.looked = time.monotonic()
        self.cpu = self.waited = 0.0
        self.nice = 0
        self.tasks: dict[int, tuple[float, float]] = {}  # CPU seconds and run delay, by thread id

    def update(self, processes: dict[int, float]) -> int:
        """Add what the processes (CPU seconds by pid) used since the last update. Return the demand."""
        now = time.monotonic()
        span, self.looked = max(now - self.looked, 1e-3), now
        before, self.tasks = self.tasks, {tid: figures for pid in processes for tid, figures in threads(pid)}
        new = [(cpu - before.get(tid, (0, 0))[0], delay - before.get(tid, (0, 0))[1])
               for tid, (cpu, delay) in self.tasks.items()]  # fmt: skip
        self.cpu = sum(processes.values())
        waited = sum(delay for _, delay in new)
        # The kernel counts a wait when it ends, so one look may see more than its span. The sum over all tasks is
        # capped at the time since the start: else many waiting tasks could extend their wall limit for ever.
        self.waited = min(self.waited + waited, now - self.began)
        return round((waited + sum(cpu for cpu, _ in new)) / span)

    def share(self, demand: int) -> bool:
        """Give all tasks of the call together the weight of one task. Return True if their nice value changed.

        Each nice level divides a task's weight by 1.25. Without privileges the value can only rise.
        """
        nice = min(round(math.log(max(demand, 1), 1.25)), NICEST)
        changed, self.nice = nice > self.nice, max(nice, self.nice)
        return changed

    def renice(self) -> None:
        """Set the nice value of all threads. Threads that start later inherit it."""
        for tid in self.tasks:
            try:
                os.setpriority(os.PRIO_PROCESS, tid, self.nice)
            except OSError:  # ended meanwhile, or nicer already
                continue


def threads(pid: int) -> list[tuple[int, tuple[float, float]]]:
    """Return CPU seconds and run delay of each thread of a process; empty if the kernel does not count them."""
    found = []
    try:
        for tid in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{tid}/schedstat") as file:
                cpu, delay, _ = file.read().split()
            found.append((int(tid), (int(cpu) / 1e9, int(delay) / 1e9)))
    except (OSError, ValueError):  # it ended while we looked
        pass
    return found


def processes() -> tuple[dict[int, float], dict[int, int], dict[int, int]]:
    """Return CPU seconds (with those of reaped children), user id and parent of each process, by pid."""
    cpu, uids, parents = {}, {}, {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                uids[int(name)] = os.stat(f"/proc/{name}").st_uid
                with open(f"/proc/{name}/stat") as file:
                    fields = file.read().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(name)] = int(fields[1])
            cpu[int(name)] = sum(map(int, fields[11:15])) / TICK
    return cpu, uids, parents


def by_call(calls: dict[int, int | None]) -> dict[int, dict[int, float]]:
    """Group processes and their CPU seconds by call. `calls` maps the first process of a call to its user id or
    None.

    The processes of a call have its user id or, without one, descend from its first process.
    """
    cpu, owners, parents = processes()
    first = {uid: pid for pid, uid in calls.items() if uid is not None}
    found: dict[int, dict[int, float]] = {pid: {} for pid in calls}
    for pid in cpu:
        call = first.get(owners[pid]) if first else ancestor(pid, calls, parents)
        if call:
            found[call][pid] = cpu[pid]
    return found


def ancestor(pid: int, calls: dict[int, int | None], parents: dict[int, int]) -> int | None:
    while pid and pid not in calls:
        pid = parents.get(pid, 0)
    return pid or None

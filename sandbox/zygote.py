"""Fork a child for each call from a process that has libraries loaded, wait for it, and clean up after it.

The first zygote has numpy and sympy. When a program names scipy or another of packages.HEAVY, it forks a second
one that loads those as well.

One call: an order from the supervisor (with the child's three pipes) → fork → `wait4` or deadline → kill the
remaining processes → empty the folder → report. A slot is reported after it has been cleaned.
"""

from __future__ import annotations

import collections
import contextlib
import gc
import heapq
import json
import os
import platform
import random
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator
from typing import Any

import kernel
import packages
from child import child
from usage import Usage, by_call

ORDER = struct.Struct("=BHIddd")
"""Fields: what, slot, serial, CPU limit, wall limit, wall limit of a call that waits for a core."""
RUN, KILL, PING, SECOND = 1, 2, 3, 4
LOOK = 0.25  # seconds between two looks at what the calls use; most calls end before the first


class Run:
    """One running child."""

    def __init__(self, slot: int, serial: int, pid: int, setup: int, limits: tuple[float, float, float]) -> None:
        self.slot, self.serial, self.pid, self.setup = slot, serial, pid, setup
        self.cpu, self.wall, self.longest = limits
        self.usage = Usage()
        self.began = self.usage.looked
        self.deadline = self.began + self.wall
        self.late = self.starved = False
        self.report: dict[str, Any] | None = None


class Zygote:
    """Fork a child for each call, wait for it, and clean its slot."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.control = socket.socket(fileno=config["control"])
        self.nobody = config["uid_base"] - 2  # a user id that no process has, except this one while it kills
        self.second = 0  # pid of the second zygote
        self.walls = config["walls"]
        self.cell = self.choose_cell()
        self.base = config["folders"]
        self.mounts: list[int] = []  # by slot, where programs of all slots share the other namespaces
        self.runs: dict[int, Run] = {}  # by pid
        self.deadlines: list[tuple[float, int]] = []
        self.closing: list[Run] = []  # ended, with processes of theirs still to die
        self.looked = time.monotonic()
        # CPU seconds of processes that calls left and that this zygote reaped, by slot.
        self.burnt: dict[int, float] = collections.defaultdict(float)

    def choose_cell(self) -> str:
        if self.config["walls"] == "container" or (os.geteuid() == 0 and kernel.uids_work(self.config)):
            return "uid"
        return "namespace" if self.config["walls"] == "namespaces" else "group"

    def serve(self) -> None:
        """Isolate this process, load the libraries, report that it is ready, and handle orders for ever."""
        # 1. Walls, and protection of this process from its children.
        if self.walls == "namespaces":
            self.base = "/slots"
            kernel.build_walls(self.config, self.cell)
        if kernel.LINUX:
            kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
            kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
        # 2. Slots.
        if self.cell == "uid":
            os.setresuid(self.config["uid_base"] - 1, 0, 0)  # kill(-1) under a slot's id then spares our processes
            for slot in range(self.config["slots"]):
                self.prepare_folder(slot)
            if self.walls == "namespaces":
                self.mounts = kernel.slot_namespaces(self.config["slots"])
        elif self.cell == "namespace":
            self.pids = os.open("/proc/self/ns/pid", os.O_RDONLY)
            self.proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY)
        # 3. Libraries.
        sys.path[:0] = [path for path in (packages.LIBRARY,) if os.path.isdir(path)]
        if self.walls != "container":
            packages.hide_others()
        self.load(packages.LIGHT)
        while True:
            self.step()

    def load(self, modules: list[str]) -> None:
        """Import libraries, freeze their objects so that children share their memory, and report that we serve."""
        packages.preload(modules)
        self.limits = kernel.limits(self.config, self.cell)
        self.filter = kernel.Seccomp.build() if kernel.LINUX else None
        self.watch_children()
        gc.collect()
        gc.disable()
        gc.freeze()
        found = packages.versions()
        self.say({"ready": {"zygote": os.getpid(), "walls": self.walls, "cell": self.cell, "packages": found,
                            "missing": sorted({"numpy", "sympy", *packages.LARGE} - set(found)),
                            "platform": sys.platform, "python": platform.python_version(),
                            "seccomp": self.filter is not None}})  # fmt: skip

    def start_second(self, control: int) -> None:
        """Fork the second zygote, which takes orders from the descriptor `control`, without calls."""
        self.second = os.fork()
        if self.second:
            os.close(control)
            return
        for run in self.runs.values():
            os.close(run.setup)
        self.control.close()
        self.control = socket.socket(fileno=control)
        self.nobody -= 1  # an id of its own: else one zygote's kill could reach the other while that one kills
        self.runs, self.deadlines, self.closing, self.burnt = {}, [], [], collections.defaultdict(float)
        if kernel.LINUX:
            kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
        gc.enable()
        self.load(packages.HEAVY)

    def watch_children(self) -> None:
        self.bell, ring = os.pipe()
        for descriptor in (self.bell, ring):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(ring, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def say(self, report: dict[str, Any]) -> None:
        try:
            self.control.sendall(json.dumps(report).encode() + b"\n")
        except OSError:
            os._exit(0)

    def step(self) -> None:
        """Wait for an order, an ended child or a deadline, and handle it."""
        # 1. Wait.
        pause = LOOK if self.runs else 60.0
        if self.deadlines:
            pause = min(pause, self.deadlines[0][0] - time.monotonic())
        sources: list[Any] = [self.control, self.bell]
        readable, _, _ = select.select(sources, [], [], 0.002 if self.closing else max(pause, 0))
        # 2. Orders, ended children, usage.
        if self.bell in readable:
            os.read(self.bell, 4096)
        if self.control in readable:
            self.obey()
        self.reap()
        if kernel.LINUX and time.monotonic() - self.looked > LOOK:
            self.look()
        # 3. Deadlines, then slots of ended calls.
        now = time.monotonic()
        while self.deadlines and self.deadlines[0][0] <= now:
            run = self.runs.get(heapq.heappop(self.deadlines)[1])
            if run and run.deadline <= now and not self.extend(run, now):
                run.late = True
                self.kill(run)
        self.closing = [run for run in self.closing if not self.close(run)]

    def look(self) -> None:
        """Measure the running calls: end those over their CPU limit, and set the nice values of the others."""
        self.looked = time.monotonic()
        old = {run.pid: run for run in self.runs.values() if self.looked - run.began > LOOK and not run.late}
        if not old:
            return
        uids = {
            pid: self.config["uid_base"] + run.slot if self.cell == "uid" else None for pid, run in old.items()
        }
        for pid, processes in by_call(uids).items():
            run = old[pid]
            demand = run.usage.update(processes)
            if run.usage.cpu + self.burnt.get(run.slot, 0.0) > run.cpu:
                run.late = True
                self.kill(run)
            elif run.usage.share(demand):
                with self.acting_as(run.slot):
                    run.usage.renice()

    def extend(self, run: Run, now: float) -> bool:
        """Extend the wall limit of a call by the time that it waited for a core. Return True if it may go on."""
        if kernel.LINUX and now - run.usage.looked > 0.01:
            self.look()
        run.starved = run.usage.waited > run.longest - run.wall
        run.deadline = run.began + run.wall + run.usage.waited
        if run.starved or run.deadline <= now:
            return False
        heapq.heappush(self.deadlines, (run.deadline, run.pid))
        return True

    def obey(self) -> None:
        message, descriptors, _, _ = socket.recv_fds(self.control, ORDER.size, 3)
        if not message:
            os._exit(0)
        what, slot, serial, *limits = ORDER.unpack(message)
        if what == RUN:
            self.fork(slot, serial, tuple(limits), descriptors)
        elif what == SECOND:
            self.start_second(descriptors[0])
        elif what == KILL:
            for run in self.runs.values():
                if run.serial == serial:
                    self.kill(run)
        else:
            self.say({"alive": True})

    def fork(self, slot: int, serial: int, limits: tuple[float, float, float], descriptors: list[int]) -> None:
        """Fork a child for a call. `descriptors` are the pipes of its stdin, stdout and stderr."""
        setup, theirs = os.pipe()
        folder = os.path.join(self.base, str(slot)) if self.cell != "namespace" else "/slots/0"
        if self.cell == "group":
            os.mkdir(folder, 0o700)
        if self.cell == "namespace":
            kernel.libc("unshare", kernel.CLONE_NEWPID)
        pid = os.fork()
        if pid == 0:
            child(self, slot, folder, limits[0], theirs, descriptors)
        if self.cell == "namespace":
            kernel.libc("setns", self.pids, kernel.CLONE_NEWPID)
        for descriptor in (theirs, *descriptors):
            os.close(descriptor)
        run = self.runs[pid] = Run(slot, serial, pid, setup, limits)
        heapq.heappush(self.deadlines, (run.deadline, pid))

    def kill(self, run: Run) -> None:
        if self.cell == "uid":
            self.sweep(run.slot)
        else:
            kill_group(run.pid)

    def reap(self) -> None:
        while True:
            try:
                pid, slot = self.next_ended()
                if pid:
                    pid, status, usage = os.wait4(pid, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.second:
                os._exit(1)  # the supervisor starts both again
            run = self.runs.pop(pid, None)
            if run is None:
                self.burnt[slot] += usage.ru_utime + usage.ru_stime
            else:
                trouble = os.read(run.setup, 4096).decode("utf-8", "replace")
                os.close(run.setup)
                run.report = {
                    "slot": run.slot, "serial": run.serial, "status": status, "late": run.late,
                    "starved": run.starved, "setup": trouble,
                    "seconds": time.monotonic() - run.began, "cpu": usage.ru_utime + usage.ru_stime,
                }  # fmt: skip
                self.closing.append(run)

    def next_ended(self) -> tuple[int, int]:
        """Return an ended process and its slot; (-1, -1) if only reaping tells which, (0, 0) if none has ended."""
        if self.cell != "uid":
            return -1, -1
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return (found.si_pid, found.si_uid - self.config["uid_base"]) if found else (0, 0)

    def close(self, run: Run) -> bool:
        """Clean the slot. Return False while processes of the call are still ending."""
        if self.cell == "uid":
            self.sweep(run.slot)
            if strangers({self.second, *self.runs}, self.config["uid_base"] + run.slot):
                return False
            self.clean_folder(run.slot)
        elif self.cell == "group":
            kill_group(run.pid)
            left = strangers({self.second, *self.runs}) if kernel.LINUX else []
            for pid in left:
                kill_group(pid)
            if left:
                return False
            folder = os.path.join(self.base, str(run.slot))
            wipe(folder)
            os.rmdir(folder)
        assert run.report
        run.report["cpu"] += self.burnt.pop(run.slot, 0.0)
        self.say(run.report)
        return True

    def sweep(self, slot: int) -> None:
        sweep(self.config["uid_base"] + slot, self.nobody)

    def prepare_folder(self, slot: int) -> None:
        """Prepare the folder of a slot at the start, and remove processes of an earlier zygote."""
        folder, uid = os.path.join(self.base, str(slot)), self.config["uid_base"] + slot
        if not os.path.isdir(folder):
            os.mkdir(folder, 0o700)
            os.chown(folder, uid, uid)
        self.sweep(slot)
        while any(kernel.owner(int(pid)) == uid for pid in os.listdir("/proc") if pid.isdigit()):
            time.sleep(0.002)
        self.clean_folder(slot)

    def clean_folder(self, slot: int) -> None:
        with self.acting_as(slot):
            wipe(os.path.join(self.base, str(slot)))

    @contextlib.contextmanager
    def acting_as(self, slot: int) -> Iterator[None]:
        """Act under the slot's user id, if it has one: root without capabilities may not touch its files."""
        if self.cell == "uid":
            os.seteuid(self.config["uid_base"] + slot)
        try:
            yield
        finally:
            if self.cell == "uid":
                os.seteuid(0)


def sweep(uid: int, nobody: int) -> None:
    """Kill every process of a user id at once: no process can escape kill(-1) by forking.

    A signal is allowed from our real or effective id to the target's real or saved id. During the kill, our real
    id is one that no process has (a child just forked still has our usual one), and our saved id stays 0, so that
    no process of the slot can signal us."""
    real = os.getuid()
    os.setresuid(nobody, uid, 0)
    try:
        os.kill(-1, signal.SIGKILL)
    except ProcessLookupError:
        pass
    finally:
        os.seteuid(0)
        os.setresuid(real, 0, 0)


def kill_group(pid: int) -> None:
    for end in (os.killpg, os.kill):
        try:
            end(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue


def strangers(known: set[int], uid: int | None = None) -> list[int]:
    """Return children that we did not fork: processes left by programs, which we inherit as their subreaper."""
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        found = [int(pid) for pid in file.read().split() if int(pid) not in known]
    return [pid for pid in found if uid is None or kernel.owner(pid) == uid]


def wipe(folder: str) -> None:
    """Empty a folder, whatever its modes, with constant stack and number of descriptors.

    Nested folders are moved up first: recursion would fail on a chain of a thousand.
    """
    if os.stat(folder).st_mode & 0o7777 != 0o700:
        os.chmod(folder, 0o700)
    top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        kernel.clear_attributes(top)
        while names := os.listdir(top):
            for name in names:
                try:
                    os.unlink(name, dir_fd=top)
                except (IsADirectoryError, PermissionError):
                    flatten(top, name)
        os.utime(top)
    finally:
        os.close(top)


def flatten(top: int, name: str) -> None:
    os.chmod(name, 0o700, dir_fd=top)
    inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=top)
    try:
        for entry in os.listdir(inner):
            try:
                os.unlink(entry, dir_fd=inner)
            except (IsADirectoryError, PermissionError):
                os.chmod(entry, 0o700, dir_fd=inner)
                os.rename(entry, f"{random.getrandbits(128):x}", src_dir_fd=inner, dst_dir_fd=top)
    finally:
        os.close(inner)
    os.rmdir(name, dir_fd=top)


if __name__ == "__main__":
    Zygote(json.loads(sys.argv[1])).serve()

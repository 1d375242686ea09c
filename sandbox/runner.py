"""Run untrusted programs, each in a forked child. Uses the standard library only and nothing of grpo_tir.

    client ══ frames on stdin/stdout ══► supervisor ── pipes by SCM_RIGHTS ──► zygote ── fork ──► child
           (protocol.md)                 runner.py                             zygote.py          child.py
                                         queue, slots, output                  libraries          one program,
                                                                               loaded, frozen     one slot

Roles:
- The supervisor (this file) passes code and output on, and never runs code.
- The zygote holds the loaded libraries, forks and waits. A second one, forked from it when a program first names
  scipy or the like, holds those too: its forks cost more, so all other programs stay with the first. Code and
  output never pass through them, because a child inherits their memory and must find nothing of earlier programs
  there.
- The child gets its code by a pipe after the fork and keeps descriptors 0, 1 and 2 only. Its status comes from
  `wait4`, so a program cannot forge it. Its limits count from the fork, so time in the queue does not count.

`walls` isolate the whole runner: `container` (made by the engine), `namespaces` (own network, pids, mounts and
ipc; only the libraries are visible, read-only) or `none`. Inside them, a `cell` isolates programs from each other:
    uid        a user id per slot: nothing can signal, trace or read another uid; leftovers are killed by uid
    namespace  user, pid and mount namespaces per call: the kernel ends and forgets everything with the child
    group      a session per call and a ban on signals to others: where nothing better is granted
"""

from __future__ import annotations

import array
import collections
import functools
import json
import os
import re
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import packages
from zygote import KILL, ORDER, PING, RUN, SECOND

KEEP = 64 * 1024  # bytes of a stream that are returned: its first KEEP / 2 and its last KEEP / 2
FLOOD = 1024 * 1024  # bytes on both streams after which a program is ended
FRAME = 32 * 1024 * 1024  # largest frame in bytes
SILENCE = 10.0  # seconds without a word from a zygote after which it is replaced
START = 60.0  # the same while it starts
STRETCH, STRETCH_ALONE = 4.0, 12.0  # longest time of a call that waits for a core, in wall limits
HERE = os.path.dirname(os.path.abspath(__file__))
ORPHANED = 600.0  # seconds without a frame from the client after which the runner ends


class Line:
    """Hold the socket to a zygote. Orders wait in the socket while the zygote loads its libraries."""

    def __init__(self) -> None:
        self.socket, self.theirs = socket.socketpair()
        self.socket.setblocking(False)
        self.ready, self.reports, self.heard = False, b"", time.monotonic()

    def silent(self, now: float) -> bool:
        return now - self.heard > (SILENCE if self.ready else START)


class Call:
    """One running program. Keeps the head and the tail of each of its streams."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.id = request["id"]
        payload = {key: request[key] for key in ("code", "cpu", "earlier", "echo") if key in request}
        self.code = memoryview(json.dumps(payload).encode())
        self.replay = float(request.get("replay", 0.0))  # seconds more, for the earlier blocks of its session
        self.cpu, self.wall = float(request["cpu"]), float(request["wall"]) + self.replay
        self.alone = bool(request.get("alone"))
        self.sources = [request["code"], *(code for code, _ in request.get("earlier") or ())]
        self.line: Line | None = None
        self.longest = self.wall * (STRETCH_ALONE if self.alone else STRETCH)
        self.ooms_before = 0
        self.slot = self.serial = -1
        self.flooded = False
        self.totals = [0, 0]
        self.heads = [bytearray(), bytearray()]
        self.tails = [bytearray(), bytearray()]
        self.pipes: dict[int, int] = {}  # descriptor -> 0 stdout, 1 stderr, 2 code

    def keep(self, stream: int, data: bytes) -> None:
        self.totals[stream] += len(data)
        room = max(KEEP // 2 - len(self.heads[stream]), 0)
        self.heads[stream] += data[:room]
        tail = self.tails[stream]
        tail += data[room:]
        del tail[: -KEEP // 2]

    def take_note(self) -> tuple[float, float, int]:
        """Remove the child's line about its replay from stdout. Return its CPU and wall seconds and the number
        of blocks that differed."""
        line, newline, rest = bytes(self.heads[0]).partition(b"\n")
        try:
            word, *numbers, differs = line.split()
            cpu, wall = (min(float(n), self.replay) if float(n) >= 0 else 0.0 for n in numbers)
            note = cpu, wall, min(max(int(differs), 0), 1000)
        except ValueError:
            return 0.0, 0.0, 0
        if not (self.replay and newline and word == b"replayed"):
            return 0.0, 0.0, 0
        self.heads[0], self.totals[0] = bytearray(rest), self.totals[0] - len(line) - 1
        return note

    def answer(self) -> dict[str, Any]:
        texts = [bytes(h + t).decode("utf-8", "replace") for h, t in zip(self.heads, self.tails, strict=True)]
        return {"id": self.id, "stdout": texts[0], "stderr": texts[1], "truncated": max(self.totals) > KEEP}


class Supervisor:
    """Handle the protocol, the queue, the slots and the output."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.poll = selectors.DefaultSelector()
        self.inbox, self.outbox = bytearray(), bytearray()
        self.free = list(range(config["slots"]))[::-1]
        self.waiting: collections.deque[Call] = collections.deque()
        self.running: dict[int, Call] = {}  # by slot
        self.serial = self.starts = self.failures = 0
        self.lines: list[Line] = []  # to the first zygote and, once there is one, to the second
        self.mention: re.Pattern[str] | None = None
        self.facts: dict[str, Any] = {}
        self.ooms = oom_kills()
        self.client_heard = self.asked = time.monotonic()
        self.frames = os.dup(1)  # a stray print of ours cannot break a frame
        os.dup2(2, 1)
        os.set_blocking(self.frames, False)

    def serve(self) -> None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        self.poll.register(0, selectors.EVENT_READ, self.read_client)
        self.start_zygote()
        try:
            while True:
                for key, _ in self.poll.select(0.25):
                    if key.fd in self.poll.get_map():  # an earlier event of this round may have closed it
                        key.data()
                self.tick()
        finally:
            self.end_zygote()
            if self.config["walls"] != "container":
                shutil.rmtree(self.config["folders"], ignore_errors=True)

    def tick(self) -> None:
        """Reap orphans as pid 1, replace a zygote that died or is silent, and exit if the client is gone."""
        now = time.monotonic()
        if self.zygote.poll() is not None or self.lost or any(line.silent(now) for line in self.lines):
            self.replace_zygote()
        elif now - self.asked > 1:
            self.asked = now
            for line in self.lines:
                if line.ready:
                    self.order(line, PING)
        if now - self.client_heard > ORPHANED:
            sys.exit(0)
        if os.getpid() == 1:
            reap_orphans(self.zygote.pid)

    def read_client(self) -> None:
        data = os.read(0, 1 << 18)
        if not data:
            sys.exit(0)
        self.client_heard = time.monotonic()
        self.inbox += data
        while len(self.inbox) >= 4:
            size = int.from_bytes(self.inbox[:4], "big")
            if size > FRAME:
                sys.exit(f"a frame of {size} bytes: the client does not speak this protocol")
            if len(self.inbox) < 4 + size:
                break
            request = json.loads(self.inbox[4 : 4 + size])
            del self.inbox[: 4 + size]
            if request["op"] == "run":
                self.waiting.append(Call(request))
            else:
                self.send({"op": "pong", "free": len(self.free), "zygote": self.facts.get("zygote"),
                           "starts": self.starts})  # fmt: skip
        self.dispatch()

    def send(self, frame: dict[str, Any]) -> None:
        body = json.dumps(frame).encode()  # pure ASCII: no character can break it
        self.outbox += len(body).to_bytes(4, "big") + body
        self.flush()

    def flush(self) -> None:
        try:
            while self.outbox:
                del self.outbox[: os.write(self.frames, self.outbox[: 1 << 16])]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            sys.exit(0)
        self.watch(self.frames, selectors.EVENT_WRITE, self.flush if self.outbox else None)

    def watch(self, descriptor: int, event: int, action: Callable[[], Any] | None) -> None:
        known = descriptor in self.poll.get_map()
        if action and not known:
            self.poll.register(descriptor, event, action)
        elif known and not action:
            self.poll.unregister(descriptor)

    def dispatch(self) -> None:
        while self.lines[0].ready and self.free and self.waiting:
            call = self.waiting.popleft()
            call.line = self.line_for(call)
            self.serial += 1
            call.slot, call.serial = self.free.pop(), self.serial
            self.running[call.slot] = call
            call.ooms_before = oom_kills()
            ends = [os.pipe(), os.pipe(), os.pipe()]
            theirs = [ends[2][0], ends[0][1], ends[1][1]]
            for stream, ours in enumerate((ends[0][0], ends[1][0], ends[2][1])):
                os.set_blocking(ours, False)
                call.pipes[ours] = stream
                if stream < 2:
                    self.watch(ours, selectors.EVENT_READ, functools.partial(self.drain, call, ours))
            self.order(call.line, RUN, call, theirs)
            for descriptor in theirs:
                os.close(descriptor)
            self.feed(call, ends[2][1])

    def line_for(self, call: Call) -> Line:
        """Return the line to the second zygote if the program or its session names what is loaded there."""
        if not (self.mention and any(map(self.mention.search, call.sources))):
            return self.lines[0]
        if len(self.lines) == 1:
            self.lines.append(self.open_line())
            self.order(self.lines[0], SECOND, descriptors=[self.lines[1].theirs.fileno()])
            self.lines[1].theirs.close()
        return self.lines[1]

    def order(self, line: Line, what: int, call: Call | None = None, descriptors: list[int] | None = None) -> None:
        fields = (
            (call.slot, call.serial, call.cpu + call.replay, call.wall, call.longest)
            if call
            else (0, 0, 0.0, 0.0, 0.0)
        )
        extra = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        try:
            line.socket.sendmsg([ORDER.pack(what, *fields)], extra)
        except OSError:
            self.lost = True  # the zygote is dead or has stopped reading: `tick` replaces it in both cases

    def feed(self, call: Call, descriptor: int) -> None:
        """Write the code to the child's pipe, as much as it takes now."""
        try:
            while call.code:
                call.code = call.code[os.write(descriptor, call.code) :]
        except BlockingIOError:
            self.watch(descriptor, selectors.EVENT_WRITE, lambda: self.feed(call, descriptor))
            return
        except BrokenPipeError:
            pass  # the child ended without reading; its exit status tells why
        self.drop(call, descriptor)

    def drain(self, call: Call, descriptor: int) -> bool:
        """Read output. Return False if there is no more now."""
        try:
            data = os.read(descriptor, 1 << 16)
        except BlockingIOError:
            return False
        if not data:
            self.drop(call, descriptor)
            return False
        call.keep(call.pipes[descriptor], data)
        if sum(call.totals) > FLOOD and not call.flooded and call.line:
            call.flooded = True
            self.order(call.line, KILL, call)
        return not call.flooded

    def drop(self, call: Call, descriptor: int) -> None:
        self.watch(descriptor, 0, None)
        del call.pipes[descriptor]
        os.close(descriptor)

    def drain_all(self, call: Call) -> None:
        """Read what is left in the pipes of an ended call, and close them."""
        for descriptor, stream in list(call.pipes.items()):
            while stream < 2 and self.drain(call, descriptor):
                pass
            if descriptor in call.pipes:
                self.drop(call, descriptor)

    def finish(self, call: Call, status: str, **more: Any) -> None:
        self.drain_all(call)
        del self.running[call.slot]
        self.free.append(call.slot)
        self.send({"op": "result", **call.answer(), "status": status, **more})

    def conclude(self, call: Call, report: dict[str, Any]) -> None:
        """Decide the status of an ended call from `wait4` and the limit that it reached, and send the result."""
        ended = os.waitstatus_to_exitcode(report["status"])
        signum, status, cause = (-ended if ended < 0 else None), "error" if ended else "ok", None
        self.drain_all(call)
        replay_cpu, replay_wall, differs = call.take_note()
        report["cpu"] = max(report["cpu"] - replay_cpu, 0.0)
        if report["setup"]:
            status, cause = "infrastructure", report["setup"]
        elif signum in (signal.SIGKILL, signal.SIGXCPU):
            if call.flooded:
                status = "output_limit"
            elif report["starved"]:
                status, cause = "infrastructure", "starved: it waited for a core, and is to be run again alone"
            elif report["late"] or report["cpu"] > (0.5 if signum == signal.SIGXCPU else 0.9) * call.cpu:
                status = "timeout"  # the kernel counts this limit in ticks, which run ahead under steal time
            else:
                status, cause = self.blame(call)
        elif signum:
            status = "killed"
        elif report["cpu"] > call.cpu:
            status = "timeout"  # its child processes used CPU time beyond the limit of the call
        measured = {"seconds": max(report["seconds"] - replay_wall, 0.0), "cpu": report["cpu"]}
        code = None if signum else ended
        self.finish(
            call,
            status,
            cause=cause,
            zygote_died=False,
            replay_differs=differs,
            exit_code=code,
            signal=signum,
            **measured,
        )

    def blame(self, call: Call) -> tuple[str, str | None]:
        """Decide who sent a SIGKILL that we did not send: the program itself, or the kernel for lack of memory.

        The kernel kills the largest process, which may belong to another call than the one that uses most memory.
        So no call is blamed while others run beside it."""
        kills = oom_kills()
        if kills <= max(self.ooms, call.ooms_before):  # kills before the call began do not count
            return "killed", None
        others = len(self.running) > 1
        self.ooms = self.ooms + 1 if others else kills
        if call.alone or not others:
            return "memory", None
        return "infrastructure", "out of memory, and perhaps by a neighbour's fault: to be run again alone"

    def start_zygote(self) -> None:
        self.lost, self.mention = False, None
        self.lines = [self.open_line()]
        theirs = self.lines[0].theirs
        self.config |= {"control": theirs.fileno()}
        env = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}
        env |= {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
        env |= {"MALLOC_ARENA_MAX": "1"}  # an arena of each thread would take 64 MB of the address space limit
        env |= {"SYMPY_GROUND_TYPES": "python", "MPMATH_NOGMPY": "1"}  # GMP aborts where Python raises MemoryError
        env |= {"MPLBACKEND": "Agg"}
        env |= {"VECLIB_MAXIMUM_THREADS": "1", "OBJC_DISABLE_INITIALIZE_FORK_SAFETY": "YES"}  # macOS
        command = [sys.executable, "-s", HERE + "/zygote.py", json.dumps(self.config)]
        self.zygote = subprocess.Popen(command, env=env, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()
        self.starts += 1
        self.asked = time.monotonic()

    def open_line(self) -> Line:
        line = Line()
        self.poll.register(line.socket, selectors.EVENT_READ, lambda: self.read_zygote(line))
        return line

    def end_zygote(self) -> None:
        """Kill the first zygote. The second ends when its socket closes."""
        for line in self.lines:
            self.watch(line.socket.fileno(), 0, None)
            line.socket.close()
        self.zygote.kill()
        self.zygote.wait()

    def replace_zygote(self) -> None:
        """Report running calls as lost, and continue the queue with new zygotes."""
        was_ready = self.lines[0].ready
        self.end_zygote()
        if not was_ready:
            self.failures += 1
            self.config["walls"] = self.config["walls"] if self.config["walls"] == "container" else "none"
            if self.failures > 3:
                sys.exit("the zygote does not start; what it said is above")
        self.start_zygote()
        for call in list(self.running.values()):
            self.finish(call, "infrastructure", cause="the zygote died", zygote_died=True)

    def read_zygote(self, line: Line) -> None:
        try:
            data = line.socket.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            self.lost = True
            self.watch(line.socket.fileno(), 0, None)
            return
        line.heard = time.monotonic()
        *reports, line.reports = (line.reports + data).split(b"\n")
        for report in map(json.loads, reports):
            if "ready" in report:
                line.ready, self.failures = True, 0
                if line is self.lines[0]:
                    self.facts = report["ready"]
                    self.mention = packages.mention(self.facts["packages"])
                    self.send({"op": "ready", **self.facts, "slots": self.config["slots"], "starts": self.starts})
            elif "serial" in report:
                call = self.running.get(report["slot"])
                if call and call.serial == report["serial"]:
                    self.conclude(call, report)
        self.dispatch()


def oom_kills() -> int:
    """Count the processes that the kernel killed for memory in this container, by cgroup v2 or v1."""
    for path in ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"):
        try:
            with open(path) as file:
                return next((int(line.split()[1]) for line in file if line.startswith("oom_kill ")), 0)
        except OSError:
            continue
    return 0


def reap_orphans(zygote: int) -> None:
    """Reap zombies that pid 1 inherited from a dead zygote. The zygote itself is reaped by its Popen."""
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is None or found.si_pid == zygote:
                return
            os.waitpid(found.si_pid, 0)
        except ChildProcessError:
            return


if __name__ == "__main__":
    Supervisor(json.loads(sys.argv[1])).serve()

"""Run one grading process, and exchange JSON with it over a pipe.

    in   {"answer": str | null, "gold": str, "digits": int, "limit": seconds}    null: can this gold be judged?
    out  {"outcome": "right" | "rounded" | "wrong" | "unjudged", "reason": str}

`Worker` runs in the parent, `main` in the child. The deadline counts from the request, not from the start of the
process. On an overloaded machine the child may get no processor; then its processor time decides, not wall time.

The child ends at end of file. If the parent dies while the child hangs, the child's timer ends it: SIGALRM with
its default action runs no Python code, so a loop in C cannot delay it. A child that runs out of memory ends too. A
new process then shows whether the answer was the cause, or memory that earlier requests had left.
"""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

_MEMORY = 3 << 30
_START_LIMIT = 120.0
_ENOUGH = 0.25
"""Processor time, as a share of the deadline, from which an answer counts as late. 99% of ordinary pairs need less
than 0.1."""
STARVED = 5
"""Maximum wall time of a worker that gets no processor, as a multiple of the deadline."""


class WorkerDied(Exception):
    """The worker ended before it replied."""


class WorkerOutage(WorkerDied):
    """The worker did not start, or got no processor time. The answer is not the cause."""


class WorkerLate(Exception):
    """The worker was still computing at the deadline."""


class Worker:
    """The parent's end of one grading process."""

    def __init__(self) -> None:
        root = str(Path(__file__).resolve().parent.parent.parent)
        self._pipe, theirs = Pipe()
        start = f"import sys; sys.path.insert(0, {root!r}); from grpo_tir.grading.worker import main; "
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", start + f"main({theirs.fileno()})"], pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        self._ready = False

    def wait_until_ready(self) -> None:
        """Wait until the imports are done. This time counts for no deadline.

        Raises:
            WorkerOutage: the process does not start.
        """
        if not self._ready:
            try:
                hello = self._receive(_START_LIMIT) or {"error": "no reply"}
            except WorkerDied:
                hello = {"error": f"{sys.executable} ended at once"}
            if "error" in hello:
                raise WorkerOutage(f"a grading worker does not start: {hello['error']}")
            self._ready = True

    def ask(self, job: dict[str, Any], timeout: float) -> dict[str, Any]:
        began, used = time.monotonic(), self._cpu_seconds()
        try:
            _send(self._pipe, {**job, "limit": (STARVED + 1) * timeout})
        except OSError:
            raise WorkerDied("a grading worker has ended") from None
        reply = self._receive(timeout)
        if reply is None and used is not None:
            # On an overloaded machine only processor time shows that the answer is slow.
            while reply is None and time.monotonic() < began + STARVED * timeout:
                if (self._cpu_seconds() or 0.0) - used >= _ENOUGH * timeout:
                    raise WorkerLate
                reply = self._receive(0.05 * timeout)
            if reply is None:
                raise WorkerOutage("a grading worker got no processor time")
        if reply is None:
            raise WorkerLate
        return reply

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._pipe.close()

    def _receive(self, seconds: float) -> dict[str, Any] | None:
        """Return the next message; None if none comes within `seconds`."""
        try:
            return json.loads(self._pipe.recv_bytes()) if self._pipe.poll(seconds) else None
        except (EOFError, OSError):
            raise WorkerDied("a grading worker has ended") from None

    def _cpu_seconds(self) -> float | None:
        """Return the worker's processor time so far; None on a system without /proc."""
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main(descriptor: int) -> None:
    """Answer requests until the parent closes the pipe."""
    pipe = Connection(descriptor)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    try:
        _limit_memory()
        from grpo_tir.grading import rules

        rules.warm_up()
    except Exception as error:
        _send(pipe, {"error": f"{type(error).__name__}: {error}"})
        sys.exit(1)
    _send(pipe, {"ready": True})
    with contextlib.suppress(EOFError):
        while True:
            job = json.loads(pipe.recv_bytes())
            signal.setitimer(signal.ITIMER_REAL, job["limit"])
            outcome, reason = _judge(rules, job)
            signal.setitimer(signal.ITIMER_REAL, 0)
            _send(pipe, {"outcome": outcome, "reason": reason})


def _judge(rules: Any, job: dict[str, Any]) -> tuple[str, str]:
    try:
        if job["answer"] is not None:
            return rules.judge(job["answer"], job["gold"], job["digits"])
        fault = rules.gold_fault(job["gold"])
        return ("unjudged", fault) if fault else ("right", "")
    except MemoryError:
        os._exit(1)
    except Exception as error:  # hostile text can raise any error in a parser: it cannot be read
        fault = f"cannot be read: {type(error).__name__}"
        if job["answer"] is None:
            return "unjudged", f"the gold {fault}"
        outcome, fault_of_gold = _judge(rules, {**job, "answer": None})
        return (outcome, fault_of_gold) if outcome == "unjudged" else ("wrong", fault)


def _limit_memory() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = _MEMORY if hard == resource.RLIM_INFINITY else min(_MEMORY, hard)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
    except (ValueError, OSError):
        return  # macOS rejects this limit; the deadline still applies


def _send(pipe: Connection, message: dict[str, Any]) -> None:
    pipe.send_bytes(json.dumps(message).encode())

"""Run one grading process, and exchange lines of JSON with it over a pipe.

    in   {"answer": str | null, "gold": str, "digits": int, "limit": seconds}    null: can this gold be judged?
    out  {"outcome": "right" | "rounded" | "wrong" | "unjudged", "reason": str}

`Worker` runs in the parent, `main` in the child. The deadline counts from the request, not from the start of the
process. On an overloaded machine the child may get no processor; then its processor time decides, not wall time.

The child ends at end of file. If the parent dies while the child hangs, the child's timer ends it: SIGALRM with
its default action runs no Python code, so a loop in C cannot delay it. A child that runs out of memory ends too. A
new process then shows whether the answer was the cause, or memory that earlier requests had left.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
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
        start = f"import sys; sys.path.insert(0, {root!r}); from grpo_tir.grading.worker import main; main()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", start], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self._buffer = b""
        self._ready = False

    def wait_until_ready(self) -> None:
        """Wait until the imports are done. This time counts for no deadline.

        Raises:
            WorkerOutage: the process does not start.
        """
        if not self._ready:
            try:
                hello = self._read_line(time.monotonic() + _START_LIMIT) or {"error": "no reply"}
            except WorkerDied:
                hello = {"error": f"{sys.executable} ended at once"}
            if "error" in hello:
                raise WorkerOutage(f"a grading worker does not start: {hello['error']}")
            self._ready = True

    def ask(self, job: dict[str, Any], timeout: float) -> dict[str, Any]:
        began, used = time.monotonic(), self._cpu_seconds()
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps({**job, "limit": (STARVED + 1) * timeout}).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise WorkerDied("a grading worker has ended") from None
        reply = self._read_line(began + timeout)
        if reply is None and used is not None:
            # On an overloaded machine only processor time shows that the answer is slow.
            while reply is None and time.monotonic() < began + STARVED * timeout:
                if (self._cpu_seconds() or 0.0) - used >= _ENOUGH * timeout:
                    raise WorkerLate
                reply = self._read_line(time.monotonic() + 0.05 * timeout)
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
        for pipe in (self._process.stdin, self._process.stdout):
            try:
                if pipe is not None:
                    pipe.close()
            except OSError:
                continue  # an unsent line of a dead worker

    def _read_line(self, until: float) -> dict[str, Any] | None:
        """Return the next message; None if none has come by the time `until`."""
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        while b"\n" not in self._buffer:
            left = until - time.monotonic()
            if left <= 0 or not poll.poll(1000 * left):
                return None
            chunk = os.read(descriptor, 65536)
            if not chunk:
                raise WorkerDied("a grading worker has ended")
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\n", 1)
        return json.loads(line)

    def _cpu_seconds(self) -> float | None:
        """Return the worker's processor time so far; None on a system without /proc."""
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Answer requests until the parent closes the pipe."""
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "wb")
    quiet = os.open(os.devnull, os.O_RDWR)
    os.dup2(quiet, 0)
    os.dup2(quiet, 1)  # warnings of parsers must not mix with the replies
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    try:
        _limit_memory()
        from grpo_tir.grading import rules

        rules.warm_up()
    except Exception as error:
        _send(replies, {"error": f"{type(error).__name__}: {error}"})
        sys.exit(1)
    _send(replies, {"ready": True})
    for line in requests:
        job = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, job["limit"])
        outcome, reason = _judge(rules, job)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _send(replies, {"outcome": outcome, "reason": reason})


def _judge(rules: Any, job: dict[str, Any]) -> tuple[str, str]:
    try:
        if job["answer"] is None:
            fault = rules.gold_fault(job["gold"])
            return ("unjudged", fault) if fault else ("right", "")
        return rules.judge(job["answer"], job["gold"], job["digits"])
    except MemoryError:
        os._exit(1)
    except Exception as error:  # hostile text can raise any error in a parser: it cannot be read
        fault = "" if job["answer"] is None else _gold_fault(rules, job["gold"])
        if job["answer"] is None or fault:
            return "unjudged", fault or f"the gold cannot be read: {type(error).__name__}"
        return "wrong", f"cannot be read: {type(error).__name__}"


def _gold_fault(rules: Any, gold: str) -> str:
    try:
        return rules.gold_fault(gold)
    except Exception as error:
        return f"the gold cannot be read: {type(error).__name__}"


def _limit_memory() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = _MEMORY if hard == resource.RLIM_INFINITY else min(_MEMORY, hard)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
    except (ValueError, OSError):
        return  # macOS rejects this limit; the deadline still applies


def _send(replies: Any, message: dict[str, Any]) -> None:
    replies.write(json.dumps(message).encode() + b"\n")
    replies.flush()

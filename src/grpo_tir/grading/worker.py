"""A grading process and its pipe: lines of JSON in, lines of JSON out.

    in   {"answer": str | null, "gold": str, "digits": int, "limit": seconds}    null: can this gold be judged?
    out  {"outcome": "right" | "rounded" | "wrong" | "unjudged", "reason": str}

`Worker` is the parent's end, `main` the child's. The deadline counts from the request, never the start. Where the
machine is so busy that the child got no processor, wall time proves nothing: then its processor time decides.

The child ends by itself at end of file, and by its own timer where the parent is gone in the middle of a hang:
SIGALRM with its default action needs no Python code to run, so a loop inside C cannot hold it off. Running out of
memory ends it too: a fresh process then decides whether it was the answer or what had piled up here.
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
_ENOUGH = 0.25  # of the deadline, in processor time: 99 of 100 honest pairs need less than a tenth of it
STARVED = 5
"""Times the deadline that a worker without a processor may take."""


class WorkerDied(Exception):
    """The worker ended before it replied."""


class WorkerOutage(WorkerDied):
    """The worker did not start, or got no processor time: the fault is ours."""


class WorkerLate(Exception):
    """The worker computed until the deadline."""


class Worker:
    """One judging process: a line of JSON in, a line of JSON out."""

    def __init__(self) -> None:
        root = str(Path(__file__).resolve().parent.parent.parent)
        start = f"import sys; sys.path.insert(0, {root!r}); from grpo_tir.grading.worker import main; main()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", start], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self._buffer = b""
        self._ready = False

    def wait_until_ready(self) -> None:
        """Imports are done; not part of any deadline."""
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
            # Wall time is not the answer's fault where the machine is overloaded: the processor time is.
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
        """The next message; None if it has not come by then."""
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
        """Processor time of the worker so far; None where there is no /proc."""
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Serve until the parent closes the pipe."""
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "wb")
    quiet = os.open(os.devnull, os.O_RDWR)
    os.dup2(quiet, 0)
    os.dup2(quiet, 1)  # parsers print warnings; they must not get between the replies
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
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
    except Exception as error:  # whatever a parser throws at hostile text is a verdict on that text
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
        return  # macOS refuses this limit; the deadline still holds


def _send(replies: Any, message: dict[str, Any]) -> None:
    replies.write(json.dumps(message).encode() + b"\n")
    replies.flush()

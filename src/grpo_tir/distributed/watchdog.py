"""Find the rank that hangs while all others wait for it.

Every rank counts the collectives that it enters and its signs of progress between them (a token, a micro-batch).
It writes both to a small file in the folder of the run:

    rank 0   collectives 17   waits in the 17th            all ranks enter the same collectives in the same order,
    rank 1   collectives 16   no progress for long         so the one with the lowest count is waited for

A rank that finds itself hanging prints the stacks of its threads and ends. The other ranks name one that cannot (a
stopped process, an extension that holds the interpreter lock).
"""

from __future__ import annotations

import json
import os
import socket
import sys
import sysconfig
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from grpo_tir.distributed.launcher import tell_launcher

GRACE = 1.5
"""Factor on the limit after which other ranks name a hanging rank that did not end itself."""


class Progress:
    """Counters of one rank."""

    def __init__(self) -> None:
        self.collectives = self.beats = 0
        self.phase = "starting"

    def enter(self, phase: str) -> None:
        """Count a collective. Call just before entering it."""
        self.collectives += 1
        self.phase = phase

    def beat(self) -> None:
        """Count a sign of progress."""
        self.beats += 1


class Watchdog:
    """End this process if a rank hangs for `minutes`, while entered. 0 turns it off, and so does a single rank."""

    def __init__(self, folder: Path, rank: int, world: int, progress: Progress, minutes: float) -> None:
        self.folder, self.rank, self.world, self.progress = folder, rank, world, progress
        self.limit = 60 * minutes
        self.active = world > 1 and minutes > 0
        self.seen: dict[int, tuple[Any, float]] = {}
        self.stopping = threading.Event()

    def __enter__(self) -> Watchdog:
        if self.active:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._publish()  # at once: a rank that is stopped a moment later must be known to the others
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()

    def _watch(self) -> None:
        while not self.stopping.wait(min(self.limit / 10, 10.0)):
            self._publish()
            states = {rank: state for rank in range(self.world) if (state := self._read(rank))}
            culprit, silence = self.find_culprit(states, time.monotonic())
            if culprit == self.rank:
                end(f"rank {culprit} hung: {describe(states[culprit], silence)}\n{stacks()}")
            elif culprit is not None and silence > GRACE * self.limit:
                end(f"rank {culprit} hangs and does not answer: {describe(states[culprit], silence)}")

    def find_culprit(self, states: dict[int, dict[str, Any]], now: float) -> tuple[int | None, float]:
        """Return the rank that all wait for, if it made no progress within the limit, and the seconds since
        then."""
        if not states:
            return None, 0.0
        for rank, state in states.items():
            if rank not in self.seen or self.seen[rank][0] != state:
                self.seen[rank] = (state, now)
        last = min(states, key=lambda rank: (states[rank]["collectives"], self.seen[rank][1]))
        silence = now - self.seen[last][1]
        return (last, silence) if silence > self.limit else (None, silence)

    def _publish(self) -> None:
        state = {**vars(self.progress), "host": socket.gethostname(), "pid": os.getpid()}
        partial = self.folder / f".rank{self.rank}.partial"
        partial.write_text(json.dumps(state), encoding="utf-8")
        partial.replace(self.folder / f"rank{self.rank}.json")

    def _read(self, rank: int) -> dict[str, Any] | None:
        try:
            state: dict[str, Any] = json.loads((self.folder / f"rank{rank}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):  # a folder that the ranks do not share: each answers for itself
            return None
        return state


def describe(state: dict[str, Any], silence: float) -> str:
    """Describe the last known state of a rank."""
    return (
        f"no progress for {silence:.0f} s (train.watchdog_minutes) after collective {state['collectives']} "
        f"({state['phase']}), process {state['pid']} on {state['host']}"
    )


def stacks() -> str:
    """Format the stacks of threads that are not idle in the standard library, the main thread last."""
    library, main = sysconfig.get_path("stdlib"), threading.main_thread()
    lines = []
    for thread in sorted(threading.enumerate(), key=lambda thread: thread is main):
        frame = sys._current_frames().get(thread.ident or 0)
        idle = frame is None or (
            frame.f_code.co_filename.startswith(library) and "site-packages" not in frame.f_code.co_filename
        )
        if thread is main or (not idle and thread is not threading.current_thread()):
            lines += [f"Thread {thread.name} (most recent call last):\n", *traceback.format_stack(frame)]
    return "".join(lines)


def end(reason: str) -> None:
    """End the process from this thread: the main thread hangs."""
    tell_launcher(f"grpo-tir: {reason}")
    print(f"grpo-tir: {reason}", file=sys.stderr, flush=True)
    os._exit(1)

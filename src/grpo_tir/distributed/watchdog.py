"""Find the rank that hangs while all others wait for it.

Every rank counts the collectives that it enters, and its signs of progress in between (a token, a micro-batch). It
writes both counts to a small file in the folder of the run:

    rank 0   collectives 17   waits in the 17th            all ranks enter the same collectives in the same order,
    rank 1   collectives 16   no progress for long         so the others wait for the rank with the lowest count

The watchdog thread of a hanging rank prints the stacks of its threads and ends the process. If that thread cannot
run (a stopped process, an extension that holds the interpreter lock), the other ranks name the hanging rank.
"""

import json
import os
import socket
import sys
import sysconfig
import threading
import time
import traceback
from pathlib import Path
from typing import Any, Self

from grpo_tir.distributed.launcher import tell_launcher

GRACE = 1.5
"""Factor on the limit after which other ranks name a hanging rank that did not end its own process."""


class Progress:
    """Count the collectives and the signs of progress of one rank."""

    def __init__(self) -> None:
        self.collectives = self.beats = 0
        self.phase = "starting"

    def enter(self, phase: str) -> None:
        """Count a collective. Call it just before the collective."""
        self.collectives += 1
        self.phase = phase

    def beat(self) -> None:
        """Count a sign of progress."""
        self.beats += 1


class Watchdog:
    """Use as a context: end this process if a rank makes no progress for `minutes`. Off with 0 or one rank."""

    def __init__(self, folder: Path, rank: int, world: int, progress: Progress, minutes: float) -> None:
        self.folder, self.rank, self.world, self.progress = folder, rank, world, progress
        self.limit = 60 * minutes
        self.active = world > 1 and minutes > 0
        self.seen: dict[int, tuple[Any, float]] = {}
        self.stopping = threading.Event()

    def __enter__(self) -> Self:
        if self.active:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._publish()  # at once, so that a rank that stops a moment later is known to the others
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()

    def _watch(self) -> None:
        while not self.stopping.wait(min(self.limit / 10, 10.0)):
            self._publish()
            states = {rank: state for rank in range(self.world) if (state := self._read(rank))}
            hanging, seconds = self.find_hanging(states, time.monotonic())
            if hanging == self.rank:
                end(f"rank {hanging} hung: {describe(states[hanging], seconds)}\n{stacks()}")
            elif hanging is not None and seconds > GRACE * self.limit:
                end(f"rank {hanging} hangs and does not answer: {describe(states[hanging], seconds)}")

    def find_hanging(self, states: dict[int, dict[str, Any]], now: float) -> tuple[int | None, float]:
        """Find the rank with the fewest collectives, for which all others wait. Returns its number, or None if it
        made progress within the limit, and the seconds since its last progress."""
        if not states:
            return None, 0.0
        for rank, state in states.items():
            if rank not in self.seen or self.seen[rank][0] != state:
                self.seen[rank] = (state, now)
        last = min(states, key=lambda rank: (states[rank]["collectives"], self.seen[rank][1]))
        seconds = now - self.seen[last][1]
        return (last, seconds) if seconds > self.limit else (None, seconds)

    def _publish(self) -> None:
        state = {**vars(self.progress), "host": socket.gethostname(), "pid": os.getpid()}
        partial = self.folder / f".rank{self.rank}.partial"
        partial.write_text(json.dumps(state), encoding="utf-8")
        partial.replace(self.folder / f"rank{self.rank}.json")

    def _read(self, rank: int) -> dict[str, Any] | None:
        try:
            state: dict[str, Any] = json.loads((self.folder / f"rank{rank}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):  # the ranks may not share this folder
            return None
        return state


def describe(state: dict[str, Any], seconds: float) -> str:
    """Describe the last known state of a rank, `seconds` ago."""
    return (
        f"no progress for {seconds:.0f} s (train.watchdog_minutes) after collective {state['collectives']} "
        f"({state['phase']}), process {state['pid']} on {state['host']}"
    )


def stacks() -> str:
    """Format the stacks of the threads, the main thread last. Threads that wait in the standard library are left
    out."""
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
    """Report the reason and end the process from the watchdog's thread, because the main thread hangs."""
    tell_launcher(f"grpo-tir: {reason}")
    print(f"grpo-tir: {reason}", file=sys.stderr, flush=True)
    os._exit(1)

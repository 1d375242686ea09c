"""Finds the rank that hangs, while all others wait for it.

Every rank counts the collectives that it enters and, in between, its signs of progress (a token, a micro-batch),
and publishes both in a small file in the folder of the run:

    rank 0   collectives 17   waits in the 17th            all ranks enter the same collectives in the same order,
    rank 1   collectives 16   no progress for long         so the one with the lowest count is waited for

A rank that finds itself to be the culprit says where its threads stand and ends. One that cannot even do that (a
stopped process, an extension that never lets go of the interpreter) is named by the others.
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
"""A rank is named by the others after this many times the limit: it has had its chance to do so itself."""


class Progress:
    """What one rank counts."""

    def __init__(self) -> None:
        self.collectives = self.beats = 0
        self.phase = "starting"

    def enter(self, phase: str) -> None:
        """Just before a collective."""
        self.collectives += 1
        self.phase = phase

    def beat(self) -> None:
        """Anything has got done."""
        self.beats += 1


class Watchdog:
    """While entered, a thread that ends this process if a rank has hung for `minutes` (0: never, nor alone)."""

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
        """The rank that all wait for, if it has made no progress for the limit; and the seconds since it did."""
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
    """Where a rank was seen last."""
    return (
        f"no progress for {silence:.0f} s (train.watchdog_minutes) after collective {state['collectives']} "
        f"({state['phase']}), process {state['pid']} on {state['host']}"
    )


def stacks() -> str:
    """Where the threads stand that do not idle in the standard library; the main one last."""
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
    """The main thread cannot be asked: it hangs."""
    tell_launcher(f"grpo-tir: {reason}")
    print(f"grpo-tir: {reason}", file=sys.stderr, flush=True)
    os._exit(1)

"""Spreads calls over runners, and answers for every one of them.

    submit ─► queue (bounded: waits) ─► the place with most free slots ─► runner ─► future
                 ▲                                        │
                 └── again, with a fresh slot ◄── lost: runner died, fell silent, overran its deadline

Rules, each with its reason:
- A call lost to the infrastructure is run again up to `retries` times; only then is it `infrastructure`.
- A call that was in flight when its runner died is a suspect: it is run again *alone*. If that runner dies
  as well, the call is `killed`, so that breaking the executor is no escape from a penalty.
- A runner lost because its whole engine is gone casts no suspicion.
- Too large a share of lost calls, or no place left for too long, opens the circuit: every future and every
  later `submit` raises `ExecutorOutage`, because training on noise is worse than stopping.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from grpo_tir.config import ExecutorConfig
from grpo_tir.errors import ExecutorOutage, ExecutorUnavailable, GrpoTirError
from grpo_tir.executor.wire import FRAME, Connection, Frame, Place, frames, pack
from grpo_tir.types import ToolResult

HEARTBEAT = 1.0
"""Seconds between pings."""
SILENCE = 10.0
"""Seconds without a frame after which a runner counts as dead (SIGSTOP gives no end of file)."""
GRACE = 30.0
"""Seconds that our own deadline for a call is beyond the runner's wall limit."""
STRETCH, STRETCH_ALONE = 4.0, 12.0
"""Times its wall limit that the runner gives a call which waits for a core (sandbox/runner.py)."""
START = 60.0
"""Seconds that a runner may take until it is ready."""
PATIENCE = 120.0
"""Seconds without any runner after which we give up."""
WINDOW, ENOUGH = 200, 10
"""The circuit opens on the share of lost calls among the last WINDOW, once there are ENOUGH lost."""


@dataclass(eq=False)
class Call:
    """One program, from `submit` to its result."""

    id: int
    code: str
    timeout: float
    future: Future[ToolResult] = field(default_factory=Future)
    losses: int = 0
    deaths: int = 0
    alone: bool = False
    sent: float = 0.0


class Station:
    """One place, its present runner, and the calls in flight there."""

    def __init__(self, place: Place, pool: Pool) -> None:
        self.place, self.pool = place, pool
        self.connection: Connection | None = None
        self.ready = False
        self.flight: dict[int, Call] = {}
        self.facts: Frame = {}
        self.heard = 0.0
        self.starts = 0
        self.trouble = ""
        self.outgoing: queue.SimpleQueue[tuple[Connection | None, bytes]] = queue.SimpleQueue()
        self.threads = [threading.Thread(target=target, daemon=True) for target in (self.live, self.write)]

    @property
    def free(self) -> int:
        return self.place.slots - len(self.flight) if self.ready else 0

    @property
    def exclusive(self) -> bool:
        return any(call.alone for call in self.flight.values())

    def send(self, frame: Frame) -> None:
        if self.connection:
            self.outgoing.put((self.connection, pack(frame)))

    def write(self) -> None:
        """Its own thread: a runner that has stopped reading must not hold up anybody else."""
        while True:
            connection, data = self.outgoing.get()
            if not data:
                return
            if connection and connection is self.connection:
                with contextlib.suppress(OSError, ValueError):  # the reader sees the same end
                    connection.write(data)

    def live(self) -> None:
        """Start a runner, listen until it is gone, and again."""
        pause = 0.1
        while not self.pool.closed:
            began = time.monotonic()
            try:
                self.connection = self.place.start()
                self.starts += 1
                self.heard = time.monotonic()
                for frame in frames(self.connection.read):
                    self.heard = time.monotonic()
                    self.pool.take(self, frame)
            except (OSError, ValueError, ExecutorUnavailable) as error:
                self.trouble = str(error)
            self.pool.lose(self)
            pause = 0.1 if time.monotonic() - began > 10 else min(2 * pause, 5.0)
            self.pool.stopping.wait(pause if pause > 0.2 else 0)

    def kill(self) -> None:
        if connection := self.connection:
            connection.kill()


class Pool:
    """The executor: a bounded queue in front of one or several places."""

    def __init__(self, places: Sequence[Place], config: ExecutorConfig, describe: dict[str, Any]) -> None:
        self.config, self.description = config, describe
        self.slots = sum(place.slots for place in places)
        self.lock = threading.RLock()
        self.room = threading.BoundedSemaphore(max(4 * self.slots, 64))
        self.waiting: deque[Call] = deque()
        self.settled: list[tuple[Future[ToolResult], ToolResult | Exception]] = []
        self.ids = itertools.count()
        self.recent: deque[bool] = deque(maxlen=WINDOW)
        self.counts = {"calls": 0, "lost": 0, "retried": 0, "runners_lost": 0}
        self.stopping = threading.Event()
        self.cause = ""
        self.outage: ExecutorOutage | None = None
        self.served = time.monotonic()
        self.changed = threading.Condition(self.lock)
        self.stations = [Station(place, self) for place in places]
        self.monitor = threading.Thread(target=self.watch, daemon=True)
        for thread in (self.monitor, *(t for s in self.stations for t in s.threads)):
            thread.start()

    @property
    def closed(self) -> bool:
        return self.stopping.is_set()

    def wait_ready(self) -> None:
        """Every place serves, or we say which does not and why."""
        until = time.monotonic() + START
        with self.changed:
            while missing := [s for s in self.stations if not s.ready]:
                broken = [s for s in missing if s.starts >= 3 or (s.trouble and s.connection is None)]
                if broken or (
                    not self.changed.wait(max(until - time.monotonic(), 0)) and time.monotonic() > until
                ):
                    station = (broken or missing)[0]
                    reason = station.trouble or "the runner does not start; what it said is above"
                    raise ExecutorUnavailable(f"no executor on {station.place.name}: {reason}")

    def submit(self, code: str, *, timeout: float | None = None) -> Future[ToolResult]:
        """Queue a program. Blocks while the queue is full; the future never raises for a fault of the code.

        Raises:
            ExecutorOutage: too many calls were lost (also set on the futures that wait).
        """
        while not self.room.acquire(timeout=0.5):
            self.refuse_if_over()
        call = Call(next(self.ids), code, timeout or self.config.timeout)
        if 6 * len(code) > FRAME // 2 and len(pack({"code": code})) > FRAME - 1024:
            self.room.release()  # to send it would end the runner, for a fault of the program
            call.future.set_result(
                ToolResult("error", stderr="MemoryError: the program is too large", exit_code=1)
            )
            return call.future
        call.future.set_running_or_notify_cancel()  # it cannot be cancelled: a runner may have it already
        with self.lock:
            try:
                self.refuse_if_over()
            except GrpoTirError:
                self.room.release()
                raise
            self.counts["calls"] += 1
            self.waiting.append(call)
            self.dispatch()
        return call.future

    def run(self, code: str, *, timeout: float | None = None) -> ToolResult:
        """Run a program and wait for it."""
        return self.submit(code, timeout=timeout).result()

    def refuse_if_over(self) -> None:
        if self.outage:
            raise self.outage
        if self.closed:
            raise ExecutorUnavailable("the executor is closed")

    @contextlib.contextmanager
    def settling(self) -> Iterator[None]:
        """The lock; futures settled under it are told after it: a callback may well call us again."""
        with self.lock:
            yield
            settled, self.settled = self.settled, []
        for future, outcome in settled:
            if isinstance(outcome, ToolResult):
                future.set_result(outcome)
            else:
                future.set_exception(outcome)

    def dispatch(self) -> None:
        """Give waiting calls to free slots. A suspect waits for an idle place and has it to itself."""
        while self.waiting:
            call = self.waiting[0]
            open_ = [s for s in self.stations if s.free > 0 and not s.exclusive and not (call.alone and s.flight)]
            if not open_:
                return
            station = max(open_, key=lambda s: s.free)
            self.waiting.popleft()
            call.sent = time.monotonic()
            station.flight[call.id] = call
            station.send({"op": "run", "id": call.id, "code": call.code, "cpu": call.timeout,
                          "wall": call.timeout * self.config.wall_factor, "alone": call.alone})  # fmt: skip

    def take(self, station: Station, frame: Frame) -> None:
        """One frame from a runner."""
        with self.settling():
            if frame["op"] == "ready":
                station.facts, station.ready, station.trouble = frame, True, ""
                self.served = time.monotonic()
                self.changed.notify_all()
            elif frame["op"] == "pong":
                station.facts |= frame
            elif call := station.flight.pop(frame["id"], None):
                if frame["status"] == "infrastructure":
                    self.again(call, frame["cause"], died=frame["zygote_died"], alone=True)
                else:
                    keys = ("status", "stdout", "stderr", "exit_code", "signal", "truncated", "seconds")
                    self.resolve(call, ToolResult(**{key: frame[key] for key in keys}))
            self.dispatch()

    def again(self, call: Call, cause: str, *, died: bool, alone: bool = False) -> None:
        """A call that came back without a result of its own; `alone`: its neighbours may be to blame."""
        self.cause = cause
        if died and call.alone:
            call.deaths += 1
        call.losses += 1
        call.alone = call.alone or alone or died or call.losses > 1
        self.counts["retried"] += 1
        if died and call.deaths:
            self.resolve(call, ToolResult("killed", signal=9))
        elif call.losses > self.config.retries:
            self.resolve(call, ToolResult("infrastructure", stderr=cause))
        else:
            self.waiting.appendleft(call)

    def resolve(self, call: Call, result: ToolResult) -> None:
        self.recent.append(result.status == "infrastructure")
        self.counts["lost"] += result.status == "infrastructure"
        self.room.release()
        self.settled.append((call.future, result))
        lost = sum(self.recent)
        if lost >= ENOUGH and lost > self.config.max_outage * len(self.recent):
            share = f"{lost} of the last {len(self.recent)} tool calls were lost to the executor"
            self.trip(
                f"{share} (executor.max_outage is {self.config.max_outage:g}); the last because: {self.cause}"
            )

    def lose(self, station: Station) -> None:
        """A runner is gone: its calls go back to the queue, as suspects unless the whole engine went."""
        with self.lock:
            was_ready, station.ready = station.ready, False
            connection, station.connection = station.connection, None
            calls, station.flight = list(station.flight.values()), {}
            if not was_ready and connection and connection.said:
                station.trouble = connection.said.decode("utf-8", "replace").strip().splitlines()[-1]
            self.changed.notify_all()
        if connection:
            connection.kill()  # not under the lock: an engine may take its time
        if was_ready and not self.closed:
            self.counts["runners_lost"] += 1
            suspicious = bool(calls) and station.place.alive()
            with self.settling():
                for call in reversed(calls):
                    self.again(call, f"the runner on {station.place.name} died", died=suspicious)
                self.dispatch()

    def watch(self) -> None:
        """Heartbeat, our own deadlines, and patience."""
        while not self.stopping.wait(HEARTBEAT):
            now = time.monotonic()
            for station in self.stations:
                station.send({"op": "ping"})
                with self.lock:
                    limit = SILENCE if station.ready else START
                    mute = station.connection is not None and now - station.heard > limit
                    late = [c for c in station.flight.values() if now - c.sent > self.longest(c) + GRACE]
                if mute or late:
                    station.trouble = "the runner has stopped answering"
                    threading.Thread(target=station.kill, daemon=True).start()  # nor may it hold up the heartbeat
            with self.settling():
                if any(station.ready for station in self.stations):
                    self.served = now
                elif now - self.served > PATIENCE:
                    self.trip(f"no runner for {PATIENCE:.0f} s ({self.stations[0].trouble})")

    def longest(self, call: Call) -> float:
        """Seconds that a runner may take for a call."""
        return call.timeout * self.config.wall_factor * (STRETCH_ALONE if call.alone else STRETCH)

    def trip(self, reason: str) -> None:
        """Open the circuit: nothing more is run, and everybody who waits is told."""
        mend = "look at `grpo-tir sandbox status`, free memory or lower executor.slots, and resume the run"
        self.outage = self.outage or ExecutorOutage(f"the executor is not reliable: {reason}. {mend}")
        self.abandon(self.outage)

    def abandon(self, error: Exception) -> None:
        with self.settling():
            calls = [*self.waiting, *(c for s in self.stations for c in s.flight.values())]
            self.waiting.clear()
            for station in self.stations:
                station.flight = {}
            for call in calls:
                self.room.release()
                self.settled.append((call.future, error))

    def describe(self) -> dict[str, Any]:
        """Kind, version, limits and which isolation is (not) in force, for the run's metadata."""
        hosts = []
        for station in self.stations:
            said = {key: value for key, value in station.facts.items() if key not in ("op", "free")}
            hosts.append(
                {"name": station.place.name, "slots": station.place.slots, **station.place.facts(), **said}
            )
        return {**self.description, "hosts": hosts, **self.counts}

    def close(self) -> None:
        """End everything that runs; idempotent."""
        if self.closed:
            return
        self.stopping.set()
        self.abandon(ExecutorUnavailable("the executor was closed while this call was waiting"))
        for station in self.stations:
            station.outgoing.put((station.connection, b""))
            station.kill()
        for station in self.stations:
            station.threads[0].join(10)
            station.place.close()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

"""Distribute calls over runners, and return a result for each of them.

    submit ─► queue (bounded: waits) ─► the host with most free slots ─► runner ─► future
                 ▲                                        │
                 └── again, with a fresh slot ◄── lost: runner died, fell silent, overran its deadline

Rules, each with its reason:
- A call lost to the infrastructure runs again up to `retries` times. After that its status is `infrastructure`.
- A call in flight when its runner died is a suspect and runs again *alone*. If that runner dies as well, the call
  is `killed`: a program cannot escape a penalty by breaking the executor.
- If the whole engine went down, no call is a suspect.
- The circuit opens when too many calls were lost, or no runner served for too long. Then every future and every
  later `submit` raises `ExecutorOutage`: without tool results, rewards are noise.
"""

import contextlib
import itertools
import queue
import threading
import time
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Self

from grpo_tir.config import ExecutorConfig
from grpo_tir.errors import ExecutorOutage, ExecutorUnavailable
from grpo_tir.executor.wire import FRAME, Connection, Frame, Host, frames, pack
from grpo_tir.types import ToolCall, ToolResult

HEARTBEAT = 1.0
"""Seconds between pings."""
SILENCE = 10.0
"""Seconds without a frame after which a runner counts as dead. A stopped process (SIGSTOP) sends no end of
file."""
GRACE = 30.0
"""Seconds that the pool waits beyond the runner's own wall limit."""
STRETCH, STRETCH_ALONE = 4.0, 12.0
"""Factor by which the runner extends the wall limit of a call that waits for a core (sandbox/runner.py)."""
START = 60.0
"""Seconds that a runner may take to start."""
PATIENCE = 120.0
"""Seconds without any runner after which the circuit opens."""
WINDOW, ENOUGH = 200, 10
"""The circuit opens on the share of lost calls among the last WINDOW calls, from ENOUGH lost calls on."""


@dataclass(eq=False)
class Call:
    """Hold one program, from `submit` to its result."""

    id: int
    code: str
    timeout: float
    session: Frame = field(default_factory=dict)
    """Fields of the frame for the earlier blocks of a session and for the echo."""
    future: Future[ToolResult] = field(default_factory=Future)
    losses: int = 0
    deaths: int = 0
    alone: bool = False
    sent: float = 0.0


class Worker:
    """Hold a connection to the current runner of one host, and the calls in flight there."""

    def __init__(self, host: Host, pool: "Pool") -> None:
        self.host, self.pool = host, pool
        self.connection: Connection | None = None
        self.ready = False
        self.in_flight: dict[int, Call] = {}
        self.facts: Frame = {}
        self.last_frame_at = 0.0
        self.starts = 0
        self.problem = ""
        self.outbox: queue.SimpleQueue[tuple[Connection | None, bytes]] = queue.SimpleQueue()
        loops = (self.keep_running, self.send_frames)
        self.threads = [threading.Thread(target=loop, daemon=True) for loop in loops]

    @property
    def free(self) -> int:
        return self.host.slots - len(self.in_flight) if self.ready else 0

    @property
    def exclusive(self) -> bool:
        return any(call.alone for call in self.in_flight.values())

    def send(self, frame: Frame) -> None:
        if self.connection:
            self.outbox.put((self.connection, pack(frame)))

    def send_frames(self) -> None:
        """Send frames in a thread of its own: a runner that stopped reading must not delay other runners."""
        while True:
            connection, data = self.outbox.get()
            if not data:
                return
            if connection and connection is self.connection:
                with contextlib.suppress(OSError, ValueError):  # the reader sees the same end
                    connection.write(data)

    def keep_running(self) -> None:
        """Start a runner, read its frames until it ends, and start it again."""
        pause = 0.1
        while not self.pool.closed:
            began = time.monotonic()
            try:
                self.connection = self.host.start()
                self.starts += 1
                self.last_frame_at = time.monotonic()
                for frame in frames(self.connection.read):
                    self.last_frame_at = time.monotonic()
                    self.pool.handle_frame(self, frame)
            except (OSError, ValueError, ExecutorUnavailable) as error:
                self.problem = str(error)
            self.pool.runner_lost(self)
            pause = 0.1 if time.monotonic() - began > 10 else min(2 * pause, 5.0)
            self.pool.stopping.wait(pause if pause > 0.2 else 0)

    def kill(self) -> None:
        if connection := self.connection:
            connection.kill()


class Pool:
    """Execute programs: a bounded queue in front of one or more hosts."""

    def __init__(self, hosts: Sequence[Host], config: ExecutorConfig, describe: dict[str, Any]) -> None:
        self.config, self.description = config, describe
        self.slots = sum(host.slots for host in hosts)
        self.lock = threading.RLock()
        self.room = threading.BoundedSemaphore(max(4 * self.slots, 64))  # calls without a result
        self.waiting: deque[Call] = deque()
        self.outcomes: list[tuple[Future[ToolResult], ToolResult | Exception]] = []
        self.ids = itertools.count()
        self.recent: deque[bool] = deque(maxlen=WINDOW)  # True: the call was lost
        self.counts = {"calls": 0, "lost": 0, "retried": 0, "runners_lost": 0}
        self.stopping = threading.Event()
        self.cause = ""
        self.outage: ExecutorOutage | None = None
        self.served = time.monotonic()  # when a runner was last ready
        self.changed = threading.Condition(self.lock)
        self.workers = [Worker(host, self) for host in hosts]
        self.monitor = threading.Thread(target=self.watch, daemon=True)
        for thread in (self.monitor, *(t for w in self.workers for t in w.threads)):
            thread.start()

    @property
    def closed(self) -> bool:
        return self.stopping.is_set()

    def wait_ready(self) -> None:
        """Wait until every host serves.

        Raises:
            ExecutorUnavailable: a host does not start, with the reason.
        """
        until = time.monotonic() + START
        with self.changed:
            while missing := [w for w in self.workers if not w.ready]:
                broken = [w for w in missing if w.starts >= 3 or (w.problem and w.connection is None)]
                if broken or (
                    not self.changed.wait(max(until - time.monotonic(), 0)) and time.monotonic() > until
                ):
                    worker = (broken or missing)[0]
                    reason = worker.problem or "the runner does not start; its error is above"
                    raise ExecutorUnavailable(f"no executor on {worker.host.name}: {reason}")

    def submit(
        self,
        code: str,
        *,
        timeout: float | None = None,
        earlier: Sequence[ToolCall] | None = None,
        echo: bool = False,
    ) -> Future[ToolResult]:
        """Queue a program, as `Executor.submit` says.

        Raises:
            ExecutorOutage: too many calls were lost. It is also set on all waiting futures.
        """
        while not self.room.acquire(timeout=0.5):
            self.refuse_if_over()
        session: Frame = {} if earlier is None else replay_fields(earlier)
        call = Call(
            next(self.ids), code, timeout or self.config.timeout, session | ({"echo": True} if echo else {})
        )
        fault = ""
        size = len(code) + sum(len(block) for block, _ in session.get("earlier", ()))
        if 6 * size > FRAME // 2 and len(pack({"code": code, **session})) > FRAME - 1024:
            fault = "MemoryError: the program is too large"  # to send it would end the runner
        elif session and not self.can_replay(earlier or (), call.timeout):
            fault = f"ReplayError: the earlier blocks take more than {call.timeout:g} s to run again"
        if fault:
            self.room.release()
            call.future.set_result(ToolResult("error", stderr=fault, exit_code=1))
            return call.future
        call.future.set_running_or_notify_cancel()  # no longer cancellable: a runner may have it already
        with self.lock:
            if self.outage or self.closed:
                self.room.release()
            self.refuse_if_over()
            self.counts["calls"] += 1
            self.waiting.append(call)
            self.dispatch()
        return call.future

    def run(self, code: str, **settings: Any) -> ToolResult:
        """Run a program and return its result. Takes the arguments of `submit`."""
        return self.submit(code, **settings).result()

    def refuse_if_over(self) -> None:
        if self.outage:
            raise self.outage
        if self.closed:
            raise ExecutorUnavailable("the executor is closed")

    @contextlib.contextmanager
    def locked_then_notify(self) -> Iterator[None]:
        """Hold the lock, then set the results of futures after it is released: a callback may submit again."""
        with self.lock:
            yield
            settled, self.outcomes = self.outcomes, []
        for future, outcome in settled:
            if isinstance(outcome, ToolResult):
                future.set_result(outcome)
            else:
                future.set_exception(outcome)

    def dispatch(self) -> None:
        """Send waiting calls to free slots. A suspect waits for an idle host and gets all of it."""
        while self.waiting:
            call = self.waiting[0]
            usable = [w for w in self.workers if w.free > 0 and not w.exclusive]
            if call.alone:
                usable = [w for w in usable if not w.in_flight]
            if not usable:
                return
            worker = max(usable, key=lambda w: w.free)
            self.waiting.popleft()
            call.sent = time.monotonic()
            worker.in_flight[call.id] = call
            worker.send({"op": "run", "id": call.id, "code": call.code, "cpu": call.timeout,
                          "wall": call.timeout * self.config.wall_factor, "alone": call.alone,
                          **call.session})  # fmt: skip

    def handle_frame(self, worker: Worker, frame: Frame) -> None:
        """Handle one frame from a runner."""
        with self.locked_then_notify():
            if frame["op"] == "ready":
                worker.facts, worker.ready, worker.problem = frame, True, ""
                self.served = time.monotonic()
                self.changed.notify_all()
            elif frame["op"] == "pong":
                worker.facts |= frame
            elif call := worker.in_flight.pop(frame["id"], None):
                if frame["status"] == "infrastructure":
                    self.retry(call, frame["cause"], died=frame["zygote_died"], alone=True)
                else:
                    keys = ("status", "stdout", "stderr", "exit_code", "signal", "truncated", "seconds")
                    spent, differs = frame.get("cpu", 0.0), frame.get("replay_differs", 0)
                    fields = {key: frame[key] for key in keys}
                    self.resolve(call, ToolResult(**fields, cpu_seconds=spent, replay_differs=differs))
            self.dispatch()

    def retry(self, call: Call, cause: str, *, died: bool, alone: bool = False) -> None:
        """Queue a lost call again, or resolve it as `killed` or `infrastructure` by the rules above.

        `alone`: run it without neighbours, which may be the cause.
        """
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
        self.outcomes.append((call.future, result))
        lost = sum(self.recent)
        if lost >= ENOUGH and lost > self.config.max_outage * len(self.recent):
            share = f"{lost} of the last {len(self.recent)} tool calls were lost to the executor"
            self.open_circuit(
                f"{share} (executor.max_outage is {self.config.max_outage:g}); the last because: {self.cause}"
            )

    def runner_lost(self, worker: Worker) -> None:
        """Put the calls of a lost runner back into the queue. They are suspects, unless the whole engine went
        down."""
        with self.lock:
            was_ready, worker.ready = worker.ready, False
            connection, worker.connection = worker.connection, None
            calls, worker.in_flight = list(worker.in_flight.values()), {}
            if not was_ready and connection and connection.stderr_tail:
                worker.problem = connection.stderr_tail.decode("utf-8", "replace").strip().splitlines()[-1]
            self.changed.notify_all()
        if connection:
            connection.kill()  # outside the lock: an engine may take long
        if was_ready and not self.closed:
            self.counts["runners_lost"] += 1
            suspicious = bool(calls) and worker.host.alive()
            with self.locked_then_notify():
                for call in reversed(calls):
                    self.retry(call, f"the runner on {worker.host.name} died", died=suspicious)
                self.dispatch()

    def watch(self) -> None:
        """Ping the runners, and end those that are silent or overdue."""
        while not self.stopping.wait(HEARTBEAT):
            now = time.monotonic()
            for worker in self.workers:
                worker.send({"op": "ping"})
                with self.lock:
                    limit = SILENCE if worker.ready else START
                    mute = worker.connection is not None and now - worker.last_frame_at > limit
                    late = [c for c in worker.in_flight.values() if now - c.sent > self.longest_run(c) + GRACE]
                if mute or late:
                    worker.problem = "the runner has stopped answering"
                    threading.Thread(target=worker.kill, daemon=True).start()  # must not delay the heartbeat
            with self.locked_then_notify():
                if any(worker.ready for worker in self.workers):
                    self.served = now
                elif now - self.served > PATIENCE:
                    self.open_circuit(f"no runner for {PATIENCE:.0f} s ({self.workers[0].problem})")

    def can_replay(self, earlier: Sequence[ToolCall], timeout: float) -> bool:
        """Return True if the earlier calls together took no longer than one call may, with waits for a core."""
        done = [call.result for call in earlier if call.result is not None and call.result.status == "ok"]
        wall = timeout * self.config.wall_factor * STRETCH
        return sum(r.cpu_seconds for r in done) <= timeout and sum(r.seconds for r in done) <= wall

    def longest_run(self, call: Call) -> float:
        """Return the seconds that a runner may take for a call."""
        wall: float = call.timeout * self.config.wall_factor + call.session.get("replay", 0.0)
        return wall * (STRETCH_ALONE if call.alone else STRETCH)

    def open_circuit(self, reason: str) -> None:
        """Open the circuit: run nothing more and fail all waiting calls."""
        mend = "look at `grpo-tir sandbox status`, free memory or lower executor.slots, and resume the run"
        self.outage = self.outage or ExecutorOutage(f"the executor is not reliable: {reason}. {mend}")
        self.fail_all(self.outage)

    def fail_all(self, error: Exception) -> None:
        with self.locked_then_notify():
            calls = [*self.waiting, *(c for w in self.workers for c in w.in_flight.values())]
            self.waiting.clear()
            for worker in self.workers:
                worker.in_flight = {}
            for call in calls:
                self.room.release()
                self.outcomes.append((call.future, error))

    def describe(self) -> dict[str, Any]:
        """Return kind, version, limits and which isolation is in force, for the run's metadata."""
        hosts = []
        for worker in self.workers:
            said = {key: value for key, value in worker.facts.items() if key not in ("op", "free")}
            hosts.append({"name": worker.host.name, "slots": worker.host.slots, **worker.host.facts(), **said})
        return {**self.description, "hosts": hosts, **self.counts}

    def close(self) -> None:
        """End all runners. May be called again."""
        if self.closed:
            return
        self.stopping.set()
        self.fail_all(ExecutorUnavailable("the executor was closed while this call was waiting"))
        for worker in self.workers:
            worker.outbox.put((worker.connection, b""))
            worker.kill()
        for worker in self.workers:
            worker.threads[0].join(10)
            worker.host.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def replay_fields(earlier: Sequence[ToolCall]) -> Frame:
    """Return the fields of a frame that replay a session: code and checksum of the output of each successful call,
    and the seconds that the replay may take. A later run may take twice as long as the first."""
    done = [(call.code, call.result) for call in earlier if call.code is not None and call.result is not None]
    done = [(code, result) for code, result in done if result.status == "ok"]
    said = [
        None if result.truncated else zlib.crc32(result.stdout.encode("utf-8", "surrogatepass"))
        for _, result in done
    ]
    seconds = 2 * sum(result.seconds for _, result in done) + 1 if done else 0.0
    blocks = [[code, checksum] for (code, _), checksum in zip(done, said, strict=True)]
    return {"earlier": blocks, "replay": seconds}

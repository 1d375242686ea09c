"""The pool's rules, with hosts that fail on command. No process, no engine: every rule in milliseconds."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from grpo_tir.config import ExecutorConfig
from grpo_tir.errors import ExecutorOutage, ExecutorUnavailable
from grpo_tir.executor import pool as pool_module
from grpo_tir.executor.pool import Pool
from grpo_tir.executor.wire import frames, pack

Script = Callable[["ScriptedConnection", dict[str, Any]], None]


class ScriptedConnection:
    """A runner that does what its host's script says with each program."""

    def __init__(self, host: ScriptedHost) -> None:
        self.host = host
        self.outbox: queue.Queue[bytes] = queue.Queue()
        self.stderr_tail = b""
        self.heard = queue.Queue[bytes]()
        self.dead = False
        self.log({"op": "ready", "walls": "none", "cell": "group", "seccomp": False})
        threading.Thread(target=self.act, daemon=True).start()

    def act(self) -> None:
        for frame in frames(self.heard.get):
            if frame["op"] == "run":
                self.host.ran.append(frame)
                self.host.script(self, frame)
            elif not self.host.mute:
                self.log({"op": "pong", "free": self.host.slots})

    def log(self, frame: dict[str, Any]) -> None:
        self.outbox.put(pack(frame))

    def answer(self, request: dict[str, Any], status: str = "ok", **more: Any) -> None:
        self.log({"op": "result", "id": request["id"], "status": status, "stdout": request["code"], "stderr": "",
                  "exit_code": 0, "signal": None, "truncated": False, "seconds": 0.0, **more})  # fmt: skip

    def read(self) -> bytes:
        return self.outbox.get()

    def write(self, data: bytes) -> None:
        self.heard.put(data)

    def kill(self) -> None:
        if not self.dead:
            self.dead = True
            self.outbox.put(b"")
            self.heard.put(b"")


class ScriptedHost:
    """Counts its runners; may be gone as a whole."""

    def __init__(self, script: Script, slots: int = 2, name: str = "scripted") -> None:
        self.script, self.slots, self.name = script, slots, name
        self.ran: list[dict[str, Any]] = []
        self.connections: list[ScriptedConnection] = []
        self.gone = self.mute = False

    def start(self) -> ScriptedConnection:
        if self.gone:
            raise OSError("the engine is gone")
        self.connections.append(ScriptedConnection(self))
        return self.connections[-1]

    def alive(self) -> bool:
        return not self.gone

    def facts(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        pass


def echo(connection: ScriptedConnection, request: dict[str, Any]) -> None:
    connection.answer(request)


@pytest.fixture
def opened() -> Iterator[Callable[..., Pool]]:
    pools: list[Pool] = []

    def make(*hosts: ScriptedHost, **config: Any) -> Pool:
        pools.append(Pool(hosts, ExecutorConfig(**{"timeout": 1.0, **config}), {"kind": "scripted"}))
        pools[-1].wait_ready()
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def test_every_call_is_answered_once_and_with_its_own_answer(opened: Any) -> None:
    pool = opened(ScriptedHost(echo, slots=3))
    futures = [pool.submit(str(i)) for i in range(500)]
    assert [future.result(10).stdout for future in futures] == [str(i) for i in range(500)]


def test_a_call_that_kills_two_runners_is_killed_and_was_alone_the_second_time(opened: Any) -> None:
    def die(connection: ScriptedConnection, request: dict[str, Any]) -> None:
        connection.kill() if request["code"] == "evil" else connection.answer(request)

    host = ScriptedHost(die)
    result = opened(host).run("evil")
    assert result.status == "killed"
    assert [frame["alone"] for frame in host.ran] == [False, True]


def test_bystanders_of_a_killer_come_back_right(opened: Any) -> None:
    def die(connection: ScriptedConnection, request: dict[str, Any]) -> None:
        if request["code"] == "evil":
            time.sleep(0.05)
            connection.kill()
        elif not connection.dead:
            connection.answer(request)

    pool = opened(ScriptedHost(die, slots=4))
    futures = [pool.submit(code) for code in ["a", "b", "evil", "c", "d", "e"]]
    assert [f.result(10).status for f in futures] == ["ok", "ok", "killed", "ok", "ok", "ok"]


def test_a_suspect_has_its_place_to_itself(opened: Any) -> None:
    crowds: dict[int, list[str]] = {}  # by runner: what a dead one still does disturbs nobody
    seen: list[list[str]] = []

    def script(connection: ScriptedConnection, request: dict[str, Any]) -> None:
        if request["code"] == "suspect" and not request["alone"]:
            connection.kill()
            return

        running = crowds.setdefault(id(connection), [])

        def work() -> None:
            running.append(request["code"])
            time.sleep(0.02)
            seen.append(sorted(running))
            running.remove(request["code"])
            connection.answer(request)

        threading.Thread(target=work).start()

    pool = opened(ScriptedHost(script, slots=4))
    futures = [pool.submit(code) for code in ["suspect", *"abcdefgh"]]
    assert {f.result(10).status for f in futures} == {"ok"}
    assert [crowd for crowd in seen if "suspect" in crowd] == [["suspect"]]


def test_retries_are_bounded_and_then_the_call_is_infrastructure(opened: Any) -> None:
    def lose(connection: ScriptedConnection, request: dict[str, Any]) -> None:
        connection.answer(request, "infrastructure", cause="no memory for a fork", zygote_died=False)

    host = ScriptedHost(lose)
    result = opened(host, retries=2).run("x")
    assert (result.status, len(host.ran)) == ("infrastructure", 3)
    assert result.stderr == "no memory for a fork"


def test_a_call_that_its_runner_gives_back_is_run_alone_the_next_time(opened: Any) -> None:
    """Starved, or out of memory: its neighbours may be to blame."""

    def give_back(connection: ScriptedConnection, request: dict[str, Any]) -> None:
        status = "ok" if request["alone"] else "infrastructure"
        connection.answer(request, status, cause="starved", zygote_died=False)

    host = ScriptedHost(give_back)
    assert opened(host).run("x").status == "ok"
    assert [frame["alone"] for frame in host.ran] == [False, True]


def test_too_many_losses_open_the_circuit_with_a_mend(opened: Any) -> None:
    def lose(connection: ScriptedConnection, request: dict[str, Any]) -> None:
        connection.answer(request, "infrastructure", cause="no memory for a fork", zygote_died=False)

    pool = opened(ScriptedHost(lose), retries=0)
    with pytest.raises(ExecutorOutage, match=r"10 of the last 10 .* no memory for a fork.*sandbox status"):
        for future in [pool.submit("x") for _ in range(30)]:
            future.result(10)
    with pytest.raises(ExecutorOutage):
        pool.submit("x")


def test_few_losses_among_many_do_not_open_the_circuit(opened: Any) -> None:
    def sometimes(connection: ScriptedConnection, request: dict[str, Any]) -> None:
        lost = int(request["code"]) % 25 == 0  # 4%, below the 5% of max_outage
        connection.answer(request, "infrastructure" if lost else "ok", cause="x", zygote_died=False)

    pool = opened(ScriptedHost(sometimes), retries=0)
    statuses = [f.result(10).status for f in [pool.submit(str(i)) for i in range(1, 400)]]
    assert statuses.count("infrastructure") == 15


def test_a_full_queue_makes_submit_wait(opened: Any) -> None:
    gate = threading.Event()

    def wait(connection: ScriptedConnection, request: dict[str, Any]) -> None:
        gate.wait(10)
        connection.answer(request)

    pool = opened(ScriptedHost(wait, slots=1))
    futures: list[Any] = []
    producer = threading.Thread(target=lambda: futures.extend(pool.submit("x") for _ in range(100)))
    futures_before = 64
    producer.start()
    time.sleep(0.3)
    assert producer.is_alive() and pool.counts["calls"] == futures_before
    gate.set()
    producer.join(10)
    assert [f.result(10).status for f in futures] == ["ok"] * 100


def test_calls_of_a_lost_engine_run_elsewhere_without_suspicion(opened: Any) -> None:
    def fall(connection: ScriptedConnection, request: dict[str, Any]) -> None:
        connection.host.gone = True
        connection.kill()

    bad, good = ScriptedHost(fall, name="bad", slots=8), ScriptedHost(echo, name="good", slots=1)
    pool = opened(bad, good)
    assert [f.result(10).status for f in [pool.submit(str(i)) for i in range(20)]] == ["ok"] * 20
    assert not any(frame["alone"] for frame in good.ran if frame["id"] > 8)
    assert pool.workers[0].ready is False


def test_calls_go_where_most_slots_are_free(opened: Any) -> None:
    gate = threading.Event()

    def wait(connection: ScriptedConnection, request: dict[str, Any]) -> None:
        threading.Thread(target=lambda: (gate.wait(10), connection.answer(request))).start()

    small, large = ScriptedHost(wait, slots=2), ScriptedHost(wait, slots=6)
    pool = opened(small, large)
    futures = [pool.submit("x") for _ in range(8)]
    time.sleep(0.2)
    gate.set()
    assert [f.result(10).status for f in futures] == ["ok"] * 8
    assert (len(small.ran), len(large.ran)) == (2, 6)


def test_a_runner_that_falls_silent_is_replaced(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "SILENCE", 0.3)
    monkeypatch.setattr(pool_module, "HEARTBEAT", 0.1)

    def freeze(connection: ScriptedConnection, request: dict[str, Any]) -> None:
        first = len(connection.host.connections) == 1
        connection.host.mute = first
        if not first:
            connection.answer(request)

    host = ScriptedHost(freeze)
    assert opened(host).run("x").status == "ok"
    assert len(host.connections) == 2


def test_our_own_deadline_is_infrastructure_and_run_again(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "GRACE", 0.1)
    monkeypatch.setattr(pool_module, "HEARTBEAT", 0.1)

    def forget(connection: ScriptedConnection, request: dict[str, Any]) -> None:
        if len(connection.host.ran) > 1:
            connection.answer(request)

    host = ScriptedHost(forget)
    assert opened(host, timeout=0.1).run("x").status == "ok"
    assert len(host.ran) == 2


def test_a_place_that_never_starts_is_named_with_its_trouble() -> None:
    host = ScriptedHost(echo, name="tcp://far:2376")
    host.gone = True
    pool = Pool([host], ExecutorConfig(), {})
    with pytest.raises(ExecutorUnavailable, match="tcp://far:2376: the engine is gone"):
        pool.wait_ready()
    pool.close()


def test_closing_tells_those_who_wait_and_is_idempotent(opened: Any) -> None:
    pool = opened(ScriptedHost(lambda *_: None))
    future = pool.submit("x")
    pool.close()
    pool.close()
    with pytest.raises(ExecutorUnavailable, match="closed"):
        future.result(5)
    with pytest.raises(ExecutorUnavailable, match="closed"):
        pool.submit("x")


def test_frames_survive_any_cut_and_any_character() -> None:
    sent = [{"op": "run", "code": "\ud800 € \0 \n"}, {"op": "ping"}, {"op": "run", "code": "x" * 5000}]
    stream = b"".join(map(pack, sent))
    for size in (1, 3, 4, 7, 4096):
        pieces = iter([stream[i : i + size] for i in range(0, len(stream), size)] + [b""])
        assert list(frames(lambda: next(pieces))) == sent  # noqa: B023
    assert json.loads(pack(sent[0])[4:]) == sent[0]

"""The real container, broken in the middle of a batch in every way we know: all calls come back right."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from grpo_tir.config import ExecutorConfig
from grpo_tir.errors import ExecutorUnavailable
from grpo_tir.executor import pool as pool_module
from grpo_tir.executor.docker_client import DockerConnection, connect
from grpo_tir.executor.open import open_executor
from grpo_tir.executor.pool import Pool

pytestmark = pytest.mark.docker
WORK = "import time; time.sleep({pause}); print({number} ** 2)"


def opened(**config: Any) -> Pool:
    try:
        return open_executor(
            ExecutorConfig(kind="docker", **{"slots": 4, "timeout": 2, "wall_factor": 5, **config})
        )
    except ExecutorUnavailable as error:
        if os.environ.get("GRPO_TIR_REQUIRE_DOCKER") == "1":
            pytest.fail(f"GRPO_TIR_REQUIRE_DOCKER=1, but {error}", pytrace=False)
        pytest.skip(str(error))


@pytest.fixture
def executor() -> Iterator[Pool]:
    with opened() as pool:
        yield pool


def batch_with(pool: Pool, fault: Callable[[], None], calls: int = 60) -> float:
    """All answers right, none shown as infrastructure. Returns the seconds to the first answer after the fault."""
    answered: list[float] = []
    futures = []
    for number in range(calls):
        future = pool.submit(WORK.format(pause=0.03, number=number))
        future.add_done_callback(lambda _: answered.append(time.monotonic()))
        futures.append(future)
        if number == calls // 2:
            futures[calls // 4].result(30)
            struck = time.monotonic()
            fault()
    results = [future.result(60) for future in futures]
    assert [(r.status, r.stdout) for r in results] == [("ok", f"{n**2}\n") for n in range(calls)]
    return min(moment for moment in answered if moment > struck + 0.15) - struck


def container_of(pool: Pool) -> str:
    return pool.workers[0].connection.container  # type: ignore[union-attr]


def in_container(pool: Pool, engine: Any, code: str) -> None:
    done = engine.containers.get(container_of(pool)).exec_run(["python3", "-c", code])
    assert done.exit_code == 0, done.output


def test_a_removed_container_serves_again_within_3_seconds(executor: Pool, docker_engine: Any) -> None:
    gap = batch_with(executor, lambda: docker_engine.api.remove_container(container_of(executor), force=True))
    print(f"serving again after {gap:.2f} s")
    assert gap < 3
    assert executor.workers[0].starts == 2


def test_a_killed_runner(executor: Pool, docker_engine: Any) -> None:
    batch_with(executor, lambda: docker_engine.api.kill(container_of(executor), "KILL"))
    assert executor.workers[0].starts == 2


def test_a_stopped_runner_is_noticed(executor: Pool, docker_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGSTOP closes nothing: only the heartbeat can tell."""
    monkeypatch.setattr(pool_module, "SILENCE", 3.0)
    batch_with(executor, lambda: docker_engine.api.kill(container_of(executor), "STOP"))
    assert executor.workers[0].starts == 2


def test_a_killed_zygote_is_replaced_and_the_container_stays(executor: Pool, docker_engine: Any) -> None:
    before = container_of(executor)
    pid = executor.workers[0].facts["zygote"]
    batch_with(executor, lambda: in_container(executor, docker_engine, f"import os; os.kill({pid}, 9)"))
    assert (container_of(executor), executor.workers[0].facts["starts"]) == (before, 2)


def test_a_killed_second_zygote_is_replaced_and_no_call_is_lost(executor: Pool, docker_engine: Any) -> None:
    """The one that holds scipy: its calls run again, and those of the first one too."""
    pid = int(executor.run("import os, scipy\nprint(os.getppid())").stdout)
    assert pid != executor.workers[0].facts["zygote"]
    slow = [executor.submit(f"import time\ntime.sleep(1)\nprint({n})  # {word}")
            for n, word in enumerate(("scipy", "sympy"))]  # fmt: skip
    time.sleep(0.5)
    in_container(executor, docker_engine, f"import os; os.kill({pid}, 9)")
    assert [future.result(60).stdout for future in slow] == ["0\n", "1\n"]
    assert executor.run("import scipy\nprint(scipy.__name__)").stdout == "scipy\n"
    assert (executor.workers[0].facts["starts"], executor.counts["lost"]) == (2, 0)


def test_a_stopped_zygote_is_replaced(executor: Pool, docker_engine: Any) -> None:
    pid = executor.workers[0].facts["zygote"]
    batch_with(executor, lambda: in_container(executor, docker_engine, f"import os; os.kill({pid}, 19)"))
    assert executor.workers[0].facts["starts"] == 2


def test_a_container_out_of_memory_costs_only_the_culprit() -> None:
    """32 processes of 64 MB in a container of 0.8 GB; the neighbours' answers are right."""
    eater = """
import os, time
for _ in range(30):
    if os.fork() == 0:
        kept = b'x' * (45 << 20)
        time.sleep(60)
os.wait()  # until the kernel has killed one
"""
    with opened(memory_mb=64) as pool:
        culprit: list[Any] = []
        batch_with(pool, lambda: culprit.append(pool.submit(eater)))
        assert culprit[0].result(60).status in ("memory", "ok", "error", "timeout")
        kills = pool.run("print(open('/sys/fs/cgroup/memory/memory.oom_control').read())"
                         if Path("/sys/fs/cgroup/memory").is_dir() else
                         "print(open('/sys/fs/cgroup/memory.events').read())").stdout  # fmt: skip
        assert int(kills.split("oom_kill ")[1].split()[0]) > 0, "the kernel never had to kill: nothing was tested"
        assert pool.counts["lost"] == 0


def test_a_program_killed_for_memory_is_memory() -> None:
    """The kernel takes the largest process, which is the program's first; a SIGKILL of its own is `killed`."""
    hog = """
import os, time
for _ in range(24):
    if os.fork() == 0:
        time.sleep(0.3)
        kept = b'x' * (30 << 20)
        time.sleep(9)
        os._exit(0)
kept = b'x' * (58 << 20)
time.sleep(9)
"""
    with opened(memory_mb=64, slots=1) as pool:
        assert pool.run("import os; os.kill(os.getpid(), 9)").status == "killed"
        assert pool.run(hog).status == "memory"
        assert pool.run("import os; os.kill(os.getpid(), 9)").status == "killed"


def test_a_client_that_is_killed_takes_its_container_along(docker_engine: Any) -> None:
    code = (
        "import time; from grpo_tir.config import *; from grpo_tir.executor.open import open_executor;"
        "pool = open_executor(ExecutorConfig(slots=2)); print(pool.workers[0].connection.container, flush=True);"
        "time.sleep(600)"
    )
    opened(slots=1).close()
    client = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert client.stdout
    container = [client.stdout.readline().strip() for _ in range(2)][1]
    client.send_signal(signal.SIGKILL)
    client.wait()
    until = time.monotonic() + 15
    while alive(docker_engine, container) and time.monotonic() < until:
        time.sleep(0.2)
    assert not alive(docker_engine, container)


def alive(engine: Any, container: str) -> bool:
    return any(found["Id"] == container for found in engine.api.containers(all=True))


def test_an_engine_over_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK runs `ssh … docker system dial-stdio`; a stand-in for ssh runs that here."""
    if not shutil.which("docker"):
        pytest.skip("needs the docker command line, as the far end of ssh does")
    (tmp_path / "ssh").write_text("#!/bin/sh\nexec docker system dial-stdio\n")
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with opened(hosts=["ssh://somebody@far"], slots=2) as pool:
        futures = [pool.submit(f"print('x' * {n})") for n in (1, 1000, 60000)]
        assert [len(f.result(30).stdout) for f in futures] == [2, 1001, 60001]


@pytest.fixture(scope="module")
def second_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A dockerd of our own, so that it can be restarted without harm to anybody."""
    if os.geteuid() != 0 or not (shutil.which("dockerd") and shutil.which("unshare")):
        pytest.skip("a second Docker engine needs root and dockerd")
    engine = Engine(tmp_path_factory.mktemp("engine"))
    try:
        engine.start()
        engine.load(ExecutorConfig().image)
        yield engine
    finally:
        engine.stop()


class Engine:
    """dockerd with its own socket, data and network: in the host's, it would take down the first one's bridge."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.url = folder, f"unix://{folder}/docker.sock"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        paths = [
            f"--data-root={self.folder}/data",
            f"--exec-root={self.folder}/exec",
            f"--pidfile={self.folder}/pid",
        ]
        network = [
            "--bridge=none",
            "--iptables=false",
            "--ip6tables=false",
            "--ip-forward=false",
            "--ip-masq=false",
        ]
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                ["unshare", "--net", "dockerd", f"--host={self.url}", *paths, *network], stdout=log, stderr=log
            )
        until = time.monotonic() + 30
        while True:
            try:
                return connect(self.url).close()
            except ExecutorUnavailable:
                if time.monotonic() > until:
                    pytest.fail((self.folder / "log").read_text()[-1500:])
                time.sleep(0.2)

    def load(self, image: str) -> None:
        source, target = connect(None), connect(self.url)
        target.images.load(b"".join(source.images.get(image).save(named=f"{image}:latest")))

    def stop(self, how: int = signal.SIGTERM) -> None:
        if self.process:
            self.process.send_signal(how)
            self.process.wait(30)


def test_an_engine_that_is_restarted_loses_no_call(second_engine: Engine) -> None:
    with opened(hosts=[second_engine.url]) as pool:

        def restart() -> None:
            second_engine.stop()
            second_engine.start()

        batch_with(pool, restart)
        assert pool.workers[0].starts >= 2


def test_two_engines_share_the_calls_and_one_takes_over(second_engine: Engine) -> None:
    with opened(hosts=["unix:///var/run/docker.sock", second_engine.url], slots=2) as pool:
        assert pool.slots == 4
        seen = {s.host.name: 0 for s in pool.workers}
        for worker in pool.workers:
            threading.Thread(target=count_flights, args=(worker, seen, pool), daemon=True).start()
        batch_with(pool, second_engine.stop)
        assert all(seen.values()), f"both engines worked: {seen}"
        assert [worker.ready for worker in pool.workers] == [True, False]


def count_flights(worker: Any, seen: dict[str, int], pool: Pool) -> None:
    while not pool.closed:
        seen[worker.host.name] += len(worker.in_flight)
        time.sleep(0.005)


def test_the_stream_of_a_container_is_read_without_waiting_for_the_socket() -> None:
    """Over TLS the next bytes may be decrypted already, so the descriptor must not be polled first: this socket
    has none. Frames of stdout (1) and stderr (2), which come in pieces."""
    sent = b"".join(struct.pack(">BxxxI", stream, len(data)) + data for stream, data in FRAMES)

    class Decrypted:
        left = sent

        def recv(self, size: int) -> bytes:
            piece, self.left = self.left[: min(size, 3)], self.left[min(size, 3) :]
            return piece

    connection = DockerConnection(None, "container", Decrypted())
    assert [connection.read() for _ in range(3)] == [b"hello", b"again", b""]
    assert connection.stderr_tail == b"a warning"


FRAMES = [(1, b"hello"), (2, b"a warning"), (1, b"again")]

"""Calls of a session share their names, cost what they cost alone, and leave nothing for anybody else.

Runs on the process executor, and on the container where there is an engine.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from attacks.catalogue import Attack
from harness import ATTACKS, CANARY, CANARY_SAYS, strike
from test_cell import sandbox

from grpo_tir.executor.pool import Pool
from grpo_tir.types import ToolCall, ToolResult


@pytest.fixture(params=["process", pytest.param("docker", marks=pytest.mark.docker)])
def executor(request: pytest.FixtureRequest) -> Pool:
    pool: Pool = request.getfixturevalue(f"{request.param}_executor")
    return pool


def talk(executor: Pool, blocks: Sequence[str], echo: bool = False) -> list[ToolResult]:
    calls: list[ToolCall] = []
    for code in blocks:
        calls.append(ToolCall(code, executor.run(code, earlier=calls, echo=echo)))
    return [call.result for call in calls if call.result]


def burn(seconds: float) -> str:
    return f"import time\nend = time.process_time() + {seconds}\nwhile time.process_time() < end: pass\n"


def test_names_of_earlier_blocks_exist_and_their_output_is_not_repeated(executor: Pool) -> None:
    blocks = ["import math\nprint('loud')", "def area(r):\n    return math.pi * r**2", "print(round(area(2), 3))"]
    results = talk(executor, blocks)
    assert [result.stdout for result in results] == ["loud\n", "", "12.566\n"]
    assert results[-1].status == "ok" and results[-1].stderr == ""
    assert "NameError" in executor.run(blocks[-1]).stderr, "without a session, a call starts from nothing"


def test_a_failed_block_is_not_replayed(executor: Pool) -> None:
    _, second, third = talk(executor, ["x = 1", "x = 2\n1 / 0", "print(x)"])
    assert (second.status, third.stdout) == ("error", "1\n")


def test_output_below_python_and_of_exit_hooks_is_silent_too(executor: Pool) -> None:
    first = (
        "import os, atexit, threading\nos.write(1, b'raw')\nos.write(2, b'err')\natexit.register(print, 'bye')\n"
    )
    first += "t = threading.Thread(target=print, args=('thread',))\nt.start()"
    said, answer = talk(executor, [first, "print(t.is_alive())"])
    assert sorted(said.stdout.replace("raw", "").split()) == ["bye", "thread"]
    assert (answer.stdout, answer.stderr, answer.replay_differs) == ("False\n", "", 0)


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("6 * 7", "42\n"),
        ("x = 1\n'a' * 2", "'aa'\n"),
        ("print(1)", "1\n"),  # its value is None
        ("6 * 7;", ""),
        ("x = 6 * 7", ""),
        ("for i in range(2): i", ""),
        ("", ""),
        ("from __future__ import annotations\n\ufeff".rstrip("\ufeff") + "3", "3\n"),
    ],
)
def test_echo_shows_a_last_expression_as_a_notebook_does(process_executor: Pool, code: str, shown: str) -> None:
    result = process_executor.run(code, echo=True)
    assert (result.status, result.stdout) == ("ok", shown)


def test_echo_does_not_change_errors(process_executor: Pool) -> None:
    for code in ("print(", "1 / 0", "x = 1\nundefined", "a\0b", "import sys; sys.exit(3)"):
        plain, echoed = process_executor.run(code), process_executor.run(code, echo=True)
        assert (plain.status, plain.exit_code) == (echoed.status, echoed.exit_code), code
        assert plain.stderr.splitlines()[-1:] == echoed.stderr.splitlines()[-1:], code


def test_a_block_whose_replay_differs_is_counted_and_random_draws_repeat(executor: Pool) -> None:
    blocks = [
        "import random, time\nr = random.random()\nr",
        "t = time.time_ns()\nt",
        "r",
        "import os\nos.urandom(8)",
    ]
    results = talk(executor, [*blocks, "1"], echo=True)
    assert results[2].stdout == results[0].stdout, "the same draw as in the first call"
    assert [result.replay_differs for result in results] == [0, 0, 1, 1, 2]
    numpy = ["import numpy as np\na = np.random.rand()\nprint(a)", "print(a)"]
    first, again = talk(executor, numpy)
    assert first.stdout == again.stdout and again.replay_differs == 0


def test_the_time_of_a_replay_is_not_charged_but_capped(executor: Pool) -> None:
    """The limit of a call is 1 s of CPU."""
    first, second, third = talk(executor, [burn(0.6), burn(0.6), "print(1)"])
    assert (first.status, second.status) == ("ok", "ok")
    assert third.status == "error" and third.stderr.startswith(
        "ReplayError: the earlier blocks take more than 1 s"
    )
    assert talk(executor, [burn(0.6), burn(3)])[1].status == "timeout"


FORGES = """
import os
for fd in range(3, 64):
    try:
        os.write(fd, b'replayed {0} {0} 0\\n')
    except OSError:
        pass
"""


@pytest.mark.parametrize("claim", ["1e9", "-5", "nan", "inf", "word", "0"])
def test_a_forged_report_of_the_replay_gains_nothing(executor: Pool, claim: str) -> None:
    """The call before is the forgery; what follows it burns more than its limit and must not come back `ok`."""
    forged = executor.run(FORGES.format(claim))
    assert forged.status == "ok"
    earlier = [ToolCall(FORGES.format(claim), forged)]
    assert executor.run(burn(5), earlier=earlier).status == "timeout"
    answer = executor.run("print(7)", earlier=earlier)
    assert answer.status == "ok" and answer.stdout.endswith("7\n") and 0 <= answer.seconds < 5


def test_a_replay_that_ends_the_process_is_the_fault_of_the_program(executor: Pool) -> None:
    """It may not look like a failure of ours, which would not be scored."""
    ok = ToolResult("ok", seconds=0.01)
    for code, status in (("import os; os._exit(3)", "error"), ("import os; os.kill(os.getpid(), 11)", "killed")):
        if status == "killed" and executor.workers[0].facts["cell"] == "namespace":
            continue  # process 1 of a pid namespace cannot signal itself
        assert executor.run("print(1)", earlier=[ToolCall(code, ok)]).status == status
    closed = executor.run(
        "print(1)",
        earlier=[ToolCall("import os\nfor fd in range(3, 64):\n try: os.close(fd)\n except OSError: pass", ok)],
    )
    assert closed.status in ("error", "ok") and executor.counts["lost"] == 0


def test_what_a_session_leaves_is_never_seen_by_another(executor: Pool) -> None:
    leaves = "import builtins, math, os\nbuiltins.left, math.pi, os.environ['LEFT'] = 1, 3, '1'\nopen('left', 'w')"
    looks = "import builtins, math, os\nprint(hasattr(builtins, 'left'), math.pi == 3, 'LEFT' in os.environ,\n"
    looks += "      os.path.exists('left'))"
    assert talk(executor, [leaves, looks])[1].stdout == "True True True True\n"
    for _ in range(executor.slots):
        assert executor.run(looks, earlier=[]).stdout == "False False False False\n"
        assert executor.run(CANARY, earlier=[]).stdout == CANARY_SAYS


SESSION = {"earlier": [ToolCall("kept = 'kept'\nprint(kept)", ToolResult("ok", "kept\n", seconds=0.01))]}


@pytest.mark.docker
@pytest.mark.parametrize(
    "attack", [pytest.param(a, marks=[] if a.quick else pytest.mark.slow, id=a.name) for a in ATTACKS]
)
def test_attack_from_a_session_harms_nobody(attack: Attack, docker_executor: Pool) -> None:
    assert strike(docker_executor, attack, **SESSION) == []


def test_jsonl_lines_of_one_session_share_their_names_in_their_order(tmp_path: Path) -> None:
    """Two sessions and lines without one, interleaved, one of them slow, with 8 in flight."""
    rows: list[dict[str, Any]] = []
    for i in range(6):
        for name, start in (("a", 1), ("b", 100)):
            code = f"x = {start}" if i == 0 else f"import time; time.sleep({0.05 * (name == 'a')})\nx += {i}"
            rows.append({"id": f"{name}{i}", "code": code + "\nx", "session": name})
        rows.append({"id": f"lone{i}", "code": "'x' in dir()"})
    (tmp_path / "in").write_text("\n".join(map(json.dumps, rows)))
    done = sandbox("--jsonl", str(tmp_path / "in"), str(tmp_path / "out"), "--concurrency", "8", "--echo")
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert [row["id"] for row in answers] == [row["id"] for row in rows]
    said = {row["id"]: row["stdout"].strip() for row in answers}
    sums = (0, 1, 3, 6, 10, 15)
    assert [said[f"a{i}"] for i in range(6)] == [str(1 + total) for total in sums]
    assert [said[f"b{i}"] for i in range(6)] == [str(100 + total) for total in sums]
    assert {said[f"lone{i}"] for i in range(6)} == {"False"}


def test_a_session_that_is_a_list_is_named(tmp_path: Path) -> None:
    (tmp_path / "in").write_text('{"id": 1, "code": "1", "session": [5]}\n')
    done = sandbox("--jsonl", str(tmp_path / "in"), str(tmp_path / "out"))
    assert done.returncode == 2 and "line 1: `session` must be a string or a number" in done.stderr


@pytest.mark.slow
@pytest.mark.docker
def test_4096_session_calls_survive_two_killed_containers(docker_executor: Pool, docker_engine: Any) -> None:
    """64 sessions in flight, 8 calls each; every value is x -> 3x + n from the session's own start."""
    kills = threading.Thread(target=kill_twice, args=(docker_executor, docker_engine))
    kills.start()

    def play(number: int) -> list[tuple[str, str]]:
        results = talk(
            docker_executor, [f"x = {number}\nx", *(f"x = 3 * x + {n}\nx" for n in range(1, 8))], echo=True
        )
        return [(result.status, result.stdout) for result in results]

    with ThreadPoolExecutor(64) as threads:
        played = list(threads.map(play, range(512)))
    kills.join()
    for number, said in enumerate(played):
        x, want = number, [("ok", f"{number}\n")]
        for n in range(1, 8):
            x = 3 * x + n
            want.append(("ok", f"{x}\n"))
        assert said == want
    assert docker_executor.counts["runners_lost"] >= 2 and docker_executor.counts["lost"] == 0


def kill_twice(pool: Pool, engine: Any) -> None:
    for _ in range(2):
        time.sleep(5)
        connection: Any = pool.workers[0].connection
        engine.api.kill(connection.container)


LIBRARY = """
import sys
for name in ("torch", "transformers", "accelerate", "jinja2", "tensorboard", "numpy", "yaml"):
    sys.modules[name] = None  # to import it is an error
from grpo_tir import run_code
session = []
assert run_code("x = 6 * 7", session=session).stdout == ""
assert run_code("x", session=session, echo=True).stdout == "42\\n"
assert "NameError" in run_code("print(x)").stderr
assert "NameError" in run_code("print(x)", session=[]).stderr
assert [call.code for call in session] == ["x = 6 * 7", "x"]
from grpo_tir import ExecutorConfig, open_executor
from grpo_tir.executor.serve import Service
with open_executor(ExecutorConfig(kind="process", slots=1), log=lambda line: None) as pool:
    answer = Service(pool).answer({"code": "print(6 * 7)"})
assert answer["run_result"]["stdout"] == "42\\n", answer
print("done")
"""


def test_run_code_takes_a_session_and_needs_neither_torch_nor_transformers() -> None:
    done = subprocess.run([sys.executable, "-c", LIBRARY], capture_output=True, text=True, check=False)
    assert done.stdout == "done\n", done.stderr

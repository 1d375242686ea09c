"""The pool: deadlines, deaths, threads, signals, and whom an outage is blamed on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from grpo_tir.grading import grader as grader_module
from grpo_tir.grading.grader import Grader, default_grader
from grpo_tir.grading.worker import Worker
from hostile_answers import hostile_answers

HANG = r"\sqrt[3]{3000!+1}"  # sympy looks for factors
SOURCE = Path(__file__).resolve().parents[3] / "src"


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(workers=2) as grader:
        yield grader


def pids(grader: Grader) -> set[int]:
    return {worker.pid for worker in grader._all}


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"


def test_plain_numbers_and_equal_texts_start_no_process() -> None:
    with Grader() as grader:
        assert grader.grade("27.0", "27").outcome == "right"
        assert grader.grade("28", "27").outcome == "wrong"
        assert grader.grade(r" \frac12 ", r"\frac12").outcome == "right"
        assert grader.grade(None, "27").outcome == "wrong"
        assert grader.grade("7" * 100_000, "7").outcome == "wrong"
        assert not pids(grader)


@pytest.mark.parametrize("gold", ["", "  ", "None", None])
def test_a_missing_gold_is_unjudged(grader: Grader, gold: str | None) -> None:
    assert grader.grade("5", gold).outcome == "unjudged"  # type: ignore[arg-type]
    assert grader.grade(None, gold).outcome == "unjudged"  # type: ignore[arg-type]
    assert grader.check_gold(gold)  # type: ignore[arg-type]


def test_a_good_gold_has_no_fault_and_a_broken_one_has(grader: Grader) -> None:
    assert grader.check_gold(r"\frac{1}{2}") == ""
    assert "cannot be read" in grader.check_gold(r"\frac{1}{")


def test_an_answer_that_hangs_is_wrong_and_its_worker_replaced(grader: Grader) -> None:
    assert grader.grade("x+1", "1+x").outcome == "right"
    before = pids(grader)
    began = time.monotonic()
    grade = grader.grade(HANG, "7")
    assert grade.outcome == "wrong" and "hangs" in grade.reason
    assert grade.seconds >= grader.timeout
    assert time.monotonic() - began < 60
    assert any(gone(pid) for pid in before)
    assert grader.grade("x+1", "1+x").outcome == "right"


def test_a_gold_that_hangs_is_unjudged(grader: Grader) -> None:
    assert grader.grade("x", HANG).outcome == "unjudged"


def test_a_worker_that_dies_costs_nobody_an_answer(grader: Grader) -> None:
    assert grader.grade("x+1", "1+x").outcome == "right"
    for pid in pids(grader):
        os.kill(pid, signal.SIGKILL)
    assert grader.grade("x+2", "2+x").outcome == "right"
    assert grader.grade("x+3", "2+x").outcome == "wrong"


def test_workers_that_cannot_start_leave_answers_unjudged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with Grader(workers=1) as grader:
        grade = grader.grade("x+1", "1+x")
    assert grade.outcome == "unjudged" and "does not start" in grade.reason


def test_hostile_answers_are_wrong_and_run_nothing(grader: Grader, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    answers = hostile_answers(str(marker))
    graded = grader.each(answers, lambda name: grader.grade(answers[name], "7"))
    assert {name for name, grade in graded if grade.outcome != "wrong"} == set()
    assert not marker.exists()


def test_eight_threads_lose_and_mix_up_nothing(grader: Grader) -> None:
    """Answer n is right for gold n only; expressions, so that each one goes through a worker."""
    cases = [(f"x+{n % 7}", f"{n % 5}+x", n % 7 == n % 5) for n in range(400)]
    with ThreadPoolExecutor(8) as threads:
        grades = list(threads.map(lambda case: grader.grade(case[0], case[1]), cases))
    assert [grade.outcome == "right" for grade in grades] == [case[2] for case in cases]
    assert [grade.extracted for grade in grades] == [case[0] for case in cases]


def test_items_are_judged_in_parallel_and_yielded_in_order(grader: Grader) -> None:
    both = threading.Barrier(2, timeout=30)  # passed only if two items are judged at the same time
    assert list(grader.each([3, 1], lambda n: both.wait() * 0 + n)) == [(3, 3), (1, 1)]


def test_an_interrupt_leaves_no_verdict_for_the_next_question(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in a notebook, while a worker grades: its verdict, `right`, must not answer the next question."""
    real, interrupted = Worker._receive, list[int]()

    def receive(self: Worker, timeout: float) -> Any:
        if not interrupted:
            interrupted.append(1)
            raise KeyboardInterrupt
        return real(self, timeout)

    with Grader(1) as judge:
        assert judge.grade("\\sqrt{8}", "3").outcome == "wrong"  # now the worker is ready
        monkeypatch.setattr(Worker, "_receive", receive)
        with pytest.raises(KeyboardInterrupt):
            judge.grade("\\sqrt{8}", "2\\sqrt{2}")
        assert judge.grade("\\sqrt{8}", "\\sqrt{7}").outcome == "wrong"


def test_the_callers_alarm_and_handlers_are_left_alone(grader: Grader) -> None:
    rang = threading.Event()
    before = signal.signal(signal.SIGALRM, lambda *_: rang.set())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        handler = signal.getsignal(signal.SIGALRM)
        assert grader.grade(r"\sqrt{8}", r"2\sqrt2").outcome == "right"
        assert signal.getsignal(signal.SIGALRM) is handler
        assert rang.wait(10)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_closed_grader_says_so_and_leaves_no_process() -> None:
    grader = Grader(workers=1)
    assert grader.grade("x+1", "1+x").outcome == "right"
    (pid,) = pids(grader)
    grader.close()
    grader.close()
    assert gone(pid)
    with pytest.raises(RuntimeError, match="closed"):
        grader.grade("x+1", "1+x")


def run_script(script: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    return subprocess.run(
        [sys.executable, "-"], input=script, text=True, capture_output=True, timeout=120, env=environment
    )


def test_a_script_needs_no_main_guard_and_exits_by_itself() -> None:
    done = run_script(
        "from grpo_tir.grading.grader import default_grader\n"
        "print(default_grader().grade(r'\\frac{2}{4}', '0.5').outcome)\n"
    )
    assert (done.returncode, done.stdout.split()) == (0, ["right"]), done.stderr


def test_workers_die_with_a_killed_parent_even_in_the_middle_of_a_hang() -> None:
    done = run_script(
        "import os, signal, sys, threading, time\n"
        "from grpo_tir.grading.grader import Grader\n"
        "grader = Grader(workers=2, timeout=1.0)\n"
        "assert grader.grade('x+1', '1+x').outcome == 'right'\n"
        f"threading.Thread(target=grader.grade, args=({HANG!r}, '7'), daemon=True).start()\n"
        "time.sleep(0.5)\n"
        "print(*(worker.pid for worker in grader._all), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    workers = [int(pid) for pid in done.stdout.split()]
    assert workers
    until = time.monotonic() + 30
    while not all(map(gone, workers)):
        assert time.monotonic() < until, "a worker outlives its parent"
        time.sleep(0.1)


def test_a_forked_child_gets_a_grader_of_its_own() -> None:
    done = run_script(
        "import os\n"
        "from grpo_tir.grading.grader import default_grader\n"
        "assert default_grader().grade('x+1', '1+x').outcome == 'right'\n"
        "child = os.fork()\n"
        "right = default_grader().grade('2+x', 'x+2').outcome == 'right'\n"
        "if child == 0:\n"
        "    default_grader().close()\n"
        "    os._exit(0 if right else 1)\n"
        "print(right, os.waitpid(child, 0)[1])\n"
    )
    assert done.stdout.split() == ["True", "0"], done.stderr


def test_the_default_grader_is_one() -> None:
    assert default_grader() is default_grader()


def test_threads_that_begin_together_share_one_grader(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reward function that calls `grade` runs in several threads."""
    made = []

    class Slow:
        def __init__(self) -> None:
            time.sleep(0.05)
            made.append(self)

        def close(self) -> None: ...

    monkeypatch.setattr(grader_module, "Grader", Slow)
    grader_module._make_grader.cache_clear()
    try:
        with ThreadPoolExecutor(8) as threads:
            found = list(threads.map(lambda _: default_grader(), range(8)))
        assert len(made) == 1 and all(each is made[0] for each in found)
    finally:
        grader_module._make_grader.cache_clear()

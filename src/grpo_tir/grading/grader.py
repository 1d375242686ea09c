r"""Grade a boxed answer against a gold answer, in a pool of processes with a deadline.

    text ── extract_answer ──► "\frac12" ─┐
                                          ├─► Grader.grade ──► Grade(right | wrong | unjudged)
    gold ─────────────────────────────────┘       │ fast path: both plain numbers, or the same text
                                                  └─► worker process ── rules.judge

The answer is the last ``\boxed{…}`` in text of the model, outside code fences and within one model segment. A box
in tool output or in code is not an answer (the reference searched the whole text).

`wrong` is every answer that is not shown to equal the gold. This includes answers that hang or kill a worker and
answers that cannot be parsed; otherwise RL would learn to write them. `unjudged` is used only for causes that do
not depend on the answer: a gold that no rule can read, or workers that fail on the gold alone.

Grading runs in processes because it uses sympy, which can hang in C code on a short string. A process can be
killed. `signal.alarm`, which math-verify uses, works in the main thread only and cancels the caller's own alarm. A
worker is started by exec, not by fork: it inherits no state of torch or accelerate, and the caller needs no main
guard. An interval timer ends a worker whose parent has gone.

Departure from the reference, which compared strings with math-verify in the trainer, with swapped arguments.
"""

import atexit
import functools
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal
from queue import LifoQueue
from typing import Any, Literal, Self, TypeVar, cast

from grpo_tir.errors import GraderOutage
from grpo_tir.grading.extract import extract_answer
from grpo_tir.grading.worker import Worker, WorkerDied, WorkerLate, WorkerOutage

Outcome = Literal["right", "wrong", "unjudged"]
Item = TypeVar("Item")
Result = TypeVar("Result")

_PLAIN_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)", re.ASCII)
GOLD_SECONDS = 10.0
"""Time limit to check one gold: five times that of training, so that a busy machine does not change the result."""
AHEAD = 16
"""Items for each worker that `Grader.each` reads before the first of them is judged."""
KNOWN_GOLDS = 10_000
"""Maximum number of golds whose check is remembered."""
_COUNTED = 3
"""Minimum number of digits of a rounded answer that is counted (`Grade.rounded`) if no rounding is accepted."""
NO_ANSWER = {"", "none", "null", "nan", "n/a", "na", "notfound", "not found", "no answer", "unknown"}
"""Golds, in lower case, that mean "there is no answer" in data sets."""


@dataclass(frozen=True)
class Grade:
    """Verdict on one answer."""

    outcome: Outcome
    extracted: str | None
    seconds: float
    """Time spent on judging, without waiting for a free worker."""
    reason: str = ""
    rounded: bool = False
    """True if the answer is the exact gold, correctly rounded. It is `right` only if rounding is accepted."""


class Grader:
    """Judge answers from any thread, in `workers` processes that start when first needed.

    Use as a context manager, or `close()`.
    """

    def __init__(self, workers: int = 2, timeout: float = 2.0) -> None:
        self.workers = max(1, workers)
        self.timeout = timeout
        self._free: LifoQueue[Worker | None] = LifoQueue()
        """Workers that have nothing to do; None: one that is not started."""
        for _ in range(self.workers):
            self._free.put(None)
        self._lock = threading.Lock()
        self._all: set[Worker] = set()
        self._golds: dict[str, str] = {}
        self._closed = False
        self._process = os.getpid()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def grade(self, answer: str | None, gold: str, rounding: int = 0) -> Grade:
        """Judge one extracted answer against the gold. Blocks; may be called from any thread.

        Args:
            answer: the extracted answer; None if there was no box.
            gold: the gold answer.
            rounding: minimum number of digits of a rounded decimal that is accepted for an exact gold; 0: none is.
        """
        began = time.perf_counter()
        quick = _quick(answer, gold)
        if quick is not None:
            return Grade(quick[0], answer, time.perf_counter() - began, quick[1])
        try:
            outcome, reason, seconds = self._ask({"answer": answer, "gold": gold, "digits": rounding or _COUNTED})
            if outcome in ("late", "died"):
                why = "the answer hangs" if outcome == "late" else "the answer kills the worker"
                fault = self.check_gold(gold)
                outcome, reason = ("unjudged", fault) if fault else ("wrong", why)
        except GraderOutage as outage:
            outcome, reason, seconds = "unjudged", str(outage), time.perf_counter() - began
        if rounded := outcome == "rounded":
            outcome = "right" if rounding else "wrong"
        return Grade(cast(Outcome, outcome), answer, seconds, reason, rounded)

    def outcome(self, answer: str, gold: str) -> Outcome:
        """Return the outcome of `grade`, and raise an error after an outage, which `grade` reports as `unjudged`.

        Raises:
            GraderOutage: the workers do not start, or get no processor time.
        """
        outcome = self.grade(answer, gold).outcome
        if outcome == "unjudged":
            self.check_gold(gold)
        return outcome

    def each(self, items: Iterable[Item], judge: Callable[[Item], Result]) -> Iterator[tuple[Item, Result]]:
        """Yield (item, judge(item)) in order. `AHEAD` items for each worker are judged at the same time."""
        under_way: deque[tuple[Item, Future[Result]]] = deque()
        with ThreadPoolExecutor(self.workers) as threads:
            for item in items:
                under_way.append((item, threads.submit(judge, item)))
                if len(under_way) >= AHEAD * self.workers:
                    first, future = under_way.popleft()
                    yield first, future.result()
            for item, future in under_way:
                yield item, future.result()

    def check_gold(self, gold: str) -> str:
        """Return why no answer can be judged against this gold; empty if it can be used.

        Raises:
            GraderOutage: the workers do not start, or get no processor time.
        """
        if not isinstance(gold, str) or gold.strip().lower() in NO_ANSWER:
            return "the gold is empty"
        if len(gold) <= 1000 and _PLAIN_NUMBER.fullmatch(gold.strip()):
            return ""
        if (known := self._golds.get(gold)) is not None:
            return known
        outcome, reason, _ = self._ask({"answer": None, "gold": gold, "digits": 0})
        fault = "" if outcome == "right" else reason or f"the grader fails on the gold alone ({outcome})"
        if outcome != "died":  # it may have been killed from outside
            if len(self._golds) >= KNOWN_GOLDS:
                self._golds.clear()
            self._golds[gold] = fault
        return fault

    def close(self) -> None:
        """End the workers. May be called again."""
        with self._lock:
            self._closed = True
            workers, self._all = self._all, set()
        for worker in workers if self._process == os.getpid() else ():  # a forked child has only the handles
            worker.kill()

    def _ask(self, job: dict[str, Any]) -> tuple[str, str, float]:
        """Return (outcome, reason, seconds) from a worker. If it dies, try once more on a new one.

        Raises:
            GraderOutage: the second worker did not run either.
        """
        worker, death = self._free.get(), None
        try:
            for _ in range(2):
                # After an interrupt, its reply may still come: a worker is free again only after its reply.
                asked, worker = worker or self._start(), None
                try:
                    asked.wait_until_ready()
                    began = time.perf_counter()
                    reply, worker = asked.ask(job, self.timeout), asked
                    return reply["outcome"], reply["reason"], time.perf_counter() - began
                except WorkerLate:
                    worker = self._replace(asked)
                    return "late", f"no verdict within {self.timeout:g} s", time.perf_counter() - began
                except WorkerDied as error:
                    worker, death = self._replace(asked), error
        finally:
            self._free.put(worker)
        if isinstance(death, WorkerOutage):
            raise GraderOutage(str(death))
        return "died", str(death), 0.0

    def _start(self) -> Worker:
        with self._lock:
            if self._closed:
                raise RuntimeError("the grader is closed")
            worker = Worker()
            self._all.add(worker)
            return worker

    def _replace(self, worker: Worker) -> Worker | None:
        """Kill a worker and start a new one at once, so that its imports overlap with other work."""
        worker.kill()
        with self._lock:
            self._all.discard(worker)
        return None if self._closed else self._start()


def _quick(answer: str | None, gold: str) -> tuple[Outcome, str] | None:
    """Grade the cases that need no worker: no answer, no gold, the same text, or two plain numbers."""
    if not isinstance(gold, str) or gold.strip().lower() in NO_ANSWER:
        return "unjudged", "the gold is empty"
    if answer is None or not answer.strip():
        return "wrong", "no answer"
    mine, theirs = answer.strip(), gold.strip()
    if mine == theirs:
        return "right", "the same text"
    if _PLAIN_NUMBER.fullmatch(mine) and _PLAIN_NUMBER.fullmatch(theirs):
        if len(theirs) + 10_000 < len(mine):
            return "wrong", "numbers differ"
        return ("right", "equal numbers") if Decimal(mine) == Decimal(theirs) else ("wrong", "numbers differ")
    return None


@functools.cache
def _make_grader() -> Grader:
    grader = Grader()
    atexit.register(grader.close)
    return grader


_making = threading.Lock()  # reward functions call `grade` in several threads
os.register_at_fork(after_in_child=_make_grader.cache_clear)  # a child must not use its parent's pipes


def default_grader() -> Grader:
    """Return the grader shared by this process. It is made on first use and closed at exit."""
    with _making:
        return _make_grader()


def grade(output: str, answer: str) -> Grade:
    """Grade a model's output by its last `\\boxed{…}` outside of code. `answer` is the gold answer."""
    return default_grader().grade(extract_answer(output), answer)

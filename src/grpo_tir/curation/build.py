"""From raw sources to one file of problems that a run can be paid for (ToRL, section 3.1).

    rows ─► read and filter ─► benchmarks? ─► too long? ─► can the gold be judged? ─► repeated? ─► balance ─► OUT
            (filters)          (contamination) (tokenizer)  (grading, in processes)   (dedup)     (balance)

    OUT               the problems, in the order of the sources
    OUT.rejects.jsonl every other row, with its reason
    OUT.card.md/json  what came from where, what went out and why, hashes of all that went in and came out

Each row's fate follows from the rows before it and the settings alone, so the same input gives the same bytes,
and a build that was killed gives them too when it is started again: rows and progress lie in one database
(dedup.Store). Only reading ahead is parallel: a gold is judged in a worker process, while the rows behind it are
being read.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import grpo_tir
from grpo_tir.curation.balance import water_fill
from grpo_tir.curation.card import write_card
from grpo_tir.curation.contamination import Benchmarks
from grpo_tir.curation.dedup import SourceRow, Store, stored
from grpo_tir.curation.examine import BAD, Examiner, Settings
from grpo_tir.curation.sources import Source
from grpo_tir.data.rows import short
from grpo_tir.errors import DataError, GraderOutage, OutputError
from grpo_tir.grading.grader import Grader
from grpo_tir.utils.files import replacing

COMMIT_EVERY = 500
"""Rows; so many at most are read again after a kill."""
GOLD_SECONDS = 10.0
"""For one gold; five times what an answer gets in training, lest a busy machine decides what can be judged."""
AHEAD = 16
"""Rows for each worker that are read before the first of them is done."""


class Build:
    """One build: `run` reads all sources to their end and writes the files.

    Args:
        sources: in this order; of two equal problems the first one stays.
        benchmarks: what must not be trained on, for the card.
        forbidden: their problems.
        out: the file to write.
        on_bad: `stop` or `skip`, at a row that cannot be used.
        log: prints a line.
    """

    def __init__(
        self,
        sources: list[Source],
        benchmarks: list[Source],
        forbidden: Benchmarks,
        out: Path,
        settings: Settings,
        on_bad: str = "stop",
        workers: int = 2,
        log: Callable[[str], None] = print,
    ) -> None:
        self.sources, self.benchmarks, self.out = sources, benchmarks, out
        self.settings, self.on_bad, self.log = settings, on_bad, log
        self.workers = max(1, workers)
        self.grader = Grader(self.workers, GOLD_SECONDS)
        self.examiner = Examiner([source.name for source in sources], forbidden, settings)

    def run(self) -> dict[str, Any]:
        """Build; returns the card.

        Raises:
            DataError: a bad row under `stop`, or a source that cannot be read on.
            OutputError: the work cannot be written down; what was committed is kept.
            GraderOutage: the processes that read golds cannot run.
        """
        work = self.out.with_name(f".{self.out.name}.build")
        store = self._open_store(work)
        try:
            with self.grader:
                for number, source in enumerate(self.sources):
                    self._read(number, source, store)
            if self.settings.balance is not None:
                _draw(store, self.settings.balance)
                store.commit()
            card = self._write(store)
        except sqlite3.OperationalError as error:  # a full disk, above all
            raise OutputError(f"cannot write {work}: {error}; the same command goes on from there") from None
        finally:
            store.close()
        _delete(work)
        return card

    def _open_store(self, path: Path) -> Store:
        """The unfinished work on this very input, if there is any."""
        mine = json.dumps(self.describe(), sort_keys=True)
        store = Store(path, self._same_answer)
        begun = store.settings(mine)
        if begun is not None and begun != mine:
            self.log(f"starting anew: an unfinished build of {self.out} had other sources or settings")
            store.close()
            _delete(path)
            return self._open_store(path)
        if begun is not None:
            done = sum(store.done(number) for number in range(len(self.sources)))
            self.log(f"going on after {done} rows of an unfinished build")
        store.commit()
        return store

    def describe(self) -> dict[str, Any]:
        """All that the output depends on."""
        return {
            "version": grpo_tir.__version__,
            "sources": [asdict(source) for source in self.sources],
            "benchmarks": [asdict(source) for source in self.benchmarks],
            "settings": asdict(self.settings),
            "tokenizer_sha256": self.examiner.tokenizer_sha256,
        }

    def _read(self, number: int, source: Source, store: Store) -> None:
        """Take the rows of one source from where the last build stopped."""
        from tqdm import tqdm

        done = store.done(number)
        rows = self._examined(number, source, done)
        for row in tqdm(rows, desc=source.name, total=source.rows, initial=done, unit="row", disable=None):
            self._admit(row, store)
            done += 1
            if done % COMMIT_EVERY == 0:
                store.commit()
        store.commit()

    def _admit(self, row: SourceRow, store: Store) -> None:
        """The part that depends on earlier rows."""
        if row.has_own_id and row.reason != BAD:
            taken = store.taken(row)
            if taken:
                row.reason, row.detail = BAD, f"the id {short(row.id)} is taken by {taken}"
        if row.reason == BAD and self.on_bad != "skip":
            raise DataError(f"{row.place}: {row.detail} (`--on-bad skip` leaves such rows out)")
        store.add(row)

    def _examined(self, number: int, source: Source, start: int) -> Iterator[SourceRow]:
        """Rows in their order, with what can be said of each alone; some golds are being judged meanwhile."""
        under_way: deque[tuple[SourceRow, Future[str] | None]] = deque()
        with ThreadPoolExecutor(self.workers) as threads:
            for where, raw in source.read(start):
                row = self.examiner.examine(number, f"{source.location} {where}", raw)
                judging = None if row.reason else threads.submit(self.grader.check_gold, row.answer)
                under_way.append((row, judging))
                if len(under_way) >= AHEAD * self.workers:
                    yield _judged(*under_way.popleft())
            while under_way:
                yield _judged(*under_way.popleft())

    def _same_answer(self, one: str, other: str) -> bool:
        return "".join(one.split()) == "".join(other.split()) or self.grader.grade(one, other).outcome == "right"

    def _write(self, store: Store) -> dict[str, Any]:
        """The problems, the rejects and, when both are whole, the card."""
        rejects = self.out.with_name(f"{self.out.name}.rejects.jsonl")
        hashes = {}
        for path, condition in ((rejects, "reason != ''"), (self.out, "reason = ''")):
            digest = hashlib.sha256()
            with replacing(path) as file:
                for row in stored(store, condition):
                    line = json.dumps(_record(row, self.sources), ensure_ascii=False) + "\n"
                    file.write(line)
                    digest.update(line.encode())
            hashes[path.name] = digest.hexdigest()
        return write_card(self.out, store, self.describe(), hashes)


def _delete(work: Path) -> None:
    """The database and its log."""
    for path in work.parent.glob(f"{work.name}*"):
        path.unlink()


def _judged(row: SourceRow, judging: Future[str] | None) -> SourceRow:
    fault = judging.result() if judging else ""
    if any(outage in fault for outage in ("does not start", "no processor time")):
        raise GraderOutage(f"{row.place}: {fault}; this says nothing about the row: give the command again")
    if fault:
        row.reason, row.detail = "unverifiable answer", fault
    return row


def _record(row: SourceRow, sources: list[Source]) -> dict[str, Any]:
    """A line of the output, or of the rejects."""
    if not row.reason:
        return {
            "id": row.id,
            "problem": row.problem,
            "answer": row.answer,
            "source": row.origin,
            "difficulty": row.difficulty,
        }
    fate = {"reason": row.reason, "detail": row.detail, "other": row.other}
    said = {"id": row.id, "problem": row.problem, "answer": row.answer}
    return {"source": sources[row.source].name, "where": row.place, **fate, **said}


def _draw(store: Store, size: int) -> None:
    """Leave out what balance leaves out. Doing it twice is doing it once."""
    counts = dict(store.db.execute("SELECT difficulty, count(*) FROM rows WHERE reason = '' GROUP BY difficulty"))
    for label, quota in water_fill(counts, size).items():
        store.db.execute(
            "UPDATE rows SET reason = 'not drawn', detail = 'difficulty ' || difficulty WHERE n IN (SELECT n FROM "
            "rows WHERE reason = '' AND difficulty = ? ORDER BY lot, n LIMIT -1 OFFSET ?)",
            (label, quota),
        )

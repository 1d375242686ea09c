"""Build one file of training problems from raw sources (ToRL, section 3.1).

    rows ─► read and filter ─► benchmarks? ─► too long? ─► can the gold be judged? ─► repeated? ─► balance ─► OUT
            (filters)          (contamination) (tokenizer)  (grading, in processes)   (dedup)     (balance)

    OUT               the problems, in the order of the sources
    OUT.rejects.jsonl every other row, with the reason
    OUT.card.md/json  counts by source and by reason, hashes of all input and output

The decision on a row depends only on the settings and on the rows before it. So the same input gives the same
bytes, also after a kill: all rows that were read are in one database (dedup.Store), and the next build continues
behind them. Only the grader runs in parallel: a worker process judges a gold while the next rows are read.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpo_tir
from grpo_tir.curation.balance import draw_key, water_fill
from grpo_tir.curation.card import write_card
from grpo_tir.curation.contamination import Benchmarks, answers_differ
from grpo_tir.curation.dedup import SourceRow, Store, stored
from grpo_tir.curation.examine import BAD, Examiner, Settings
from grpo_tir.curation.sources import Source
from grpo_tir.data.rows import short
from grpo_tir.errors import DataError, GraderOutage, OutputError
from grpo_tir.grading.grader import GOLD_SECONDS, Grader
from grpo_tir.utils.files import replacing

COMMIT_EVERY = 500
"""Rows between two commits: at most so many are read again after a kill."""


@dataclass
class Build:
    """Build one data set: `run` reads all sources and writes the files."""

    sources: list[Source]
    """Raw data, read in this order; of two equal problems the first is kept."""
    benchmarks: list[Source]
    """The data sets that must not be trained on, named in the card."""
    forbidden: Benchmarks
    """Index of the problems of `benchmarks`."""
    out: Path
    settings: Settings
    on_bad: str = "stop"
    """`stop` or `skip`: what to do at a row that cannot be used."""
    workers: int = 2
    """Grader processes."""

    def __post_init__(self) -> None:
        self.grader = Grader(self.workers, GOLD_SECONDS)
        names = [source.name for source in self.sources]
        self.examiner = Examiner(names, self.forbidden, self.settings, partial(answers_differ, self.grader))

    def run(self) -> dict[str, Any]:
        """Build the data set and return its card.

        Raises:
            DataError: a bad row and `on_bad` is `stop`, or a source that can no longer be read.
            OutputError: the database cannot be written; committed rows are kept.
            GraderOutage: the grader processes cannot run.
        """
        work = self.out.with_name(f".{self.out.name}.build")
        store = self._open_store(work)
        try:
            with self.grader:
                for number, source in enumerate(self.sources):
                    self._read(number, source, store)
            if self.settings.balance is not None:
                _draw(store, self.settings.balance, self.settings.seed)
                store.db.commit()
            card = self._write(store)
        except sqlite3.OperationalError as error:  # mostly a full disk
            raise OutputError(f"cannot write {work}: {error}; run the same command again to continue") from None
        finally:
            store.db.close()
        _delete(work)
        return card

    def _open_store(self, path: Path) -> Store:
        """Open the database: that of an unfinished build with the same input and settings, or a new one."""
        mine = json.dumps(self.describe(), sort_keys=True)
        store = Store(path, self._same_answer)
        begun = store.settings(mine)
        if begun is not None and begun != mine:
            print(f"starting over: the unfinished build of {self.out} had other sources or settings")
            store.db.close()
            _delete(path)
            return self._open_store(path)
        if begun is not None:
            done = sum(store.done(number) for number in range(len(self.sources)))
            print(f"continuing after {done} rows of an unfinished build")
        store.db.commit()
        return store

    def describe(self) -> dict[str, Any]:
        """Return everything that the output depends on."""
        return {
            "version": grpo_tir.__version__,
            "sources": [asdict(source) for source in self.sources],
            "benchmarks": [asdict(source) for source in self.benchmarks],
            "settings": asdict(self.settings),
            "tokenizer_sha256": self.examiner.tokenizer_sha256,
        }

    def _read(self, number: int, source: Source, store: Store) -> None:
        """Read the rows of one source, starting behind those of an unfinished build."""
        from tqdm import tqdm

        done = store.done(number)
        rows = self._examined(number, source, done)
        for row in tqdm(rows, desc=source.name, total=source.rows, initial=done, unit="row", disable=None):
            self._admit(row, store)
            done += 1
            if done % COMMIT_EVERY == 0:
                store.db.commit()
        store.db.commit()

    def _admit(self, row: SourceRow, store: Store) -> None:
        """Check a row against earlier rows and store it."""
        if row.has_own_id and row.reason != BAD:
            taken = store.taken(row)
            if taken:
                row.reason, row.detail = BAD, f"the id {short(row.id)} is taken by {taken}"
        if row.reason == BAD and self.on_bad != "skip":
            raise DataError(f"{row.place}: {row.detail} (`--on-bad skip` leaves such rows out)")
        store.add(row)

    def _examined(self, number: int, source: Source, start: int) -> Iterator[SourceRow]:
        """Yield rows in order, checked one by one; their golds are judged in parallel."""
        rows = (
            self.examiner.examine(number, f"{source.location} {where}", raw) for where, raw in source.read(start)
        )
        for row, fault in self.grader.each(rows, self._gold_fault):
            if fault:
                row.reason, row.detail = "unverifiable answer", fault
            yield row

    def _gold_fault(self, row: SourceRow) -> str:
        """Return why the gold of a row cannot be judged; empty if it can, or if the row is rejected already."""
        try:
            return "" if row.reason else self.grader.check_gold(row.answer)
        except GraderOutage as outage:
            raise GraderOutage(
                f"{row.place}: {outage}; the row was not judged: run the same command again"
            ) from None

    def _same_answer(self, one: str, other: str) -> bool:
        return "".join(one.split()) == "".join(other.split()) or self.grader.outcome(one, other) == "right"

    def _write(self, store: Store) -> dict[str, Any]:
        """Write the rejects, the problems and last the card."""
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
    for path in work.parent.glob(f"{work.name}*"):
        path.unlink()


def _record(row: SourceRow, sources: list[Source]) -> dict[str, Any]:
    """Return a row as a line of the output or of the rejects."""
    if not row.reason:
        return {
            "id": row.id,
            "problem": row.problem,
            "answer": row.answer,
            "source": row.origin,
            "difficulty": row.difficulty,
        }
    decision = {"reason": row.reason, "detail": row.detail, "other": row.other}
    content = {"id": row.id, "problem": row.problem, "answer": row.answer}
    return {"source": sources[row.source].name, "where": row.place, **decision, **content}


def _draw(store: Store, size: int, seed: int) -> None:
    """Reject the rows above the quota of their class. A second call changes nothing."""
    store.db.create_function("draw_key", 1, partial(draw_key, seed))
    counts = dict(store.db.execute("SELECT difficulty, count(*) FROM rows WHERE reason = '' GROUP BY difficulty"))
    for label, quota in water_fill(counts, size).items():
        store.db.execute(
            "UPDATE rows SET reason = 'not drawn', detail = 'difficulty ' || difficulty WHERE n IN (SELECT n FROM "
            "rows WHERE reason = '' AND difficulty = ? ORDER BY draw_key(id), n LIMIT -1 OFFSET ?)",
            (label, quota),
        )

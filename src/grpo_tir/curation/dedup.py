"""What has been read so far, on disk: so that memory is flat, and a killed build goes on where it stopped.

One SQLite file holds every row with its fate, and an index of 64-bit keys. Rows and progress are committed
together, so whatever kills the process, the file is as if it had never begun the rows after the last commit.

A problem is a duplicate if it has the same words as an earlier one, and a contradiction if its answer then
differs: nobody knows which is right, so all of them go. It is a near duplicate if its numbers and its answer are
the same and at least `NEAR` of the runs of words are common: "Find m + n" and "Find m - n" about the same m and n
are two problems. Near ones are looked up by MinHash: of K permutations of all runs, the least of each; two
problems agree in one with the probability of their Jaccard index J, in a band of R with J^R, in one of B bands
with 1 - (1 - J^R)^B.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from grpo_tir.curation.fingerprint import Fingerprint, fingerprint, hash64, jaccard
from grpo_tir.errors import DataError

NEAR = 0.4
"""Jaccard index from which on texts are near. In LIMR's prompts all pairs from 0.35 on that have the same numbers
and the same answer are one problem in other words; in a sentence of ten words one new word already costs half."""
BANDS, ROWS = 24, 2
"""1 - (1 - J^2)^24: 0.985 of the pairs at J = 0.4 are met, 0.9999 at 0.6."""
MOST = 50
"""Candidates that are compared; those with the most bands in common."""
CACHE_KB = 65_536

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (value TEXT);
CREATE TABLE IF NOT EXISTS rows (
    n INTEGER PRIMARY KEY, source INTEGER, place TEXT, id TEXT, problem TEXT, answer TEXT, origin TEXT,
    difficulty TEXT, lot INTEGER, reason TEXT, detail TEXT, other TEXT);
CREATE TABLE IF NOT EXISTS seen (key INTEGER, n INTEGER, PRIMARY KEY (key, n)) WITHOUT ROWID;
"""


@dataclass
class SourceRow:
    """A row on its way, or with its fate: `reason` is empty while it is kept."""

    source: int
    place: str
    id: str = ""
    problem: str = ""
    answer: str = ""
    origin: str = ""
    difficulty: str = ""
    lot: int = 0
    reason: str = ""
    detail: str = ""
    other: str = ""
    """The row or benchmark problem that it repeats."""
    print: Fingerprint | None = None
    has_own_id: bool = False


COLUMNS = "source, place, id, problem, answer, origin, difficulty, lot, reason, detail, other"


class Store:
    """The file of one build.

    Args:
        path: made if it is not there.
        equal: whether two different texts are one answer.

    Raises:
        DataError: another build is writing to it.
    """

    def __init__(self, path: Path, equal: Callable[[str, str], bool]) -> None:
        self.path = path
        self._equal = equal
        self._permutations = _permutations(BANDS * ROWS)
        self.db = sqlite3.connect(path, timeout=0, isolation_level=None)
        try:
            self.db.executescript(
                f"PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;"
                f"PRAGMA cache_size = -{CACHE_KB}; {_SCHEMA}"
            )
        except sqlite3.DatabaseError as error:
            self.db.close()
            raise DataError(
                f"{path} cannot be used ({error}): is another build writing there? Else delete it"
            ) from None
        self.db.execute("BEGIN")

    def close(self) -> None:
        """Whatever is not committed is forgotten."""
        self.db.close()

    def commit(self) -> None:
        """All rows up to here are safe from a kill."""
        self.db.execute("COMMIT")
        self.db.execute("BEGIN")

    def settings(self, new: str) -> str | None:
        """Note what the build depends on; returns what an unfinished build noted."""
        found = self.db.execute("SELECT value FROM meta").fetchone()
        if found is None:
            self.db.execute("INSERT INTO meta VALUES (?)", (new,))
        return found[0] if found else None

    def done(self, source: int) -> int:
        """Rows of a source that were read: each has its line here."""
        found: int = self.db.execute("SELECT count(*) FROM rows WHERE source = ?", (source,)).fetchone()[0]
        return found

    def taken(self, row: SourceRow) -> str | None:
        """Where another row of the same source has this id."""
        found = self._first(_id_key(row.source, row.id))
        return self.db.execute("SELECT place FROM rows WHERE n = ?", (found,)).fetchone()[0] if found else None

    def add(self, row: SourceRow) -> None:
        """Write a row down, after having looked for an earlier one that it repeats."""
        number = self.db.execute("SELECT coalesce(max(n), 0) + 1 FROM rows").fetchone()[0]
        keys = [_id_key(row.source, row.id)] if row.has_own_id else []
        if row.print and not row.reason:
            same, near = hash64(f"same/{_exact(row.print)}"), self._bands(row.print, row.answer)
            earlier = self._first(same)
            if earlier is not None:
                self._compare(row, earlier)
            else:
                self._look_for_near(row, row.print, near)
        if row.print and not row.reason:
            if self._first(_id_key(-1, row.id)) is not None:  # of another source: both may be called 17
                row.id = f"{row.origin.partition('/')[0]}/{row.id}"
            keys += [same, *near, _id_key(-1, row.id)]
        values = [getattr(row, column) for column in COLUMNS.split(", ")]
        self.db.execute(f"INSERT INTO rows (n, {COLUMNS}) VALUES (?{', ?' * len(values)})", [number, *values])
        self.db.executemany("INSERT OR IGNORE INTO seen VALUES (?, ?)", [(key, number) for key in keys])

    def _first(self, key: int) -> int | None:
        found = self.db.execute("SELECT min(n) FROM seen WHERE key = ?", (key,)).fetchone()[0]
        return int(found) if found is not None else None

    def _compare(self, row: SourceRow, earlier: int) -> None:
        """The words are those of an earlier row: are the answers?"""
        name, answer, reason = self.db.execute(
            "SELECT id, answer, reason FROM rows WHERE n = ?", (earlier,)
        ).fetchone()
        row.reason, row.other = "duplicate", name
        if not self._equal(row.answer, answer):
            row.reason, row.detail = "contradiction", f"the answers are {row.answer} and {answer}"
            if not reason:
                self.db.execute(
                    "UPDATE rows SET reason = 'contradiction', detail = ?, other = ? WHERE n = ?",
                    (row.detail, row.id, earlier),
                )
        elif reason:
            row.reason = reason

    def _look_for_near(self, row: SourceRow, said: Fingerprint, keys: list[int]) -> None:
        marks = ", ".join("?" * len(keys))
        candidates = self.db.execute(
            f"SELECT id, problem FROM rows WHERE reason = '' AND n IN "
            f"(SELECT n FROM seen WHERE key IN ({marks}) GROUP BY n ORDER BY count(*) DESC, n LIMIT {MOST}) "
            f"ORDER BY n",
            keys,
        )
        for name, problem in candidates:
            share = jaccard(said.runs, fingerprint(problem).runs)
            if share >= NEAR:
                row.reason, row.other, row.detail = "near duplicate", name, f"{share:.2f} of the runs of words"
                return

    def _bands(self, said: Fingerprint, answer: str) -> list[int]:
        """Keys that near duplicates probably share, and problems with other numbers or another answer never."""
        multiply, add = self._permutations
        values = np.fromiter(said.runs, dtype=np.int64, count=len(said.runs)).view(np.uint64)
        least = (values * multiply + add).min(axis=1).reshape(BANDS, ROWS)
        exact = f"{' '.join(sorted(said.numerals))}/{' '.join(said.figure)}/{' '.join(fingerprint(answer).words)}"
        return [hash64(f"near/{band}/{part.tobytes().hex()}/{exact}") for band, part in enumerate(least)]


def _id_key(source: int, name: str) -> int:
    return hash64(f"id/{source}/{name}")


def _exact(said: Fingerprint) -> str:
    return f"{' '.join(said.words)}/{' '.join(said.figure)}"


def _permutations(number: int) -> tuple[np.ndarray, np.ndarray]:
    """(number, 1) factors and summands of x -> a x + b mod 2^64, the same for ever."""
    factors = [hash64(f"factor {i}") | 1 for i in range(number)]
    summands = [hash64(f"summand {i}") for i in range(number)]
    column = lambda values: np.array(values, dtype=np.int64).view(np.uint64)[:, None]  # noqa: E731
    return column(factors), column(summands)


def stored(store: Store, condition: str) -> Iterator[SourceRow]:
    """Rows in the order in which they were read."""
    for values in store.db.execute(f"SELECT {COLUMNS} FROM rows WHERE {condition} ORDER BY n"):
        yield SourceRow(*values)

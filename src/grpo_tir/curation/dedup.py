"""Store the rows of a build on disk and find repeated problems.

One SQLite file holds every row with the decision on it, and an index of 64-bit keys. So memory is bounded, and a
killed build continues behind the last commit: the number of stored rows is its progress.

A problem is a duplicate if an earlier row has the same words and an equal answer. If the answer differs, both rows
are rejected as a contradiction, because it is unknown which is right. A problem is a near duplicate if an earlier
row has the same numbers, the same answer and a Jaccard index of 3-word runs of at least `NEAR`. ("Find m + n" and
"Find m - n" for the same m and n have different answers: they are two problems.)

Near duplicates are looked up by a key made of their numbers and answer. A row is compared with at most `MOST`
earlier rows that have its key, the latest first.
"""

import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from grpo_tir.curation.fingerprint import Fingerprint, fingerprint, hash64, jaccard
from grpo_tir.errors import DataError

NEAR = 0.4
"""Minimum Jaccard index of near duplicates. In LIMR's prompts all pairs of at least 0.35 with the same numbers and
answer are one problem in other words. In a sentence of ten words, one new word lowers the index to about half."""
MOST = 50
"""Maximum number of candidates to compare."""
CACHE_KB = 65_536

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (value TEXT);
CREATE TABLE IF NOT EXISTS rows (
    n INTEGER PRIMARY KEY, source INTEGER, place TEXT, id TEXT, problem TEXT, answer TEXT, origin TEXT,
    difficulty TEXT, reason TEXT, detail TEXT, other TEXT);
CREATE TABLE IF NOT EXISTS seen (key INTEGER, n INTEGER, PRIMARY KEY (key, n)) WITHOUT ROWID;
"""


@dataclass
class SourceRow:
    """One row of a source and the decision on it: `reason` is empty if the row is kept."""

    source: int
    place: str
    id: str = ""
    problem: str = ""
    answer: str = ""
    origin: str = ""
    difficulty: str = ""
    reason: str = ""
    detail: str = ""
    other: str = ""
    """Id of the row or benchmark problem that it repeats."""
    print: Fingerprint | None = None
    has_own_id: bool = False


COLUMNS = "source, place, id, problem, answer, origin, difficulty, reason, detail, other"


class Store:
    """The database of one build, a SQLite file. Rows survive a kill after `db.commit()`. `equal` decides whether
    two answers are equal.

    Raises:
        DataError: another build is writing to the file, or it is no database.
    """

    def __init__(self, path: Path, equal: Callable[[str, str], bool]) -> None:
        self._equal = equal
        self.db = sqlite3.connect(path, timeout=0)
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

    def settings(self, new: str) -> str | None:
        """Save the settings of a new build. Returns those of an unfinished build, None if there is none."""
        found = self.db.execute("SELECT value FROM meta").fetchone()
        if found is None:
            self.db.execute("INSERT INTO meta VALUES (?)", (new,))
        return found[0] if found else None

    def done(self, source: int) -> int:
        """Return how many rows of a source were read: each of them is stored."""
        found: int = self.db.execute("SELECT count(*) FROM rows WHERE source = ?", (source,)).fetchone()[0]
        return found

    def taken(self, row: SourceRow) -> str | None:
        """Return where another row of the same source has this id; None if no row has it."""
        found = self._first(_id_key(row.source, row.id))
        return self.db.execute("SELECT place FROM rows WHERE n = ?", (found,)).fetchone()[0] if found else None

    def add(self, row: SourceRow) -> None:
        """Compare a row with earlier rows and store it."""
        number = self.db.execute("SELECT coalesce(max(n), 0) + 1 FROM rows").fetchone()[0]
        keys = [_id_key(row.source, row.id)] if row.has_own_id else []
        # 1. Look for an earlier row with the same words, then for a near duplicate.
        if row.print and not row.reason:
            same, near = hash64(f"same/{_exact(row.print)}"), _near_key(row.print, row.answer)
            earlier = self._first(same)
            if earlier is not None:
                self._compare(row, earlier)
            else:
                self._look_for_near(row, row.print, near)
        # 2. If it is kept, make its id unique and index it.
        if row.print and not row.reason:
            if self._first(_id_key(-1, row.id)) is not None:  # a row of another source has this id
                row.id = f"{row.origin.partition('/')[0]}/{row.id}"
            keys += [same, near, _id_key(-1, row.id)]
        # 3. Store it, kept or rejected.
        values = [getattr(row, column) for column in COLUMNS.split(", ")]
        self.db.execute(f"INSERT INTO rows (n, {COLUMNS}) VALUES (?{', ?' * len(values)})", [number, *values])
        self.db.executemany("INSERT OR IGNORE INTO seen VALUES (?, ?)", [(key, number) for key in keys])

    def _first(self, key: int) -> int | None:
        found = self.db.execute("SELECT min(n) FROM seen WHERE key = ?", (key,)).fetchone()[0]
        return int(found) if found is not None else None

    def _compare(self, row: SourceRow, earlier: int) -> None:
        """Compare the answers of two rows with the same words."""
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

    def _look_for_near(self, row: SourceRow, text: Fingerprint, key: int) -> None:
        candidates = self.db.execute(
            f"SELECT id, problem FROM rows WHERE reason = '' AND n IN "
            f"(SELECT n FROM seen WHERE key = ? ORDER BY n DESC LIMIT {MOST}) ORDER BY n",
            (key,),
        )
        for name, problem in candidates:
            share = jaccard(text.runs, fingerprint(problem).runs)
            if share >= NEAR:
                row.reason, row.other, row.detail = "near duplicate", name, f"{share:.2f} of the runs of words"
                return


def _id_key(source: int, name: str) -> int:
    return hash64(f"id/{source}/{name}")


def _exact(text: Fingerprint) -> str:
    return f"{' '.join(text.words)}/{' '.join(text.figure)}"


def _near_key(text: Fingerprint, answer: str) -> int:
    numbers = f"{' '.join(sorted(text.numerals))}/{' '.join(text.figure)}"
    return hash64(f"near/{numbers}/{' '.join(fingerprint(answer).words)}")


def stored(store: Store, condition: str) -> Iterator[SourceRow]:
    """Yield the rows that satisfy an SQL condition, in the order in which they were read."""
    for values in store.db.execute(f"SELECT {COLUMNS} FROM rows WHERE {condition} ORDER BY n"):
        yield SourceRow(*values)

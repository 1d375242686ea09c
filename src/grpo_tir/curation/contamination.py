"""Is this training problem one of the benchmarks'?

Overlap alone cannot tell a copy from a sibling: "divisors of 1764" and "divisors of 1690" share nearly all. What a
copy keeps, however it is worded, are its numbers. So numbers decide how much else must be common:

    of the benchmark problem's runs of three words (`fingerprint`) the training problem has
        its numbers among its own                             >= 0.35
        it has none                                           >= 0.4
        some differ, or those of the figures do               >= 0.9     a copy with a changed number, for safety
    or: its numbers are the training problem's, and each has
        of the other's words without endings                  >= 0.5     another wording
        where they have five different numbers or more        >= 0.3

Runs and words count by how telling they are: a run in n benchmark problems 1/n, a word in n of N log(1 + N/(n+1)).
A long text that only happens to hold the runs of a short one is let go, unless it holds nearly all. The other way
round, a part of a benchmark problem is found by its own runs. docs/experiments.md has what this finds and costs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from grpo_tir.curation.fingerprint import Fingerprint, Hashes, fingerprint, jaccard, share_of

SAME_NUMBERS = 0.35
NO_NUMBERS = 0.4
OTHER_NUMBERS = 0.9
WHOLE = 0.8
"""From here on a copy may stand in a text of any length."""
MIN_JACCARD = 0.2
MIN_PART = 20
"""Runs that a mere part of a benchmark problem must have to be told from a phrase of the trade."""
SAME_WORDS = 0.5
MANY_NUMBERS, SOME_WORDS = 5, 0.3
OWN_NUMBERS = 0.8
"""Share of the training problem's numbers that must be the benchmark's: a rewording may have a number itself."""
COMMON = 50
"""A run or word that stands in more benchmark problems than these calls none of them to mind."""


@dataclass(frozen=True)
class Overlap:
    """A training problem's nearest benchmark problem."""

    benchmark: str
    id: str
    share: float
    """Of the benchmark problem's runs of words, or of its words if that is more."""


class Benchmarks:
    """An index of the benchmarks' runs and words. Its size is the benchmarks', whatever is compared with it.

    Args:
        problems: (benchmark, id, problem) of all.
    """

    def __init__(self, problems: Iterable[tuple[str, str, str]]) -> None:
        listed = list(problems)
        self._names = [(benchmark, name) for benchmark, name, _ in listed]
        self._prints = [fingerprint(problem) for _, _, problem in listed]
        self._numbers = [frozenset(said.numerals) for said in self._prints]
        self._runs = _Index([said.runs for said in self._prints], worth=0.15)
        self._stems = _Index([said.stems for said in self._prints], worth=0.15)

    def find(self, said: Fingerprint) -> Overlap | None:
        """The benchmark problem that a training problem copies most of; None if it copies none."""
        numbers = set(said.numerals)
        reworded = {n for n in self._stems.candidates(said.stems) if self._numbers[n] <= numbers}
        found = [
            (share, jaccard(said.runs, self._prints[number].runs), -number)
            for number in self._runs.candidates(said.runs) | reworded
            if (share := self._copied(number, said))
        ]
        if not found:
            return None
        share, _, number = max(found)
        return Overlap(*self._names[-number], round(share, 3))

    def _copied(self, number: int, mine: Fingerprint) -> float:
        """The share of a benchmark problem that is copied; 0 if it is another problem."""
        theirs = self._prints[number]
        share = self._run_weight(theirs.runs & mine.runs) / self._run_weight(theirs.runs)
        same_numbers = share_of(theirs.numerals, mine.numerals) == 1 and theirs.draws_like(mine)
        if same_numbers and share_of(mine.numerals, theirs.numerals) >= OWN_NUMBERS:
            common = self._stem_weight(theirs.stems & mine.stems)
            of_theirs, of_mine = (common / (self._stem_weight(said.stems) or 1) for said in (theirs, mine))
            needed = SAME_WORDS if len(self._numbers[number]) < MANY_NUMBERS else SOME_WORDS
            if min(of_theirs, of_mine) >= needed:
                return max(share, of_theirs)
        return share if _holds_runs(theirs, mine, share, same_numbers) else 0.0

    def _run_weight(self, runs: Hashes) -> float:
        return math.fsum(1 / self._runs.holders[run] for run in runs)

    def _stem_weight(self, stems: frozenset[str]) -> float:
        return math.fsum(math.log1p(len(self._prints) / (self._stems.holders[stem] + 1)) for stem in stems)


class _Index:
    """Which benchmark problems hold a run, or a word."""

    def __init__(self, parts: list[Any], worth: float) -> None:
        self.worth = worth
        """Share of the parts of the shorter problem from which on a pair is worth a look."""
        self.holders: Counter[Any] = Counter(part for of_one in parts for part in of_one)
        self._rare: dict[Any, list[int]] = {}
        for number, of_one in enumerate(parts):
            for part in of_one:
                if self.holders[part] <= COMMON:
                    self._rare.setdefault(part, []).append(number)
        self._size = Counter(number for numbers in self._rare.values() for number in numbers)

    def candidates(self, parts: Collection[Any]) -> set[int]:
        """Benchmark problems that share enough of their rare parts."""
        common = Counter(number for part in parts for number in self._rare.get(part, ()))
        return {n for n, shared in common.items() if shared >= self.worth * min(self._size[n], len(parts))}


def _holds_runs(theirs: Fingerprint, mine: Fingerprint, share: float, same_numbers: bool) -> bool:
    inside = len(theirs.runs & mine.runs) / len(mine.runs)
    if len(mine.runs) >= MIN_PART and inside >= WHOLE and share_of(mine.numerals, theirs.numerals) == 1:
        return True
    needed = (SAME_NUMBERS if theirs.numerals else NO_NUMBERS) if same_numbers else OTHER_NUMBERS
    return share >= needed and (share >= WHOLE or jaccard(theirs.runs, mine.runs) >= MIN_JACCARD)

"""Detect training problems that are similar to a benchmark problem: copies, paraphrases, near variants.

Word overlap alone cannot separate a copy from a similar problem: "divisors of 1764" and "divisors of 1690" share
nearly all words. But a copy keeps the numbers, however it is worded. So the numbers set the threshold:

    A. copied text: weighted share of the benchmark problem's 3-word runs (`fingerprint`) found in the training one
        all numbers of the benchmark problem occur in the training problem     >= 0.35
        the benchmark problem has no number                                    >= 0.4
        some numbers differ, in the text or in the figures (changed copy)      >= 0.9
    B. paraphrase: both have the same numbers; weighted share of common word stems, in each problem
        fewer than five different numbers                                      >= 0.5
        five different numbers or more                                         >= 0.3

    C. another answer: if the two answers differ, A and B are not enough. MATH has many siblings of MATH500 with
       the same numbers in another question. A copy with a wrong gold has all numbers, operators and commands of
       the benchmark problem, and nearly all of its runs or stems            >= 0.9

Weights: a run that occurs in n benchmark problems counts 1/n; a stem in n of N problems counts log(1 + N/(n+1)).
A long text that contains the runs of a short problem by chance is not a copy, unless it contains at least 0.8 of
them. A text that is a part of a benchmark problem is detected by the share of its own runs. docs/experiments.md
reports how many copies this finds and how many other problems it rejects.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from grpo_tir.curation.fingerprint import Fingerprint, Hashes, fingerprint, jaccard, share_of
from grpo_tir.grading.grader import Grader

SAME_NUMBERS = 0.35
NO_NUMBERS = 0.4
OTHER_NUMBERS = 0.9
COMPLETE = 0.9
WHOLE = 0.8
"""Share of runs from which a copy may be part of a text of any length."""
MIN_JACCARD = 0.2
MIN_PART = 20
"""Minimum number of runs of a text that may be a part of a benchmark problem; fewer may be a common phrase."""
SAME_WORDS = 0.5
MANY_NUMBERS, SOME_WORDS = 5, 0.3
OWN_NUMBERS = 0.8
"""Share of the training problem's numbers that the benchmark problem must have; a paraphrase may add one."""
COMMON = 50
"""A run or stem that occurs in more benchmark problems than this is not used to look up candidates."""
MIN_SHARED = 0.15
"""Minimum share of the shorter problem's runs, or stems, that a candidate must have."""
_OPTION = re.compile(r"(?:\\text(?:bf)?\{)?\(?[A-H]\)?\}?")


@dataclass(frozen=True)
class Overlap:
    """The benchmark problem that a training problem is similar to."""

    benchmark: str
    id: str
    share: float
    """Weighted share of its runs, or of its stems if that is more, in [0, 1]."""


class Benchmarks:
    """Index the runs and stems of all benchmark problems. Its memory depends on the benchmarks only.

    Args:
        problems: (benchmark, id, problem) of each benchmark problem, and its answer if it is known.
    """

    def __init__(self, problems: Iterable[tuple[str, ...]]) -> None:
        listed = list(problems)
        self._names = [(benchmark, name) for benchmark, name, *_ in listed]
        self._prints = [fingerprint(problem) for _, _, problem, *_ in listed]
        self._answers = ["".join(answer) for _, _, _, *answer in listed]
        self._numbers = [frozenset(text.numerals) for text in self._prints]
        self._runs = _Index([text.runs for text in self._prints])
        self._stems = _Index([text.stems for text in self._prints])

    def find(self, training: Fingerprint, differs: Callable[[str], bool] = lambda gold: False) -> Overlap | None:
        """Return the benchmark problem that is most similar to a training problem; None if none is similar enough.
        `differs` tells whether the answer of the training problem differs from a benchmark problem's."""
        numbers = set(training.numerals)
        reworded = {n for n in self._stems.candidates(training.stems) if self._numbers[n] <= numbers}
        found = [
            (share, jaccard(training.runs, self._prints[number].runs), -number)
            for number in self._runs.candidates(training.runs) | reworded
            if (share := self._copied(number, training))
        ]
        for share, _, number in sorted(found, reverse=True):
            answer, signs = self._answers[-number], self._prints[-number].signs
            complete = share >= COMPLETE and share_of(signs, training.signs) == 1
            if complete or not (answer and differs(answer)):
                return Overlap(*self._names[-number], round(share, 3))
        return None

    def _copied(self, number: int, training: Fingerprint) -> float:
        """Return the share of one benchmark problem that the training problem repeats; 0 if it is no copy."""
        bench = self._prints[number]
        share = self._run_weight(bench.runs & training.runs) / self._run_weight(bench.runs)
        same_numbers = share_of(bench.numerals, training.numerals) == 1 and bench.draws_like(training)
        if same_numbers and share_of(training.numerals, bench.numerals) >= OWN_NUMBERS:
            common = self._stem_weight(bench.stems & training.stems)
            of_bench, of_training = (common / (self._stem_weight(text.stems) or 1) for text in (bench, training))
            needed = SAME_WORDS if len(self._numbers[number]) < MANY_NUMBERS else SOME_WORDS
            if min(of_bench, of_training) >= needed:
                return max(share, of_bench)
        return share if _holds_runs(bench, training, share, same_numbers) else 0.0

    def _run_weight(self, runs: Hashes) -> float:
        return math.fsum(1 / self._runs.holders[run] for run in runs)

    def _stem_weight(self, stems: frozenset[str]) -> float:
        return math.fsum(math.log1p(len(self._prints) / (self._stems.holders[stem] + 1)) for stem in stems)


def answers_differ(grader: Grader, mine: str, gold: str) -> bool:
    """Return True if the grader finds two answers different. An option's letter beside a value proves nothing."""
    letters = [bool(_OPTION.fullmatch(answer)) for answer in (mine, gold)]
    return letters[0] == letters[1] and grader.outcome(mine, gold) == "wrong"


class _Index:
    """Look up benchmark problems by their parts: runs, or stems."""

    def __init__(self, parts: list[Any]) -> None:
        self.holders: Counter[Any] = Counter(part for of_one in parts for part in of_one)
        self._rare: dict[Any, list[int]] = {}
        for number, of_one in enumerate(parts):
            for part in of_one:
                if self.holders[part] <= COMMON:
                    self._rare.setdefault(part, []).append(number)
        self._size = Counter(number for numbers in self._rare.values() for number in numbers)

    def candidates(self, parts: Collection[Any]) -> set[int]:
        """Return the numbers of the benchmark problems that share enough rare parts."""
        common = Counter(number for part in parts for number in self._rare.get(part, ()))
        return {n for n, shared in common.items() if shared >= MIN_SHARED * min(self._size[n], len(parts))}


def _holds_runs(bench: Fingerprint, training: Fingerprint, share: float, same_numbers: bool) -> bool:
    inside = len(bench.runs & training.runs) / len(training.runs)
    if len(training.runs) >= MIN_PART and inside >= WHOLE and share_of(training.numerals, bench.numerals) == 1:
        return True
    needed = (SAME_NUMBERS if bench.numerals else NO_NUMBERS) if same_numbers else OTHER_NUMBERS
    return share >= needed and (share >= WHOLE or jaccard(bench.runs, training.runs) >= MIN_JACCARD)

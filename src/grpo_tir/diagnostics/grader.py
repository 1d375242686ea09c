"""Is the grader alive, and can it judge against these golds?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from grpo_tir.diagnostics.finding import Finding, fault, fine
from grpo_tir.grading.grader import Grader
from grpo_tir.types import Problem

PAIRS = (("\\frac{1}{2}", "\\frac{2}{4}", "right"), ("\\sqrt{8}", "3", "wrong"))
"""Answer, gold and verdict; none of them can be judged without a worker."""
GOLDS = 200
"""Golds that are tried, spread over the file."""
UNUSABLE = 0.01
"""Share of golds that cannot be judged above which too much of every batch is set aside."""


def check_grader(problems: Sequence[Problem], grader: Grader | None = None) -> Iterator[Finding]:
    """A right and a wrong answer, then the golds."""
    judge = grader or Grader()
    try:
        for answer, gold, expected in PAIRS:
            grade = judge.grade(answer, gold)
            if grade.outcome != expected:
                yield fault(
                    "grader",
                    f"calls {answer} against {gold} {grade.outcome}, not {expected} ({grade.reason}): install "
                    "grpo-tir again, its grading worker does not run",
                )
                return
        yield fine("grader", f"alive; {len(PAIRS)} answers judged as they should be")
        yield from check_golds(problems, judge)
    finally:
        if grader is None:
            judge.close()


def check_golds(problems: Sequence[Problem], judge: Grader) -> Iterator[Finding]:
    """A gold that no rule can read sets its whole group aside, step after step."""
    tried = list(islice(problems, 0, None, max(1, len(problems) // GOLDS)))[:GOLDS]
    faults = [(problem, reason) for problem in tried if (reason := judge.check_gold(problem.answer))]
    if len(faults) > UNUSABLE * len(tried):
        problem, reason = faults[0]
        yield fault(
            "grader",
            f"cannot judge {len(faults)} of {len(tried)} golds; the first, of {problem.id}: {problem.answer!r} "
            f"({reason}). Mend or leave out such rows: grpo-tir data check",
        )
    elif tried:
        yield fine("grader", f"{len(tried) - len(faults)} of {len(tried)} golds can be judged")

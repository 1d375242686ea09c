"""Check that the grader runs, and that it can judge the gold answers of the training problems."""

from collections.abc import Iterator, Sequence

from grpo_tir.diagnostics.finding import Finding, fault, fine
from grpo_tir.grading.grader import Grader
from grpo_tir.types import Problem

PAIRS = (("\\frac{1}{2}", "\\frac{2}{4}", "right"), ("\\sqrt{8}", "3", "wrong"))
"""Answer, gold and expected outcome. Each of them needs a grader process."""
GOLDS = 200
"""Number of golds to try, spread over the file."""
UNUSABLE = 0.01
"""Maximum share of golds that cannot be judged. Their rollouts are invalid and missing from every batch."""


def check_grader(problems: Sequence[Problem]) -> Iterator[Finding]:
    """Grade a right and a wrong answer, then check the golds of `problems`."""
    with Grader() as judge:
        for answer, gold, expected in PAIRS:
            grade = judge.grade(answer, gold)
            if grade.outcome != expected:
                yield fault(
                    "grader",
                    f"grades {answer} against {gold} as {grade.outcome}, not {expected} ({grade.reason}): install "
                    "grpo-tir again, its grading worker does not run",
                )
                return
        yield fine("grader", f"runs; {len(PAIRS)} answers graded correctly")
        yield from check_golds(problems, judge)


def check_golds(problems: Sequence[Problem], judge: Grader) -> Iterator[Finding]:
    """Check the golds: rollouts of a problem whose gold cannot be read are invalid in every step."""
    number = min(GOLDS, len(problems))
    tried = [problems[n * len(problems) // number] for n in range(number)]
    faults = [(problem, reason) for problem in tried if (reason := judge.check_gold(problem.answer))]
    if len(faults) > UNUSABLE * len(tried):
        problem, reason = faults[0]
        yield fault(
            "grader",
            f"cannot judge {len(faults)} of {len(tried)} golds; the first, of {problem.id}: {problem.answer!r} "
            f"({reason}). Correct or remove such rows: grpo-tir data build leaves them out",
        )
    elif tried:
        yield fine("grader", f"{len(tried) - len(faults)} of {len(tried)} golds can be judged")

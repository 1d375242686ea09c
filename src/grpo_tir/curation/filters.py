r"""Filter rows as the paper does: keep problems whose final answer a rule can judge.

ToRL drops "proof problems and those with ambiguous verification criteria" and gives no details (section 3.1). Here
a row is rejected, with a reason, if
- it asks only for a proof,
- its source marks it as broken,
- it needs a picture that is not in the text,
- it has no answer, or several different answers,
- our grader cannot judge an answer against it (see `build`).
Kept rows are cleaned of typesetting only: a change to a gold answer would give wrong rewards.
"""

import re
import unicodedata
from typing import Any

from grpo_tir.data.problems import check_answer, column_text
from grpo_tir.grading.extract import boxed_answers
from grpo_tir.grading.grader import NO_ANSWER

_PROVE = re.compile(
    r"(?:^|[.!?:;,\n]\s*|\band\s+|\bto\s+|\bplease\s+)(?:prove|show|demonstrate|verify|justify)\b", re.I
)
_ASK = re.compile(
    r"\?|\b(?:find|determine|compute|calculate|evaluate|solve|simplify|maximi[sz]e|minimi[sz]e|"
    r"how (?:many|much|long|far|old|often)|what (?:is|are|was|were|value|number))\b",
    re.I,
)
_PICTURE = re.compile(r"!\[[^\]]*\]\(|\\includegraphics|<img\b", re.I)
_FLAGS = ("problem_is_valid", "solution_is_valid")
_INVISIBLE = re.compile("[\u200b-\u200d\u2060\ufeff\u00ad]")
_IN_MATH = re.compile(r"\$\$([^$]+)\$\$|\$([^$]+)\$|\\\((.+)\\\)|\\\[(.+)\\\]", re.S)


class Unfit(Exception):
    """A row to reject: `reason` is a key of card.REASONS, `detail` describes this row."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


def read_problem(row: dict[str, Any], problem_field: str, answer_field: str) -> tuple[str, str]:
    """Return the cleaned problem and answer of a row of NuminaMath, MATH, DeepScaleR or a similar data set. If the
    column of the answer is empty, the box in `solution` is used.

    Raises:
        Unfit: the row is rejected by the filter.
        ValueError: the row is broken: no problem, no answer, or not readable.
    """
    problem = clean_problem(column_text(row, problem_field, "problem"))
    kinds = {str(row.get(column, "")).lower() for column in ("question_type", "problem_type")}
    if "proof" in kinds or str(row.get(answer_field, "")).strip().lower() == "proof":
        raise Unfit("proof", "marked as a proof")
    for flag in _FLAGS:
        if str(row.get(flag) or "yes").lower() not in ("yes", "true"):
            raise Unfit("marked as broken", f"{flag}: {row[flag]}")
    if asks_for_proof(problem):
        raise Unfit("proof", "asks only for a proof")
    if _PICTURE.search(problem):
        raise Unfit("picture", "the problem contains a picture")
    answer = clean_answer(find_answer(row, answer_field))
    check_answer(answer)
    return problem, answer


def find_answer(row: dict[str, Any], answer_field: str) -> str:
    r"""Return the answer column or, where it is empty, the content of \boxed{…} in the solution.

    Raises:
        Unfit, ValueError: as in `read_problem`.
    """
    value, solution = row.get(answer_field), row.get("solution")
    given = str(value).strip() if isinstance(value, str) else ""
    if given.lower() not in NO_ANSWER or not isinstance(solution, str):
        answer = column_text(row, answer_field, "answer")
        if answer.strip().lower() in NO_ANSWER:
            raise Unfit("no answer", f"the answer is `{answer.strip()}`")
        return answer
    boxes = {"".join(box.split()): box for box in boxed_answers(solution)}
    if not boxes:
        raise Unfit("no answer", "no answer is given, and the solution has no box")
    if len(boxes) > 1:
        raise Unfit("several answers", f"the solution boxes {len(boxes)} different answers")
    return next(iter(boxes.values()))


def asks_for_proof(problem: str) -> bool:
    """Return True if the problem asks only for a proof. "Find n and prove that it is even." asks for more."""
    return bool(_PROVE.search(problem)) and not _ASK.search(problem)


def clean_problem(text: str) -> str:
    """Normalise Unicode (NFC) and line ends; remove invisible characters and space at the ends of lines."""
    text = _INVISIBLE.sub("", unicodedata.normalize("NFC", text)).replace("\r\n", "\n").replace("\r", "\n")
    text = "\n".join(line.rstrip() for line in text.replace("\u00a0", " ").split("\n"))
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def clean_answer(text: str) -> str:
    r"""Return the answer without \boxed{…}, without enclosing dollars or \(…\), and without a final full stop."""
    text = clean_problem(text)
    if text.startswith("\\boxed"):
        text = next(iter(boxed_answers(text)), text)
    if found := _IN_MATH.fullmatch(text.rstrip(".")):
        text = found[found.lastindex or 0].strip()
    return text.removesuffix(".") if not text.endswith("..") else text

r"""The paper's filter, row by row: an answer must be asked for, and be one that a rule can judge.

ToRL drops "proof problems and those with ambiguous verification criteria" and says no more (section 3.1). Here a
row goes out, with its reason, if it asks for a proof only, was marked as broken where it comes from, needs a
picture that is not in the text, has no answer or several different ones, or an answer that is a sentence or that
our own grader cannot read. What stays is cleaned of typesetting only: a gold that changes is a reward that is
wrong.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from grpo_tir.data.problems import check_answer, column_text
from grpo_tir.grading.extract import boxed_answers

MAX_WORDS = 5
"""Words in an answer; beyond, it is a sentence, and which sentences mean the same no rule can say."""

_PROVE = re.compile(
    r"(?:^|[.!?:;,\n]\s*|\band\s+|\bto\s+|\bplease\s+)(?:prove|show|demonstrate|verify|justify)\b", re.I
)
_ASK = re.compile(
    r"\?|\b(?:find|determine|compute|calculate|evaluate|solve|simplify|maximi[sz]e|minimi[sz]e|"
    r"how (?:many|much|long|far|old|often)|what (?:is|are|was|were|value|number))\b",
    re.I,
)
_PICTURE = re.compile(r"!\[[^\]]*\]\(|\\includegraphics|<img\b", re.I)
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_NOTHING = {"", "none", "null", "nan", "n/a", "na", "notfound", "not found", "no answer", "unknown"}
_FLAGS = ("problem_is_valid", "solution_is_valid")
_INVISIBLE = re.compile("[\u200b-\u200d\u2060\ufeff\u00ad]")
_WRAPPERS = (
    re.compile(r"\$\$(?P<inner>[^$]+)\$\$"),
    re.compile(r"\$(?P<inner>[^$]+)\$"),
    re.compile(r"\\\((?P<inner>.+)\\\)", re.S),
    re.compile(r"\\\[(?P<inner>.+)\\\]", re.S),
)


class Unfit(Exception):
    """A row that goes out: `reason` is one of a few, `detail` says it of this row."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


def read_problem(row: dict[str, Any], problem_field: str, answer_field: str) -> tuple[str, str]:
    """Problem and answer of a row of NuminaMath, MATH, DeepScaleR or the like, cleaned.

    Raises:
        Unfit: it goes out.
        ValueError: it is broken: no problem, no answer, nothing readable.
    """
    problem = clean_problem(column_text(row, problem_field, "problem"))
    kinds = {str(row.get(column, "")).lower() for column in ("question_type", "problem_type")}
    if "proof" in kinds or str(row.get(answer_field, "")).strip().lower() == "proof":
        raise Unfit("proof", "marked as such")
    for flag in _FLAGS:
        if str(row.get(flag) or "yes").lower() not in ("yes", "true"):
            raise Unfit("marked as broken", f"{flag}: {row[flag]}")
    if asks_for_proof(problem):
        raise Unfit("proof", "asks for nothing else")
    if _PICTURE.search(problem):
        raise Unfit("picture", "the problem shows one that is not in its text")
    answer = clean_answer(find_answer(row, answer_field))
    check_answer(answer)
    if len(_WORD.findall(answer)) > MAX_WORDS:
        raise Unfit("unverifiable answer", "a sentence")
    return problem, answer


def find_answer(row: dict[str, Any], answer_field: str) -> str:
    r"""The answer column, or where there is none what the solution boxes.

    Raises:
        Unfit, ValueError: as `read_problem`.
    """
    value, solution = row.get(answer_field), row.get("solution")
    said = str(value).strip() if isinstance(value, str) else ""
    if said.lower() not in _NOTHING or not isinstance(solution, str):
        answer = column_text(row, answer_field, "answer")
        if answer.strip().lower() in _NOTHING:
            raise Unfit("no answer", f"the answer is `{answer.strip()}`")
        return answer
    boxes = {"".join(box.split()): box for box in boxed_answers(solution)}
    if not boxes:
        raise Unfit("no answer", "none is given, and the solution boxes none")
    if len(boxes) > 1:
        raise Unfit("several answers", f"the solution boxes {len(boxes)} different ones")
    return next(iter(boxes.values()))


def asks_for_proof(problem: str) -> bool:
    """Whether a proof is all that is asked for: not by "Find n and prove that it is even."."""
    return bool(_PROVE.search(problem)) and not _ASK.search(problem)


def clean_problem(text: str) -> str:
    """Canonical Unicode, one kind of line end, no invisible characters, no blank space at the ends of lines."""
    text = _INVISIBLE.sub("", unicodedata.normalize("NFC", text)).replace("\r\n", "\n").replace("\r", "\n")
    text = "\n".join(line.rstrip() for line in text.replace("\u00a0", " ").split("\n"))
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def clean_answer(text: str) -> str:
    r"""The bare answer: out of \boxed{…} and of the dollars around the whole, without a full stop."""
    text = clean_problem(text)
    if text.startswith("\\boxed"):
        text = next(iter(boxed_answers(text)), text)
    for wrapper in _WRAPPERS:
        if found := wrapper.fullmatch(text.rstrip(".")):
            text = found["inner"].strip()
            break
    return text.removesuffix(".") if not text.endswith("..") else text

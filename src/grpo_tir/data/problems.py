"""Load problems from a file or a generator function, and fix the order in which a run draws them.

A file is JSONL (one object on each line), a JSON list, or parquet. A row that cannot be used is reported with its
file and line: `stop` raises there, `skip` leaves the row out and counts it. Rows are never repaired, because a
silently changed gold answer gives silently wrong rewards.

The order of the sampler is a function of (seed, epoch) alone. Its state is the number of problems drawn so far, so
that a resumed run continues exactly where it stopped.
"""

import difflib
import hashlib
import re
from pathlib import Path
from typing import Any

from grpo_tir.data.rows import Numeral, columns, kind, read_rows, short
from grpo_tir.errors import DataError
from grpo_tir.types import Problem

MAX_ANSWER = 1000
"""Longest gold answer in characters. The longest of MATH and OlympiadBench has 198."""
MAX_EXPONENT = 10_000
"""Largest exponent of a gold answer. To compare `1e999999999` would take a gigabyte of digits."""

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE]([-+]?\d+))?")
_ALIASES = {
    "problem": ("question", "prompt", "query", "input", "text"),
    "answer": ("gold", "target", "final_answer", "ground_truth", "expected_answer", "label", "solution"),
}


def load_problems(
    path: str | Path,
    *,
    problem_field: str = "problem",
    answer_field: str = "answer",
    id_field: str = "id",
    on_bad: str = "stop",
) -> tuple[list[Problem], list[str]]:
    """Load the problems of `path`.

    `path` is a `.jsonl`, `.json` or `.parquet` file, or a function (`package.module:name`, `file.py:name`) that
    yields `Problem`s. Returns the problems, and one line of text for each row that was left out.

    Raises:
        DataError: a row cannot be used and `on_bad` is `stop`, there is no such file, or it has no usable row.
        ConfigError: the function cannot be imported.
    """
    fields = {"problem": problem_field, "answer": answer_field, "id": id_field}
    rows = list(read_rows(str(path)))
    has_ids = any(
        isinstance(row, Problem) or (isinstance(row, dict) and row.get(id_field) is not None) for _, row in rows
    )
    problems: list[Problem] = []
    skipped: list[str] = []
    seen: dict[str, str] = {}
    for where, row in rows:
        try:
            problem = _problem(row, fields, None if has_ids else where.rpartition(" ")[2])
            if problem.id in seen:
                raise ValueError(f"the id {short(problem.id)} is taken by {seen[problem.id]}")
        except ValueError as error:
            message = f"{path} {where}: {error}"
            if on_bad != "skip":
                raise DataError(f"{message} (`--on-bad skip` leaves such rows out)") from None
            skipped.append(message)
        else:
            seen[problem.id] = where
            problems.append(problem)
    if not problems:
        raise DataError(f"{path} holds no usable problem; {skipped[0] if skipped else 'it is empty'}")
    return problems, skipped


def _problem(row: Any, fields: dict[str, str], number: str | None) -> Problem:
    """Check a row and make a problem of it; raises ValueError with the fault. `number` is the id if the file has
    none."""
    if isinstance(row, Problem):
        row = vars(row) | {column: getattr(row, role) for role, column in fields.items()}
    row = columns(row)
    problem, answer = (column_text(row, fields[role], role) for role in ("problem", "answer"))
    check_answer(answer)
    source = row.get("source")
    identity = number or column_text(row, fields["id"], "id")
    return Problem(identity, problem, answer, source if isinstance(source, str) else "")


def check_answer(answer: str) -> None:
    """Raise ValueError for an answer that would take gigabytes to compare."""
    if len(answer) > MAX_ANSWER:
        raise ValueError(f"the answer is gigantic: {len(answer):,} characters, the limit is {MAX_ANSWER:,}")
    numeral = _NUMBER.fullmatch(answer.strip())
    if numeral and numeral[3] and (len(numeral[3]) > 9 or abs(int(numeral[3])) > MAX_EXPONENT):
        raise ValueError(f"the answer is a gigantic number: {short(answer)}")


def column_text(row: dict[str, Any], column: str, role: str) -> str:
    """Return a column as text. An answer or id may be a number, and is kept as the file writes it. Raises
    ValueError if the value cannot be used as `role` (problem, answer, id)."""
    if column not in row:
        raise ValueError(f"no column `{column}`{_nearest_column(row, column, role)}")
    value = row[column]
    if value is None:
        raise ValueError(f"`{column}` is missing (null)")
    if not isinstance(value, str) or (role == "problem" and isinstance(value, Numeral)):
        raise ValueError(f"`{column}` must be text, this is {kind(value)}")
    if not value.strip():
        raise ValueError(f"`{column}` is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"`{column}` holds half of a surrogate pair, which no tokenizer can encode") from None
    return str(value)


def _nearest_column(row: dict[str, Any], column: str, role: str) -> str:
    """Return a hint for a missing column: the column that was probably meant, and the option to set."""
    columns = [str(name) for name in row]
    near = difflib.get_close_matches(column, columns, n=1)
    near += [alias for alias in _ALIASES.get(role, ()) if alias in columns]
    if near:
        return f"; did you mean `{near[0]}`? Set data.{role}_field (`grpo-tir data`: --{role}-field) to {near[0]}"
    return f"; its columns are: {short(', '.join(columns), 200) or 'none'}"


class ProblemSampler:
    """Draw every problem once in each epoch, in an order that depends only on (seed, epoch).

    The indices are sorted by a hash. A library's shuffle may change between versions of Python or numpy.
    """

    def __init__(self, problems: list[Problem], seed: int, shuffle: bool = True) -> None:
        if not problems:
            raise DataError("there are no problems to sample from")
        self.problems = problems
        self.seed = seed
        self.shuffle = shuffle
        self.position = 0
        """Number of problems drawn so far, over all epochs."""
        self._order: tuple[int, list[int]] = (-1, [])

    def next(self, n: int) -> list[Problem]:
        """Draw the next n problems. Continues in the next epoch when this one ends."""
        drawn = []
        for position in range(self.position, self.position + n):
            epoch, i = divmod(position, len(self.problems))
            drawn.append(self.problems[self._epoch_order(epoch)[i]])
        self.position += n
        return drawn

    def _epoch_order(self, epoch: int) -> list[int]:
        if self._order[0] != epoch:
            order = list(range(len(self.problems)))
            if self.shuffle:
                order.sort(key=lambda i: hashlib.sha256(f"{self.seed}/{epoch}/{i}".encode()).digest())
            self._order = (epoch, order)
        return self._order[1]

    def state_dict(self) -> dict[str, int]:
        """Return the complete state of the sampler."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from a saved state."""
        self.position = state["position"]

"""Check one raw row on its own: is it a usable problem, unlike those of the benchmarks, with a short prompt?"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_tir.curation.balance import difficulty_class
from grpo_tir.curation.contamination import Benchmarks
from grpo_tir.curation.dedup import SourceRow
from grpo_tir.curation.filters import Unfit, read_problem
from grpo_tir.curation.fingerprint import Fingerprint, fingerprint
from grpo_tir.data.problems import column_text
from grpo_tir.data.prompts import make_renderer
from grpo_tir.data.rows import columns
from grpo_tir.errors import DataError
from grpo_tir.types import Problem
from grpo_tir.utils import hub

BAD = "bad row"


@dataclass(frozen=True)
class Settings:
    """Settings of a build that change its output."""

    problem_field: str = "problem"
    answer_field: str = "answer"
    difficulty_field: str = "level"
    """Column to balance by; where it is missing, the source is used as the difficulty."""
    tokenizer: str | None = None
    """Folder, file or Hub id (@revision); None: no limit on the prompt's length."""
    template: str = "torl"
    max_prompt_length: int = 400
    """Tokens of the rendered prompt. (ToRL: 400)"""
    balance: int | None = None
    """Number of problems to draw, equally from each difficulty; None: keep all."""
    seed: int = 0
    """Seed of the draw for `balance`."""


@dataclass
class Examiner:
    """Examine rows one by one. The result depends only on the row and the settings.

    Raises:
        DataError, TemplateError: the tokenizer or the template cannot be loaded.
    """

    names: list[str]
    """Names of the sources, by number."""
    forbidden: Benchmarks
    settings: Settings
    differ: Callable[[str, str], bool]
    """True if two answers differ."""

    def __post_init__(self) -> None:
        place = self.settings.tokenizer
        self.tokenizer = load_tokenizer(place) if place else None
        self.tokenizer_sha256 = self.tokenizer and hashlib.sha256(self.tokenizer.to_str().encode()).hexdigest()
        self.render = make_renderer(self.settings.template)

    def examine(self, number: int, place: str, raw: Any) -> SourceRow:
        """Check one row of source `number`. `raw` is the row, or the ValueError that its reader made."""
        settings, name = self.settings, self.names[number]
        row = SourceRow(number, place)
        try:
            fields = columns(raw)
            row.origin = f"{name}/{fields['source']}" if isinstance(fields.get("source"), str) else name
            row.has_own_id = fields.get("id") is not None
            row.id = column_text(fields, "id", "id") if row.has_own_id else ""
            row.problem = str(fields.get(settings.problem_field) or "")
            row.answer = str(fields.get(settings.answer_field) or "")
            row.problem, row.answer = read_problem(fields, settings.problem_field, settings.answer_field)
        except Unfit as unfit:
            row.reason, row.detail = unfit.reason, unfit.detail
        except ValueError as error:
            row.reason, row.detail = BAD, str(error)
            row.problem, row.answer = _printable(row.problem), _printable(row.answer)
            return row
        row.print = fingerprint(row.problem)
        row.id = row.id or f"{name}-{hashlib.sha256(row.problem.encode()).hexdigest()[:16]}"
        level = fields.get(settings.difficulty_field)
        row.difficulty = difficulty_class(level if isinstance(level, str) and level else row.origin)
        if not row.reason:
            self._compare_and_measure(row, row.print)
        return row

    def _compare_and_measure(self, row: SourceRow, text: Fingerprint) -> None:
        similar = self.forbidden.find(text, lambda gold: self.differ(row.answer, gold))
        if similar:
            row.reason, row.other = "similar to a benchmark", similar.id
            row.detail = f"{similar.benchmark}: {similar.share:.2f} of its words"
        elif self.tokenizer:
            prompt = self.render(Problem(row.id, row.problem, row.answer))
            tokens = len(self.tokenizer.encode(prompt, add_special_tokens=False).ids)
            if tokens > self.settings.max_prompt_length:
                row.reason, row.detail = "too long", f"{tokens} tokens"


def _printable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def load_tokenizer(place: str) -> Any:
    """Load a tokenizer from a folder, a file or the Hub.

    It uses `tokenizers` directly: importing transformers takes 240 MB more for the same ids.
    """
    from tokenizers import Tokenizer

    file = Path(place) / "tokenizer.json" if Path(place).is_dir() else Path(place)
    try:
        if file.is_file():
            tokenizer = Tokenizer.from_file(str(file))
        else:
            hub.go_offline_if_unreachable()
            name, _, revision = place.partition("@")
            tokenizer = Tokenizer.from_pretrained(name, revision=revision or "main")
    except Exception as error:  # the library's errors are bare Exceptions
        raise DataError(f"cannot load the tokenizer {place}: {str(error).splitlines()[0]}") from None
    tokenizer.no_truncation()
    return tokenizer

"""Where problems come from: files, and data sets of the Hugging Face Hub.

    numina                                   AI-MO/NuminaMath-1.5, at the commit its main branch has now
    deepscaler@<commit>                      a preset at a commit
    owner/name:config@revision#split         any data set; config, revision and split (train) may be left out
    path/to/rows.jsonl   numina=rows.jsonl   a file, by its own name or another one

A benchmark may be named alone (aime24): it is then held to its pin (data.benchmarks).

A source is pinned before its first row: a file by its hash, a data set by its commit. Rows are streamed.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_tir.curation.filters import clean_problem
from grpo_tir.data.benchmarks import PINS, load_benchmark
from grpo_tir.data.problems import column_text
from grpo_tir.data.rows import kind, read_rows, spelt
from grpo_tir.errors import DataError
from grpo_tir.types import Problem
from grpo_tir.utils import hub
from grpo_tir.utils.resources import find_file

PRESETS = {
    "numina": "AI-MO/NuminaMath-1.5",
    "math": "DigitalLearningGmbH/MATH-lighteval",
    "deepscaler": "agentica-org/DeepScaleR-Preview-Dataset",
}
"""The paper's sources (section 3.1). MATH stands under a mirror's name: its own was taken down in January 2025."""
_NAMED = re.compile(r"([\w.-]+)=(.+)")
_DATASET = re.compile(r"(?P<id>[^:@#]+)(?::(?P<config>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?(?:#(?P<split>\w+))?")


@dataclass(frozen=True)
class Source:
    """One pinned source."""

    name: str
    location: str
    """A path, or the id of a data set."""
    pin: str
    """sha256 of the file, or commit of the data set."""
    rows: int | None = None
    """How many, where that is known beforehand."""
    config: str | None = None
    split: str | None = None
    """None: a file."""

    def read(self, start: int = 0) -> Iterator[tuple[str, Any]]:
        """(where, row) from the row number `start` on."""
        if self.split is None:
            yield from itertools.islice(read_rows(self.location), start, None)
            return
        try:
            stream = _stream(self).skip(start)
            for number, row in enumerate(stream, start + 1):
                yield f"row {number}", spelt(row)
        except Exception as error:  # of the network, of the Hub, of a format: the library has no tree of its own
            raise DataError(_unreachable(self.location, error)) from None


def open_source(argument: str) -> Source:
    """Find and pin a source.

    Raises:
        DataError: neither a file nor a data set that can be reached.
    """
    named = _NAMED.fullmatch(argument)
    name, place = (named[1], named[2]) if named else ("", argument)
    file = find_file(place)
    if file is not None:
        digest, lines = _digest(file)
        known = lines if file.suffix == ".jsonl" else None
        return Source(name or file.stem, str(file), digest, known)
    if Path(place).suffix in (".jsonl", ".json", ".parquet"):
        raise DataError(f"cannot read {place}: there is no such file")
    preset = place.partition("@")[0]
    place = place.replace(preset, PRESETS.get(preset, preset), 1)
    parts = _DATASET.fullmatch(place)
    if parts is None or ("/" not in parts["id"] and not Path(parts["id"]).is_dir()):
        raise DataError(
            f"`{argument}` is no file, no data set `owner/name@revision` and none of: {', '.join(PRESETS)}"
        )
    name = name or (preset if preset in PRESETS else parts["id"].rstrip("/").rpartition("/")[2])
    pin, rows = _pin(parts["id"], parts["config"], parts["revision"], parts["split"] or "train")
    return Source(name, parts["id"], pin, rows, parts["config"], parts["split"] or "train")


def open_benchmark(
    argument: str, folder: str | None, problem_field: str
) -> tuple[Source, list[tuple[str, str, str]]]:
    """A benchmark to keep out, and (benchmark, id, problem) of its rows; none is passed over.

    Args:
        argument: the name of a pinned one, or a source.
        folder: where NAME.jsonl of the pinned ones lie; None: on the Hub.

    Raises:
        DataError: it is not there, not what it is pinned to be, or has a row without a problem.
    """
    if argument in PINS and find_file(argument) is None:
        pinned = load_benchmark(argument, folder)
        source = Source(argument, pinned.source, pinned.sha256, len(pinned.problems))
        return source, [(argument, problem.id, problem.problem) for problem in pinned.problems]
    source = open_source(argument)
    problems = []
    for where, row in source.read():
        try:
            fields = columns(row, problem_field, "answer")
            known = (name for name in (problem_field, "problem", "question") if name in fields)
            problem = clean_problem(column_text(fields, next(known, problem_field), "problem"))
        except ValueError as error:
            raise DataError(f"{source.location} {where}: {error}") from None
        problems.append((source.name, str(fields.get("id") or f"{source.name} {where}"), problem))
    return source, problems


def columns(row: Any, problem_field: str, answer_field: str) -> dict[str, Any]:
    """A row's columns. ValueError: it has none."""
    if isinstance(row, ValueError):
        raise row
    if isinstance(row, Problem):
        return {"id": row.id, problem_field: row.problem, answer_field: row.answer, "source": row.source}
    if not isinstance(row, dict):
        raise ValueError(f"a row is an object with columns, this is {kind(row)}")
    return row


def _digest(file: Path) -> tuple[str, int]:
    """sha256 and number of lines."""
    digest, lines = hashlib.sha256(), 0
    try:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
                lines += block.count(b"\n")
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or error}") from None
    return digest.hexdigest(), lines


def _pin(location: str, config: str | None, revision: str | None, split: str) -> tuple[str, int | None]:
    """The commit, and the number of rows if the data set tells. A folder is pinned by what is in its files."""
    if Path(location).is_dir():
        files = sorted(path for path in Path(location).rglob("*") if path.is_file())
        listed = "".join(f"{path.relative_to(location)} {_digest(path)[0]}\n" for path in files)
        return hashlib.sha256(listed.encode()).hexdigest(), None
    hub.go_offline_if_unreachable()
    try:
        from huggingface_hub import HfApi

        pin = HfApi().dataset_info(location, revision=revision).sha
    except Exception as error:
        raise DataError(_unreachable(location, error)) from None
    if pin is None:
        raise DataError(f"the Hub names no commit for {location}")
    source = Source("", location, pin, None, config, split)
    splits = getattr(getattr(_stream(source), "info", None), "splits", None) or {}
    return pin, splits[split].num_examples if split in splits else None


def _stream(source: Source) -> Any:
    try:
        from datasets import load_dataset
    except ModuleNotFoundError:
        raise DataError(
            "the Hub's data sets need an extra; install it with: pip install 'grpo-tir[data]'"
        ) from None
    revision = None if Path(source.location).is_dir() else source.pin
    return load_dataset(source.location, source.config, split=source.split, revision=revision, streaming=True)


def _unreachable(location: str, error: Exception) -> str:
    if isinstance(error, DataError):
        return str(error)
    reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
    return f"cannot load the data set {location} ({reason}); a file with its columns can be named instead"

"""Open sources of problems: files, and data sets of the Hugging Face Hub.

    numina                                   AI-MO/NuminaMath-1.5, at the current commit of its main branch
    deepscaler@<commit>                      a preset at a commit
    owner/name:config@revision#split         any data set; config, revision and split (train) are optional
    path/to/rows.jsonl   numina=rows.jsonl   a file, with its own name or a given name

A benchmark can be given by its name (aime24). Then its content must match the pinned hash (data.benchmarks).

A source is pinned before its first row is read: a file by its hash, a data set by its commit. Rows are streamed.
"""

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
from grpo_tir.data.rows import columns, read_rows, spelt
from grpo_tir.errors import DataError
from grpo_tir.utils import hub
from grpo_tir.utils.resources import find_file

PRESETS = {
    "numina": "AI-MO/NuminaMath-1.5",
    "math": "DigitalLearningGmbH/MATH-lighteval",
    "deepscaler": "agentica-org/DeepScaleR-Preview-Dataset",
}
"""Sources of the paper (section 3.1). MATH is a mirror: the original was taken down in January 2025."""
_NAMED = re.compile(r"([\w.-]+)=(.+)")
_DATASET = re.compile(r"(?P<id>[^:@#]+)(?::(?P<config>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?(?:#(?P<split>\w+))?")


@dataclass(frozen=True)
class Source:
    name: str
    location: str
    """Path of a file, or id of a data set."""
    pin: str
    """sha256 of the file, or commit of the data set."""
    rows: int | None = None
    """Number of rows; None: not known."""
    config: str | None = None
    split: str | None = None
    """Split of a data set; None: the source is a file."""

    def read(self, start: int = 0) -> Iterator[tuple[str, Any]]:
        """Yield (place, row), skipping the first `start` rows."""
        if self.split is None:
            yield from itertools.islice(read_rows(self.location), start, None)
            return
        try:
            stream = _stream(self).skip(start)
            for number, row in enumerate(stream, start + 1):
                yield f"row {number}", spelt(row)
        except Exception as error:  # the library has no common class for errors of network, Hub and format
            raise DataError(_unreachable(self.location, error)) from None


def open_source(argument: str) -> Source:
    """Find and pin a source, written in one of the forms above.

    Raises:
        DataError: it is neither a file nor a data set that can be reached.
    """
    named = _NAMED.fullmatch(argument)
    name, place = (named[1], named[2]) if named else ("", argument)
    file = find_file(place)
    if file is not None:
        return Source(name or file.stem, str(file), *_read_once(file))
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
    argument: str, folder: str | None, problem_field: str, answer_field: str
) -> tuple[Source, list[tuple[str, str, str, str]]]:
    """Read a benchmark to keep out: a source, or a pinned one by its name, from `folder` or the Hub. Its column of
    answers may be missing. Returns its source and (benchmark, id, problem, answer) of each row.

    Raises:
        DataError: it does not exist, does not match its pin, or has a row without a problem.
    """
    if argument in PINS and find_file(argument) is None:
        pinned = load_benchmark(argument, folder)
        source = Source(argument, pinned.source, pinned.sha256, len(pinned.problems))
        return source, [(argument, p.id, p.problem, p.answer) for p in pinned.problems]
    source = open_source(argument)
    problems = []
    for where, row in source.read():
        try:
            fields = columns(row)
            known = (name for name in (problem_field, "problem", "question") if name in fields)
            problem = clean_problem(column_text(fields, next(known, problem_field), "problem"))
        except ValueError as error:
            raise DataError(f"{source.location} {where}: {error}") from None
        answer = str(fields.get(answer_field) or fields.get("answer") or "")
        problems.append((source.name, str(fields.get("id") or f"{source.name} {where}"), problem, answer))
    return source, problems


def _read_once(file: Path) -> tuple[str, int | None]:
    """Return the sha256 of a file, and the number of its rows if it has one on each line."""
    digest, lines = hashlib.sha256(), 0
    try:
        with file.open("rb") as stream:
            for line in stream:
                digest.update(line)
                lines += 1
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or error}") from None
    return digest.hexdigest(), lines if file.suffix == ".jsonl" else None


def _pin(location: str, config: str | None, revision: str | None, split: str) -> tuple[str, int | None]:
    """Return the commit and, if known, the number of rows. A local folder is pinned by the hash of its files."""
    if Path(location).is_dir():
        files = sorted(path for path in Path(location).rglob("*") if path.is_file())
        listed = "".join(f"{path.relative_to(location)} {_read_once(path)[0]}\n" for path in files)
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
    return f"cannot load the data set {location} ({reason}); a file with the same columns can be given instead"

"""Read the rows of a data source one at a time, each with its position.

A source is JSONL (`line 7`), a JSON list or parquet (`row 7`), or a function (`item 7`). For a row that cannot be
read, a ValueError with the reason is yielded in its place, so that the caller can continue with the next row.
Memory holds one JSONL row or one parquet batch, for files of any size, but a complete JSON list.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grpo_tir.errors import DataError
from grpo_tir.types import Problem
from grpo_tir.utils.resources import find_file, load_object

BATCH = 256
"""Number of parquet rows decoded at a time. pyarrow's default of 65,536 would need hundreds of megabytes."""

_FILE_NAME = re.compile(r".*\.(jsonl|json|parquet|csv|tsv|txt)|[^:]*/[^:]*|[\w-]*")
"""Matches names that are meant as a file, even if there is none. Any other text names a function."""


class Numeral(str):
    """A number as text, as the file writes it: `0.10` stays `0.10`, and integers may have any length."""


def read_rows(spec: str) -> Iterator[tuple[str, Any]]:
    """Yield (position, row) for every row of a source.

    Raises:
        DataError: there is no such file, or the rest of it cannot be read.
        ConfigError: the function cannot be imported.
    """
    path = find_file(spec)
    if path is None:
        if Path(spec).is_dir():
            raise DataError(f"cannot read {spec}: it is a folder")
        if _FILE_NAME.fullmatch(spec):
            raise DataError(f"cannot read {spec}: there is no such file")
        yield from _generated(spec)
        return
    try:
        if path.suffix == ".parquet":
            yield from _parquet_rows(path)
        elif path.suffix == ".json" and _first_character(path) == b"[":
            yield from _list_rows(path)
        else:
            yield from _line_rows(path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None


def kind(value: Any) -> str:
    """Describe the type of a value for an error message."""
    if isinstance(value, Numeral):
        return f"the number {short(value)}"
    names = {list: "a list", dict: "an object", bool: "true or false", type(None): "null", str: "text"}
    return names.get(type(value), f"a {type(value).__name__}")


def columns(row: Any) -> dict[str, Any]:
    """Return the columns of a row. Raises ValueError if it has none or was not readable."""
    if isinstance(row, ValueError):
        raise row
    if not isinstance(row, dict):
        raise ValueError(f"a row is an object with columns, this is {kind(row)}")
    return row


def short(text: str, limit: int = 40) -> str:
    """Shorten a text for an error message."""
    return text if len(text) <= limit else f"{text[:limit]}…"


def parse_json(raw: bytes) -> Any:
    """Parse JSON and keep numbers as written (`Numeral`). Bad JSON returns a ValueError with the reason."""
    try:
        return json.loads(raw.decode(), parse_int=Numeral, parse_float=Numeral, parse_constant=_refuse)
    except UnicodeDecodeError as error:
        byte = f"byte 0x{raw[error.start]:02x} at column {error.start + 1}"
        return ValueError(f"wrong encoding: not UTF-8 ({byte}); convert the file with `iconv -t UTF-8`")
    except json.JSONDecodeError as error:
        line = f"line {error.lineno} " if error.lineno > 1 else ""
        return ValueError(f"wrong JSON: {error.msg} at {line}column {error.colno}")
    except RecursionError:
        return ValueError("wrong JSON: nested too deeply")
    except ValueError as error:
        return error


def _refuse(constant: str) -> Any:
    raise ValueError(f"wrong JSON: {constant} is not a JSON value")


def _first_character(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]


def _line_rows(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open("rb") as file:
        for i, line in enumerate(file, 1):
            if i == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
                if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                    raise DataError(f"{path} is UTF-16: convert it with `iconv -f UTF-16 -t UTF-8`")
            if line.strip():
                yield f"line {i}", parse_json(line.rstrip(b"\n"))


def _list_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the items of a JSON list. Bad JSON raises DataError, because the next item cannot be found."""
    items = parse_json(path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    if isinstance(items, ValueError):
        raise DataError(f"{path}: {items}")
    for i, item in enumerate(items, 1):
        yield f"row {i}", item


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise DataError(f"{path}: parquet needs pyarrow; install it with: pip install 'grpo-tir[data]'") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            start = 1
            for batch in table.iter_batches(batch_size=BATCH):
                for i, row in enumerate(batch.to_pylist(), start):
                    yield f"row {i}", spelt(row)
                start += batch.num_rows
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is not readable as parquet: {str(error).splitlines()[0]}") from None


def spelt(row: dict[str, Any]) -> dict[str, Any]:
    """Convert the numbers of a parquet row to `Numeral`."""
    numbers = (int, float)
    return {
        name: Numeral(value) if isinstance(value, numbers) and not isinstance(value, bool) else value
        for name, value in row.items()
    }


def _generated(spec: str) -> Iterator[tuple[str, Any]]:
    function = load_object(spec)
    if not callable(function):
        raise DataError(f"{spec} is {kind(function)}; it must be a function that yields Problem objects")
    try:
        for i, item in enumerate(function(), 1):
            wrong = ValueError(f"{spec} must yield Problem objects, this is {kind(item)}")
            yield f"item {i}", item if isinstance(item, Problem) else wrong
    except Exception as error:
        raise DataError(f"{spec} failed: {type(error).__name__}: {error}") from error

"""Rows of a source, one at a time, each with the place where it stands.

A source is JSONL (`line 7`), a JSON list or parquet (`row 7`), or a function (`item 7`). A row that cannot be read
comes as the ValueError that says why, so that the reader can go on behind it. Memory holds one row, one chunk of a
list or one batch of a table, whatever the size of the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grpo_tir.errors import DataError
from grpo_tir.types import Problem
from grpo_tir.utils.resources import find_file, load_object

CHUNK = 1 << 16
"""Characters of a JSON list that are read at a time."""
LONGEST = 1 << 26
"""Characters of one item of a list: beyond, it is a list without an end and not a problem."""
BATCH = 256
"""Rows of a table that are decoded at a time; pyarrow's own 65,536 would be hundreds of megabytes of objects."""

_FILE_NAME = re.compile(r".*\.(jsonl|json|parquet|csv|tsv|txt)|[^:]*/[^:]*|[\w-]*")
"""What was meant as a file even where there is none; anything else names a function."""
_SIGN = {"[": re.compile(r"\s*\[\s*(?=[^\s\]])"), ",": re.compile(r"\s*,\s*")}
_ESCAPED = re.compile("[\udc80-\udcff]")
"""A byte that is not UTF-8, as Python's `surrogateescape` lets it pass."""


class Numeral(str):
    """A number as the file spells it: `0.10` stays `0.10`, and no integer is too long to be read."""


def read_rows(spec: str) -> Iterator[tuple[str, Any]]:
    """(where, row) of any source.

    Raises:
        DataError: no such file, or one that cannot be read from here on.
        ConfigError: a function that cannot be imported.
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
        elif path.suffix == ".json" and _first_sign(path) == b"[":
            yield from _list_rows(path)
        else:
            yield from _line_rows(path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None


def kind(value: Any) -> str:
    """What a value is, in the words of an error message."""
    if isinstance(value, Numeral):
        return f"the number {short(value)}"
    names = {list: "a list", dict: "an object", bool: "true or false", type(None): "null", str: "text"}
    return names.get(type(value), f"a {type(value).__name__}")


def short(text: str, limit: int = 40) -> str:
    """Text for an error message."""
    return text if len(text) <= limit else f"{text[:limit]}…"


def parse_json(raw: bytes) -> Any:
    """JSON with numbers kept as spelt; what cannot be read comes back as the ValueError that says why."""
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


def _first_sign(path: Path) -> bytes:
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
    """The items of a JSON list. One that is wrong ends the file: where the next begins is anybody's guess."""
    decoder = json.JSONDecoder(parse_int=Numeral, parse_float=Numeral)
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        text, sign, number, fault = "", "[", 0, ""
        while chunk := file.read(max(CHUNK, len(text))):  # doubling, so that a long item is not parsed too often
            text, at, fault = text + chunk, 0, ""
            while (opened := _SIGN[sign].match(text, at)) and not fault:
                try:
                    item, end = decoder.raw_decode(text, opened.end())
                except (json.JSONDecodeError, RecursionError) as error:  # wrong, or cut off: the next chunk tells
                    fault = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
                    continue
                number, sign = number + 1, ","
                escaped = _ESCAPED.search(text, at, end)
                yield f"row {number}", _wrong_byte(escaped[0]) if escaped else item
                at = end
            text = text[at:]
            if len(text) > LONGEST:
                break
        if text.strip() != "]" and (number or "".join(text.split()) != "[]"):
            raise DataError(f"{path} row {number + 1}: wrong JSON: {fault or 'the list has no end'}")


def _wrong_byte(escaped: str) -> ValueError:
    byte = f"byte 0x{ord(escaped) - 0xDC00:02x}"
    return ValueError(f"wrong encoding: not UTF-8 ({byte}); convert the file with `iconv -t UTF-8`")


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
    """A row of a table with its numbers as text."""
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

"""Rows come one at a time, each with its place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from grpo_tir.data import rows
from grpo_tir.errors import DataError


def test_a_list_yields_its_items_with_their_numbers_as_written(tmp_path: Path) -> None:
    items = [{"id": i, "problem": f'"[{{é}}], {i}\\' * (i % 5), "answer": [i, None, "x"]} for i in range(40)]
    path = tmp_path / "list.json"
    path.write_text(json.dumps(items, indent=1, ensure_ascii=False), encoding="utf-8-sig")
    found = list(rows.read_rows(str(path)))
    assert [where for where, _ in found] == [f"row {i + 1}" for i in range(40)]
    assert json.loads(json.dumps([row for _, row in found])) == json.loads(json.dumps(items), parse_int=str)


@pytest.mark.parametrize("text", ["[]", " [ \n ] "])
def test_an_empty_list_has_no_rows(text: str, tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text(text)
    assert list(rows.read_rows(str(path))) == []


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b'[{"a": 1}, {"a" 2}]', "wrong JSON: Expecting ':' delimiter at column 17"),
        (b'[{"a": 1}, {"a": 2}', "wrong JSON"),
        (b'[{"a": "\xe9"}, {"a": "e"}]', "wrong encoding: not UTF-8 .byte 0xe9 at column 9"),
    ],
)
def test_a_list_that_cannot_be_parsed_is_refused(content: bytes, fault: str, tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"list\.json: {fault}"):
        list(rows.read_rows(str(path)))


def test_a_file_is_not_read_further_than_it_is_asked_for(tmp_path: Path) -> None:
    """The last line is broken; nobody who stops before it hears of it, and nothing holds the whole file."""
    path = tmp_path / "lines.jsonl"
    path.write_text('{"a": 1}\n' * 3 + "{")
    reader = rows.read_rows(str(path))
    assert [next(reader) for _ in range(3)] == [(f"line {i}", {"a": "1"}) for i in (1, 2, 3)]
    assert isinstance(next(reader)[1], ValueError)

"""`grpo-tir grade`: order, atomicity, and every bad row by file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from grpo_tir.cli import main


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines), encoding="utf-8")
    return path


def test_verdicts_come_in_order_with_the_documented_keys(tmp_path: Path) -> None:
    source = write(
        tmp_path / "in.jsonl",
        {"id": 1, "output": r"\boxed{\frac12}", "answer": "0.5"},
        {"id": "b", "output": "no box", "answer": 3},
        {"id": "c", "output": r"\boxed{4}", "answer": ""},
        "",
        {"id": None, "output": r"\boxed{1} or \boxed{2}", "answer": "1"},
    )
    assert main(["grade", str(source), "--out", str(tmp_path / "out.jsonl"), "--workers", "1"]) == 0
    graded = rows(tmp_path / "out.jsonl")
    assert [(row["id"], row["outcome"], row["extracted"]) for row in graded] == [
        (1, "right", r"\frac12"),
        ("b", "wrong", None),
        ("c", "unjudged", "4"),
        (None, "wrong", "2"),
    ]
    assert all(set(row) == {"id", "outcome", "extracted", "seconds"} and row["seconds"] >= 0 for row in graded)


BAD = {
    "not JSON": ('{"id": 1,', "wrong JSON"),
    "an array": ("[1]", "a row is an object with columns"),
    "no answer": ('{"id": 2, "output": "x"}', "`answer` is missing"),
    "no output": ('{"id": 2, "answer": "x"}', "`output` is missing"),
    "output of another type": ('{"id": 2, "output": 5, "answer": "x"}', "`output` must be text"),
    "answer of another type": ('{"id": 2, "output": "", "answer": [1]}', "`answer` must be text or a number"),
    "a gigantic number": ('{"id": 2, "output": "", "answer": ' + "9" * 5000 + "}", "gigantic"),
    "a number beyond floats": ('{"id": 2, "output": "", "answer": 1e99999}', "gigantic"),
    "an id twice": ('{"id": 1, "output": "", "answer": "1"}', "the id 1 is that of line 1 too"),
    "nested without end": ("[" * 100_000, "wrong JSON: nested too deeply"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_named_with_file_and_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    line, fault = BAD[case]
    source = write(tmp_path / "in.jsonl", {"id": 1, "output": r"\boxed{1}", "answer": "1"}, line)
    out = tmp_path / "out.jsonl"
    assert main(["grade", str(source), "--out", str(out)]) == 2
    message = capsys.readouterr().err
    assert f"{source} line 2: " in message and fault in message
    assert message.count("\n") == 1
    assert list(tmp_path.iterdir()) == [source], "nothing half-written is left"
    assert main(["grade", str(source), "--out", str(out), "--on-bad", "skip"]) == 0
    captured = capsys.readouterr()
    assert [row["id"] for row in rows(out)] == [1]
    assert f"left out: {source} line 2: " in captured.err and "1 left out" in captured.out


def test_a_wrong_encoding_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes('{"id": 1, "output": "é", "answer": "1"}\n'.encode("latin-1"))
    assert main(["grade", str(source), "--out", str(tmp_path / "out.jsonl")]) == 2
    assert f"{source} line 1: wrong encoding: not UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["none.jsonl", "--out", "out.jsonl"], "cannot read"),
        (["in.jsonl", "--out", "in.jsonl"], "is the input itself"),
        (["in.jsonl", "--out", "no/such/out.jsonl"], "is no folder"),
        (["in.jsonl", "--out", "out.jsonl", "--workers", "0"], "--workers must be"),
    ],
)
def test_bad_arguments_are_one_line_and_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    fault: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "in.jsonl", {"id": 1, "output": "", "answer": "1"})
    assert main(["grade", *arguments]) == 2
    message = capsys.readouterr().err
    assert fault in message and message.count("\n") == 1

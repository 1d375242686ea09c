"""A benchmark is the whole pinned text, or it is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from grpo_tir.data import benchmarks
from grpo_tir.data.benchmarks import PINS, content_hash, load_benchmark, plain_answer
from grpo_tir.errors import DataError
from grpo_tir.types import Problem

ROWS = [{"id": f"p{i}", "problem": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(4)]


@pytest.fixture
def pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a benchmark `toy` of four rows, pinned to their text."""
    write(tmp_path, ROWS)
    text = content_hash([Problem("", row["problem"], row["answer"]) for row in ROWS])
    pin = dataclasses.replace(PINS["aime24"], rows=4, sha256=text)
    monkeypatch.setattr(benchmarks, "PINS", {"toy": pin})
    return tmp_path


def write(folder: Path, rows: list[dict[str, str]]) -> None:
    (folder / "toy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_published_five_have_their_pinned_rows_and_text(shared_data: Path) -> None:
    sizes = {"aime24": 30, "aime25": 30, "math500": 500, "olympiadbench": 675, "amc23": 40}
    for name, rows in sizes.items():
        benchmark = load_benchmark(name, str(shared_data / "bench"))
        assert len(benchmark.problems) == rows and benchmark.pinned, name
        assert all(problem.source == name for problem in benchmark.problems)


def test_order_ids_and_white_space_are_no_part_of_the_text(pinned: Path) -> None:
    write(
        pinned, [{**row, "id": f"q{i}", "problem": row["problem"] + " "} for i, row in enumerate(reversed(ROWS))]
    )
    assert load_benchmark("toy", str(pinned)).pinned


@pytest.mark.parametrize(
    "rows, says",
    [
        (ROWS[:3], "toy has 4 problems, this copy 3"),
        ([*ROWS[:3], {**ROWS[3], "answer": "7"}], "not the pinned text of toy"),
        ([*ROWS[:3], {**ROWS[3], "problem": "What is 3 + 4?"}], "not the pinned text of toy"),
    ],
)
def test_another_text_is_refused(rows: list[dict[str, str]], says: str, pinned: Path) -> None:
    write(pinned, rows)
    with pytest.raises(DataError, match=says):
        load_benchmark("toy", str(pinned))


def test_unknown_names_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no benchmark `aime26`; known: aime24"):
        load_benchmark("aime26", str(tmp_path))
    with pytest.raises(DataError, match=r"has no aime24\.jsonl"):
        load_benchmark("aime24", str(tmp_path))


def test_the_hub_is_read_by_datasets(
    pinned: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The real `datasets`, on a folder that is laid out as a repository of the Hub is."""
    pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    repository = tmp_path_factory.mktemp("hub") / "data"
    repository.mkdir()
    rows = [{"question": row["problem"], "answer": f"${row['answer']}$"} for row in ROWS]
    (repository / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pin = benchmarks.PINS["toy"]
    here = dataclasses.replace(pin, hub=str(repository), split="test", problem_field="question", revision=None)
    monkeypatch.setattr(benchmarks, "PINS", {"toy": here})
    benchmark = load_benchmark("toy")
    assert benchmark.pinned and benchmark.source == f"{repository}@main"
    assert [(problem.id, problem.answer) for problem in benchmark.problems][:2] == [
        ("toy-000", "0"),
        ("toy-001", "2"),
    ]

    said: list[str] = []
    (repository / "test.jsonl").write_text("".join(json.dumps({**row, "answer": "x"}) + "\n" for row in rows))
    other = load_benchmark("toy", log=said.append)
    assert not other.pinned and "differs from the pinned" in said[0] and not other.card()["pinned"]


def test_a_hub_that_does_not_answer_is_one_line_with_the_way_out() -> None:
    pytest.importorskip("datasets")
    with pytest.raises(DataError, match=r"cannot load math-ai/amc23@80815d.* or give --bench-dir") as error:
        load_benchmark("amc23")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "spelt, plain",
    [
        ("27.0", "27"),
        ("$27$", "27"),
        ("$\\frac12$.", "\\frac12"),
        ("2.50", "2.50"),
        ("$a$ or $b$", "$a$ or $b$"),
        ("-3.0", "-3"),
    ],
)
def test_dress_that_copies_put_on_an_answer_is_taken_off(spelt: str, plain: str) -> None:
    assert plain_answer(spelt) == plain

"""Every row has one fate, by hand; the files are the same bytes again and tell what was done."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from grpo_tir.cli import main
from grpo_tir.curation import dedup
from grpo_tir.curation.sources import open_source
from grpo_tir.data.problems import load_problems
from grpo_tir.errors import DataError
from grpo_tir.testing import byte_tokenizer
from made_benchmarks import write_benchmarks

NUMINA = [
    {
        "problem": "Find $x$ if $3x + 7 = 40$.",
        "answer": "11",
        "question_type": "math-word-problem",
        "source": "aops",
    },
    {"problem": "Prove that $n^2 + n$ is even.", "answer": "proof", "question_type": "proof", "source": "aops"},
    {"problem": "Find the least prime above 90.", "answer": "notfound", "source": "olympiads"},
    {"problem": "Find $k$ if $5k = 85$.", "answer": "17", "problem_is_valid": "No", "source": "olympiads"},
    {
        "problem": "Compute the sum of the 14 numbers that Olga wrote on 3 cards.",
        "answer": "the larger one",
        "source": "x",
    },
]
MATH = [
    {
        "problem": "Find \\(x\\) if \\(3x+7=40\\).",
        "solution": "It is $\\boxed{11}$.",
        "level": "Level 1",
        "type": "Algebra",
    },
    {"problem": "What is the area of a disc of radius 6?", "solution": "$\\boxed{36\\pi}$", "level": "Level 2"},
    {"problem": "What is the area of a disk of radius 6?", "solution": "$\\boxed{36\\pi}$", "level": "Level 2"},
    {"problem": "What is $2^{10} - 24$?", "solution": "$\\boxed{1000}$", "level": "Level 3"},
    {"problem": "Solve $x^2 = 49$ for $x$.", "solution": "$\\boxed{7}$ or $\\boxed{-7}$", "level": "Level 3"},
]
DEEPSCALER = [
    {"problem": "What is $2^{10} - 24$?", "answer": "999", "solution": ""},
    {
        "problem": "If Lea has 31 marbles and loses 17 of them on the way home, how many has she left?",
        "answer": "14",
    },
    {"problem": "How many edges has a cube?", "answer": "12"},
]
BENCH = [
    {
        "id": "b1",
        "problem": "Lea has 31 marbles and loses 17 of them on the way. How many are left?",
        "answer": "14",
    }
]
FATES = [
    "", "proof", "no answer", "marked as broken", "",
    "duplicate", "", "near duplicate", "contradiction", "several answers",
    "contradiction", "similar to a benchmark", "",
]  # fmt: skip


def save(path: Path, rows: list[dict[str, Any]]) -> Path:
    """By suffix: JSONL, a JSON list, or parquet."""
    if path.suffix == ".parquet":
        arrow = pytest.importorskip("pyarrow", reason="parquet needs the extra [data]")
        pytest.importorskip("pyarrow.parquet").write_table(arrow.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., int]:
    save(tmp_path / "numina.jsonl", NUMINA)
    save(tmp_path / "math.json", MATH)
    save(tmp_path / "deepscaler.parquet", DEEPSCALER)
    save(tmp_path / "bench.jsonl", BENCH)

    def run(
        *arguments: str, sources: tuple[str, ...] = ("numina.jsonl", "math.json", "deepscaler.parquet")
    ) -> int:
        given = [part for name in sources for part in ("--source", str(tmp_path / name))]
        given += ["--bench", str(tmp_path / "bench.jsonl"), "--out", str(tmp_path / "out.jsonl"), "--workers", "1"]
        return main(["data", "build", *given, *arguments])

    return run


def test_each_row_of_three_sources_has_its_fate(build: Callable[..., int], tmp_path: Path) -> None:
    assert build() == 0
    kept, rejects = read(tmp_path / "out.jsonl"), read(tmp_path / "out.jsonl.rejects.jsonl")
    problems = [row["problem"] for row in NUMINA + MATH + DEEPSCALER]
    fate = {(row["source"], row["problem"]): row["reason"] for row in rejects}
    names = ["numina"] * 5 + ["math"] * 5 + ["deepscaler"] * 3
    assert [fate.get(place, "") for place in zip(names, problems)] == FATES
    assert [row["problem"] for row in kept] == [text for text, reason in zip(problems, FATES) if not reason]
    assert [row["answer"] for row in kept] == ["11", "the larger one", "36\\pi", "12"]
    assert [row["source"] for row in kept] == ["numina/aops", "numina/x", "math", "deepscaler"]
    assert rejects[0]["where"] == f"{tmp_path / 'numina.jsonl'} line 2"
    assert {row["other"] for row in rejects if row["reason"] == "similar to a benchmark"} == {"b1"}
    loaded, skipped = load_problems(tmp_path / "out.jsonl")
    assert [problem.id for problem in loaded] == [row["id"] for row in kept] and not skipped


def test_the_card_accounts_for_every_row(build: Callable[..., int], tmp_path: Path) -> None:
    assert build() == 0
    card = json.loads((tmp_path / "out.jsonl.card.json").read_text())
    for column in card["counts"].values():
        assert column["read"] == sum(number for key, number in column.items() if key != "read")
    assert {name: column["read"] for name, column in card["counts"].items()} == {
        "numina": 5, "math": 5, "deepscaler": 3, "all": 13,
    }  # fmt: skip
    assert card["counts"]["all"]["kept"] == len(read(tmp_path / "out.jsonl"))
    assert card["overlap"]["bench"]["rows"] == card["overlap"]["bench"]["problems"] == 1
    for file, digest in card["sha256"].items():
        assert hashlib.sha256((tmp_path / file).read_bytes()).hexdigest() == digest
    digest = hashlib.sha256((tmp_path / "numina.jsonl").read_bytes()).hexdigest()
    assert card["sources"][0]["pin"] == digest
    page = (tmp_path / "out.jsonl.card.md").read_text()
    assert re.search(r"\| contradiction \| 0 \| 1 \| 1 \| 2 \|", page) and digest in page


def test_the_same_input_gives_the_same_bytes(build: Callable[..., int], tmp_path: Path) -> None:
    def files() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in tmp_path.glob("out.jsonl*")}

    assert build() == 0
    first = files()
    assert len(first) == 4 and not list(tmp_path.glob(".out*")), "nothing unfinished is left"
    assert build("--workers", "3") == 0
    assert files() == first


def test_prompts_are_measured_as_the_trainer_measures_them(build: Callable[..., int], tmp_path: Path) -> None:
    """A byte is a token: under `plain` a prompt has its characters and a line end."""
    byte_tokenizer(["<|end|>"]).save_pretrained(tmp_path / "tokenizer")
    limit = len(MATH[1]["problem"]) + 1
    arguments = ["--tokenizer", str(tmp_path / "tokenizer"), "--template", "plain"]
    assert build(*arguments, "--max-prompt-length", str(limit)) == 0
    fate = {row["problem"]: row["detail"] for row in read(tmp_path / "out.jsonl.rejects.jsonl")}
    assert fate[NUMINA[4]["problem"]] == f"{len(NUMINA[4]['problem']) + 1} tokens"
    assert MATH[1]["problem"] in {row["problem"] for row in read(tmp_path / "out.jsonl")}
    assert build(*arguments, "--max-prompt-length", str(limit - 1)) == 0
    assert MATH[1]["problem"] not in {row["problem"] for row in read(tmp_path / "out.jsonl")}


def test_balance_draws_equally_of_each_level(build: Callable[..., int], tmp_path: Path) -> None:
    rows = [
        {"problem": f"What is {n} times {n + 7 * level}?", "answer": str(n), "level": f"Level {level}"}
        for level, number in ((1, 30), (2, 8), (3, 3))
        for n in range(number)
    ]
    save(tmp_path / "levels.jsonl", rows)
    assert build("--balance", "15", sources=("levels.jsonl",)) == 0
    kept = read(tmp_path / "out.jsonl")
    levels = [row["difficulty"] for row in kept]
    assert {level: levels.count(level) for level in levels} == {"Level 1": 6, "Level 2": 6, "Level 3": 3}
    assert build("--balance", "15", "--seed", "1", sources=("levels.jsonl",)) == 0
    assert read(tmp_path / "out.jsonl") != kept


def test_an_id_may_be_used_by_two_sources_but_not_twice_by_one(
    build: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "a.jsonl", [{"id": 1, "problem": "What is 8 + 9?", "answer": "17"}])
    save(tmp_path / "b.jsonl", [{"id": 1, "problem": "What is 6 + 7?", "answer": "13"}])
    assert build(sources=("a.jsonl", "b.jsonl")) == 0
    assert [row["id"] for row in read(tmp_path / "out.jsonl")] == ["1", "b/1"]
    save(tmp_path / "a.jsonl", [{"id": 1, "problem": f"What is 8 + {n}?", "answer": f"{8 + n}"} for n in (1, 2)])
    assert build(sources=("a.jsonl",)) == 2
    place = f"{tmp_path / 'a.jsonl'} line"
    assert f"{place} 2: the id 1 is taken by {place} 1" in capsys.readouterr().err


def test_check_and_build_refuse_the_same_golds(
    build: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = [r"\frac{540^\circ}{7}", "two lines", r"\text{no real solutions}", "ab + bc + cd + da", "1"]
    bad = ["None", "either of the foci", r"\text{the larger of both}", "\\frac{1}{", "notfound"]
    rows = [{"id": n, "problem": f"What is {n} of it?", "answer": gold} for n, gold in enumerate(good + bad)]
    save(tmp_path / "a.jsonl", rows)
    assert build(sources=("a.jsonl",)) == 0
    assert [row["answer"] for row in read(tmp_path / "out.jsonl")] == good
    reasons = {row["answer"]: row["reason"] for row in read(tmp_path / "out.jsonl.rejects.jsonl")}
    assert reasons == dict.fromkeys(bad, "unverifiable answer") | dict.fromkeys(("None", "notfound"), "no answer")
    capsys.readouterr()
    assert main(["data", "check", str(tmp_path / "a.jsonl")]) == 2
    said = capsys.readouterr().out
    assert f"{len(good)} problems, {len(bad)} rows" in said
    assert f"{tmp_path / 'a.jsonl'} id 6: the gold is a sentence, not an answer: either of the foci" in said


def test_equal_answers_in_other_words_are_no_contradiction(build: Callable[..., int], tmp_path: Path) -> None:
    rows = [{"problem": "What is the half of 1?", "answer": answer} for answer in ("\\frac{1}{2}", "0.5", "2")]
    save(tmp_path / "a.jsonl", [*rows, {"problem": "And of 2?", "answer": "1"}])
    assert build(sources=("a.jsonl",)) == 0
    reasons = [row["reason"] for row in read(tmp_path / "out.jsonl.rejects.jsonl")]
    assert reasons == ["contradiction", "duplicate", "contradiction"], "0.5 is 1/2; 2 puts the kept one in doubt"


def test_after_a_bad_row_the_build_goes_on_where_it_stopped(
    build: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("grpo_tir.curation.build.COMMIT_EVERY", 2)
    good = [json.dumps({"problem": f"What is {n} + {n * n}?", "answer": str(n + n * n)}) for n in range(5)]
    (tmp_path / "a.jsonl").write_text("\n".join([*good, "{"]) + "\n")
    assert build(sources=("a.jsonl",)) == 2
    assert f"{tmp_path / 'a.jsonl'} line 6: wrong JSON" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()
    assert build("--on-bad", "skip", sources=("a.jsonl",)) == 0
    assert "continuing after 4 rows" in capsys.readouterr().out
    assert len(read(tmp_path / "out.jsonl")) == 5


def test_unfinished_work_of_other_settings_is_not_taken_up(
    build: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_text("{\n")
    assert build(sources=("a.jsonl",)) == 2
    save(tmp_path / "a.jsonl", [{"problem": "What is 1 + 2?", "answer": "3"}])
    assert build(sources=("a.jsonl",)) == 0
    assert "starting over" in capsys.readouterr().out
    assert len(read(tmp_path / "out.jsonl")) == 1


def test_a_grader_that_cannot_run_says_nothing_about_the_rows(
    build: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Taken for verdicts, its failures would throw out every gold that is not a plain number."""
    monkeypatch.setattr("grpo_tir.grading.worker.sys.executable", "/bin/false")
    assert build(sources=("math.json",)) == 1
    assert "does not start" in capsys.readouterr().err
    monkeypatch.undo()
    assert build(sources=("math.json",)) == 0
    assert "36\\pi" in {row["answer"] for row in read(tmp_path / "out.jsonl")}


def test_a_full_disk_is_one_line_and_loses_nothing(
    build: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """SQLite's own limit of pages stands for the disk's end."""
    rows = [{"problem": f"What is {n} + {n * n}? " + "Think. " * 200, "answer": str(n + n * n)} for n in range(99)]
    save(tmp_path / "a.jsonl", rows)
    monkeypatch.setattr("grpo_tir.curation.build.COMMIT_EVERY", 10)
    monkeypatch.setattr("grpo_tir.curation.dedup._SCHEMA", f"PRAGMA max_page_count = 40; {dedup._SCHEMA}")
    assert build(sources=("a.jsonl",)) == 2
    said = capsys.readouterr().err
    assert "database or disk is full" in said and said.count("\n") == 1
    monkeypatch.undo()
    assert build(sources=("a.jsonl",)) == 0
    assert "continuing after" in capsys.readouterr().out
    assert len(read(tmp_path / "out.jsonl")) == 99


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["--source", "none.jsonl"], "cannot read none.jsonl: there is no such file"),
        (["--source", "nothing"], "is no file, no data set `owner/name@revision` and none of: numina, math"),
        (["--source", "nobody/nothing@abc"], "cannot load the data set nobody/nothing"),
        (["--source", "a.jsonl", "--source", "a.jsonl"], "two sources have one name"),
        (["--source", "a.jsonl", "--bench", "broken.jsonl"], "broken.jsonl line 1: no column `problem`"),
        (["--source", "a.jsonl", "--tokenizer", "a.jsonl"], "cannot load the tokenizer a.jsonl"),
        (["--source", "a.jsonl", "--out", "no/folder/out.jsonl"], "no/folder is no folder"),
    ],
)
def test_arguments_that_cannot_work_are_one_line(
    arguments: list[str],
    fault: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    save(Path("a.jsonl"), [{"problem": "1 + 1?", "answer": "2"}])
    save(Path("broken.jsonl"), [{"text": "1 + 1?"}])
    assert main(["data", "build", "--out", "out.jsonl", *arguments]) == 2
    said = capsys.readouterr().err
    assert fault in said and said.count("\n") == 1


def test_a_data_set_is_streamed_through_the_hub_s_own_library(tmp_path: Path) -> None:
    """The loader and all that it calls are the real ones; the data set is a folder made on the spot."""
    pytest.importorskip("datasets", reason="the Hub needs the extra [data]")
    folder = tmp_path / "owner" / "set"
    (folder / "data").mkdir(parents=True)
    rows = [{"problem": f"What is {n} + 1?", "answer": str(n + 1), "level": n} for n in range(7)]
    save(folder / "data" / "train-00000-of-00002.parquet", rows[:3])
    save(folder / "data" / "train-00001-of-00002.parquet", rows[3:])
    source = open_source(f"mine={folder}")
    assert (source.name, source.split) == ("mine", "train")
    found = list(source.read())
    assert [where for where, _ in found] == [f"row {n + 1}" for n in range(7)]
    assert [row for _, row in found] == [{**row, "level": str(row["level"])} for row in rows]
    assert list(source.read(start=4)) == found[4:]
    save(folder / "data" / "train-00001-of-00002.parquet", rows[4:])
    assert open_source(str(folder)).pin != source.pin, "a folder is pinned by what is in it"
    with pytest.raises(DataError, match=r"cannot load the data set .*set \(ValueError: .*validation"):
        list(open_source(f"{folder}#validation").read())


def test_a_sibling_with_another_answer_is_kept(build: Callable[..., int], tmp_path: Path) -> None:
    """The same words and numbers in other places. An option's letter says nothing about a value, and an equal
    answer may be spelt otherwise."""
    sibling = "Lea has 31 marbles and finds 17 of them on the way. How many marbles were lost?"
    rows = [{"problem": f"{sibling}{' ' * n}", "answer": answer} for n, answer in enumerate(["7", "B", "14.0"])]
    for n, row in enumerate(rows):
        save(tmp_path / "a.jsonl", [row, {"problem": "What is 1 + 2?", "answer": "3"}])
        assert build(sources=("a.jsonl",)) == 0
        rejects = read(tmp_path / "out.jsonl.rejects.jsonl")
        assert [row["reason"] for row in rejects] == ["similar to a benchmark"] * (n > 0)
    page = (tmp_path / "out.jsonl.card.md").read_text()
    assert "bench: 1 rows are similar to 1 of its problems" in page


def test_benchmarks_are_kept_out_by_name_and_held_to_their_pins(
    build: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Problems of two benchmarks among others: all are found. A benchmark file that was changed is refused."""
    made = write_benchmarks(tmp_path, monkeypatch)
    planted = [{"problem": p.problem, "answer": p.answer} for name in ("aime24", "aime25") for p in made[name]]
    save(tmp_path / "mixed.jsonl", [*planted, *DEEPSCALER])
    folder = ("--bench-dir", str(tmp_path))
    assert build("--bench", "aime24,aime25", *folder, sources=("mixed.jsonl",)) == 0
    card = json.loads((tmp_path / "out.jsonl.card.json").read_text())
    assert {name: card["overlap"][name]["problems"] for name in ("aime24", "aime25")} == {"aime24": 3, "aime25": 2}
    assert len(read(tmp_path / "out.jsonl")) == 2
    save(tmp_path / "aime24.jsonl", [vars(problem) for problem in made["aime24"][:2]])
    assert build("--bench", "aime24", *folder, sources=("mixed.jsonl",)) == 2
    assert "aime24 has 3 problems, this copy 2" in capsys.readouterr().err

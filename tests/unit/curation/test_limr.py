"""LIM scores by numbers worked by hand, the released selection, and every bad row by file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from grpo_tir.cli import main
from grpo_tir.curation.limr import lim_scores, read_history
from grpo_tir.errors import DataError

WORKED = {"a": [0, 0.25, 0.5, 0.75, 1], "b": [1, 1, 1, 1, 1], "c": [0, 0, 0, 0, 0], "d": [0.2, 0.4, 0.4, 0.6, 0.6]}
SCORES = {"a": 0.810510, "b": 0.0, "c": 0.106880, "d": 0.986863}


def visits(**rows: list[float | None]) -> dict[str, dict[int, float]]:
    return {name: {k: r for k, r in enumerate(row) if r is not None} for name, row in rows.items()}


def test_the_worked_example_has_its_four_scores() -> None:
    """avg = .3, .4125, .475, .5875, .65; sum (1 - avg)^2 = 1.4034375."""
    assert lim_scores(visits(**WORKED)).scores == pytest.approx(SCORES, abs=1e-6)


def test_where_everything_is_always_right_nothing_is_to_be_learned() -> None:
    assert lim_scores(visits(a=[1, 1], b=[1, 1])).scores == {"a": 0.0, "b": 0.0}


def test_a_missing_epoch_is_filled_from_the_next_once() -> None:
    """b lacks epoch 1 and gets that of 2; c lacks two in a row, d the last one: neither can be filled."""
    found = lim_scores(visits(a=[0, 0.5, 1], b=[0, None, 1], c=[None, None, 1], d=[0, 0.5, None]))
    assert (found.filled, found.dropped) == (2, ["c", "d"])
    # avg = 0, .75, 1 over a and b; sum (1 - avg)^2 = 1.0625; both lie .25 from .75
    assert found.scores == pytest.approx({"a": 1 - 0.0625 / 1.0625, "b": 1 - 0.0625 / 1.0625})


def test_a_history_without_a_verdict_scores_nothing() -> None:
    assert lim_scores({"a": {}, "b": {}}).dropped == ["a", "b"]


def test_an_epoch_that_the_run_only_began_is_left_out() -> None:
    found = lim_scores(visits(a=[0, 1, 1], b=[1, 1], c=[0, 0]))
    assert (found.epochs, found.thin_epochs) == ([0, 1], {2: 1})
    assert set(found.scores) == {"a", "b", "c"}


def visit(name: str, correct: object, epoch: object = 0) -> dict[str, object]:
    """One line of a run's problem_rewards.jsonl."""
    return {"step": 1, "epoch": epoch, "problem_id": name, "rewards": [], "correct": correct}


def save(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_the_released_scores_select_the_released_set(shared_data: Path, tmp_path: Path) -> None:
    scores = shared_data / "limr" / "scores.json"
    for threshold, number in (("0.6", 1389), ("0.2", 5548)):
        out = tmp_path / "chosen.txt"
        assert main(["data", "limr", "--scores", str(scores), "--threshold", threshold, "--out", str(out)]) == 0
        ids = out.read_text().splitlines()
        # the doubled prompt scores .06; the counts of the page are of prompts, these of ids
        assert len(ids) == len(set(ids)) == number


def test_a_run_s_own_log_is_scored_by_its_right_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rewards may be anything; `correct` is what LIM means. An unjudged visit is a gap, not a zero."""
    rows = [
        {"step": 1, "epoch": 0, "problem_id": "p", "rewards": [-1, 1.5], "correct": [0, 1]},
        {"step": 1, "epoch": 0, "problem_id": "q", "rewards": [-1, -1], "correct": [0, 0]},
        {"step": 2, "epoch": 1, "problem_id": "q", "rewards": [], "correct": []},
        {"step": 2, "epoch": 1, "problem_id": "p", "rewards": [1, 1], "correct": [1, 1]},
    ]
    save(tmp_path / "problem_rewards.jsonl", *rows)
    assert read_history(tmp_path).visits == {"p": {0: 0.5, 1: 1.0}, "q": {0: 0.0}}
    out = tmp_path / "chosen.txt"
    assert main(["data", "limr", str(tmp_path), "--threshold", "-9", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "1 visits without a verdict" in said and "1 problems dropped" in said
    assert out.read_text() == "p\n"


def test_the_choice_can_be_written_as_problems(tmp_path: Path) -> None:
    history = save(tmp_path / "h.jsonl", visit("a", [0.1]), visit("b", [0.9]), visit("c", [0.9]))
    rows = [{"id": name, "problem": "x", "answer": "1"} for name in "cxab"]
    problems, out = save(tmp_path / "p.jsonl", *rows), tmp_path / "out.jsonl"
    arguments = ["data", "limr", str(history), "--threshold", "-9", "--out", str(out)]
    assert main([*arguments, "--problems", str(problems)]) == 0
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == [*"cab"], (
        "in the order of the file"
    )


COLUMNS = "a row of problem_rewards.jsonl has `problem_id`, `epoch` and a list `correct`"
BAD = {
    "wrong JSON": ('{"epoch": 0', "wrong JSON: Expecting ',' delimiter"),
    "no verdicts": ('{"epoch": 0, "problem_id": "b"}', COLUMNS),
    "no epoch": ('{"problem_id": "b", "correct": [1]}', COLUMNS),
    "no id": ('{"epoch": 0, "correct": [1]}', COLUMNS),
    "no list": (visit("b", 1), COLUMNS),
    "no object": ("[1]", "a row is an object with columns, this is a list"),
    "words": (visit("b", ["high"]), "a score is a number, this is text"),
    "the same visit twice": (visit("a", [1]), "the id a has epoch 0 a second time"),
    "gigantic number": ('{"epoch": 0, "problem_id": "b", "correct": [1e999]}', "1e999 is no finite number"),
    "a reward": (visit("b", [1.5]), "LIM's rewards lie between 0 (wrong) and 1 (right)"),
    "wrong encoding": ('{"problem_id": "é"}'.encode("latin-1"), "wrong encoding: not UTF-8 (byte 0xe9"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_named(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row, fault = BAD[case]
    path, out = tmp_path / "problem_rewards.jsonl", tmp_path / "out.txt"
    row = json.dumps(row) if isinstance(row, dict) else row
    path.write_bytes(
        json.dumps(visit("a", [1, 0])).encode() + b"\n" + (row if isinstance(row, bytes) else row.encode()) + b"\n"
    )
    assert main(["data", "limr", str(tmp_path), "--threshold", "0", "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert f"{path} line 2: {fault}" in said and said.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (b'{\n"a": 0.7,\n"b": "x"\n}', " id b: a score is a number, this is text"),
        (b'{\n"a": 0.7,\n"b": [0.7, 2]\n}', " id b: a score is a number, this is a list"),
        (
            b'{\n"a": 0.7,\n"b" 0.8\n}',
            " must be one JSON object {id: score}: wrong JSON: Expecting ':' delimiter at line 3 column 5",
        ),
        (b'{\n"a": 0.7,\n"\xe9": 0.8\n}', " must be one JSON object {id: score}: wrong encoding: not UTF-8"),
        (b"[0.7]", " must be one JSON object {id: score}: this is a list"),
        (b"{}", " holds no score and no reward"),
    ],
)
def test_a_fault_in_finished_scores_is_named_by_id_or_line(text: bytes, fault: str, tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    path.write_bytes(text)
    with pytest.raises(DataError) as stopped:
        read_history(path)
    assert str(stopped.value).startswith(f"{path}{fault}")


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ([], "name either the folder of a run"),
        (["run", "--scores", "s.json"], "name either the folder of a run"),
        (["."], "a run writes it from its first step on"),
        (["--scores", "none.json"], "cannot read none.json: No such file"),
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
    save(tmp_path / "s.json", {"a": 1})
    assert main(["data", "limr", *arguments, "--threshold", "0.6", "--out", "out.txt"]) == 2
    said = capsys.readouterr().err
    assert fault in said and said.count("\n") == 1

"""What goes out, with its reason, and what is cleaned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from grpo_tir.curation.filters import Unfit, asks_for_proof, clean_answer, clean_problem, read_problem


def read(**row: Any) -> tuple[str, str]:
    return read_problem({"problem": "How many?", **row}, "problem", "answer")


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"answer": "42"}, "42"),
        ({"solution": r"First 6*7, so \boxed{42}."}, "42"),
        ({"answer": "", "solution": r"\boxed{\frac{1}{2}}"}, r"\frac{1}{2}"),
        ({"answer": None, "solution": r"\boxed{ 7 } and again $\boxed{7}$"}, "7"),
        ({"answer": "notfound", "solution": r"\boxed{5}"}, "5"),
        ({"answer": "$\\frac{1}{2}$."}, r"\frac{1}{2}"),
        ({"answer": r"\boxed{3}"}, "3"),
        ({"answer": "3", "solution": r"\boxed{4}"}, "3"),
        ({"answer": "3", "problem_is_valid": "Yes", "solution_is_valid": "Yes"}, "3"),
    ],
)
def test_the_answer_is_the_column_or_the_box_of_the_solution(row: dict[str, Any], answer: str) -> None:
    assert read(**row)[1] == answer


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"answer": "proof"}, "proof"),
        ({"answer": "1", "question_type": "proof"}, "proof"),
        ({"answer": "1", "problem": "Prove that $n^2 \\ge 0$ for every real n."}, "proof"),
        ({"answer": "1", "problem_is_valid": "Incomplete"}, "marked as broken"),
        ({"answer": "1", "solution_is_valid": "No"}, "marked as broken"),
        ({"answer": "1", "problem": "What is the angle?\n![](https://cdn.example.org/a.jpg)"}, "picture"),
        ({"answer": "notfound"}, "no answer"),
        ({"solution": "It follows."}, "no answer"),
        ({"solution": r"\boxed{1} or \boxed{2}"}, "several answers"),
    ],
)
def test_what_goes_out_carries_its_reason(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(Unfit) as out:
        read(**row)
    assert out.value.reason == reason


@pytest.mark.parametrize(
    ("row", "fault"),
    [({}, "no column `answer`"), ({"answer": " "}, "`answer` is empty"), ({"answer": "1" * 2000}, "gigantic")],
)
def test_what_is_broken_is_a_bad_row(row: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        read(**row)


@pytest.mark.parametrize(
    ("problem", "proof"),
    [
        ("Prove that $\\sqrt{2}$ is irrational.", True),
        ("Let $n$ be odd. Show that $8$ divides $n^2-1$.", True),
        ("Given a triangle, demonstrate that its medians meet.", True),
        ("Find all $n$ and prove that there are no others.", False),
        ("Can it be tiled? Prove your claim.", False),
        ("Determine the least $k$ for which one can prove that it stops.", False),
        ("The graph shown is a line. What is its slope?", False),
        ("How many people show up?", False),
    ],
)
def test_a_proof_is_out_only_if_nothing_else_is_asked_for(problem: str, proof: bool) -> None:
    assert asks_for_proof(problem) is proof


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("a\r\nb \t\n\n\n\nc\u200b", "a\nb\n\nc"),
        ("  caf\u0065\u0301 ", "café"),
        ("$x$\u00a0is", "$x$ is"),
    ],
)
def test_cleaning_touches_typesetting_only(text: str, clean: str) -> None:
    assert clean_problem(text) == clean


@pytest.mark.parametrize("answer", ["$1$ and $2$", "(1, 2)", "3.5", "\\$5", "1, 2, \\dots", "x..", "0.", "[0,1)"])
def test_an_answer_that_is_bare_stays(answer: str) -> None:
    assert clean_answer(answer).rstrip(".") == answer.rstrip(".")


def test_no_benchmark_problem_is_taken_for_a_proof_and_no_gold_is_changed(shared_data: Path) -> None:
    """8,523 prompts of LIMR and 1,275 of five benchmarks, all with answers: four are empty or `None`;
    three golds lose a full stop."""
    rows = [
        json.loads(line)
        for name in (
            "limr/prompts",
            "bench/aime24",
            "bench/aime25",
            "bench/amc23",
            "bench/math500",
            "bench/olympiadbench",
        )
        for line in (shared_data / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    out, changed = [], []
    for row in rows:
        try:
            _, answer = read_problem(row, "problem", "answer")
        except (Unfit, ValueError) as error:
            out.append(str(error.args[0]))
        else:
            changed += [row["answer"]] if answer != row["answer"] else []
    assert sorted(out) == ["`answer` is empty"] * 2 + ["no answer"] * 2
    assert len(changed) == 4 and all(answer.endswith(".") for answer in changed)

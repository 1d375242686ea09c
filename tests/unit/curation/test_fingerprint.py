"""What counts as the same words, and what does not."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from grpo_tir.curation.fingerprint import fingerprint, hash64, jaccard, share_of

SAME = [
    (r"Find $\dfrac{1}{2}x$.", r"find \[\frac12 x\]"),
    (r"Compute $\left(a+b\right)\,$", "Evaluate $(a + b)$"),
    (r"$x \leq 3$, $2\cdot y$", r"\(x \le 3\) $2 \times y$"),
    ("1,000 apples", "1000 apples"),
    ("seven books", "7 books"),
    ("angle $\\pi − 1$", "angle $π - 1$"),
    (r"the area of $\triangle ABC$ is $\text{twelve}$", r"the area of $\triangle {ABC}$ is 12"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_typesetting_makes_no_difference(one: str, other: str) -> None:
    assert fingerprint(one).words == fingerprint(other).words


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("$x + 1$", "$x - 1$"),
        ("$x^2$", "$x^3$"),
        ("$x < 3$", r"$x \le 3$"),
        ("Find $m+n$", "Find $mn$"),
        ("1,2", "12"),
    ],
)
def test_numbers_and_operators_do(one: str, other: str) -> None:
    assert fingerprint(one).words != fingerprint(other).words


def test_runs_ignore_the_names_of_variables() -> None:
    one, other = fingerprint("Let $x + y = 3$. Find $x$."), fingerprint("Let $p + q = 3$. Find $p$.")
    assert one.words != other.words and one.runs == other.runs


def test_the_code_of_a_figure_stands_apart() -> None:
    one = fingerprint("Find x. [asy] draw((0,0)--(3,4)); [/asy]")
    other = fingerprint("Find x. [asy] draw((0,0)--(5,12)); [/asy]")
    assert one.words == other.words and one.numerals == []
    assert not one.draws_like(other) and one.draws_like(one) and one.draws_like(fingerprint("Find x."))


def test_shares_are_what_they_are_called() -> None:
    assert jaccard(frozenset({1, 2, 3}), frozenset({2, 3, 4})) == 0.5
    assert share_of(["2", "2", "5"], ["5", "2"]) == pytest.approx(2 / 3)
    assert share_of([], ["1"]) == 1


def test_hashes_do_not_depend_on_the_process() -> None:
    """Python's own hash of a text does, and a resumed build would find nothing again."""
    code = "from grpo_tir.curation.fingerprint import hash64; print(hash64('abc'))"
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        assert done.stdout == f"{hash64('abc')}\n"

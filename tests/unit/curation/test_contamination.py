"""Copies and light paraphrases of benchmark problems are found; siblings with other numbers or answers are not."""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from grpo_tir.curation.contamination import Benchmarks
from grpo_tir.curation.fingerprint import fingerprint
from grpo_tir.data.problems import load_problems
from grpo_tir.grading.grader import Grader
from grpo_tir.types import Problem
from quickstart.world import WorldConfig, make_problems

WALK = (
    "Every evening Ida rides a $12$-mile loop and rests at a bridge on the way. When she rides at a "
    "constant speed of $s$ miles per hour, the loop takes her 3 hours, including $t$ minutes at the "
    "bridge. When she rides $s+4$ miles per hour, the loop takes her 2 hours and 36 minutes, including "
    "$t$ minutes at the bridge. Suppose Ida rides at $s+\\frac{3}{2}$ miles per hour. Find the number of "
    "minutes the loop takes her, including the $t$ minutes at the bridge."
)
DIVISORS = "How many odd whole-number divisors does 1764 have?"
SHORT = "If $f(x) = 4x - 9$, compute $f(f(5))$."
BENCH = Benchmarks([("aime", "walk", WALK), ("math", "divisors", DIVISORS), ("math", "short", SHORT)])


def found(text: str) -> str | None:
    overlap = BENCH.find(fingerprint(text))
    return overlap.id if overlap else None


COPIES = {
    "typeset otherwise": (
        WALK.replace("$12$", "12").replace("\\frac{3}{2}", "\\dfrac32").replace("  ", " "),
        "walk",
    ),
    "with a number in front": (f"**Problem 1.** {WALK} (5 points)", "walk"),
    "in a longer text": (f"{'Here is a warm-up for the whole class to think about. ' * 20} {WALK}", "walk"),
    "sentences moved": (" ".join(sorted(WALK.split(". "), key=len)), "walk"),
    "other names": (
        WALK.replace("Ida", "Tom")
        .replace("she", "he")
        .replace("her", "him")
        .replace("$s", "$v")
        .replace("$t", "$m"),
        "walk",
    ),
    "other words, by hand": (
        "Ida takes a $12$-mile bicycle loop each evening, with a rest at a bridge. Riding at a constant "
        "speed of $s$ miles per hour, it takes 3 hours, including $t$ minutes at the bridge. At $s+4$ "
        "miles per hour the loop takes 2 hours and 36 minutes, including the $t$ minutes at the bridge. "
        "If Ida rides at $s+\\frac{3}{2}$ miles per "
        "hour, how many minutes does the loop take, counting the $t$ minutes at the bridge?",
        "walk",
    ),
    "told anew": (
        "Ida's evening bicycle tour is 12 miles long, with a stop of $t$ minutes at a bridge on the way. "
        "Riding at $s$ miles an hour she needs 3 hours for it, the stop included; riding at $s+4$ she needs "
        "2 hours and 36 minutes, which again includes the stop. How many minutes does the tour last, stop "
        "included, if she rides at $s + \\tfrac32$ miles an hour?",
        "walk",
    ),
    "a short one told anew": ("How many of the whole-number divisors of 1764 are odd?", "divisors"),
    "a short one asked otherwise": ("Let $g(t) = 4t - 9$. What is $g(g(5))$?", "short"),
    "a short one, other words": ("Determine how many odd whole-number divisors 1764 has.", "divisors"),
    "a part": (WALK.partition(" Suppose")[0], "walk"),
}


@pytest.mark.parametrize("kind", COPIES)
def test_a_copy_is_found(kind: str) -> None:
    text, name = COPIES[kind]
    assert found(text) == name


@pytest.mark.parametrize(
    "text",
    [
        "How many odd whole-number divisors does 1690 have?",
        "If $f(x) = 7x - 2$, compute $f(f(3))$.",
        "Every evening Ben goes for a run and rests at a bakery. Find the number of minutes the run takes him.",
        "Find the number of integers $n$ with $2^n < 1764$.",
        "",
    ],
)
def test_a_sibling_or_a_stranger_is_not(text: str) -> None:
    assert found(text) is None


def test_a_sibling_with_the_same_numbers_is_told_by_its_answer() -> None:
    """A copy with a wrong gold is told by the rest: it has all signs of the problem and nearly all words."""
    bench = Benchmarks([("math", "short", SHORT, "35")])
    sibling = fingerprint("Let $f(x) = 4x - 9$ and compute the $x$ with $f(x) = 5$.")
    copy = fingerprint("If $h(t) = 4t - 9$, find $h(h(5))$.")
    for other, is_found in ((False, True), (True, False)):
        asked: list[str] = []
        overlap = bench.find(sibling, lambda gold, other=other, asked=asked: bool(asked.append(gold)) or other)
        assert (overlap is not None) is is_found
        assert asked == ["35"]
    assert bench.find(copy, lambda gold: True) is not None
    assert BENCH.find(sibling, lambda gold: True) is not None, "the benchmark's answer is not known"


def test_no_benchmarks_forbid_nothing() -> None:
    assert Benchmarks([]).find(fingerprint(WALK)) is None


def test_boilerplate_of_many_benchmark_problems_proves_nothing() -> None:
    """The same closing in sixty problems: the sixty-first shares it and nothing else."""
    closing = "can be written as $m/n$ where $m$ and $n$ are relatively prime positive integers. Find $m+n$."
    subjects = ["area", "volume", "length", "sum", "product", "probability"]
    bench = Benchmarks(
        ("aime", str(i), f"The {subjects[i % 6]} of figure number {i} in row {i * 7} {closing}") for i in range(60)
    )
    assert bench.find(fingerprint(f"The median of the set $\\{{1, 5, 8\\}}$ {closing}")) is None


WORDS = {
    r"\bFind\b": "Determine", r"\bCompute\b": "Work out", r"\bWhat is\b": "Determine", r"\bLet\b": "Suppose",
    r"\bsuch that\b": "so that", r"\bHow many\b": "What is the number of", r"\bIf\b": "Given that",
    r"\bpositive integer(?=s?\b)": "natural number", r"\bSuppose\b": "Assume", r"\bwhere\b": "in which",
}  # fmt: skip


def in_other_words(text: str) -> str:
    for old, new in WORDS.items():
        text = re.sub(old, new, text)
    return text


def with_other_letters(text: str) -> str:
    names = dict(zip("xyznkbcm", "tsukqwhj"))
    return re.sub(r"(?<![\\A-Za-z])[a-z](?![A-Za-z])", lambda letter: names.get(letter[0], letter[0]), text)


def moved_and_framed(text: str) -> str:
    sentences = re.split(r"(?<=[.?!])\s+", in_other_words(text))
    return " ".join(["Consider the following problem.", *sentences[1:], sentences[0], "Explain every step."])


def with_words_lost(text: str) -> str:
    draw = random.Random(text)
    kept = (word for word in text.split(" ") if re.search(r"[\d$\\]", word) or draw.random() > 0.1)
    return " ".join(kept)


CHANGES: dict[Callable[[str], str], float] = {
    str: 1.0,
    in_other_words: 0.99,
    with_other_letters: 0.99,
    moved_and_framed: 0.98,
    with_words_lost: 0.96,
}
"""How a copy may be changed, and the share of copies that must still be found."""


def found_share(problems: list[Problem], change: Callable[[str], str]) -> float:
    bench = Benchmarks((problem.source, problem.id, problem.problem) for problem in problems)
    found = [bench.find(fingerprint(change(problem.problem))) for problem in problems]
    return sum(one is not None and one.id == problem.id for one, problem in zip(found, problems)) / len(problems)


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_of_any_made_problem_is_found(change: Callable[[str], str]) -> None:
    """Each is two sentences long; its numbers are its own."""
    problems, _, _ = make_problems(WorldConfig(seed=3, train_problems=60, eval_problems=0))
    long = [
        dataclasses.replace(
            problem,
            problem=f"Let Anna write {number + 2} numbers on a board such that each is a positive integer. "
            f"{problem.problem} Compute how many of the numbers on the board are smaller than that, if any.",
        )
        for number, problem in enumerate(problems)
    ]
    assert found_share(long, change) >= CHANGES[change]


LIMR_COPIES = (
    "math500-339 math500-378 math500-386 ob-2607 ob-2644 ob-2713 ob-2791 ob-2794 ob-2890 ob-2895 ob-2918 ob-2958"
)
"""Benchmark problems that LIMR's prompts contain, found by reading all pairs with similar texts."""


def test_changed_copies_of_the_published_five_are_found_and_few_other_problems_are_lost(shared_data: Path) -> None:
    """LIMR's prompts are MATH's training set, the nearest siblings of MATH500."""
    names = ("aime24", "aime25", "amc23", "math500", "olympiadbench")
    problems = [p for name in names for p in load_problems(shared_data / "bench" / f"{name}.jsonl")[0]]
    assert len(problems) == 1275
    for change, least in CHANGES.items():
        assert found_share(problems, change) >= least, change.__name__
    five = Benchmarks((p.source, p.id, p.problem, p.answer) for p in problems)
    prompts = load_problems(shared_data / "limr" / "prompts.jsonl", on_bad="skip")[0]
    with Grader() as grader:
        similar = [
            five.find(fingerprint(p.problem), lambda gold, p=p: grader.grade(p.answer, gold).outcome == "wrong")
            for p in prompts
        ]
    found = [one.id for one in similar if one]
    assert set(found) >= set(LIMR_COPIES.split()) and len(found) - len(LIMR_COPIES.split()) < 10

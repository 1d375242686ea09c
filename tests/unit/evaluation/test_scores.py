"""avg@k, pass@k and maj@k by hand and by enumeration; intervals against what is known of them."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from pathlib import Path

import pytest

from grpo_tir.evaluation import tables
from grpo_tir.evaluation.scores import (
    bootstrap,
    difference,
    majority,
    pass_at_k,
    sign_test,
)
from grpo_tir.evaluation.session import short_name


@pytest.mark.parametrize("n, right", [(1, 0), (1, 1), (4, 0), (4, 1), (6, 2), (6, 5), (6, 6)])
def test_pass_at_k_is_the_share_of_k_subsets_with_a_right_sample(n: int, right: int) -> None:
    samples = [True] * right + [False] * (n - right)
    for k in range(1, n + 1):
        subsets = list(itertools.combinations(samples, k))
        assert pass_at_k(n, right, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_the_naive_estimate_of_pass_at_k_would_be_biased() -> None:
    assert pass_at_k(4, 1, 2) == 0.5  # 3 of the 6 pairs; 1 - (3/4)^2 would say 0.4375


RIGHT, WRONG = True, False


@pytest.mark.parametrize(
    "answers, value",
    [
        ([("2", RIGHT), ("2", RIGHT), ("3", WRONG)], 1.0),
        ([("2", RIGHT), ("3", WRONG), ("3", WRONG)], 0.0),
        ([("2", RIGHT), ("3", WRONG)], 0.5),
        ([("2", RIGHT), ("3", WRONG), ("4", WRONG)], 1 / 3),
        ([("1/2", RIGHT), ("0.5", RIGHT), ("3", WRONG)], 1.0),  # right answers are one, however spelt
        ([("2", RIGHT), ("2", RIGHT), ("3", WRONG), ("03", WRONG), ("3.0", WRONG)], 0.0),  # and so are wrong ones
        ([("2", RIGHT), (None, WRONG), (None, WRONG)], 1.0),  # who gave no answer does not vote
        ([(None, WRONG)], 0.0),
    ],
)
def test_majority(answers: list[tuple[str | None, bool]], value: float) -> None:
    assert majority(answers, lambda a, b: float(a) == float(b)) == pytest.approx(value)


def test_interval_is_near_the_normal_one_where_that_holds() -> None:
    rng = random.Random(3)
    scores = [float(rng.random() < 0.4) for _ in range(600)]
    p = statistics.fmean(scores)
    low, high = bootstrap(scores)
    half = 1.96 * math.sqrt(p * (1 - p) / 600)
    assert low == pytest.approx(p - half, abs=0.004) and high == pytest.approx(p + half, abs=0.004)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = random.Random(5)
    covered = 0
    for _ in range(60):
        low, high = bootstrap([float(rng.random() < 0.5) for _ in range(80)])
        covered += low <= 0.5 <= high
    assert covered >= 51  # of 60; 95% of them are 57, three standard deviations below are 52


def test_none_right_of_thirty_is_no_proof_of_zero() -> None:
    low, high = bootstrap([0.0] * 30)
    assert low == 0 and (1 - high) ** 30 == pytest.approx(0.025)  # the exact binomial bound
    assert bootstrap([1.0] * 30) == pytest.approx((1 - high, 1.0))
    assert bootstrap([0.0] * 30, [0.0] * 30) == pytest.approx((0, high))


def test_average_weighs_benchmarks_not_problems() -> None:
    low, high = bootstrap([1.0, 0.0] * 20, [0.0] * 999 + [1.0])
    assert low < 0.25 < high and high - low > 0.1  # the mean of 0.5 and 0.001, as unsure as its small half


def test_difference_is_taken_problem_by_problem() -> None:
    """Both are right on a random half; one more problem is solved by the first. Unpaired the gap drowns."""
    rng = random.Random(7)
    second = [float(rng.random() < 0.5) for _ in range(100)]
    first = [1.0 if i % 10 == 0 else score for i, score in enumerate(second)]
    won = sum(a > b for a, b in zip(first, second))
    found = difference((first, second))
    assert (found["won"], found["lost"]) == (won, 0) and found["mean"] == pytest.approx(won / 100)
    assert 0 < found["low"] < found["mean"] < found["high"] < 0.13
    assert difference((second, first))["mean"] == -found["mean"]
    both = difference((first, second), (second, second))
    assert both["mean"] == pytest.approx(found["mean"] / 2) and (both["won"], both["lost"]) == (won, 0)


@pytest.mark.parametrize(
    "won, lost, p", [(0, 0, 1.0), (5, 0, 2 / 32), (0, 5, 2 / 32), (4, 1, 12 / 32), (3, 3, 1.0)]
)
def test_sign_test_by_hand(won: int, lost: int, p: float) -> None:
    assert sign_test(won, lost) == pytest.approx(p)


def test_the_papers_wrong_averages_are_found_by_adding_up() -> None:
    wrong = {model: round(tables.true_average(model) or 0, 1) for model in tables.PAPER if tables.is_wrong(model)}
    assert wrong == {"Qwen2.5-Math-1.5B-Instruct-TIR": 39.3, "Eurus-2-7B-PRIME": 43.7, "ToRL-7B": 56.1}


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("runs/a/checkpoints/step_000100", "a/step_000100"),
        ("runs/a/model", "a/model"),
        ("Qwen/Qwen2.5-1.5B", "Qwen2.5-1.5B"),
        ("step_000100", "step_000100"),
    ],
)
def test_a_model_is_named_by_its_run(model: str, name: str) -> None:
    assert short_name(model) == name


def test_a_model_in_the_current_folder_is_named_by_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a/model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a")
    assert short_name("model") == short_name("./model") == "a/model"

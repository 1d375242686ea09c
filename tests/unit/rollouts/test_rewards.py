"""+1, -1 and the optional penalties, by hand-worked numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from grpo_tir.config import Config, RewardConfig, check
from grpo_tir.errors import ConfigError
from grpo_tir.grading.grader import Grade
from grpo_tir.rollouts.rewards import code_penalty, make_reward, math_reward, overlong_penalty
from grpo_tir.types import Reward, ToolCall, ToolResult
from scripted import rollout_of

OK = ToolCall("x", ToolResult("ok", "42"))
FAILED = ToolCall("x", ToolResult("error", "", "E", 1))
NO_CODE = ToolCall(None, None)


class EqualText:
    """A grader that compares letters; `down` answers as one that cannot judge."""

    def __init__(self, down: bool = False) -> None:
        self.down = down
        self.asked: list[str | None] = []

    def grade(self, answer: str | None, gold: str, rounding: int = 0) -> Grade:
        self.asked.append(answer)
        if self.down:
            return Grade("unjudged", answer, 0.0, "down")
        return Grade("right" if answer == gold else "wrong", answer, 0.0)


def graded(*turns: str) -> float:
    rollout = rollout_of(*turns)
    reward = math_reward(rollout.problem, rollout, EqualText())  # type: ignore[arg-type]
    assert reward is not None
    assert reward.parts == {"correct": reward.value}
    return reward.value


@pytest.mark.parametrize(
    ("turns", "correct"),
    [
        (["so \\boxed{42}"], 1.0),
        (["so \\boxed{41}"], 0.0),
        (["so 42"], 0.0),
        (["\\boxed{41} no, \\boxed{42}"], 1.0),
        (["\\boxed{42} no, \\boxed{41}"], 0.0),
        (["```python\nprint(42)\n```\n```output", "\n\\boxed{42}\n```\n", "it is done"], 0.0),  # boxed by the tool
        (["```python\nprint(42)\n```\n```output", "\n\\boxed{41}\n```\n", "\\boxed{42}"], 1.0),
        (["```python\nprint('\\\\boxed{42}')\n```\n"], 0.0),  # boxed in code
        (["\\boxed{42}\n```python\nprint(1)\n```\n```output", "\n1\n```\n", "as I said"], 1.0),
        (["\\boxed{4", "\n1\n```\n", "2}"], 0.0),  # a box never spans a tool call
        (["```python\nx\n```\n```output\n\\boxed{42}\n```\n"], 0.0),  # an output block that the model made up
    ],
)
def test_only_the_last_box_of_model_prose_counts(turns: list[str], correct: float) -> None:
    assert graded(*turns) == correct


def test_what_cannot_be_judged_for_no_fault_of_its_own_has_no_reward() -> None:
    rollout = rollout_of("\\boxed{42}")
    assert math_reward(rollout.problem, rollout, EqualText(down=True)) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("answer", "gold", "digits", "accepted"),
    [
        ("0.333", r"\frac{1}{3}", 3, True),
        ("0.33", r"\frac{1}{3}", 3, False),  # too few digits
        ("0.334", r"\frac{1}{3}", 3, False),  # not how 0.33333 is rounded
        ("0.3334", r"\frac{1}{3}", 3, False),
        ("37.70", r"12\pi", 3, True),  # 37.699
        ("x = 37.7", r"12\pi", 3, True),
        ("0.00195", r"\frac{1}{512}", 3, True),  # zeros in front are no digits
        ("0.0020", r"\frac{1}{512}", 3, False),
        ("(1.414, 2)", r"(\sqrt{2}, 2)", 4, True),
        ("(2, 1.414)", r"(\sqrt{2}, 2)", 4, False),
        ("3.14", "3.14159", 3, False),  # this gold is a decimal itself
        ("16.7\\%", r"\frac{50}{3}\%", 3, True),
        (r"5.20\text{ m}", r"3\sqrt{3}\text{ cm}", 3, False),
        ("41.9", "42", 3, False),
        ("(1.414, 2, 5)", r"(\sqrt{2}, 2)", 3, False),
    ],
)
def test_a_rounded_answer_counts_only_where_the_recipe_says_so(
    answer: str, gold: str, digits: int, accepted: bool
) -> None:
    rollout = rollout_of(f"\\boxed{{{answer}}}")
    rollout.problem = replace(rollout.problem, answer=gold)
    loose = make_reward(RewardConfig(rounding=str(digits)), 100)(rollout.problem, rollout)
    exact = make_reward(RewardConfig(), 100)(rollout.problem, rollout)
    assert loose is not None and exact is not None
    assert (loose.value, exact.value) == (1.0 if accepted else -1.0, -1.0)
    assert loose.parts == ({"correct": 1.0, "rounded": 1.0} if accepted else {"correct": 0.0})
    assert ("rounded" in exact.parts) == accepted  # counted, not paid


@pytest.mark.parametrize("rounding", ["1", "0", "-3", "3.5", "some"])
def test_a_rounding_that_is_no_number_of_digits_is_refused(rounding: str) -> None:
    with pytest.raises(ConfigError, match=r"reward\.rounding"):
        check(Config(reward=RewardConfig(rounding=rounding)))


def test_the_recipe_sets_the_two_values() -> None:
    right, wrong = rollout_of("\\boxed{42}"), rollout_of("\\boxed{41}")
    reward = make_reward(RewardConfig(), 100)
    assert reward(right.problem, right) == Reward(1.0, {"correct": 1.0})
    assert reward(wrong.problem, wrong) == Reward(-1.0, {"correct": 0.0})
    other = make_reward(RewardConfig(correct=2.0, wrong=0.0), 100)
    assert other(right.problem, right) == Reward(2.0, {"correct": 1.0})
    assert other(wrong.problem, wrong) == Reward(0.0, {"correct": 0.0})


@pytest.mark.parametrize(
    ("calls", "penalty"),
    [
        ([], 0.0),
        ([OK], 0.0),
        ([NO_CODE], 0.0),
        ([FAILED], -0.5),
        ([FAILED, OK], -0.5),  # a later success does not wash it off
        ([OK, FAILED], -0.5),
        ([FAILED, FAILED, FAILED], -0.5),  # once a response
        ([OK, NO_CODE], 0.0),
        ([ToolCall("x", ToolResult("timeout", "42"))], -0.5),
        ([ToolCall("x", ToolResult("memory"))], -0.5),
    ],
)
def test_the_code_penalty_is_for_executed_code_that_failed(calls: list[ToolCall], penalty: float) -> None:
    rollout = rollout_of("\\boxed{42}", calls=calls)
    assert code_penalty(rollout, RewardConfig(code_penalty=-0.5)) == penalty
    reward = make_reward(RewardConfig(code_penalty=-0.5), 100)(rollout.problem, rollout)
    assert reward is not None
    assert reward.value == 1.0 + penalty
    assert reward.parts == {"correct": 1.0, **({"code_penalty": -0.5} if penalty else {})}


def test_a_response_without_code_is_punished_only_by_its_own_setting() -> None:
    config = RewardConfig(code_penalty=-0.5, no_code_penalty=-0.25)
    assert code_penalty(rollout_of("a"), config) == -0.25
    assert code_penalty(rollout_of("a", calls=[NO_CODE]), config) == -0.25
    assert code_penalty(rollout_of("a", calls=[OK]), config) == 0.0
    assert code_penalty(rollout_of("a", calls=[FAILED]), config) == -0.5


@pytest.mark.parametrize(
    ("length", "penalty"), [(0, 0.0), (80, 0.0), (81, -0.05), (90, -0.5), (99, -0.95), (100, -1.0), (120, -1.0)]
)
def test_the_soft_overlong_penalty_is_dapo_equation_13(length: int, penalty: float) -> None:
    assert overlong_penalty(length, budget=100, buffer=20) == pytest.approx(penalty)
    assert overlong_penalty(length, budget=100, buffer=0) == 0.0


@pytest.mark.parametrize(
    ("calls", "price"), [([], 0.0), ([NO_CODE], 0.0), ([OK], -0.25), ([OK, FAILED, NO_CODE], -0.5)]
)
def test_each_executed_call_has_its_price(calls: list[ToolCall], price: float) -> None:
    rollout = rollout_of("\\boxed{42}", calls=calls)
    reward = make_reward(RewardConfig(call_penalty=-0.25), 100)(rollout.problem, rollout)
    assert reward == Reward(1.0 + price, {"correct": 1.0, **({"call_penalty": price} if price else {})})


def test_penalties_add_up_and_are_kept_apart() -> None:
    rollout = rollout_of("\\boxed{42}" + "x" * 80, calls=[FAILED])  # 90 tokens
    config = RewardConfig(code_penalty=-0.5, soft_overlong_buffer=20)
    reward = make_reward(config, 100)(rollout.problem, rollout)
    assert reward is not None
    assert reward.value == pytest.approx(1.0 - 0.5 - 0.5)
    assert reward.parts == {"correct": 1.0, "code_penalty": -0.5, "overlong": pytest.approx(-0.5)}


def test_a_reward_of_ones_own_keeps_its_value_and_may_abstain(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from grpo_tir.types import Reward\n"
        "def reward(problem, rollout):\n"
        "    return Reward(0.25) if 'x' in rollout.text else None\n"
    )
    reward = make_reward(RewardConfig(function=f"{path}:reward", code_penalty=-0.5), 100)
    spoken, silent = rollout_of("x", calls=[FAILED]), rollout_of("y")
    assert reward(spoken.problem, spoken) == Reward(-0.25, {"code_penalty": -0.5})
    assert reward(silent.problem, silent) is None


def test_a_reward_that_cannot_be_loaded_is_a_config_error() -> None:
    with pytest.raises(ConfigError):
        make_reward(RewardConfig(function="grpo_tir.rollouts.rewards:absent"), 100)


def test_the_real_grader_reads_the_same_seam() -> None:
    half = rollout_of("\\boxed{0.5}", answer="\\frac{1}{2}")
    reward = make_reward(RewardConfig(), 100)(half.problem, half)
    assert reward == Reward(1.0, {"correct": 1.0})

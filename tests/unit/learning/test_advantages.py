"""Group-relative advantages, by hand-worked numbers."""

from __future__ import annotations

import dataclasses
import math

import pytest

from grpo_tir.config import AlgorithmConfig
from grpo_tir.learning.advantages import assign_advantages, group_advantages, has_void_turn, is_flat
from grpo_tir.types import Reward, Rollout, RolloutGroup
from scripted import rollout_of

DEFAULT = AlgorithmConfig()


def group(*rewards: float | None, **fields: object) -> RolloutGroup:
    """A group of one-turn answers; None is a rollout that an outage cut short."""
    rollouts = []
    for reward in rewards:
        rollout = rollout_of("\\boxed{1}", **fields)
        rollout.reward = None if reward is None else Reward(reward)
        rollout.valid = reward is not None
        rollouts.append(rollout)
    return RolloutGroup(rollouts[0].problem, rollouts)


def assigned(group: RolloutGroup, **options: object) -> list[Rollout]:
    assign_advantages([group], dataclasses.replace(DEFAULT, **options))  # type: ignore[arg-type]
    return group.rollouts


def test_std_is_of_the_sample_with_n_minus_one() -> None:
    # mean 0, squares sum to 4, std = sqrt(4/3)
    std = math.sqrt(4 / 3)
    assert group_advantages([1, 1, -1, -1]) == pytest.approx([a / (std + 1e-6) for a in (1, 1, -1, -1)], rel=1e-12)
    # one right of four: mean -0.5, deviations 1.5 and -0.5 three times, std = sqrt(3/3) = 1
    assert group_advantages([1, -1, -1, -1], eps=0.0) == pytest.approx([1.5, -0.5, -0.5, -0.5])


def test_eps_is_added_to_the_std() -> None:
    assert group_advantages([1, -1, -1, -1], eps=1.0) == pytest.approx([0.75, -0.25, -0.25, -0.25])


def test_without_scaling_only_the_mean_is_taken_off() -> None:
    assert group_advantages([1, -1, -1, -1], scale=False) == [1.5, -0.5, -0.5, -0.5]


@pytest.mark.parametrize("rewards", [[], [1.0], [1.0, 1.0], [-1.0] * 16, [0.1] * 3])
@pytest.mark.parametrize("scale", [True, False])
def test_a_flat_group_has_no_advantage(rewards: list[float], scale: bool) -> None:
    assert is_flat(rewards)
    assert group_advantages(rewards, scale=scale) == [0.0] * len(rewards)


@pytest.mark.parametrize("scale", [True, False])
def test_advantages_sum_to_nothing(scale: bool) -> None:
    assert sum(group_advantages([1, -1, -1.5, 0.3, 1], scale=scale)) == pytest.approx(0, abs=1e-12)


def test_a_rollout_set_aside_is_in_neither_statistics_nor_loss() -> None:
    with_outage = assigned(group(1, None, -1, -1, -1))
    without = assigned(group(1, -1, -1, -1))
    assert [r.advantage for r in with_outage if r.valid] == [r.advantage for r in without]
    assert [r.trained for r in with_outage] == [True, False, True, True, True]
    assert with_outage[1].advantage == 0.0


def test_a_rollout_that_was_graded_and_then_set_aside_is_out_as_well() -> None:
    mixed = group(1, 1, -1, -1)
    mixed.rollouts[0].valid = False
    assert [r.advantage for r in assigned(mixed)] == [0.0, *group_advantages([1, -1, -1])]
    assert [r.trained for r in mixed.rollouts] == [False, True, True, True]


def test_a_group_left_with_one_or_no_rollout_teaches_nothing() -> None:
    assert [r.advantage for r in assigned(group(1, None, None))] == [0, 0, 0]
    assert [r.trained for r in assigned(group(None, None))] == [False, False]


def test_groups_do_not_mix() -> None:
    groups = [group(1, -1), group(5, 3)]
    assign_advantages(groups, DEFAULT)
    first, second = ([r.advantage for r in g.rollouts] for g in groups)
    assert first == pytest.approx(second)


def test_flat_groups_stay_in_the_denominators_unless_dropped() -> None:
    assert [r.trained for r in assigned(group(1, 1))] == [True, True]
    assert [r.trained for r in assigned(group(1, 1), drop_flat_groups=True)] == [False, False]
    assert [r.trained for r in assigned(group(1, -1), drop_flat_groups=True)] == [True, True]


def test_masking_the_overlong_leaves_the_group_statistics_alone() -> None:
    mixed = group(1, -1, -1, -1)
    mixed.rollouts[3].finish_reason = "length"
    plain = [r.advantage for r in assigned(mixed)]
    masked = assigned(mixed, mask_overlong=True)
    assert [r.advantage for r in masked] == plain
    assert [r.trained for r in masked] == [True, True, True, False]
    assert all(r.trained for r in assigned(mixed))


CODE = "```python\nx\n```\n```output"


@pytest.mark.parametrize(
    ("turns", "void"),
    [
        (["\\boxed{1}"], False),
        ([CODE, "\n1\n```\n", "\\boxed{1}"], False),
        (["just words"], True),
        ([CODE, "\n1\n```\n", "and so on"], True),
        (["words ```output", "\n[no code block found]\n```\n", "\\boxed{1}"], True),
        (["```python\nopen", "", ""], True),
        ([CODE, "\n\\boxed{1}\n```\n", "words"], True),  # the tool's box is not the model's
    ],
)
def test_a_turn_with_neither_code_nor_answer_is_void(turns: list[str], void: bool) -> None:
    rollout = rollout_of(*turns)
    assert has_void_turn(rollout) is void
    rollout.reward = Reward(1.0)
    other = rollout_of("\\boxed{1}")
    other.reward = Reward(-1.0)
    both = RolloutGroup(rollout.problem, [rollout, other])
    assert [r.trained for r in assigned(both, mask_void_turns=True)] == [not void, True]
    assert [r.trained for r in assigned(both)] == [True, True]

"""Group-relative advantages, by hand-worked numbers."""

from __future__ import annotations

import dataclasses
import math

import pytest

from grpo_tir.config import AlgorithmConfig
from grpo_tir.learning.advantages import assign_advantages, group_advantages, is_flat
from grpo_tir.learning.turns import fault_penalty, has_void_turn, resample_on_correct, turn_returns
from grpo_tir.types import Reward, Rollout, RolloutGroup, ToolCall, ToolResult
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


OK, FAILED, NO_CODE = ToolCall("x", ToolResult("ok")), ToolCall("x", ToolResult("error")), ToolCall(None, None)


def scored(reward: float, *turns: str, calls: tuple[ToolCall, ...] = (), sample: int = 0) -> Rollout:
    rollout = rollout_of(*turns, calls=calls, sample=sample)
    rollout.reward = Reward(reward, {"correct": float(reward > 0)})
    return rollout


def test_a_return_is_the_discounted_sum_of_the_rewards_from_its_turn_on() -> None:
    # rewards of the turns 0, -0.1 (a call without code), 1: returns 0 + 0.5 (-0.1 + 0.5), -0.1 + 0.5, 1
    rollout = scored(1.0, CODE, "\n1\n```\n", "```output", "\n?\n```\n", "\\boxed{1}", calls=(OK, NO_CODE))
    assert turn_returns(rollout, 0.5) == pytest.approx([0.2, 0.4, 1.0], rel=1e-12)
    assert turn_returns(rollout, 1.0) == pytest.approx([0.9, 0.9, 1.0], rel=1e-12)
    # the budget ended inside the tool's output: the last turn is the one that called
    assert turn_returns(scored(-1.0, CODE, "\n1", calls=(OK,)), 0.9) == [-1.0]


def test_gtpo_normalizes_returns_over_all_turns_of_the_group() -> None:
    """Returns 0.5, 1 and 0: mean 0.5, std 0.5, so advantages 0, 1 and -1."""
    right, wrong = scored(1.0, CODE, "\n1\n```\n", "\\boxed{1}", calls=(OK,)), scored(0.0, "\\boxed{2}")
    both = RolloutGroup(right.problem, [right, wrong])
    assigned(both, gtpo_gamma=0.5, advantage_eps=0.0)
    assert right.turn_advantages == pytest.approx([0.0, 1.0])
    assert wrong.turn_advantages == pytest.approx([-1.0])
    model, tool = [len(s.token_ids) for s in right.segments if s.kind == "model"], len(right.segments[1].token_ids)
    assert right.advantages == pytest.approx([0.0] * (model[0] + tool) + [1.0] * model[1])
    assigned(both)
    assert right.turn_advantages == wrong.turn_advantages == [], "without the option, one advantage per response"
    assert right.advantages == [right.advantage] * model[0] + [0.0] * tool + [right.advantage] * model[1]


def test_with_one_turn_each_and_without_discount_gtpo_is_grpo() -> None:
    answers = group(1, -1, -1, -0.5)
    assigned(answers, gtpo_gamma=1.0)
    assert [r.turn_advantages for r in answers.rollouts] == [[r.advantage] for r in answers.rollouts]


@pytest.mark.parametrize(
    ("turns", "calls", "penalty"),
    [
        (["\\boxed{1}"], (), 0.5),  # no call: 0.5; one answer: 0
        ([CODE, "\n1\n```\n", "\\boxed{1}"], (OK,), 0.0),
        ([CODE, "", CODE, "", CODE, "", "\\boxed{1}"], (OK, FAILED, NO_CODE), 2 / 3),
        ([CODE, "", "\\boxed{1} \\boxed{1} \\boxed{1}"], (OK,), 1.0),  # two more than one, over two turns
        ([CODE, "", "\\boxed{1} \\boxed{1}"], (FAILED,), 1.5),
        ([CODE, "\n\\boxed{1}\n```\n", "words"], (OK,), 1.0),  # no answer of its own
    ],
)
def test_penalty_of_a_response_by_hand(turns: list[str], calls: tuple[ToolCall, ...], penalty: float) -> None:
    assert fault_penalty(scored(1.0, *turns, calls=calls)) == pytest.approx(penalty)


def oversampled(clean: int, failing: int, wrong: int, lost: int = 0) -> list[Rollout]:
    made = [scored(1.0, CODE, "", "\\boxed{1}", calls=(OK,)) for _ in range(clean)]
    made += [scored(1.0, CODE, "", "\\boxed{1}", calls=(FAILED,)) for _ in range(failing)]
    made += [scored(-1.0, "\\boxed{2}") for _ in range(wrong)]
    made += [rollout_of("", valid=False) for _ in range(lost)]
    for sample, rollout in enumerate(made):
        rollout.sample = sample
    return made


@pytest.mark.parametrize(
    ("clean", "failing", "wrong", "kept"),
    [
        (4, 6, 6, (4, 1, 3)),  # half of the wrong, floor(6 / 2); of the right, first those without faults
        (6, 3, 7, (5, 0, 3)),  # floor(7 / 2) wrong: the right ones fill up
        (0, 16, 0, (0, 8, 0)),
        (0, 0, 16, (0, 0, 8)),
        (1, 0, 15, (1, 0, 7)),
        (2, 1, 2, (2, 1, 2)),  # fewer than wanted
    ],
)
def test_roc_keeps_half_of_the_wrong_and_the_cleanest_of_the_right(
    clean: int, failing: int, wrong: int, kept: tuple[int, int, int]
) -> None:
    rollouts = oversampled(clean, failing, wrong, lost=1)
    for seed in range(20):
        chosen = resample_on_correct(rollouts, 8, f"1/{seed}")
        samples = [r.sample for r in chosen]
        assert samples == sorted(samples) and samples[-1] == len(rollouts) - 1, "in order; the lost one is counted"
        counts = [sum(r.sample in part for r in chosen) for part in (
            range(clean), range(clean, clean + failing), range(clean + failing, clean + failing + wrong),
        )]  # fmt: skip
        assert tuple(counts) == kept
    assert chosen == resample_on_correct(rollouts, 8, f"1/{seed}"), "draws depend on the seed only"


def test_roc_draws_wrong_ones_alike_and_right_ones_by_the_inverse_of_their_penalty() -> None:
    """Of two wrong ones each is kept in half of the groups. Of two right ones with penalties 0.5 and 1.5, the
    first is kept in 3 of 4: its weight is three times that of the other."""
    rollouts = [
        scored(1.0, "\\boxed{1}", sample=0),
        scored(1.0, CODE, "", "\\boxed{1} \\boxed{1}", calls=(FAILED,), sample=1),
        scored(-1.0, "\\boxed{2}", sample=2),
        scored(-1.0, "\\boxed{3}", sample=3),
    ]
    draws = 4000
    kept = [r.sample for n in range(draws) for r in resample_on_correct(rollouts, 2, f"1/{n}")]
    assert kept.count(2) / draws == pytest.approx(0.5, abs=0.04)
    assert kept.count(0) / draws == pytest.approx(0.75, abs=0.035)
    assert kept.count(0) + kept.count(1) == draws

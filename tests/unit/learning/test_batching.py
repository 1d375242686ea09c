"""Rows, micro-batches and padding."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch

from grpo_tir.learning.batching import TrainingSample, collate, idle_row, plan_micro_batches, to_row
from grpo_tir.types import Problem, Rollout, Segment
from tiny_policy import make_groups

ROLLOUT = Rollout(
    Problem("1", "?", "!"),
    prompt_ids=[9, 8],
    segments=[Segment("model", [1, 2], [-0.1, -0.2]), Segment("tool", [3, 4, 5]), Segment("model", [6], [-0.3])],
    advantage=0.5,
)


def row(length: int) -> TrainingSample:
    return TrainingSample([1] * length, [1] * length, [0.0] * length, [0.0] * length)


def test_row_is_prompt_and_response_with_only_sampled_tokens_in_the_loss() -> None:
    made = to_row(ROLLOUT)
    assert made.token_ids == [9, 8, 1, 2, 3, 4, 5, 6]
    assert made.loss_mask == [0, 0, 1, 1, 0, 0, 0, 1]
    assert made.sampled_logprobs == [0, 0, -0.1, -0.2, 0, 0, 0, -0.3]
    assert made.advantages == [0, 0, 0.5, 0.5, 0, 0, 0, 0.5]


def test_advantages_of_turns_reach_the_tokens_of_their_turn() -> None:
    made = to_row(dataclasses.replace(ROLLOUT, turn_advantages=[0.25, -2.0]))
    assert made.advantages == [0, 0, 0.25, 0.25, 0, 0, 0, -2.0]


def test_row_refuses_logprobs_that_do_not_fit_the_tokens() -> None:
    torn = Rollout(Problem("1", "?", "!"), [9], segments=[Segment("model", [1, 2], [-0.1])])
    with pytest.raises(AssertionError, match="log-probs differ"):
        to_row(torn)


@pytest.mark.parametrize("budget", [1, 7, 16, 50, 10_000])
def test_micro_batches_hold_every_row_once_within_the_budget(budget: int) -> None:
    rng = random.Random(budget)
    rows = [row(rng.randint(2, 20)) for _ in range(40)]
    batches = plan_micro_batches(rows, budget)
    assert sorted(map(id, rows)) == sorted(id(r) for batch in batches for r in batch)
    for batch in batches:
        area = len(batch) * max(len(r.token_ids) for r in batch)
        assert area <= budget or len(batch) == 1


def test_longest_row_comes_first_and_neighbours_share_a_width() -> None:
    batches = plan_micro_batches([row(n) for n in (3, 9, 4, 10)], 20)
    assert [[len(r.token_ids) for r in batch] for batch in batches] == [[10, 9], [4, 3]]


@pytest.mark.parametrize("budget", [1, 7, 16, 50, 10_000])
def test_packed_micro_batches_pay_for_a_prompt_once(budget: int) -> None:
    rng = random.Random(budget)
    prompts = [[group] * rng.randint(1, 9) for group in range(6)]
    rows = [
        TrainingSample(p + [9] * n, [0] * len(p) + [1] * n, [0.0] * (len(p) + n), [0.0] * (len(p) + n))
        for p, n in ((rng.choice(prompts), rng.randint(1, 12)) for _ in range(40))
    ]
    batches = plan_micro_batches(rows, budget, packed=True)
    assert sorted(map(id, rows)) == sorted(id(r) for batch in batches for r in batch)
    for batch in batches:
        fed = sum(len(r.token_ids) - len(r.prompt) for r in batch) + sum(map(len, {r.prompt for r in batch}))
        assert fed <= budget or len(batch) == 1
    assert len(batches[0][0].token_ids) == max(len(r.token_ids) for r in rows)


def test_rows_of_a_prompt_stay_together() -> None:
    """Prompts 5 5 5 and 7 7; of each all but its last token is shared: 5 + 3 + 2 tokens, then 4 + 2."""
    a, b = [5, 5, 5], [7, 7]
    rows = [
        TrainingSample(p + [1] * n, [0] * len(p) + [1] * n, [0.0] * (len(p) + n), [0.0] * (len(p) + n))
        for p, n in ((a, 1), (b, 2), (a, 2), (b, 1), (a, 1))
    ]
    assert rows[0].prompt == (5, 5) and rows[1].prompt == (7,)
    batches = plan_micro_batches(rows, 10, packed=True)
    assert [[r.token_ids for r in batch] for batch in batches] == [
        [[5, 5, 5, 1, 1], [5, 5, 5, 1], [5, 5, 5, 1]],
        [[7, 7, 1, 1], [7, 7, 1]],
    ]


def test_no_rows_make_no_micro_batches() -> None:
    assert plan_micro_batches([], 100) == []


def test_padding_is_masked_by_length_even_where_a_row_holds_the_padding_id() -> None:
    rows = [
        TrainingSample([0, 0, 0], [0, 1, 1], [0.0, -1.0, -2.0], [0.0, 2.0, 2.0]),
        TrainingSample([0, 0], [0, 1], [0.0, -3.0], [0.0, -1.0]),
    ]
    batch = collate(rows, torch.device("cpu"))
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch.loss_mask.tolist() == [[0, 1, 1], [0, 1, 0]]
    assert batch.sampled_logprobs.tolist() == [[0, -1, -2], [0, -3, 0]]
    assert batch.advantages.tolist() == [[0, 2, 2], [0, -1, 0]]


def test_log_probs_of_fixed_policies_are_padded_to_the_width_of_the_batch() -> None:
    rows = [row(3), row(2)]
    rows[0].old_logprobs, rows[1].old_logprobs = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 5.0])
    batch = collate(rows, torch.device("cpu"))
    assert batch.old_logprobs is not None and batch.old_logprobs.tolist() == [[1, 2, 3], [4, 5, 0]]
    assert batch.ref_logprobs is None


def test_idle_row_has_no_weight() -> None:
    assert sum(idle_row().loss_mask) == 0


def test_every_rollout_of_a_batch_becomes_a_row_of_its_length() -> None:
    for group in make_groups(seed=1):
        for rollout in group.rollouts:
            made = to_row(rollout)
            assert len(made.token_ids) == len(rollout.prompt_ids) + len(rollout.token_ids)
            assert sum(made.loss_mask) == sum(len(s.token_ids) for s in rollout.segments if s.kind == "model")

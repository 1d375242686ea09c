"""The learner's bookkeeping: updates per batch, reference, importance cap, steps that are skipped, schedules."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo_tir.config import Config, OptimConfig
from grpo_tir.distributed.runtime import Runtime
from grpo_tir.errors import TrainingDiverged
from grpo_tir.learning.learner import Learner, learning_rate
from grpo_tir.types import RolloutGroup
from tiny_policy import gradient_of, make_groups, make_learner, tiny_qwen2, update


def count_steps(learner: Learner) -> list[int]:
    """A list that grows by one with every optimizer step."""
    steps: list[int] = []
    take = learner.optimizer.step
    learner.optimizer.step = lambda *a, **k: (steps.append(1), take(*a, **k))[1]  # type: ignore[method-assign]
    return steps


def weights(learner: Learner) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in learner.module.parameters()])


@pytest.mark.parametrize("mini_batches, epochs, expected", [(1, 1, 1), (2, 1, 2), (1, 3, 3), (4, 2, 8)])
def test_optimizer_steps_are_mini_batches_times_epochs(
    mini_batches: int, epochs: int, expected: int, tmp_path: Path
) -> None:
    learner = make_learner(tiny_qwen2(), algorithm__mini_batches=mini_batches, algorithm__epochs=epochs)
    steps = count_steps(learner)
    update(learner, make_groups(groups=4), 0, tmp_path)
    assert len(steps) == expected


def test_mini_batches_are_of_equal_size_whatever_the_numbers_of_the_groups(tmp_path: Path) -> None:
    """Dynamic sampling leaves gaps: here only even numbers are left."""
    groups = make_groups(groups=4)
    for number, group in enumerate(groups):
        for rollout in group.rollouts:
            rollout.group = 2 * number
    learner = make_learner(tiny_qwen2(), algorithm__mini_batches=2)
    with learner.updating(0):
        batches = list(learner.mini_batches(groups))
    dealt = [sorted({sample.rollout.group for sample in batch.samples if sample.rollout}) for batch in batches]
    assert dealt == [[0, 4], [2, 6]]


def test_one_update_per_batch_has_ratio_one_and_clips_nothing(tmp_path: Path) -> None:
    metrics = update(make_learner(tiny_qwen2(), optim__lr=0.1), make_groups(), 0, tmp_path)
    assert metrics["clip_ratio/region_mean"] == 0
    # at ratio 1 the value of the loss is minus the token-weighted mean advantage
    rollouts = [r for g in make_groups() for r in g.rollouts]
    tokens = [sum(r.loss_mask) for r in rollouts]
    expected = -sum(r.advantage * n for r, n in zip(rollouts, tokens, strict=True)) / sum(tokens)
    assert metrics["loss"] == pytest.approx(expected, rel=1e-5)


def test_with_one_update_per_batch_cispo_has_the_gradient_of_the_clipped_objective(tmp_path: Path) -> None:
    """At ratio 1 both are -A times the gradient of the log-prob."""
    plain = gradient_of(tiny_qwen2(), make_groups(), tmp_path)
    cispo = gradient_of(tiny_qwen2(), make_groups(), tmp_path, algorithm__objective="cispo")
    for name, gradient in plain.items():
        torch.testing.assert_close(cispo[name], gradient, rtol=1e-4, atol=1e-7)


def test_later_epochs_clip_once_the_policy_has_moved(tmp_path: Path) -> None:
    metrics = update(make_learner(tiny_qwen2(), optim__lr=0.05, algorithm__epochs=3), make_groups(), 0, tmp_path)
    low, high = metrics["clip_ratio/low_mean"], metrics["clip_ratio/high_mean"]
    assert low > 0 and high > 0
    assert metrics["clip_ratio/region_mean"] == pytest.approx(low + high)


def test_kl_is_zero_at_the_reference_and_pulls_back_to_it_elsewhere(tmp_path: Path) -> None:
    same = update(make_learner(tiny_qwen2(0), tiny_qwen2(0), algorithm__kl_coef=1.0), make_groups(), 0, tmp_path)
    assert same["kl"] == pytest.approx(0, abs=1e-6)
    groups = make_groups()
    for rollout in (r for g in groups for r in g.rollouts):
        rollout.advantage = 0.0  # nothing but the penalty acts
    learner = make_learner(tiny_qwen2(0), tiny_qwen2(1), algorithm__kl_coef=1.0, optim__lr=3e-3)
    values = [update(learner, groups, step, tmp_path)["kl"] for step in range(8)]
    assert values[0] > 0.1 and values[-1] < 0.7 * values[0]


def test_reference_does_not_move(tmp_path: Path) -> None:
    reference = tiny_qwen2(1).requires_grad_(False)
    before = torch.cat([p.flatten().clone() for p in reference.parameters()])
    update(
        make_learner(tiny_qwen2(0), reference, algorithm__kl_coef=1.0, optim__lr=0.1), make_groups(), 0, tmp_path
    )
    assert torch.equal(before, torch.cat([p.flatten() for p in reference.parameters()]))


def test_importance_cap_weighs_by_learner_over_generator_and_is_capped(tmp_path: Path) -> None:
    """The generator claims log-prob -20 everywhere: the true weight is huge, the cap holds it at 2, and at ratio 1
    the loss is twice that without."""
    groups = make_groups()
    for segment in (s for g in groups for r in g.rollouts for s in r.segments if s.kind == "model"):
        segment.logprobs = [-20.0] * len(segment.token_ids)
    plain = update(make_learner(tiny_qwen2()), groups, 0, tmp_path)
    capped = update(make_learner(tiny_qwen2(), algorithm__importance_cap=2.0), groups, 0, tmp_path)
    assert capped["loss"] == pytest.approx(2 * plain["loss"], rel=1e-5)
    assert capped["grad_norm"] == pytest.approx(2 * plain["grad_norm"], rel=1e-4)


def respond_with(learner: Learner, groups: list[RolloutGroup], gaps: list[float]) -> None:
    """Make the generator's log-probs those of the learner minus a gap, the same at all tokens of a response."""
    for rollout, gap in zip((r for g in groups for r in g.rollouts), gaps, strict=True):
        ids = torch.tensor([rollout.prompt_ids + rollout.token_ids])
        mask = torch.tensor([[0] * len(rollout.prompt_ids) + rollout.loss_mask])
        true = iter(learner.module(ids, torch.ones_like(ids), mask)[0][mask.bool()].tolist())
        for segment in (s for s in rollout.segments if s.kind == "model"):
            segment.logprobs = [next(true) - gap for _ in segment.token_ids]


@pytest.mark.parametrize("by", ["sum", "mean"])
def test_sequence_mask_leaves_out_responses_whose_ratio_is_outside(by: str, tmp_path: Path) -> None:
    """Of 12 responses, three have the ratios 4, 1/4 and 2, by sum or by mean; all others have 1. With bounds 1/3
    and 3 the first two leave the loss. The denominator keeps their tokens."""
    groups, learner = make_groups(), make_learner(tiny_qwen2())
    rollouts = [r for g in groups for r in g.rollouts]
    tokens = [sum(r.loss_mask) for r in rollouts]
    ratios = [4.0, 0.25, 2.0] + [1.0] * 9
    gaps = [math.log(x) / (n if by == "sum" else 1) for x, n in zip(ratios, tokens, strict=True)]
    respond_with(learner, groups, gaps)
    settings: dict[str, Any] = {"algorithm__sequence_mask": [1 / 3, 3.0], "algorithm__sequence_mask_by": by}
    metrics = update(make_learner(tiny_qwen2(), **settings), groups, 0, tmp_path)
    kept = [r.advantage * n for r, n in zip(rollouts, tokens, strict=True)][2:]
    assert metrics["loss"] == pytest.approx(-sum(kept) / sum(tokens), rel=1e-5)
    assert metrics["sampling/sequence_masked"] == pytest.approx(2 / 12)
    far = [abs(gap * n) > math.log(3) for gap, n in zip(gaps, tokens, strict=True)]
    assert metrics["sampling/sequence_ratio_far"] == pytest.approx(sum(far) / 12)

    plain = update(learner, groups, 0, tmp_path)
    assert "sampling/sequence_masked" not in plain
    assert plain["sampling/sequence_ratio_far"] == metrics["sampling/sequence_ratio_far"]
    assert (plain["entropy"], plain["sampling/sampling_logp_difference/mean"]) == pytest.approx(
        (metrics["entropy"], metrics["sampling/sampling_logp_difference/mean"])
    ), "masked responses are still measured"


def test_sequence_mask_and_importance_cap_work_together(tmp_path: Path) -> None:
    """The gradient of the masked, weighted loss is that of the weighted loss of the kept rows, over the larger
    denominator."""
    groups = make_groups()
    respond_with(make_learner(tiny_qwen2()), groups, [2.0, -2.0] + [0.01] * 10)
    settings: dict[str, Any] = {"algorithm__importance_cap": 1.005, "train__logprob_tolerance": 10.0}
    masked = {**settings, "algorithm__sequence_mask": [0.5, 2.0], "algorithm__sequence_mask_by": "mean"}
    ours = gradient_of(tiny_qwen2(), groups, tmp_path, **masked)
    rollouts = [r for g in groups for r in g.rollouts]
    for rollout in rollouts[:2]:
        rollout.trained = False
    theirs = gradient_of(tiny_qwen2(), groups, tmp_path, **settings)
    tokens = [sum(r.loss_mask) for r in rollouts]
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name] * sum(tokens[2:]) / sum(tokens), rtol=1e-4, atol=1e-6)


def test_a_response_with_a_nan_is_not_masked_away(tmp_path: Path) -> None:
    model, groups = poisoned()
    metrics = update(make_learner(model, algorithm__sequence_mask=[0.0, 1e30]), groups, 0, tmp_path)
    assert metrics["skipped_updates"] == 1


def test_the_probability_of_a_call_is_summed_up_to_the_first_call_token(tmp_path: Path) -> None:
    """A policy that draws uniformly from 61 tokens: 1/61 for each model token up to the first call token."""
    model = tiny_qwen2(tie_word_embeddings=False)
    torch.nn.init.zeros_(model.lm_head.weight)
    groups, call = make_groups(), 7
    learner = Learner(Runtime("fp32"), model, Config(), call_token=call)
    metrics = update(learner, groups, 0, tmp_path)
    expected = []
    for rollout in (r for g in groups for r in g.rollouts):
        said = [token for token, model in zip(rollout.token_ids, rollout.loss_mask, strict=True) if model]
        expected.append((said.index(call) + 1 if call in said else len(said)) / model.config.vocab_size)
    assert any(call in r.token_ids for g in groups for r in g.rollouts)
    assert metrics["tools/call_probability"] == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    assert "tools/call_probability" not in update(make_learner(model), groups, 0, tmp_path)


def test_gap_between_generator_and_learner_is_measured_on_model_tokens_only(tmp_path: Path) -> None:
    groups = make_groups()
    learner = make_learner(tiny_qwen2())
    probe = learner.module
    for rollout in (r for g in groups for r in g.rollouts):
        ids = torch.tensor([rollout.prompt_ids + rollout.token_ids])
        mask = torch.tensor([[0] * len(rollout.prompt_ids) + rollout.loss_mask])
        true = probe(ids, torch.ones_like(ids), mask)[0][0, len(rollout.prompt_ids) :].tolist()
        at = 0
        for segment in rollout.segments:
            if segment.kind == "model":
                segment.logprobs = [value + 0.25 for value in true[at : at + len(segment.token_ids)]]
            at += len(segment.token_ids)
    metrics = update(learner, groups, 0, tmp_path)
    assert metrics["sampling/sampling_logp_difference/mean"] == pytest.approx(0.25, rel=1e-4)
    assert metrics["sampling/sampling_logp_difference/max"] == pytest.approx(0.25, rel=1e-4)


def test_entropy_of_a_uniform_policy_is_the_logarithm_of_its_vocabulary(tmp_path: Path) -> None:
    model = tiny_qwen2(tie_word_embeddings=False)
    torch.nn.init.zeros_(model.lm_head.weight)
    metrics = update(make_learner(model), make_groups(), 0, tmp_path)
    assert metrics["entropy"] == pytest.approx(math.log(model.config.vocab_size), rel=1e-5)


def poisoned() -> tuple[Any, list[RolloutGroup]]:
    groups = make_groups()
    groups[0].rollouts[0].advantage = math.nan
    return tiny_qwen2(), groups


def test_step_without_a_finite_gradient_is_skipped_counted_and_dumped_for_replay(tmp_path: Path) -> None:
    model, groups = poisoned()
    learner = make_learner(model)
    before = weights(learner)
    metrics = update(learner, groups, 0, tmp_path / "dump")
    assert metrics["skipped_updates"] == 1 and learner.skipped == 1
    assert torch.equal(weights(learner), before)
    rows = torch.load(tmp_path / "dump" / "dumps" / "step_000001" / "rank0.pt")
    assert len(rows) == sum(len(group.rollouts) for group in groups)
    assert {"token_ids", "loss_mask", "advantages"} <= rows[0].keys()
    assert sum(any(map(math.isnan, row["advantages"])) for row in rows) == 1


def test_a_good_step_after_a_skipped_one_is_that_of_a_fresh_learner_and_resets_the_count(tmp_path: Path) -> None:
    model, groups = poisoned()
    learner, fresh = make_learner(model), make_learner(tiny_qwen2())
    update(learner, groups, 0, tmp_path)
    for one in (learner, fresh):
        update(one, make_groups(), 0, tmp_path)
    assert learner.skipped == 0
    assert torch.equal(weights(learner), weights(fresh))


def test_training_stops_with_the_reason_after_too_many_skipped_steps_in_a_row(tmp_path: Path) -> None:
    model, groups = poisoned()
    learner = make_learner(model, train__max_skipped=3)
    for step in range(2):
        update(learner, groups, step, tmp_path)
    with pytest.raises(TrainingDiverged, match=r"3 optimizer steps in a row .* nan"):
        update(learner, groups, 2, tmp_path)


def test_batch_without_a_trained_rollout_moves_nothing(tmp_path: Path) -> None:
    groups = make_groups()
    for rollout in (r for g in groups for r in g.rollouts):
        rollout.trained = False
    learner = make_learner(tiny_qwen2(), optim__weight_decay=0.5, optim__lr=0.1)
    before = weights(learner)
    metrics = update(learner, groups, 0, tmp_path)
    assert torch.equal(weights(learner), before)
    assert metrics["loss"] == 0 and metrics["grad_norm"] == 0


def test_gradient_is_clipped_by_its_global_norm_and_reported_before_that(tmp_path: Path) -> None:
    """With eps far above the gradient, Adam's first step is lr g / eps: half the norm, half the step."""
    moved, norms = [], []
    for limit in (1e9, 0.05, 0.025):
        learner = make_learner(
            tiny_qwen2(), optim__max_grad_norm=limit, optim__eps=1e3, optim__lr=100.0, optim__weight_decay=0.0
        )
        before = weights(learner)
        norms.append(update(learner, make_groups(), 0, tmp_path)["grad_norm"])
        moved.append((weights(learner) - before).norm().item())
    assert norms[0] == norms[1] == norms[2] > 0.1
    assert moved[0] / moved[1] == pytest.approx(norms[0] / 0.05, rel=1e-2)
    assert moved[1] / moved[2] == pytest.approx(2, rel=1e-2)


def test_learning_rate_follows_the_step_of_the_run(tmp_path: Path) -> None:
    learner = make_learner(tiny_qwen2(), optim__lr=1e-3, optim__schedule="linear", train__steps=4)
    assert update(learner, make_groups(), 3, tmp_path)["learning_rate"] == pytest.approx(0.25e-3)


@pytest.mark.parametrize(
    "schedule, warmup, expected",
    [
        ("constant", 0, [8, 8, 8, 8]),
        ("constant", 2, [4, 8, 8, 8]),
        ("linear", 0, [8, 6, 4, 2]),
        ("linear", 2, [4, 8, 8, 4]),
        ("cosine", 0, [8, 8 * (1 + math.sqrt(0.5)) / 2, 4, 8 * (1 - math.sqrt(0.5)) / 2]),
        ("constant", 4, [2, 4, 6, 8]),
    ],
)
def test_schedules_by_hand(schedule: Any, warmup: int, expected: list[float]) -> None:
    optim = OptimConfig(lr=8.0, schedule=schedule, warmup_steps=warmup)
    assert [learning_rate(step, optim, 4) for step in range(4)] == pytest.approx(expected)


def test_weight_decay_is_decoupled_from_the_gradient(tmp_path: Path) -> None:
    """AdamW, not Adam with L2: weights shrink by lr x decay on top of the step without."""
    ends = []
    for decay in (0.0, 0.1):
        learner = make_learner(tiny_qwen2(), optim__lr=0.01, optim__weight_decay=decay)
        before = weights(learner)
        update(learner, make_groups(), 0, tmp_path)
        ends.append(weights(learner))
    torch.testing.assert_close(ends[1] - ends[0], -0.01 * 0.1 * before, rtol=1e-3, atol=1e-7)

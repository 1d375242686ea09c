"""`grpo_loss` against loops written from the papers' equations, and against numbers worked by hand."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from grpo_tir.learning.loss import count, grpo_loss, kl_penalty, sequence_ratio

MASKS = [
    [0, 0, 1, 1, 1, 0, 0, 1, 1],
    [1, 1, 1, 1, 1, 1, 1, 1, 1],
    [0, 0, 0, 0, 0, 0, 0, 0, 1],
    [0, 1, 0, 0, 0, 0, 0, 0, 0],
    [0, 0, 0, 0, 0, 0, 0, 0, 0],
]


def batch(seed: int = 0) -> dict[str, Any]:
    """Rows of every shape, one of them without a model token; ratios on both sides of both clips."""
    torch.manual_seed(seed)
    mask = torch.tensor(MASKS)
    return {
        "logprobs": (-torch.rand(mask.shape, dtype=torch.float64) * 3).requires_grad_(),
        "old": -torch.rand(mask.shape, dtype=torch.float64) * 3,
        "ref": -torch.rand(mask.shape, dtype=torch.float64) * 3,
        "weights": torch.rand(mask.shape, dtype=torch.float64) * 2,
        "advantages": torch.tensor([1.3, -0.7, 0.4, -1.1, 2.0], dtype=torch.float64),
        "mask": mask,
    }


def loop_loss(
    b: dict[str, Any],
    aggregation: str,
    low: float,
    high: float,
    ratio: str,
    kl_coef: float,
    weighted: bool,
    cispo: bool = False,
) -> torch.Tensor:
    """The equations with an index for everything: DAPO eq. 8, GRPO eq. 3, Dr. GRPO, GSPO eq. 6, CISPO, k3."""
    B, T = b["mask"].shape
    rows = []
    for i in range(B):
        tokens = [t for t in range(T) if b["mask"][i, t] == 1]
        terms = []
        for t in tokens:
            if ratio == "sequence":
                w = torch.exp(sum(b["logprobs"][i, s] - b["old"][i, s] for s in tokens) / len(tokens))
            else:
                w = torch.exp(b["logprobs"][i, t] - b["old"][i, t])
            A = float(b["advantages"][i] if b["advantages"].dim() == 1 else b["advantages"][i, t])
            clipped = min(max(w.detach(), w.new_tensor(1 - low)), w.new_tensor(1 + high))
            surrogate = w * A if w * A <= clipped * A else clipped * A
            if cispo:  # the weight is a number: no gradient passes through it
                surrogate = float(clipped) * A * b["logprobs"][i, t]
            if weighted:
                surrogate = surrogate * b["weights"][i, t]
            difference = b["ref"][i, t] - b["logprobs"][i, t]
            terms.append(-surrogate + kl_coef * (torch.exp(difference) - difference - 1))
        if terms:
            rows.append(terms)
    if aggregation == "token":
        return sum(sum(terms) for terms in rows) / sum(len(terms) for terms in rows)
    if aggregation == "sequence":
        return sum(sum(terms) / len(terms) for terms in rows) / len(rows)
    return sum(sum(terms) for terms in rows) / (B * T)


CASES = list(
    itertools.product(
        ["token", "sequence", "constant"],
        [(0.2, 0.2), (0.1, 0.28)],
        ["token", "sequence"],
        [0.0, 0.3],
        [False, True],
    )
)


@pytest.mark.parametrize("aggregation, clip, ratio, kl_coef, weighted", CASES)
def test_value_and_gradient_are_those_of_the_equations(
    aggregation: Any, clip: tuple[float, float], ratio: Any, kl_coef: float, weighted: bool
) -> None:
    for seed in range(3):
        b = batch(seed)
        loss, _ = grpo_loss(
            b["logprobs"],
            b["old"],
            b["advantages"],
            b["mask"],
            aggregation=aggregation,
            clip_low=clip[0],
            clip_high=clip[1],
            ratio=ratio,
            ref_logprobs=b["ref"],
            kl_coef=kl_coef,
            weights=b["weights"] if weighted else None,
        )
        oracle = loop_loss(b, aggregation, *clip, ratio, kl_coef, weighted)
        (ours,) = torch.autograd.grad(loss, b["logprobs"])
        (theirs,) = torch.autograd.grad(oracle, b["logprobs"])
        assert loss.item() == pytest.approx(oracle.item(), rel=1e-12)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
        assert ours[b["mask"] == 0].abs().max() == 0


@pytest.mark.parametrize("aggregation, clip, ratio, kl_coef, weighted", CASES)
def test_cispo_has_the_value_and_gradient_of_its_equation(
    aggregation: Any, clip: tuple[float, float], ratio: Any, kl_coef: float, weighted: bool
) -> None:
    for seed in range(3):
        b = batch(seed)
        loss, _ = grpo_loss(
            *(b[name] for name in ("logprobs", "old", "advantages", "mask")),
            aggregation=aggregation,
            clip_low=clip[0],
            clip_high=clip[1],
            ratio=ratio,
            objective="cispo",
            ref_logprobs=b["ref"],
            kl_coef=kl_coef,
            weights=b["weights"] if weighted else None,
        )
        oracle = loop_loss(b, aggregation, *clip, ratio, kl_coef, weighted, cispo=True)
        (ours,) = torch.autograd.grad(loss, b["logprobs"])
        (theirs,) = torch.autograd.grad(oracle, b["logprobs"])
        assert loss.item() == pytest.approx(oracle.item(), rel=1e-12)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
        assert ours[b["mask"] == 0].abs().max() == 0


def test_cispo_keeps_the_gradient_of_a_clipped_token_by_hand() -> None:
    # ratios e^0.5 and e^-0.5, clipped to 1.28 and 0.8: the gradient is -clipped x A / 2 for both signs of A
    logprobs = torch.tensor([[-0.5], [-1.5]], dtype=torch.float64, requires_grad=True)
    for sign in (1.0, -1.0):
        loss, info = grpo_loss(
            logprobs, torch.full((2, 1), -1.0), sign * torch.tensor([2.0, 2.0]), torch.ones(2, 1),
            clip_low=0.2, clip_high=0.28, objective="cispo",
        )  # fmt: skip
        assert loss.item() == pytest.approx(-sign * (1.28 * 2 * -0.5 + 0.8 * 2 * -1.5) / 2)
        (gradient,) = torch.autograd.grad(loss, logprobs)
        assert gradient.flatten().tolist() == pytest.approx([-sign * 1.28, -sign * 0.8])
        assert (info["clipped_high"].item(), info["clipped_low"].item()) == (1, 1), "whatever the sign of A"


@pytest.mark.parametrize("objective", ["clip", "cispo"])
def test_advantages_by_token_are_those_of_the_equation_and_constant_ones_broadcast(objective: Any) -> None:
    b = batch()
    names = ("logprobs", "old", "advantages", "mask")
    whole, _ = grpo_loss(*(b[name] for name in names), objective=objective)
    b["advantages"] = b["advantages"][:, None].expand(b["mask"].shape)
    same, _ = grpo_loss(*(b[name] for name in names), objective=objective)
    assert same.item() == whole.item()
    b["advantages"] = torch.randn(b["mask"].shape, dtype=torch.float64)
    loss, _ = grpo_loss(*(b[name] for name in names), objective=objective)
    oracle = loop_loss(b, "token", 0.2, 0.2, "token", 0.0, False, cispo=objective == "cispo")
    (ours,) = torch.autograd.grad(loss, b["logprobs"])
    (theirs,) = torch.autograd.grad(oracle, b["logprobs"])
    assert loss.item() == pytest.approx(oracle.item(), rel=1e-12)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_ratio_of_a_response_by_hand() -> None:
    # log-ratios ln 2 and ln 8 at the model tokens: product 16, geometric mean 4; the NaN is at a tool token
    log_ratio = torch.tensor([[math.log(2), math.nan, math.log(8)], [0.0, 5.0, 5.0]], dtype=torch.float64)
    mask = torch.tensor([[1, 0, 1], [0, 0, 0]])
    assert sequence_ratio(log_ratio, mask).tolist() == pytest.approx([16.0, 1.0], rel=1e-12)
    assert sequence_ratio(log_ratio, mask, "mean").tolist() == pytest.approx([4.0, 1.0], rel=1e-12)


@pytest.mark.parametrize("by", ["sum", "mean"])
@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
def test_masked_responses_leave_the_loss_and_stay_in_the_denominator(aggregation: Any, by: Any) -> None:
    """The loss with mask is the sum of the single losses of the kept rows, over the denominator of all rows."""
    seen = set()
    for seed in range(6):
        b = batch(seed)
        generator = b["old"] + 0.5 * torch.randn(b["mask"].shape, dtype=torch.float64)
        kept = []
        for i, row in enumerate(b["mask"].tolist()):
            gaps = [float(b["old"][i, t] - generator[i, t]) for t, model in enumerate(row) if model]
            total = math.fsum(gaps) / (len(gaps) if by == "mean" and gaps else 1)
            kept.append(0.7 <= math.exp(total) <= 1.5)
        seen.update(kept)
        ratio = sequence_ratio(b["old"] - generator, b["mask"], by)
        inside = (ratio >= 0.7) & (ratio <= 1.5)
        assert inside.tolist() == kept
        loss, _ = grpo_loss(
            b["logprobs"], b["old"], b["advantages"], b["mask"] * inside[:, None], aggregation=aggregation,
            normalizer=count(b["mask"], aggregation), ref_logprobs=b["ref"], kl_coef=0.1,
        )  # fmt: skip
        oracle = 0 * b["logprobs"].sum()
        for i in range(len(kept)):
            one = {k: v if k == "logprobs" else v[i : i + 1] for k, v in b.items()}
            one["logprobs"] = b["logprobs"][i : i + 1]
            if kept[i] and one["mask"].any():
                share = loop_loss(one, aggregation, 0.2, 0.2, "token", 0.1, False)
                oracle = oracle + share * count(one["mask"], aggregation) / count(b["mask"], aggregation)
        (ours,) = torch.autograd.grad(loss, b["logprobs"])
        (theirs,) = torch.autograd.grad(oracle, b["logprobs"])
        assert loss.item() == pytest.approx(oracle.item(), rel=1e-12, abs=1e-15)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    assert seen == {True, False}


def test_one_clipped_token_by_hand() -> None:
    # ratio e^0.5 = 1.6487: with A = 2 the clip holds it at 1.28, with A = -2 nothing does (PPO is one-sided)
    logprobs = torch.tensor([[0.5], [0.5]], dtype=torch.float64, requires_grad=True)
    loss, info = grpo_loss(
        logprobs, torch.zeros(2, 1), torch.tensor([2.0, -2.0]), torch.ones(2, 1), clip_low=0.2, clip_high=0.28
    )
    assert loss.item() == pytest.approx((-2 * 1.28 + 2 * math.exp(0.5)) / 2)
    loss.backward()
    assert logprobs.grad is not None
    assert logprobs.grad.flatten().tolist() == pytest.approx([0.0, math.exp(0.5)])
    assert (info["clipped_high"].item(), info["clipped_low"].item(), info["tokens"].item()) == (1, 0, 2)


def test_low_clip_counts_only_where_it_bites() -> None:
    # ratio e^-1 = 0.37 < 0.8: it bites for A < 0 (the push downwards ends) and not for A > 0
    advantages = torch.tensor([1.0, -1.0, -2.0])
    _, info = grpo_loss(torch.full((3, 1), -1.0), torch.zeros(3, 1), advantages, torch.ones(3, 1))
    assert (info["clipped_low"].item(), info["clipped_high"].item()) == (2, 0)
    # ratio e = 2.7 > 1.2: the other way round
    _, info = grpo_loss(torch.full((3, 1), 1.0), torch.zeros(3, 1), advantages, torch.ones(3, 1))
    assert (info["clipped_low"].item(), info["clipped_high"].item()) == (0, 1)


def test_aggregations_weigh_lengths_as_their_papers_say() -> None:
    # one row of 4 tokens with A = 1, one of 1 token with A = -3, all ratios 1: token losses -1 (x4) and 3
    zeros, mask = torch.zeros(2, 4), torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]])
    values = {
        name: grpo_loss(zeros, zeros, torch.tensor([1.0, -3.0]), mask, aggregation=name)[0].item()  # type: ignore[arg-type]
        for name in ("token", "sequence", "constant")
    }
    assert values == pytest.approx({"token": (-4 + 3) / 5, "sequence": (-1 + 3) / 2, "constant": (-4 + 3) / 8})


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_parts_with_the_whole_normalizer_sum_to_the_whole(aggregation: Any, ratio: Any) -> None:
    b = batch()
    options: dict[str, Any] = {"aggregation": aggregation, "ratio": ratio}
    whole, _ = grpo_loss(b["logprobs"], b["old"], b["advantages"], b["mask"], **options)
    normalizer = count(b["mask"], aggregation)
    parts = [
        grpo_loss(
            b["logprobs"][i : i + 2],
            b["old"][i : i + 2],
            b["advantages"][i : i + 2],
            b["mask"][i : i + 2],
            normalizer=normalizer,
            **options,
        )[0]
        for i in (0, 2, 4)
    ]
    assert sum(part.item() for part in parts) == pytest.approx(whole.item(), rel=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("kl_coef", [0.0, 0.3])
def test_whatever_stands_at_masked_places_reaches_nothing(bad: float, ratio: Any, kl_coef: float) -> None:
    clean, dirty = batch(), batch()
    for name in ("logprobs", "old", "ref", "weights"):
        dirty[name] = torch.where(dirty["mask"] == 1, dirty[name].detach(), bad)
    dirty["logprobs"].requires_grad_()
    results = []
    for b in (clean, dirty):
        loss, info = grpo_loss(
            b["logprobs"],
            b["old"],
            b["advantages"],
            b["mask"],
            ratio=ratio,
            kl_coef=kl_coef,
            ref_logprobs=b["ref"],
            weights=b["weights"],
        )
        (gradient,) = torch.autograd.grad(loss, b["logprobs"])
        results.append((loss, gradient, *info.values()))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_batch_without_a_model_token_has_loss_and_gradient_zero() -> None:
    logprobs = torch.randn(2, 3, requires_grad=True)
    for aggregation in ("token", "sequence", "constant"):
        loss, info = grpo_loss(
            logprobs,
            torch.randn(2, 3),
            torch.ones(2),
            torch.zeros(2, 3),
            aggregation=aggregation,  # type: ignore[arg-type]
        )
        (gradient,) = torch.autograd.grad(loss, logprobs)
        assert loss.item() == 0 and gradient.abs().max() == 0 and info["tokens"] == 0


def test_denominators_by_hand() -> None:
    mask = torch.tensor(MASKS)
    assert count(mask, "token") == 16
    assert count(mask, "sequence") == 4
    assert count(mask, "constant") == 45
    assert count(mask, "constant", 100) == 500


def test_k3_by_hand() -> None:
    # pi = 0.5, pi_ref = 0.25: 0.5 - ln 0.5 - 1
    k3 = kl_penalty(torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.25)]))
    assert k3.item() == pytest.approx(0.5 + math.log(2) - 1)
    assert kl_penalty(torch.tensor([-0.3]), torch.tensor([-0.3])).item() == 0


def test_k3_is_unbiased_under_the_sampling_policy() -> None:
    torch.manual_seed(0)
    policy, reference = torch.randn(7, dtype=torch.float64).log_softmax(0), torch.randn(7).double().log_softmax(0)
    exact = (policy.exp() * (policy - reference)).sum()
    assert (policy.exp() * kl_penalty(policy, reference)).sum().item() == pytest.approx(exact.item())

"""The keyed sampler: its draws follow the distribution, and depend on nothing but key and position."""

from __future__ import annotations

import math

import pytest
import torch

from grpo_tir.engine.fast_draw import fast_draw
from grpo_tir.generation.sampling import Sampling, doubling_sum, draw, row_key, truncate, uniforms

LARGE = 151_936  # Qwen2.5's vocabulary
PLAIN = Sampling()


def spread_logits(vocabulary: int, dtype: torch.dtype) -> torch.Tensor:
    """(V,) with a head, a middle and a long tail, as a language model has: half of the mass in the tail."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(vocabulary, generator=generator) * 1.5
    logits[torch.randperm(vocabulary, generator=generator)[:40]] += 9
    return logits.to(dtype)


def chi_square_p(observed: torch.Tensor, expected: torch.Tensor) -> float:
    """p-value of Pearson's statistic, by the Wilson-Hilferty normal approximation."""
    k = len(observed) - 1
    statistic = ((observed - expected) ** 2 / expected).sum().item()
    z = ((statistic / k) ** (1 / 3) - (1 - 2 / (9 * k))) / math.sqrt(2 / (9 * k))
    return 0.5 * math.erfc(z / math.sqrt(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_draws_follow_the_softmax_at_152k_tokens(dtype: torch.dtype) -> None:
    """Chi-square over bins of about 1/25 of the mass: in vocabulary order, along which a bias of cumulative sums
    would drift, and in order of probability, at whose end a lost tail would show."""
    logits = spread_logits(LARGE, dtype)
    probabilities = logits.double().softmax(-1)
    draws = 1024
    u = uniforms(torch.tensor([row_key(5, 0, 0)]).expand(draws), torch.arange(draws))
    ids = torch.cat([fast_draw(logits.expand(len(part), -1), part, PLAIN)[0] for part in u.split(64)])
    counts = torch.bincount(ids, minlength=LARGE).double()
    for order in (torch.arange(LARGE), probabilities.argsort()):
        bins = ((probabilities[order].cumsum(0) - probabilities[order] / 2) * 25).long()
        expected = torch.zeros(25, dtype=torch.float64).index_add_(0, bins, probabilities[order]) * draws
        observed = torch.zeros(25, dtype=torch.float64).index_add_(0, bins, counts[order])
        filled = expected > 5  # a token of more than 1/25 leaves the bins after it empty
        assert filled.sum() > 10 and observed[~filled].sum() <= 2 * expected[~filled].sum() + 5
        assert chi_square_p(observed[filled], expected[filled]) > 0.001


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_token_is_off_its_interval_by_more_than_a_millionth(dtype: torch.dtype) -> None:
    """No luck involved: F(token - 1) <= u < F(token), F the exact CDF; the slack is float32's exp."""
    logits = spread_logits(LARGE, dtype)
    probabilities = logits.double().softmax(-1)
    upper = probabilities.cumsum(0)
    lower = upper - probabilities
    u = torch.cat([torch.linspace(0, 1 - 1e-9, 100), (lower + probabilities / 2)[probabilities.topk(28).indices]])
    ids, _ = fast_draw(logits.expand(128, -1), u.double(), PLAIN)
    assert (u > lower[ids] - 1e-6).all() and (u < upper[ids] + 1e-6).all()
    assert ids[100:].tolist() == probabilities.topk(28).indices.tolist()


@pytest.mark.parametrize("vocabulary", [1, 2, 127, 128, 129, 1000, 32_000])
@pytest.mark.parametrize(
    "sampling", [PLAIN, Sampling(0.6), Sampling(1.3, top_p=0.9), Sampling(top_k=7), Sampling(min_p=0.1)]
)
def test_both_samplers_take_the_same_token(vocabulary: int, sampling: Sampling) -> None:
    logits = torch.randn(50, vocabulary, generator=torch.Generator().manual_seed(1)) * 3
    u = uniforms(torch.arange(50), torch.arange(50))
    ids, logprobs = draw(logits, u, sampling)
    fast_ids, fast_logprobs = fast_draw(logits, u, sampling)
    assert ids.tolist() == fast_ids.tolist()
    assert fast_logprobs.tolist() == pytest.approx(logprobs.tolist(), abs=1e-5)


@pytest.mark.parametrize("sampler", [draw, fast_draw])
def test_a_token_without_mass_is_never_drawn(sampler: object) -> None:
    """u as near to 0 and to 1 as float64 goes, and the first and last tokens impossible."""
    logits = torch.full((2, 300), -torch.inf)
    logits[:, 140], logits[:, 200] = 0.0, -1.0
    ids, _ = sampler(logits, torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64), PLAIN)  # type: ignore[operator]
    assert ids.tolist() == [140, 200]


@pytest.mark.parametrize("sampler", [draw, fast_draw])
def test_draws_by_hand(sampler: object) -> None:
    """Probabilities 1/2, 1/4, 1/8, 1/8: u = .49 | .51 .74 | .76 .87 | .88."""
    logits = torch.tensor([[8.0, 4.0, 2.0, 2.0]]).log().expand(6, -1)
    u = torch.tensor([0.49, 0.51, 0.74, 0.76, 0.87, 0.88], dtype=torch.float64)
    ids, logprobs = sampler(logits, u, PLAIN)  # type: ignore[operator]
    assert ids.tolist() == [0, 1, 1, 2, 2, 3]
    assert logprobs.exp().tolist() == pytest.approx([0.5, 0.25, 0.25, 0.125, 0.125, 0.125])


def test_greedy_reports_the_untempered_distribution() -> None:
    ids, logprobs = fast_draw(torch.tensor([[1.0, 3.0]]).log(), torch.zeros(1), Sampling(0))
    assert ids.tolist() == [1] and logprobs.exp().tolist() == pytest.approx([0.75])


def test_truncations_by_hand() -> None:
    """Probabilities .5 .3 .15 .05: what is left by top-k 2, top-p .6 (the token that crosses stays), min-p .25."""
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    for sampling, left in (
        (Sampling(top_k=2), [0, 1]),
        (Sampling(top_p=0.6), [0, 1]),
        (Sampling(top_p=0.5), [0]),
        (Sampling(min_p=0.25), [0, 1, 2]),
        (Sampling(min_p=1.0), [0]),
        (Sampling(top_k=3, min_p=0.5), [0, 1]),
    ):
        assert truncate(logits, sampling)[0].isfinite().nonzero()[:, 0].tolist() == left


def test_keys_and_positions_give_independent_uniform_draws() -> None:
    keys = torch.tensor([row_key(1, group, sample) for group in range(64) for sample in range(16)])
    assert len(set(keys.tolist())) == 1024
    u = torch.stack([uniforms(keys, torch.full_like(keys, position)) for position in range(64)])  # (64, 1024)
    observed = torch.histc(u.float(), bins=64, min=0, max=1).double()
    assert chi_square_p(observed, torch.full((64,), u.numel() / 64, dtype=torch.float64)) > 0.001
    for other in (u.roll(1, 0), u.roll(1, 1)):  # the next position, the next sample
        assert abs(torch.corrcoef(torch.stack([u.flatten(), other.flatten()]))[0, 1]) < 0.015


def test_a_draw_depends_only_on_its_own_row() -> None:
    logits = spread_logits(1000, torch.float32) + torch.randn(64, 1000, generator=torch.Generator().manual_seed(2))
    u = uniforms(torch.arange(64), torch.arange(64))
    ids, logprobs = fast_draw(logits, u, PLAIN)
    for row in (0, 17, 63):
        alone, logprob = fast_draw(logits[row : row + 1], u[row : row + 1], PLAIN)
        assert (alone.item(), logprob.item()) == (ids[row].item(), logprobs[row].item())


@pytest.mark.parametrize("width", [1, 2, 127, 128, 1188])
def test_the_running_sum_of_deterministic_gpu_runs_is_a_running_sum(width: int) -> None:
    """In whole numbers, where no order of adding makes a difference."""
    x = torch.randint(0, 1000, (3, width)).double()
    assert torch.equal(doubling_sum(x), x.cumsum(-1))

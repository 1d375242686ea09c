"""Shares of the machine's limit, by a machine and a batch whose numbers can be worked by hand."""

from __future__ import annotations

import pytest
import torch

from grpo_tir.monitor.utilization import MachineLimits, count_weights, product_rate
from tiny_policy import tiny_qwen2

ROWS = [
    {"group": 0, "prompt": 10, "length": 20, "trained": True},
    {"group": 0, "prompt": 10, "length": 30, "trained": True},
    {"group": 1, "prompt": 10, "length": 50, "trained": False},
]


def machine(on_gpu: bool) -> MachineLimits:
    """1,000 weights, 10 elements of keys and values a token, 2 bytes an element; 1e6 FLOP/s and 1e5 bytes/s."""
    made = MachineLimits.__new__(MachineLimits)
    made.on_gpu, made.weights, made.kv_elements, made.element = on_gpu, 1000, 10, 2
    made.product_rate, made.copy_rate = 1e6, 1e5
    return made


def test_on_a_cpu_both_halves_are_matrix_products() -> None:
    rollout, learn = machine(on_gpu=False).shares(ROWS, sampling=2.0, learning=0.72, forwards=0)
    assert rollout == pytest.approx(2 * 1000 * 100 / 1e6 / 2.0)
    assert learn == pytest.approx(6 * 1000 * 60 / 1e6 / 0.72)


def test_on_a_gpu_decoding_reads_the_weights_once_a_forward_and_the_live_cache() -> None:
    rollout, _ = machine(on_gpu=True).shares(ROWS, sampling=10.0, learning=1.0, forwards=50)
    read = 10 * (20 + 30 + 50) + (20**2 + 30**2 + 50**2) / 2  # tokens of the cache, over all forwards
    assert rollout == pytest.approx(2 * (1000 * 50 + 10 * read) / 1e5 / 10.0)
    unknown, _ = machine(on_gpu=True).shares(ROWS, 10.0, 1.0, forwards=0)
    assert unknown is None


def test_ranks_share_the_work_and_passes_repeat_it() -> None:
    alone = machine(False).shares(ROWS, 1.0, 1.0, 0)
    four = machine(False).shares(ROWS, 1.0, 1.0, 0, passes=2, world=4)
    assert four[1] == pytest.approx(alone[1] * 2 / 4)
    assert four[0] == pytest.approx(alone[0] / 4)


def test_an_embedding_that_no_token_is_multiplied_with_does_not_count() -> None:
    tied, untied = tiny_qwen2(), tiny_qwen2(tie_word_embeddings=False)
    assert count_weights(tied) == count_weights(untied) == sum(p.numel() for p in tied.parameters())


def test_a_product_takes_as_long_as_its_rate_says() -> None:
    """Two orders of magnitude around any CPU of the last ten years; the measurement advances no random state."""
    before = torch.random.get_rng_state()
    assert 1e9 < product_rate(torch.device("cpu"), torch.float32) < 1e13
    assert torch.equal(torch.random.get_rng_state(), before)

"""Packed rows are the padded ones: the same log-probs and gradients, in every family, however the batch is cut."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.attention.varlen

from grpo_tir.engine.support import unsupported_reason
from grpo_tir.learning.batching import collate, idle_row, to_row
from grpo_tir.learning.logprobs import TokenLogprobs
from grpo_tir.learning.packing import Packing, _select, attend_packed, packed_attention
from parity.engine_models import FAMILIES, VOCABULARY, make_model
from parity.test_gradients import OPTIONS, distance
from tiny_policy import gradient_of, make_groups, make_learner, tiny_qwen2, update


def batch_of(seed: int = 0) -> Any:
    rows = [to_row(r) for g in make_groups(seed) for r in g.rollouts]
    assert max(max(row.token_ids) for row in rows) < VOCABULARY
    return collate(rows, torch.device("cpu"))


def logprobs_and_gradient(model: Any, batch: Any, packed: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    with packed_attention(model) if packed else contextlib.nullcontext():
        logprobs, _ = TokenLogprobs(model)(batch.input_ids, batch.attention_mask, batch.loss_mask)
        weights = torch.linspace(-1, 1, logprobs.numel()).view_as(logprobs)
        (logprobs * weights).sum().backward()
    return logprobs.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", FAMILIES)
def test_packed_is_padded_in_every_family(name: str) -> None:
    model, batch = make_model(FAMILIES[name], torch.float64), batch_of()
    padded, packed = (logprobs_and_gradient(model, batch, packed) for packed in (False, True))
    torch.testing.assert_close(packed[0], padded[0], rtol=1e-6, atol=1e-6)
    assert distance(packed[1], padded[1]) < 1e-6
    assert model.config._attn_implementation != "grpo_tir_packed"


@pytest.mark.parametrize("name", OPTIONS)
def test_the_update_of_packed_rows_is_that_of_padded_ones(name: str, tmp_path: Path) -> None:
    for budget in (1, 64, 4096):
        options = {**OPTIONS[name], "optim__micro_batch_tokens": budget}
        packed, padded = (
            gradient_of(tiny_qwen2(), make_groups(), tmp_path, optim__packing=on, **options)
            for on in (True, False)
        )
        assert distance(packed, padded) < 1e-5, f"micro_batch_tokens {budget}"


def test_recomputed_activations_are_packed_too(tmp_path: Path) -> None:
    """The second forward of checkpointing runs inside of the backward pass."""
    frugal = tiny_qwen2()
    getattr(frugal, "activation_checkpointing_enable", frugal.gradient_checkpointing_enable)()
    learner = make_learner(frugal)
    assert learner.packs
    ours = gradient_of(frugal, make_groups(), tmp_path)
    assert distance(ours, gradient_of(tiny_qwen2(), make_groups(), tmp_path, optim__packing=False)) < 1e-5


@pytest.mark.parametrize("seed", range(4))
def test_rows_in_any_order_and_cut_share_their_prompts_to_the_same_gradient(seed: int) -> None:
    """Each response without its prompt's copy is still the response to that prompt."""
    rng = random.Random(seed)
    rows = [to_row(r) for g in make_groups(seed, groups=3, samples=4) for r in g.rollouts]
    twins = rng.choices(rows, k=2)  # rows may be equal altogether
    for part in (rng.sample(rows + twins, 9), rows[:1], [rows[0], idle_row()], [idle_row(), *rows]):
        model, batch = tiny_qwen2().double(), collate(part, torch.device("cpu"))
        padded, packed = (logprobs_and_gradient(model, batch, packed) for packed in (False, True))
        torch.testing.assert_close(packed[0], padded[0], rtol=1e-6, atol=1e-6)
        assert distance(packed[1], padded[1]) < 1e-6


def test_a_packed_row_sees_nothing_of_its_neighbours_but_the_prompt() -> None:
    model, batch = tiny_qwen2().double(), batch_of()
    before, _ = logprobs_and_gradient(model, batch, packed=True)
    own = batch.loss_mask[0].nonzero()[0, 0]
    batch.input_ids[0, own] = (batch.input_ids[0, own] + 1) % 61
    after, _ = logprobs_and_gradient(model, batch, packed=True)
    assert torch.equal(before[1:], after[1:]) and not torch.equal(before[0], after[0])


def test_neither_padding_nor_a_prompt_twice_is_computed() -> None:
    seen: list[int] = []
    model, rows = tiny_qwen2(), [to_row(r) for g in make_groups() for r in g.rollouts]
    batch = collate(rows, torch.device("cpu"))
    model.model.register_forward_pre_hook(
        lambda _, __, inputs: seen.append(inputs["input_ids"].numel()), with_kwargs=True
    )
    logprobs_and_gradient(model, batch, packed=True)
    prompts = [len(g.rollouts[0].prompt_ids) for g in make_groups()]
    again = sum(2 * (length - 1) for length in prompts)  # of three samples two leave out all but its last token
    assert seen == [int(batch.attention_mask.sum()) - again] and seen[0] < batch.input_ids.numel()


@pytest.mark.parametrize("long", [1, 4, 10_000])
def test_long_and_short_rows_attend_alike(long: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masked, or with queries before them that nobody asks for."""
    monkeypatch.setattr("grpo_tir.learning.packing.LONG", long)
    model, batch = tiny_qwen2().double(), batch_of(seed=5)
    padded, packed = (logprobs_and_gradient(model, batch, packed) for packed in (False, True))
    torch.testing.assert_close(packed[0], padded[0], rtol=1e-6, atol=1e-6)
    assert distance(packed[1], padded[1]) < 1e-6


def test_the_gradient_of_a_shared_prompt_is_summed_in_float32() -> None:
    """1 + 255 x 2^-9 in bf16 stays 1, added one by one."""
    prompt = torch.ones(1, 1, 1, 1, dtype=torch.bfloat16, requires_grad=True)
    picked = _select(prompt, torch.zeros(256, dtype=torch.int64))
    picked.backward(torch.tensor([1.0] + [2**-9] * 255, dtype=torch.bfloat16).view(1, 1, 256, 1))
    assert prompt.grad is not None and prompt.grad.item() == pytest.approx(1.5, abs=0.01)


def test_a_mask_is_made_once_for_all_layers() -> None:
    batch = batch_of()
    packing = Packing.of(batch.input_ids, batch.attention_mask, batch.loss_mask.bool(), torch.device("cpu"))
    first = packing.mask(2, 4, torch.zeros(1))
    assert first.tolist() == [[0, 0, 0, -torch.inf], [0, 0, 0, 0]] and packing.mask(2, 4, first) is first


def test_where_queries_and_keys_lie() -> None:
    """Rows 0 and 2 answer 7 8 9; row 1 answers 7 8 alone."""
    ids = torch.tensor([[7, 8, 9, 1, 2, 3], [7, 8, 4, 5, 0, 0], [7, 8, 9, 6, 0, 0]])
    held = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0]])
    chosen = torch.tensor([[0, 0, 0, 1, 0, 1], [0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 0, 0]]).bool()
    here = torch.device("cpu")
    packing = Packing.of(ids, held, chosen, here)
    assert packing.fed.int().tolist() == [[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 0, 0]]
    assert packing.lengths == [6, 4, 2] and packing.key_lengths == [6, 4, 4]
    assert packing.keys is not None and packing.keys.tolist() == [*range(6), *range(6, 10), 0, 1, 10, 11]
    assert Packing.of(ids[:2], held[:2], chosen[:2], here).keys is None


def test_the_kernel_for_gpus_is_asked_for_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its call, answered by a float64 loop with FlashAttention's rule: the last query belongs to the last key."""

    def varlen_attn(q: Any, k: Any, v: Any, *ends_and_longest: Any, enable_gqa: bool, **options: Any) -> Any:
        q_ends, k_ends, q_most, k_most = ends_and_longest
        assert options["window_size"] == (-1, 0) and enable_gqa and q_ends.dtype == torch.int32
        assert q_most == q_ends.diff().max() and k_most == k_ends.diff().max()
        out = torch.zeros_like(q)
        for row, (q_end, k_end) in enumerate(zip(q_ends[1:].tolist(), k_ends[1:].tolist())):
            for at in range(int(q_ends[row]), q_end):
                seen = slice(int(k_ends[row]), k_end - (q_end - 1 - at))
                for head in range(q.shape[1]):
                    keys, values = k[seen, head // 2], v[seen, head // 2]
                    out[at, head] = ((keys @ q[at, head]) * options["scale"]).softmax(0) @ values
        return out

    rows = [to_row(r) for g in make_groups(groups=2) for r in g.rollouts]
    batch = collate(rows, torch.device("cpu"))
    packing = Packing.of(batch.input_ids, batch.attention_mask, batch.loss_mask.bool(), torch.device("cpu"))
    count = sum(packing.lengths)
    q, k, v = (torch.randn(1, heads, count, 8, dtype=torch.float64) for heads in (4, 2, 2))
    plain, _ = attend_packed(torch.nn.Module(), q, k, v, None, 0.3, packing=packing)
    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", varlen_attn)
    monkeypatch.setattr("grpo_tir.learning.packing.has_kernel", lambda _: True)
    asked, _ = attend_packed(torch.nn.Module(), q, k, v, None, 0.3, packing=packing)
    torch.testing.assert_close(asked, plain)


def test_a_model_whose_attention_cannot_be_replaced_is_padded(tmp_path: Path) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Qwen2Config(vocab_size=61, num_key_value_heads=2, use_sliding_window=True, sliding_window=4,
                         max_window_layers=0, **shape)  # fmt: skip
    model = Qwen2ForCausalLM(config)
    assert unsupported_reason(model)
    learner = make_learner(model)
    assert not learner.packs
    assert update(learner, make_groups(), 0, tmp_path)["grad_norm"] > 0

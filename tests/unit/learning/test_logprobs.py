"""Log-probs of chosen tokens equal a plain log-softmax of all logits, for every way a family makes its logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PhiConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from grpo_tir.learning.batching import collate, to_row
from grpo_tir.learning.fast_softmax import LogSoftmaxInPlace
from grpo_tir.learning.logprobs import TokenLogprobs, plain_log_softmax
from grpo_tir.learning.prepare import plain_head, use_float32_head
from tiny_policy import VOCABULARY, make_groups, tiny_qwen2

SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.3,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
PLAIN: dict[str, PretrainedConfig] = {
    "qwen2": Qwen2Config(**SHAPE),
    "qwen2 tied": Qwen2Config(**SHAPE, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SHAPE),
    "llama": LlamaConfig(**SHAPE),
    "mistral": MistralConfig(**SHAPE, sliding_window=8),
    "gemma3": Gemma3TextConfig(**SHAPE),
    "phi": PhiConfig(**SHAPE),
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3),
    "gpt-neox": GPTNeoXConfig(**SHAPE),
    "opt": OPTConfig(**SHAPE, ffn_dim=48, word_embed_proj_dim=16),
}
SCALED: dict[str, PretrainedConfig] = {
    "gemma2": Gemma2Config(**SHAPE, final_logit_softcapping=3.0),
    "gemma3 capped": Gemma3TextConfig(**SHAPE, final_logit_softcapping=3.0),
    "cohere": CohereConfig(**SHAPE, logit_scale=0.25),
    "granite": GraniteConfig(**SHAPE, logits_scaling=4.0),
}


def rows(seed: int = 0) -> Any:
    return collate([to_row(r) for g in make_groups(seed) for r in g.rollouts], torch.device("cpu"))


def plain_logprobs(model: Any, batch: Any, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-softmax of all logits, row by row without padding; log-prob and entropy at model tokens, else 0."""
    logprobs, entropies = torch.zeros(batch.input_ids.shape), torch.zeros(batch.input_ids.shape)
    for i, length in enumerate(batch.attention_mask.sum(1).tolist()):
        table = (model(input_ids=batch.input_ids[i : i + 1, :length]).logits[0] / temperature).log_softmax(-1)
        for t in range(1, length):
            if batch.loss_mask[i, t]:
                logprobs[i, t] = table[t - 1, batch.input_ids[i, t]]
                entropies[i, t] = -(table[t - 1].exp() * table[t - 1]).sum()
    return logprobs, entropies


@pytest.mark.parametrize("name", [*PLAIN, *SCALED])
def test_equals_a_plain_log_softmax_of_full_logits(name: str) -> None:
    config = {**PLAIN, **SCALED}[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    assert plain_head(model) == (name in PLAIN)
    batch = rows()
    ours, entropy = TokenLogprobs(model, 0.7)(batch.input_ids, batch.attention_mask, batch.loss_mask)
    expected, expected_entropy = plain_logprobs(model, batch, 0.7)
    assert expected.min() < -5, "the weights are too tame to tell a scale from none"
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=2e-4)
    torch.testing.assert_close(entropy, expected_entropy, rtol=1e-4, atol=2e-4)
    assert not entropy.requires_grad


@pytest.mark.parametrize(("rows", "vocabulary"), [(1, 7), (0, 7), (20, 1 << 16), (3, 1 << 20)])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_softmax_in_place_is_the_plain_one(rows: int, vocabulary: int, temperature: float) -> None:
    """Rows are cut where they leave the cache: here after every eighth, every one, and not at all."""
    torch.manual_seed(0)
    logits = (5 * torch.randn(rows, vocabulary, dtype=torch.float64)).requires_grad_()
    tokens, weights = torch.randint(vocabulary, (rows,)), torch.randn(rows, dtype=torch.float64)
    results = []
    for function in (plain_log_softmax, LogSoftmaxInPlace.apply):
        logprobs, entropy = function(logits.clone(), tokens, temperature)
        (gradient,) = torch.autograd.grad((logprobs * weights).sum(), logits)
        assert not entropy.requires_grad
        results.append((logprobs.detach(), entropy, gradient))
    for ours, plain in zip(*reversed(results), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-10)


def test_the_softmax_in_place_holds_one_buffer_of_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(9, 31, requires_grad=True)
    made = logits * 1
    logprobs, _ = LogSoftmaxInPlace.apply(made, torch.zeros(9, dtype=torch.int64), 1.0)
    (gradient,) = torch.autograd.grad(logprobs.sum(), made)
    assert gradient.data_ptr() == made.data_ptr()


LINE_MB = 4 * VOCABULARY / 2**20  # the logits of one token


@pytest.mark.parametrize("name", ["qwen2", *SCALED])
def test_chunks_of_any_head_in_float32_are_the_whole(name: str) -> None:
    """The log-probs overwrite their logits, which must not be a piece of somebody else's."""
    batch, results = rows(), []
    for memory in (5 * LINE_MB, 256):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config({**PLAIN, **SCALED}[name], attn_implementation="eager")
        logprobs, entropy = TokenLogprobs(model.eval(), 0.7, memory)(
            batch.input_ids, batch.attention_mask, batch.loss_mask
        )
        logprobs.sum().backward()
        results.append([logprobs, entropy, *(p.grad for p in model.parameters())])
    for ours, whole in zip(*results, strict=True):
        torch.testing.assert_close(ours, whole, rtol=1e-4, atol=1e-4)


def test_autocast_leaves_the_entropy_in_float32() -> None:
    logits, tokens = 5 * torch.randn(6, 500), torch.zeros(6, dtype=torch.int64)
    _, plain = plain_log_softmax(logits, tokens, 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        _, entropy = LogSoftmaxInPlace.apply(logits.clone(), tokens, 1.0)
    torch.testing.assert_close(entropy, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("logits_mb", [0, 5 * LINE_MB, 256])
def test_the_watched_token_has_the_probability_of_the_softmax(logits_mb: float) -> None:
    batch, model = rows(), tiny_qwen2()
    module = TokenLogprobs(model, 0.7, logits_mb)
    module.watched = 5
    module(batch.input_ids, batch.attention_mask, batch.loss_mask)[0].sum().backward()
    logits = model(batch.input_ids, attention_mask=batch.attention_mask).logits / 0.7
    expected = torch.nn.functional.pad(logits.softmax(-1)[:, :-1, 5], (1, 0)) * batch.loss_mask
    torch.testing.assert_close(module.watched_probs, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("logits_mb", [0, LINE_MB, 5 * LINE_MB, 256])
def test_chunks_change_neither_value_nor_gradient(logits_mb: float) -> None:
    batch = rows()
    results = []
    for memory in (logits_mb, 256):
        model = tiny_qwen2().double()
        logprobs, entropy = TokenLogprobs(model, 1.0, memory)(
            batch.input_ids, batch.attention_mask, batch.loss_mask
        )
        (logprobs * torch.linspace(-1, 1, logprobs.numel()).view_as(logprobs)).sum().backward()
        results.append([logprobs, entropy, *(p.grad for p in model.parameters())])
    for ours, whole in zip(*results, strict=True):
        torch.testing.assert_close(ours, whole, rtol=1e-5, atol=1e-6)


def test_chunks_keep_no_more_logits_than_the_budget_for_the_backward_pass() -> None:
    batch = rows()
    kept: list[int] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape[-1:] == (VOCABULARY,) and tensor.dim() == 2 and not isinstance(tensor, torch.nn.Parameter):
            kept.append(tensor.shape[0])
        return tensor

    for budget, expected in ((256, int(batch.loss_mask.sum())), (4 * LINE_MB, 0)):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            TokenLogprobs(tiny_qwen2(), 1.0, budget)(batch.input_ids, batch.attention_mask, batch.loss_mask)
        assert max(kept, default=0) == expected


def test_first_token_of_a_row_has_no_logprob_even_where_the_mask_asks_for_one() -> None:
    ids = torch.tensor([[5, 6, 7]])
    logprobs, _ = TokenLogprobs(tiny_qwen2())(ids, torch.ones_like(ids), torch.ones_like(ids))
    assert logprobs[0, 0] == 0 and (logprobs[0, 1:] < 0).all()


def test_batch_without_model_tokens_gives_zeros_and_a_gradient_of_zero_everywhere() -> None:
    ids = torch.tensor([[5, 6, 7]])
    model = tiny_qwen2()
    logprobs, _ = TokenLogprobs(model)(ids, torch.ones_like(ids), torch.zeros_like(ids))
    logprobs.sum().backward()
    assert logprobs.abs().max() == 0
    # not None: data-parallel wrappers wait for a gradient of every parameter
    assert all(p.grad is not None and p.grad.abs().max() == 0 for p in model.parameters())


def test_padding_on_the_right_changes_nothing() -> None:
    model = tiny_qwen2()
    ids = torch.tensor([[5, 6, 7, 8]])
    mask = torch.tensor([[0, 1, 0, 1]])
    alone, _ = TokenLogprobs(model)(ids, torch.ones_like(ids), mask)
    padded = torch.nn.functional.pad
    wide, _ = TokenLogprobs(model)(padded(ids, (0, 5)), padded(torch.ones_like(ids), (0, 5)), padded(mask, (0, 5)))
    torch.testing.assert_close(wide[:, :4], alone)
    assert wide[:, 4:].abs().max() == 0


@pytest.mark.parametrize("autocast,head", [(True, "auto"), (True, "fp32"), (False, "auto")])
def test_the_residual_stream_has_the_precision_of_the_generators(autocast: bool, head: str) -> None:
    """The generator decodes from a bf16 copy. With a float32 head, only the linear layers of the copy are bf16."""
    model, found = tiny_qwen2(), set[torch.dtype]()
    if head == "fp32":
        use_float32_head(model)
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda module, inputs: found.add(inputs[0].dtype))
    ids = torch.tensor([[3, 4, 5]])
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        TokenLogprobs(model)(ids, torch.ones_like(ids), torch.ones_like(ids))
    assert found == {torch.bfloat16 if autocast and head == "auto" else torch.float32}

"""The half-precision copy that GPUs decode from is never stale, and close to what is trained."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from grpo_tir.config import Config
from grpo_tir.engine.decode_weights import make_decode_copy, refresh_decode_copy
from grpo_tir.engine.engine import Engine
from grpo_tir.generation.sampling import Sampling
from grpo_tir.generation.stopping import CodeBlockStopping
from grpo_tir.rollouts import policy as policy_module
from parity.engine_models import FAMILIES, make_model, make_requests, make_tokenizer, run


def test_a_shadow_follows_the_weights_at_fixed_addresses() -> None:
    model = make_model(FAMILIES["qwen2.5-tied"])
    decode_copy = make_decode_copy(model)
    addresses = [parameter.data_ptr() for parameter in decode_copy.parameters()]
    model.load_state_dict(make_model(FAMILIES["qwen2.5-tied"], seed=1).state_dict())
    refresh_decode_copy(decode_copy, model)
    assert [parameter.data_ptr() for parameter in decode_copy.parameters()] == addresses
    for ours, theirs in zip(decode_copy.parameters(), model.parameters()):
        assert ours.dtype == torch.bfloat16 and not ours.requires_grad
        assert torch.equal(ours, theirs.bfloat16())
    assert decode_copy.lm_head.weight is decode_copy.model.embed_tokens.weight
    assert torch.equal(decode_copy.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)
    assert decode_copy.model.rotary_emb.inv_freq.dtype == torch.float32
    assert model.dtype == torch.float32


@pytest.mark.parametrize("family", ["qwen2", "gemma"])
def test_the_engine_decodes_in_bf16_close_to_the_trained_weights(family: str) -> None:
    """Recorded log-probs are off the float32 model's by bf16's rounding (2^-8 of logits of about 3), no more."""
    config = FAMILIES[family]
    model = make_model(config)
    requests = make_requests(groups=3, samples=2, budget=24)
    done = run(Engine(make_decode_copy(model), None, Sampling(), []), requests)
    gaps = []
    for request in requests:
        stopped = done[request.row]
        logits = model(torch.tensor([request.prompt_ids + stopped.token_ids])).logits[0]
        logprobs = logits.log_softmax(-1)[len(request.prompt_ids) - 1 : -1]
        exact = logprobs[range(len(stopped.token_ids)), stopped.token_ids]
        gaps.append((exact - torch.tensor(stopped.logprobs)).abs())
    assert 1e-5 < torch.cat(gaps).mean() < 0.1


def test_the_engine_decodes_float32_weights_under_autocast() -> None:
    model = make_model(FAMILIES["qwen3"])
    requests = make_requests(groups=2, samples=2, budget=12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        done = run(Engine(model, None, Sampling(), []), requests)
    assert [len(done[request.row].token_ids) for request in requests] == [request.budget for request in requests]


def test_on_a_gpu_a_policy_decodes_from_its_weights_of_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(policy_module, "decodes_in_bf16", lambda model: True)
    model = make_model(FAMILIES["qwen2"])
    policy = policy_module.Policy(model, None, CodeBlockStopping(make_tokenizer()), str, [0])
    config = Config()
    first = policy.generator(config)
    assert isinstance(first, Engine) and first.model is not model and first.model.dtype == torch.bfloat16
    with torch.no_grad():
        model.lm_head.weight.mul_(-1)
    second = policy.generator(config)
    assert isinstance(second, Engine) and second.model is first.model
    assert torch.equal(second.model.lm_head.weight, model.lm_head.weight.bfloat16())
    exact = policy.generator(replace(config, model=replace(config.model, precision="fp32")))
    assert isinstance(exact, Engine) and exact.model is model

"""The half-precision copy that GPUs decode from is never stale, and close to what is trained."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedModel

from grpo_tir.config import Config
from grpo_tir.engine.decode_weights import make_decode_copy, refresh_decode_copy
from grpo_tir.engine.engine import Engine
from grpo_tir.errors import ConfigError
from grpo_tir.generation.generate import GenerateRounds
from grpo_tir.generation.sampling import Sampling
from grpo_tir.generation.stopping import CodeBlockStopping
from grpo_tir.learning.logprobs import TokenLogprobs
from grpo_tir.learning.prepare import use_float32_head
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


def logprob_gap(generator: str, float32: tuple[bool, bool]) -> float:
    """Mean gap of recorded and learner's log-probs under bf16 autocast; `float32` heads in generator, learner."""
    models: list[PreTrainedModel] = []
    for exact in float32:
        models.append(make_model(FAMILIES["qwen2.5-tied"]))
        if exact:
            use_float32_head(models[-1])
    _, learner = map(TokenLogprobs, models)  # in training both are one model, so the generator's has the hook too
    requests = [replace(each, may_call=False) for each in make_requests(groups=4, samples=4, budget=40)]
    gaps = []
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        done = run(GENERATORS[generator](models[0]), requests)
        for request in requests:
            ids = torch.tensor([request.prompt_ids + done[request.row].token_ids])
            chosen = torch.arange(ids.shape[1])[None] >= len(request.prompt_ids)
            logprobs, _ = learner(ids, torch.ones_like(ids), chosen.long())
            gaps.append((logprobs[chosen] - torch.tensor(done[request.row].logprobs)).abs())
    return torch.cat(gaps).mean().item()


GENERATORS = {
    "eager": lambda model: Engine(model, None, Sampling(), []),
    "eager copy": lambda model: Engine(make_decode_copy(model), None, Sampling(), []),
    "static copy": lambda model: Engine(make_decode_copy(model), None, Sampling(), [], step="plain", page=8),
    "generate": lambda model: GenerateRounds(model, CodeBlockStopping(make_tokenizer()), Sampling(), [60]),
}


@pytest.mark.parametrize("generator", GENERATORS)
def test_float32_logits_agree_if_both_sides_have_them(generator: str) -> None:
    both = logprob_gap(generator, (True, True))
    assert both < 0.005, both
    for alone in ((True, False), (False, True)):
        assert logprob_gap(generator, alone) > 1.5 * both, alone
    assert logprob_gap(generator, (False, False)) < 0.01


def test_a_float32_copy_is_the_trained_weights_but_for_the_linear_layers() -> None:
    """Nothing but the linear layers is copied again, and nothing else is stale in between."""
    model = make_model(FAMILIES["qwen2.5-tied"])
    use_float32_head(model)
    decode_copy = make_decode_copy(model)
    assert decode_copy.lm_head.weight is decode_copy.model.embed_tokens.weight is model.lm_head.weight
    assert decode_copy.model.norm.weight is model.model.norm.weight
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-2)
    refresh_decode_copy(decode_copy, model)
    for ours, theirs in zip(decode_copy.parameters(), model.parameters(), strict=True):
        assert ours is theirs or torch.equal(ours, theirs.bfloat16())


def test_a_head_that_is_no_linear_layer_is_refused() -> None:
    model = make_model(FAMILIES["qwen2"])
    model.lm_head = torch.nn.Sequential(model.lm_head)
    with pytest.raises(ConfigError, match="head_precision: fp32 needs a linear head, not Sequential"):
        use_float32_head(model)

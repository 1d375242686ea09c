"""`model.generate(custom_generate=engine_generate)` answers like a plain one, and refuses what it cannot do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from grpo_tir.engine.engine import Engine, unsupported_reason
from grpo_tir.engine.hf_generate import engine_generate
from grpo_tir.errors import ModelError
from grpo_tir.generation.sampling import Sampling
from grpo_tir.generation.stopping import CodeBlockStopping
from parity.engine_models import FAMILIES, GROUPED, make_model, make_tokenizer

INPUTS = torch.tensor([[0, 0, 5, 6], [1, 2, 3, 4], [0, 7, 8, 9], [9, 8, 7, 6]])
MASK = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1]])


def generate(model: PreTrainedModel, **settings: Any) -> torch.Tensor:
    return model.generate(INPUTS, attention_mask=MASK, pad_token_id=0, max_new_tokens=40, **settings)


@pytest.mark.parametrize("eos", [None, [11, 12, 13, 14, 15]])
def test_greedy_generate_with_the_engine_is_greedy_generate(eos: list[int] | None) -> None:
    """Padding, the end of each row and the place of each tool call included."""
    model = make_model(FAMILIES["qwen2"], torch.float64)
    plain, ours = CodeBlockStopping(make_tokenizer()), CodeBlockStopping(make_tokenizer())
    theirs = generate(model, do_sample=False, eos_token_id=eos, stopping_criteria=[plain])
    engine = generate(
        model,
        do_sample=False,
        eos_token_id=eos,
        stopping_criteria=[ours],
        custom_generate=engine_generate,
        max_rows=3,
    )
    for row in range(len(INPUTS)):
        end = ours.stopped_at[row] or 44
        assert engine[row, :end].tolist() == theirs[row, :end].tolist()
    if eos is None:
        assert ours.stopped_at == plain.stopped_at
        assert any(ours.stopped_at) and not all(ours.stopped_at)
    else:
        assert (engine == 0).sum() > 3  # some rows ended and were padded


def test_samples_follow_torchs_seed() -> None:
    model = make_model(FAMILIES["qwen2"])
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(generate(model, do_sample=True, top_k=0, custom_generate=engine_generate))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize(
    "settings,name",
    [
        ({"repetition_penalty": 1.3}, "RepetitionPenaltyLogitsProcessor"),
        ({"max_time": 1.0}, "MaxTimeCriteria"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate"),
    ],
)
def test_what_the_engine_has_no_counterpart_for_is_refused_by_name(settings: dict[str, Any], name: str) -> None:
    with pytest.raises(ModelError, match=name):
        generate(make_model(FAMILIES["qwen2"]), custom_generate=engine_generate, **settings)


TINY_GPT2 = {"vocab_size": 97, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64}
GEMMA = {**GROUPED, "head_dim": 8}


@pytest.mark.parametrize(
    "config,reason",
    [
        (MistralConfig(**GROUPED, sliding_window=16), "sliding"),
        (Gemma2Config(**GEMMA), "sliding"),
        (Gemma3TextConfig(**GEMMA), "sliding"),
        (Gemma2Config(**GEMMA, layer_types=["full_attention"] * 2), "soft-capped"),
        (LlamaConfig(**GROUPED, rope_scaling={"rope_type": "dynamic", "factor": 2.0}), "dynamic RoPE"),
    ],
)
def test_models_off_the_fast_path_are_named_with_their_reason(config: PretrainedConfig, reason: str) -> None:
    model = AutoModelForCausalLM.from_config(config)
    assert reason in (unsupported_reason(model) or "")
    with pytest.raises(ModelError, match=r"set rollout\.generator"):
        Engine(model, None, Sampling(), [])


def test_an_encoder_decoder_is_refused() -> None:
    model = T5ForConditionalGeneration(
        T5Config(vocab_size=97, d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8)
    )
    assert unsupported_reason(model) == "it is an encoder-decoder"


def test_the_probe_finds_what_no_list_foresees(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Llama whose attention is secretly scaled by the length of its input, as no feature of its config says."""
    model = make_model(FAMILIES["smollm"])
    attention = model.model.layers[0].self_attn
    forward = attention.forward

    def odd(hidden_states: torch.Tensor, **kwargs: Any) -> Any:
        return forward(hidden_states * hidden_states.shape[1], **kwargs)[0] * hidden_states.shape[1], None

    monkeypatch.setattr(attention, "forward", odd)
    assert "differs from a plain one" in (unsupported_reason(model) or "")


def test_learned_positions_are_no_obstacle() -> None:
    """GPT-2 is on no list: whatever passes the probe is decoded."""
    model = AutoModelForCausalLM.from_config(GPT2Config(**TINY_GPT2, bos_token_id=None, eos_token_id=None)).eval()
    assert unsupported_reason(model) is None
    ours = generate(model, do_sample=False, custom_generate=engine_generate)
    assert ours.tolist() == generate(model, do_sample=False).tolist()

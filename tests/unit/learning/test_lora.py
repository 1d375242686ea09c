"""Adapters: what is decoded, exported and resumed is the adapted policy; without them it is the initial one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from grpo_tir.checkpoint.journal import Journal
from grpo_tir.checkpoint.load import load_optimizer
from grpo_tir.checkpoint.save import Saver
from grpo_tir.config import Config, ModelConfig
from grpo_tir.distributed.runtime import Runtime
from grpo_tir.engine.engine import Engine
from grpo_tir.errors import CheckpointError, ConfigError
from grpo_tir.generation.protocol import Request
from grpo_tir.generation.sampling import Sampling
from grpo_tir.learning import lora
from grpo_tir.learning.learner import Learner
from grpo_tir.testing import byte_tokenizer
from grpo_tir.utils.files import Writer
from tiny_policy import VOCABULARY, change, make_groups, tiny_qwen2, update

pytest.importorskip("peft", reason="peft is not installed: pip install 'grpo-tir[peft]'")

SETTINGS = ModelConfig(lora_rank=4)
IDS = torch.arange(24).reshape(2, 12) % VOCABULARY


@pytest.fixture
def learner(tmp_path: Path) -> Learner:
    """Trained for two steps."""
    model = tiny_qwen2()
    lora.add_adapters(model, SETTINGS)
    learner = Learner(Runtime("fp32"), model, change(Config(), optim__lr=0.01))
    for step in range(2):
        update(learner, make_groups(step), step, tmp_path)
    return learner


def save(learner: Learner, folder: Path) -> Path:
    writer = Writer("log")
    saver = Saver(folder, learner.config, Journal(folder, 0, "", writer, False), print, learner.runtime)
    saver.save(2, learner.module.model, byte_tokenizer([]), learner.optimizer, {})
    saver.close()
    writer.close()
    return folder / "step_000002"


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(IDS).logits  # type: ignore[no-any-return]


def test_only_adapters_are_trained(learner: Learner) -> None:
    before, after = tiny_qwen2().state_dict(), learner.module.model.state_dict()
    for name, tensor in before.items():
        name = (
            name
            if name in after
            else name.replace(".weight", ".base_layer.weight").replace(".bias", ".base_layer.bias")
        )
        assert torch.equal(after[name], tensor), name
    trained = [name for name, p in learner.module.model.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 2 * 7 and all(".lora_" in name for name in trained)  # A and B, layers, linears


def test_export_holds_the_merged_weights_for_plain_transformers(learner: Learner, tmp_path: Path) -> None:
    exported, loaded = AutoModelForCausalLM.from_pretrained(save(learner, tmp_path), output_loading_info=True)
    assert not loaded["missing_keys"] and not loaded["unexpected_keys"] and not lora.has_adapters(exported)
    ours = logits(learner.module.model)
    torch.testing.assert_close(logits(exported), ours, rtol=1e-4, atol=1e-5)
    assert (ours - logits(tiny_qwen2())).abs().max() > 0.01


def test_transposed_layers_are_merged_as_well() -> None:
    """GPT-2 keeps its weights (in, out)."""
    torch.manual_seed(0)
    model: Any = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4))
    lora.add_adapters(model, SETTINGS)
    for name, parameter in model.named_parameters():
        if ".lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    skeleton, weights = lora.merge(model, model.state_dict())
    skeleton.load_state_dict(weights, assign=True)
    torch.testing.assert_close(logits(skeleton), logits(model), rtol=1e-4, atol=1e-4)


def test_without_adapters_the_model_is_the_initial_policy_to_the_last_bit(learner: Learner) -> None:
    model = learner.module.model
    adapted = logits(model)
    with lora.without_adapters(model):
        assert torch.equal(logits(model), logits(tiny_qwen2()))
    assert torch.equal(logits(model), adapted)


def test_kl_is_measured_against_the_policy_without_adapters(tmp_path: Path) -> None:
    model = tiny_qwen2()
    lora.add_adapters(model, SETTINGS)
    learner = Learner(Runtime("fp32"), model, change(Config(), optim__lr=0.01, algorithm__kl_coef=0.1))
    kl = [update(learner, make_groups(step), step, tmp_path)["kl"] for step in range(3)]
    assert kl[0] == 0 and kl[2] > kl[1] > 0


def test_engine_decodes_the_adapted_policy(learner: Learner, tmp_path: Path) -> None:
    """Its greedy tokens are those of the merged model, and other ones than before training."""
    exported = AutoModelForCausalLM.from_pretrained(save(learner, tmp_path))
    said = [decode(model) for model in (learner.module.model.eval(), exported.eval(), tiny_qwen2())]
    assert said[0] == said[1] != said[2]


def decode(model: Any) -> list[int]:
    engine = Engine(model, None, Sampling(temperature=0.0), [])
    engine.submit(Request(0, [1, 2, 3], 0, 20, False))
    (stopped,) = engine.step()
    return stopped.token_ids


def test_resumed_adapters_and_moments_are_those_that_were_saved(learner: Learner, tmp_path: Path) -> None:
    """One more update from the checkpoint and without it: the same bits."""
    path = save(learner, tmp_path)
    model = tiny_qwen2()
    lora.add_adapters(model, SETTINGS, path)
    resumed = Learner(Runtime("fp32"), model, learner.config)
    load_optimizer(path, model, resumed.optimizer, resumed.runtime)
    for one in (learner, resumed):
        update(one, make_groups(2), 2, tmp_path)
    theirs = learner.module.model.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in model.state_dict().items())


def test_adapters_of_another_rank_and_checkpoints_without_any_are_refused(
    learner: Learner, tmp_path: Path
) -> None:
    path = save(learner, tmp_path)
    with pytest.raises(CheckpointError, match="has no adapters of rank 8"):
        lora.add_adapters(tiny_qwen2(), ModelConfig(lora_rank=8), path)
    with pytest.raises(CheckpointError, match="has no adapters of rank 4"):
        lora.add_adapters(tiny_qwen2(), SETTINGS, tmp_path)


def test_targets_that_are_not_there_are_named() -> None:
    with pytest.raises(ConfigError, match=r"model\.lora_targets .*q_prod") as caught:
        lora.add_adapters(tiny_qwen2(), ModelConfig(lora_rank=4, lora_targets=["q_prod"]))
    assert "\n" not in str(caught.value)


def test_missing_peft_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'grpo-tir\[peft\]'"):
        lora.add_adapters(tiny_qwen2(), SETTINGS)

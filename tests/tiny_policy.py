"""A tiny random Qwen2, rollouts built from segments, and a learner around them: what the training tests share."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from grpo_tir.config import Config
from grpo_tir.distributed.runtime import Runtime
from grpo_tir.learning.learner import Learner
from grpo_tir.testing import byte_tokenizer
from grpo_tir.types import Problem, Reward, Rollout, RolloutGroup, Segment

VOCABULARY = 61
torch.set_num_threads(1)  # for models of this size a second thread only waits for the first


def tiny_qwen2(seed: int = 0, vocabulary: int = VOCABULARY, **changes: Any) -> Qwen2ForCausalLM:
    """Two layers, 32 wide. The spread of its weights makes every token's log-prob its own."""
    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "initializer_range": 0.1,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": vocabulary - 1,
    }
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=vocabulary, **{**shape, **changes})).eval()


def save_byte_model(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A tiny model and its byte tokenizer in a folder, as `model.path` wants it. Some rows of the vocabulary are
    spare: transformers reads every tokenizer beside a Qwen2 as Qwen2's, and adds a token of its own."""
    tokenizer = byte_tokenizer(["<|end|>"])
    model = tiny_qwen2(seed, len(tokenizer) + 7, eos_token_id=tokenizer.eos_token_id, **changes)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_rollout(rng: random.Random, calls: int, advantage: float, group: int = 0, sample: int = 0) -> Rollout:
    """Prompt, then `calls` times (model, tool), then model, all of random ids and lengths."""

    def ids(low: int, high: int) -> list[int]:
        return [rng.randrange(VOCABULARY) for _ in range(rng.randint(low, high))]

    segments = []
    for _ in range(calls):
        said, answered = ids(1, 7), ids(1, 6)
        segments += [Segment("model", said, [-2.0] * len(said)), Segment("tool", answered)]
    said = ids(1, 9)
    segments.append(Segment("model", said, [-2.0] * len(said)))
    problem = Problem(str(group), "?", "!")
    return Rollout(
        problem,
        ids(2, 8),
        group=group,
        sample=sample,
        segments=segments,
        finish_reason="eos",
        reward=Reward(advantage, {"correct": float(advantage > 0)}),
        advantage=advantage,
    )


def make_groups(seed: int = 0, groups: int = 4, samples: int = 3) -> list[RolloutGroup]:
    """Groups of uneven rollouts, c from 0 to 4, with advantages of both signs."""
    rng = random.Random(seed)
    made = []
    for group in range(groups):
        rollouts = [
            make_rollout(rng, rng.randint(0, 4), rng.choice([-1.5, -0.5, 0.7, 1.2]), group, sample)
            for sample in range(samples)
        ]
        for rollout in rollouts:
            rollout.prompt_ids = list(rollouts[0].prompt_ids)
        made.append(RolloutGroup(rollouts[0].problem, rollouts))
    return made


def change(config: Config, **values: Any) -> Config:
    """`change(config, optim__lr=1.0)`: a copy with some keys set."""
    for name, value in values.items():
        section, _, key = name.partition("__")
        part = dataclasses.replace(getattr(config, section), **{key: value})
        config = dataclasses.replace(config, **{section: part})
    return config


def make_learner(model: Any, reference: Any = None, **values: Any) -> Learner:
    """A learner of one process in fp32."""
    return Learner(Runtime("fp32"), model, change(Config(), **values), reference)


def update(learner: Learner, groups: Sequence[RolloutGroup], step: int, dump: Path) -> dict[str, float]:
    """All optimizer steps on one rollout batch, as `Trainer.step` takes them. Bad batches go to `dump`/dumps."""
    learner.config = change(learner.config, train__output_dir=str(dump))
    with learner.updating(step):
        for batch in learner.mini_batches(groups):
            learner.backward(batch)
            learner.step(batch)
    return learner.report()


def gradient_of(
    model: Any, groups: Sequence[RolloutGroup], tmp_path: Path, **values: Any
) -> dict[str, torch.Tensor]:
    """The gradient that one update computes, before clipping and without moving the weights."""
    learner = make_learner(model, **values)
    seen: dict[str, torch.Tensor] = {}

    def keep(module: Any, optimizer: Any) -> float:
        seen.update({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        return float("inf")  # not finite: the step is skipped

    learner.runtime.step = keep  # type: ignore[method-assign]
    update(learner, groups, 0, tmp_path / "dump")
    return seen

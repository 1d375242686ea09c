"""Four updates on recorded rollouts, for each of several settings: alone or under a launcher, with any number of
processes, it must come to the same weights. Half-way it writes a checkpoint beside OUT; in the end it goes on once
more from there, and from the CHECKPOINTs of other launches.

    python recorded_update.py OUT [CHECKPOINT …]      accelerate launch … recorded_update.py OUT [CHECKPOINT …]
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from grpo_tir.checkpoint.journal import Journal
from grpo_tir.checkpoint.load import load_optimizer
from grpo_tir.checkpoint.save import Saver
from grpo_tir.config import Config
from grpo_tir.distributed.runtime import Runtime
from grpo_tir.generation.protocol import Request
from grpo_tir.generation.stopping import CodeBlockStopping
from grpo_tir.learning.batching import TrainingSample
from grpo_tir.learning.learner import Learner
from grpo_tir.learning.levelling import Levelling
from grpo_tir.learning.lora import add_adapters
from grpo_tir.rollouts import policy as policy_module
from grpo_tir.testing import byte_tokenizer
from grpo_tir.types import RolloutGroup
from grpo_tir.utils.files import Writer
from tiny_policy import VOCABULARY, change, make_groups, tiny_qwen2, update

SETTINGS: dict[str, dict[str, Any]] = {
    "token": {},
    "sequence, padded": {"algorithm__aggregation": "sequence", "optim__packing": False},
    "constant, clipped": {"algorithm__aggregation": "constant", "optim__max_grad_norm": 0.01},
    "rows stay": {},
    "one row at a time": {"optim__micro_batch_tokens": 1},
    "four times the budget": {"optim__micro_batch_tokens": 256},
    "head in chunks": {},
    "mini-batches": {"algorithm__mini_batches": 2, "algorithm__epochs": 2},
    "fewer groups than parts": {"algorithm__mini_batches": 4},
    "gspo, kl and importance": {
        "algorithm__ratio": "sequence",
        "algorithm__kl_coef": 0.1,
        "algorithm__importance_cap": 2.0,
    },
    "cispo and sequence mask": {
        "algorithm__objective": "cispo",
        "algorithm__sequence_mask": [0.1, 10.0],
        "algorithm__sequence_mask_by": "mean",
        "algorithm__epochs": 2,
    },
    "lora and kl": {"model__lora_rank": 4, "model__gradient_checkpointing": True, "algorithm__kl_coef": 0.1},
    "a step without a finite gradient": {},
}


def main(out: Path, others: list[Path]) -> None:
    """Five groups of uneven lengths: two ranks get three and two."""
    runtime = Runtime("fp32")
    if runtime.stage == 3:  # or weights as small as these stay whole after their first use
        runtime._deepspeed["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    results: dict[str, Any] = {"world": runtime.world, "stage": runtime.stage}
    for name, values in SETTINGS.items():
        config = change(Config(), optim__lr=1e-4, **{"optim__micro_batch_tokens": 64, **values})
        learner = make_learner(runtime, config)
        start = weights_of(learner)
        if name == "head in chunks":
            learner.module.logits_mb = 4 * 4 * VOCABULARY / 2**20  # 4 tokens: ranks have other numbers of chunks
        gradients, tokens = record_gradients(learner), record_tokens(level=name != "rows stay")
        metrics, logprobs = [], []
        for step in range(4):
            groups = recorded(step)
            if name == "a step without a finite gradient" and step == 1:
                groups[3].rollouts[1].advantage = math.nan
            mine = runtime.share(groups)
            metrics.append(update(learner, mine, step, out.parent / "dump"))
            rollouts = [each for group in mine for each in group.rollouts if each.trained]
            logprobs += runtime.gather(
                [(each.group, each.sample, torch.as_tensor(each.old_logprobs).tolist()) for each in rollouts]
            )
            if name == "token" and step == 1:
                results["decoded"] = decode_in_bf16(learner)
                checkpoint = save(learner, out.with_suffix(""))
        del runtime.step  # record_gradients' own
        weights = weights_of(learner)
        results[name] = {
            "weights": weights,
            "moved": (weights - start).norm(),
            "gradients": gradients,
            "metrics": metrics,
            "tokens": runtime.gather([tokens]),
            "old_logprobs": sorted(logprobs),
        }
    for path in (checkpoint, *others):
        learner = resume(runtime, path)
        results[f"resumed from {path}"] = weights_of(learner)
    if runtime.is_main:
        torch.save(results, out)
    runtime.barrier()
    runtime.close()


def make_learner(runtime: Runtime, config: Config) -> Learner:
    model = tiny_qwen2()
    if config.model.lora_rank:
        add_adapters(model, config.model)
    if config.model.gradient_checkpointing:
        model.activation_checkpointing_enable()
    reference = tiny_qwen2(9) if config.algorithm.kl_coef and not config.model.lora_rank else None
    return Learner(runtime, model, config, reference)


def recorded(step: int) -> list[RolloutGroup]:
    groups = make_groups(seed=step, groups=5)
    groups[0].rollouts[0].trained = False
    return groups


def save(learner: Learner, folder: Path) -> Path:
    saver = Saver(folder, learner.config, Journal(folder, 0, "", Writer("log"), False), print, learner.runtime)
    saver.save(2, learner.module.model, byte_tokenizer([]), learner.optimizer, {"step": 2})
    saver.flush()
    learner.runtime.barrier()
    return folder / "step_000002"


def resume(runtime: Runtime, checkpoint: Path) -> Learner:
    """Take the last two of the four updates."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    learner = Learner(runtime, model, change(Config(), optim__lr=1e-4, optim__micro_batch_tokens=64))
    load_optimizer(checkpoint, model, learner.optimizer, runtime)
    for step in (2, 3):
        update(learner, runtime.share(recorded(step)), step, checkpoint)
    return learner


def weights_of(learner: Learner) -> torch.Tensor:
    with learner.runtime.full_weights(learner.module):
        return flat(learner.module.model.parameters())


def record_gradients(learner: Learner) -> list[torch.Tensor]:
    """A list that gets the whole gradient of every optimizer step, before clipping."""
    gradients: list[torch.Tensor] = []
    step = learner.runtime.__class__.step.__get__(learner.runtime)

    def record(module: Any, optimizer: Any) -> float:
        if learner.runtime.stage:
            from deepspeed.utils import safe_get_full_grad as whole_gradient
        else:
            whole_gradient = attrgetter("grad")
        gradients.append(flat(whole_gradient(p) for p in learner.module.model.parameters() if p.requires_grad))
        norm: float = step(module, optimizer)
        return norm

    learner.runtime.step = record  # type: ignore[method-assign]
    return gradients


def decode_in_bf16(learner: Learner) -> dict[str, Any]:
    """Sample between two updates from the copy that a GPU decodes with."""
    policy_module.decodes_in_bf16 = lambda model: True
    runtime, sizes = learner.runtime, list[int]()
    if runtime.stage == 3:
        from deepspeed import zero

        from grpo_tir.distributed import zero as ours

        ours.GATHERED = 3000  # elements: about a third of a layer
        gather = zero.GatheredParameters
        zero.GatheredParameters = lambda parameters: (
            sizes.append(sum(parameter.ds_numel for parameter in parameters)),
            gather(parameters),
        )[1]
    model = learner.module.model
    policy = policy_module.Policy(model, None, CodeBlockStopping(byte_tokenizer([])), str, [VOCABULARY - 1])
    with policy.gathered(runtime, learner.config):
        generator: Any = policy.generator(learner.config)
        copied = flat(generator.model.parameters())
        for row in range(3 + runtime.rank):  # ranks decode different numbers of rows
            generator.submit(Request(row, [1, 2, 3 + row], row, 12, False))
        rows = []
        while generator.scheduler.rows:
            rows += generator.step()
    if runtime.stage == 3:
        zero.GatheredParameters = gather
    weights = weights_of(learner).float().bfloat16().double()
    return {
        "same": torch.equal(copied, weights),
        "tokens": [len(row.token_ids) for row in rows],
        "gathered": sizes,
        "freed": policy.decode_copy is None,
    }


LEVEL = Levelling.level


def record_tokens(level: bool) -> list[int]:
    """A list that gets the number of tokens of this rank in every mini-batch. Without `level`, no row moves."""
    tokens: list[int] = []

    def record(levelling: Levelling, samples: list[TrainingSample]) -> list[TrainingSample]:
        samples = LEVEL(levelling, samples) if level else samples
        tokens.append(sum(len(sample.token_ids) for sample in samples))
        return samples

    Levelling.level = record  # type: ignore[method-assign]
    return tokens


def flat(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.detach().flatten().double() for tensor in tensors])


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(path) for path in sys.argv[2:]])

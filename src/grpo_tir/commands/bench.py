"""`grpo-tir bench`: measure tokens a second of sampling and of learning on this machine.

Responses have a fixed length and no tool calls, so the figures compare machines and models, not recipes. The
comparisons with other generators and trainers are in `benchmarks/` of a checkout.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from grpo_tir.types import RolloutGroup


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the model and the workload."""
    parser.add_argument("--model", help="a Hub id or a folder; default: a Qwen2 of 26.5M random weights")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=8, help="responses a prompt")
    parser.add_argument("--prompt-tokens", type=int, default=80)
    parser.add_argument("--response-tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; more help on an idle machine")
    parser.add_argument("--micro-batch-tokens", type=int, default=2048)


def run(args: argparse.Namespace) -> int:
    """Sample and learn once, print two lines and one JSON object."""
    import torch

    from grpo_tir.config import Config, OptimConfig
    from grpo_tir.distributed.runtime import Runtime
    from grpo_tir.monitor.utilization import MachineLimits
    from grpo_tir.rollouts.policy import load_model

    torch.set_num_threads(args.threads)
    runtime = Runtime("auto")
    model = load_model(args.model)[0] if args.model else random_model()
    model = model.to(runtime.device).eval()
    limits = MachineLimits(model, runtime.bf16)
    where = torch.cuda.get_device_name() if runtime.device.type == "cuda" else f"CPU, {args.threads} thread(s)"
    print(f"{model.num_parameters() / 1e6:.1f}M parameters, {args.prompts * args.samples} responses; {where}")

    sample(model, make_groups(1, 1, 8, model), 4)  # warm-up
    groups = make_groups(args.prompts, args.samples, args.prompt_tokens, model)
    sampling, forwards = sample(model, groups, args.response_tokens)
    config = Config(optim=OptimConfig(micro_batch_tokens=args.micro_batch_tokens))
    learning = learn(model, groups, config, runtime)

    rows = [
        {"group": r.group, "prompt": len(r.prompt_ids), "length": len(r.token_ids), "trained": True}
        for group in groups
        for r in group.rollouts
    ]
    tokens = sum(row["length"] for row in rows)
    shares = limits.shares(rows, sampling, learning, forwards)
    print(f"sampling {tokens / sampling:10.1f} tokens a second, {shares[0] or 0:.2f} of this machine's limit")
    print(f"learning {tokens / learning:10.1f} tokens a second, {shares[1]:.2f} of this machine's limit")
    figures = {
        "sampling_tokens_per_second": tokens / sampling,
        "learning_tokens_per_second": tokens / learning,
        "sampling_share_of_limit": shares[0],
        "learning_share_of_limit": shares[1],
    }
    print(json.dumps({name: value and round(value, 3) for name, value in figures.items()}))
    return 0


def random_model() -> PreTrainedModel:
    """Make a Qwen2 with random weights, large enough for matrix products to dominate on a CPU."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 32_000, "hidden_size": 384, "num_hidden_layers": 8, "intermediate_size": 1200}
    sizes |= {"num_attention_heads": 6, "num_key_value_heads": 2}
    return Qwen2ForCausalLM(Qwen2Config(**sizes, tie_word_embeddings=True, bos_token_id=None, eos_token_id=None))


def make_groups(prompts: int, samples: int, length: int, model: PreTrainedModel) -> list[RolloutGroup]:
    """Make empty rollouts to prompts of `length` random tokens."""
    import random

    from grpo_tir.types import Problem, Rollout, RolloutGroup

    draw, vocabulary, groups = random.Random(0), model.get_input_embeddings().weight.shape[0], []
    for number in range(prompts):
        problem, prompt = Problem(str(number), "", ""), [draw.randrange(vocabulary) for _ in range(length)]
        rollouts = [Rollout(problem, prompt, group=number, sample=sample) for sample in range(samples)]
        groups.append(RolloutGroup(problem, rollouts))
    return groups


def sample(model: PreTrainedModel, groups: list[RolloutGroup], length: int) -> tuple[float, int]:
    """Sample `length` tokens for each rollout, as training does. Returns seconds and forward passes."""
    from grpo_tir.engine.decode_weights import make_decode_copy
    from grpo_tir.engine.engine import Engine
    from grpo_tir.generation.protocol import Request
    from grpo_tir.generation.sampling import Sampling, row_key
    from grpo_tir.rollouts.policy import decodes_in_bf16
    from grpo_tir.types import Segment

    rollouts = [rollout for group in groups for rollout in group.rollouts]
    engine = Engine(make_decode_copy(model) if decodes_in_bf16(model) else model, None, Sampling(), [])
    started = time.perf_counter()
    for row, rollout in enumerate(rollouts):
        engine.submit(Request(row, rollout.prompt_ids, row_key(0, rollout.group, rollout.sample), length, False))
    ended = 0
    while ended < len(rollouts):
        for stop in engine.step():
            rollouts[stop.row].add(Segment("model", stop.token_ids, stop.logprobs))
            ended += 1
    seconds = time.perf_counter() - started
    engine.close()
    return seconds, engine.counts["forwards"]


def learn(model: PreTrainedModel, groups: list[RolloutGroup], config: Any, runtime: Any) -> float:
    """Take one optimizer step on the batch, as training does. Returns seconds."""
    from pathlib import Path

    from grpo_tir.learning.advantages import assign_advantages
    from grpo_tir.learning.learner import Learner
    from grpo_tir.types import Reward

    for group in groups:
        for rollout in group.rollouts:
            rollout.reward = Reward(float(rollout.sample % 2), {})
    assign_advantages(groups, config.algorithm)
    learner = Learner(runtime, model, config)
    started = time.perf_counter()
    with learner.updating(0, Path("dumps")):
        for batch in learner.mini_batches(groups):
            learner.backward(batch)
            learner.step(batch)
    learner.report()
    return time.perf_counter() - started

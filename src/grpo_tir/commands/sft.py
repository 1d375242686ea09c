"""`grpo-tir sft RECIPE`: fine-tune on written traces of tool use, before GRPO or instead of it.

The recipe is that of GRPO: `data.train` names the traces, `rollout.prompts_per_step` is their number in a batch,
and `train.steps` the number of batches. The model is saved once, at the end, in `train.output_dir`/model.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

from grpo_tir.errors import ConfigError
from grpo_tir.utils.recipe import load_config, save_config
from grpo_tir.utils.resources import find_recipe

TAKES_OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the recipe."""
    parser.add_argument(
        "recipe", help="a YAML file, or the name of a packaged recipe; data.train names the traces"
    )


def run(args: argparse.Namespace) -> int:
    """Train and save. Writes metrics.jsonl as `train` does, so that `report` can show it."""
    import torch

    from grpo_tir.checkpoint.save import make_writable
    from grpo_tir.config import check_for_training
    from grpo_tir.distributed.runtime import Runtime
    from grpo_tir.learning.learner import Learner
    from grpo_tir.learning.supervised import batches, for_likelihood, read_traces, supervised_step
    from grpo_tir.monitor.run_log import RunLog
    from grpo_tir.rollouts.policy import load_policy

    config = for_likelihood(load_config(find_recipe(args.recipe), args.overrides))
    check_for_training(config)
    if config.model.lora_rank:
        raise ConfigError("model.lora_rank: sft trains all weights; set it to 0")
    torch.manual_seed(config.train.seed)
    folder, steps = Path(config.train.output_dir), config.train.steps
    make_writable(folder)
    runtime = Runtime(config.model.precision, trains=True)
    try:
        policy = load_policy(config, config.model.path, runtime.device, runtime.full_weights)
        traces, too_long = read_traces(config.data.train, policy, config)
        log = RunLog(folder, config.train.report_to) if runtime.is_main else None
        if log:
            save_config(config, folder / "config.yaml")
            print(f"{len(traces)} traces, {too_long} too long ones left out; {runtime.precision}", flush=True)
        learner = Learner(runtime, policy.model, config)
        endless = batches(traces, config.rollout.prompts_per_step, config.train.seed)
        for step, batch in enumerate(itertools.islice(endless, steps)):
            line = supervised_step(learner, runtime.share(batch), step, folder / "dumps" / f"step_{step + 1:06d}")
            if log:
                log.metrics(step + 1, {**line})
                print(f"step {step + 1}/{steps}  loss {line['loss']:.4f}", flush=True)
        with runtime.full_weights(policy.model):
            if log:
                policy.model.save_pretrained(folder / "model")
                policy.tokenizer.save_pretrained(folder / "model")
                log.sync()
                print(f"saved {folder / 'model'}: train it with --model.path {folder / 'model'}")
    finally:
        runtime.close()
    return 0

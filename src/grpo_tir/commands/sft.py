"""`grpo-tir sft RECIPE`: fine-tune on written traces of tool use, before GRPO or instead of it.

The recipe is that of GRPO: `data.train` names the traces, `rollout.prompts_per_step` is their number in a batch,
and `train.steps` the number of batches. The model is saved once, at the end, in `train.output_dir`/model.
"""

import argparse

from grpo_tir.utils.recipe import find_recipe, load_config

TAKES_OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a YAML file, or a packaged recipe; data.train names the traces")


def run(args: argparse.Namespace) -> int:
    """Train and save. Writes metrics.jsonl as `train` does, so that `report` can show it."""
    from grpo_tir.learning.supervised import fine_tune

    fine_tune(load_config(find_recipe(args.recipe), args.overrides))
    return 0

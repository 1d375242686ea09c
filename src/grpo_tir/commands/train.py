"""`grpo-tir train RECIPE [--section.key VALUE …] [--resume]`: train a recipe."""

import argparse

from grpo_tir.errors import ConfigError
from grpo_tir.utils.recipe import find_recipe, load_config

TAKES_OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a YAML file, or the name of a packaged recipe such as torl_1.5b")
    parser.add_argument("--resume", action="store_true", help="go on from the last whole checkpoint of this run")
    parser.add_argument("--on-bad", choices=["stop", "skip"], help="a problem that cannot be used (data.on_bad)")


def run(args: argparse.Namespace) -> int:
    bad = ["--data.on_bad", args.on_bad] if args.on_bad else []
    config = load_config(find_recipe(args.recipe), [*args.overrides, *bad])
    if config.model.path == "quickstart":
        raise ConfigError("`grpo-tir quickstart` makes this model: run it, or set --model.path and --data.train")
    from grpo_tir.train import train

    return train(config, resume=args.resume)

"""`grpo-tir train RECIPE [--section.key VALUE …] [--resume | --dry-run]`: train a recipe."""

from __future__ import annotations

import argparse

from grpo_tir.commands.plan import add_machine, machine_of
from grpo_tir.utils.recipe import load_config
from grpo_tir.utils.resources import find_recipe

TAKES_OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the recipe, and whether to resume."""
    parser.add_argument("recipe", help="a YAML file, or the name of a packaged recipe such as torl_1.5b")
    parser.add_argument("--resume", action="store_true", help="go on from the last whole checkpoint of this run")
    parser.add_argument("--on-bad", choices=["stop", "skip"], help="a problem that cannot be used (data.on_bad)")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="settings, problems, prompts and memory plan; no weights, no training",
    )
    add_machine(parser.add_argument_group("the machine that a dry run plans for"))


def run(args: argparse.Namespace) -> int:
    """Train, or print what training would do."""
    bad = ["--data.on_bad", args.on_bad] if args.on_bad else []
    config = load_config(find_recipe(args.recipe), [*args.overrides, *bad])
    if args.dry_run:
        from grpo_tir.diagnostics.doctor import dry_run

        named = args.gpus is not None or args.gpu_memory is not None or args.cpu or args.zero > 0
        return dry_run(config, machine_of(args), certain=named)
    from grpo_tir.train import train

    return train(config, resume=args.resume)

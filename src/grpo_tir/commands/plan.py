"""Check whether a recipe fits: `grpo-tir plan RECIPE --gpus N --gpu-memory 80GB`; else name settings that fit."""

import argparse

from grpo_tir.diagnostics.fit import check_plan
from grpo_tir.diagnostics.memory import Hardware, describe, parse_memory, plan, shape_of
from grpo_tir.errors import ConfigError
from grpo_tir.utils.recipe import find_recipe, load_config

TAKES_OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a YAML file, or the name of a packaged recipe such as torl_1.5b")
    parser.add_argument("--gpus", type=int, default=8, help="GPUs in all, a process each (default 8)")
    parser.add_argument("--gpu-memory", default="80GB", help="memory of each, like 80GB (default) or 80GiB")
    parser.add_argument("--zero", type=int, choices=range(4), default=0, help="ZeRO stage; 0 (default) is DDP")
    parser.add_argument("--cpu", action="store_true", help="processes on a CPU, in float32, instead of GPUs")


def run(args: argparse.Namespace) -> int:
    """Print the plan; exit code 2 if it does not fit."""
    config = load_config(find_recipe(args.recipe), args.overrides)
    if args.gpus < 1 or (args.zero and args.gpus < 2):
        raise ConfigError(f"--gpus {args.gpus}: it must be 1 or more, and 2 or more for --zero {args.zero}")
    machine = Hardware(args.gpus, parse_memory(args.gpu_memory), args.zero, args.cpu)
    shape = shape_of(config.model.path, config.model.revision)
    found = plan(config, shape, machine)
    print(describe(found, shape, machine), flush=True)
    check_plan(found, config, shape, machine)
    print("\nit fits")
    return 0

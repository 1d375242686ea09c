"""`grpo-tir solve "problem" --model M`: sample one response and print it as it is made."""

import argparse
import sys

from grpo_tir.commands.eval import recipe_for
from grpo_tir.errors import UserError

TAKES_OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("problem", help="the question")
    parser.add_argument("--model", required=True, help="a Hub id, a model folder, or a checkpoint of a run")
    parser.add_argument("--recipe", help="settings; default: the recipe in the checkpoint, else the defaults")
    parser.add_argument("--sample", action="store_true", help="draw at rollout.temperature instead of greedily")


def run(args: argparse.Namespace) -> int:
    """Sample one response and print it segment by segment; tool output has another colour."""
    if not args.problem.strip():
        raise UserError('the problem is empty: put it in quotes, as in grpo-tir solve "Compute 123 * 45."')
    config = recipe_for(args.model, args.recipe, args.overrides)
    from grpo_tir.distributed.runtime import Runtime
    from grpo_tir.evaluation.held_out import GREEDY
    from grpo_tir.grading.extract import model_answer
    from grpo_tir.monitor.console import Console
    from grpo_tir.rollouts.policy import load_policy, sampling_of
    from grpo_tir.rollouts.sample import make_groups, sample_responses
    from grpo_tir.tools.open import open_tool
    from grpo_tir.types import Problem

    runtime = Runtime(config.model.precision)
    print(f"precision: {runtime.precision}", file=sys.stderr)
    policy = load_policy(config, args.model, runtime.device)
    tool = open_tool(config, Console().log)
    sampling = sampling_of(config.rollout) if args.sample else GREEDY
    problem = Problem("solve", args.problem, "")
    (group,) = make_groups([problem], policy.render, policy.tokenizer, 1, 0)
    (rollout,) = group.rollouts
    printed = 0

    def show(finished: int, waiting: int) -> None:
        nonlocal printed
        for segment in rollout.segments[printed:]:
            colour = ("\033[36m", "\033[0m") if segment.kind == "tool" and sys.stdout.isatty() else ("", "")
            print(f"{colour[0]}{segment.text}{colour[1]}", end="", flush=True)
        printed = len(rollout.segments)

    try:
        sample_responses([rollout], policy, tool, config, runtime, sampling=sampling, check=show)
    finally:
        if tool is not None:
            tool.close()
        runtime.close()
    answer = model_answer([segment.text for segment in rollout.segments if segment.kind == "model"])
    print(f"\n--- answer: {answer if answer is not None else 'none in a box'} ({rollout.finish_reason})")
    return 0

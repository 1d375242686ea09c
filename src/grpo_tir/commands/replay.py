"""`grpo-tir replay`: compare one recorded response with the executor, the model and the loss mask."""

import argparse
from pathlib import Path

from grpo_tir.diagnostics.replay import check_code, check_model, check_stamps, find_record, to_rollout
from grpo_tir.errors import DataError
from grpo_tir.utils.recipe import load_config

TAKES_OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN", type=Path, help="run directory (train.output_dir)")
    parser.add_argument("step", metavar="STEP", type=int, help="a recorded step (train.rollouts_every)")
    parser.add_argument("sample", metavar="SAMPLE", help="GROUP.SAMPLE as in the report, or the line of the file")
    parser.add_argument("--no-code", action="store_true", help="do not run the code again")
    parser.add_argument("--no-logprobs", action="store_true", help="do not load any model")


def run(args: argparse.Namespace) -> int:
    """Run three checks and print one verdict each."""
    if not args.run_dir.is_dir():
        raise DataError(f"{args.run_dir} is no run directory: give the train.output_dir of a run")
    config = load_config(args.run_dir / "config.yaml", args.overrides)
    record = find_record(args.run_dir, args.step, args.sample)
    rollout = to_rollout(record)
    print(f"step {args.step}, group {rollout.group}, sample {rollout.sample}: {rollout.problem.problem[:200]!r}")
    verdicts = [check_stamps(rollout)]
    if not args.no_logprobs:
        verdicts.append(check_model(args.run_dir, args.step, rollout, config))
    if not args.no_code:
        verdicts.append(check_code(record, config))
    return 0 if all(verdicts) else 1

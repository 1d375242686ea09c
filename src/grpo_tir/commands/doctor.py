"""`grpo-tir doctor`: find what would go wrong before training starts."""

import argparse

from grpo_tir.diagnostics.doctor import MARKS, diagnose
from grpo_tir.errors import ConfigError
from grpo_tir.utils.recipe import find_recipe, load_config

TAKES_OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", nargs="?", help="a YAML file, or the name of a packaged recipe; default: none")
    parser.add_argument("--bench-dir", help="folder with the benchmarks (aime24.jsonl, …); default: the Hub")
    parser.add_argument("--no-model", action="store_true", help="leave out what needs the model to be loaded")


def run(args: argparse.Namespace) -> int:
    """Print each finding as it is made, and a verdict last. Returns 1 if there is a fault."""
    if args.overrides and not args.recipe:
        raise ConfigError("settings belong to a recipe: grpo-tir doctor RECIPE --section.key VALUE")
    config = load_config(find_recipe(args.recipe), args.overrides) if args.recipe else None
    found = []
    for finding in diagnose(config, args.bench_dir, with_model=not args.no_model):
        found.append(finding)
        print(f"{MARKS[finding.level]} {finding.check:<12} {finding.text}", flush=True)
    faults, warnings = (sum(finding.level == level for finding in found) for level in ("fault", "warning"))
    verdict = "no problems found" if not faults else f"{faults} fault(s) to mend first"
    print(f"\n{verdict}; {warnings} warning(s), {len(found) - faults - warnings} checks passed")
    return 1 if faults else 0

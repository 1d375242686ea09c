"""`grpo-tir eval MODEL [MODEL …] --bench aime24,math500 --data FILE`: measure accuracy with intervals."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from grpo_tir.config import Config, change
from grpo_tir.data.benchmarks import PINS, Benchmark, load_benchmark, load_file
from grpo_tir.data.prompts import STEP_BY_STEP
from grpo_tir.errors import ConfigError
from grpo_tir.evaluation.spec import EvalOptions, EvalSpec
from grpo_tir.utils.recipe import find_recipe, load_config

TAKES_OVERRIDES = True
PROMPTS: dict[str, tuple[str, str | None]] = {
    "base": ("torl", None),
    "instruct": ("chat", STEP_BY_STEP),
    "tir": ("chat", None),
}
"""The paper's three prompts by name: (data.template, data.system)."""
TOOLS = {"with": ("tool",), "without": ("no tool",), "both": ("tool", "no tool")}
BENEFIT = ("tool", "no tool", "blanked", "shuffled")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a Hub id, a model folder, or a checkpoint")
    parser.add_argument("--bench", help=f"benchmarks, from {','.join(PINS)}")
    parser.add_argument("--bench-dir", help="folder with NAME.jsonl for each benchmark; default: the Hub")
    parser.add_argument("--data", action="append", default=[], help="a file of problems (may be given again)")
    parser.add_argument("--recipe", help="settings; default: the recipe in the checkpoint, else torl_1.5b's")
    parser.add_argument("--template", help="base, instruct, tir or a data.template; for all models, or each")
    parser.add_argument("--tool", help="with (c of the recipe; default), without, both; for all models, or each")
    parser.add_argument("--tool-benefit", action="store_true", help="also without it, blanked, shuffled outputs")
    parser.add_argument("--samples", type=int, default=1, help="responses a problem; above 1 they are drawn")
    parser.add_argument("--sample", action="store_true", help="draw at rollout.temperature instead of greedily")
    parser.add_argument("--on-bad", choices=["stop", "skip"], help="a problem that cannot be used (data.on_bad)")
    parser.add_argument("--batch", type=int, default=64, help="responses that are made together (default 64)")
    parser.add_argument("--float64", action="store_true", help="slow; then no response depends on --batch")
    parser.add_argument("--compare", choices=["paper"], help="set the paper's Table 3 beside it")
    parser.add_argument("--out", help="folder for results and responses; the same command goes on there")


def run(args: argparse.Namespace) -> int:
    """Evaluate, print the table, and one JSON object last."""
    if args.samples < 1 or args.batch < 1:
        raise ConfigError("--samples and --batch must be 1 or more")
    plans = plan_cells(args)
    from grpo_tir.evaluation.session import Session

    options = EvalOptions(**{field.name: getattr(args, field.name) for field in dataclasses.fields(EvalOptions)})
    return Session(options, plans, load_benchmarks(args, plans[0].config)).run()


def plan_cells(args: argparse.Namespace) -> list[EvalSpec]:
    """Make the specs of all models, and check them before anything is loaded.

    Raises:
        ConfigError: the lists do not match the models, a word is unknown, or c is 0 and the tool is named.
    """
    templates = spread(args.template, len(args.models), "--template")
    tools = spread(args.tool, len(args.models), "--tool")
    bad = ["--data.on_bad", args.on_bad] if args.on_bad else []
    plans = []
    for model, template, tool in zip(args.models, templates, tools):
        if tool not in (None, *TOOLS):
            raise ConfigError(f"--tool {tool}: it is one of {', '.join(TOOLS)}")
        config = recipe_for(model, args.recipe, [*args.overrides, *bad])
        if template:
            name, system = PROMPTS.get(template, (template, config.data.system))
            config = change(config, {"data.template": name, "data.system": system})
        conditions = BENEFIT if args.tool_benefit else TOOLS[tool or "with"]
        if config.tool.max_tool_calls == 0:
            if args.tool_benefit or tool in ("with", "both"):
                raise ConfigError(f"{model}: its recipe allows no calls; set --tool.max_tool_calls 1")
            conditions = TOOLS["without"]
        plans.append(EvalSpec(model, template or config.data.template, config, conditions))
    if len({(plan.model, plan.prompt, plan.conditions) for plan in plans}) < len(plans):
        raise ConfigError("the same model is named twice with the same --template and --tool")
    return plans


def spread(text: str | None, number: int, option: str) -> Sequence[str | None]:
    """Split an option that holds one word for all models, or one for each."""
    words: list[str | None] = list(text.split(",")) if text else [None]
    if len(words) not in (1, number):
        raise ConfigError(f"{option} names {len(words)} for {number} models: give one, or one for each")
    return words * number if len(words) == 1 else words


def load_benchmarks(args: argparse.Namespace, config: Config) -> list[Benchmark]:
    """Load the named benchmarks, then the files; without either, data.eval of the recipe.

    Raises:
        ConfigError: there is nothing to evaluate on, or two sets have one name.
        DataError: a benchmark differs from the pinned one, or a file cannot be used.
    """
    from grpo_tir.data.load import read_problems

    files = args.data or ([] if args.bench else [config.data.eval] if config.data.eval else [])
    names = [name.strip() for name in args.bench.split(",")] if args.bench else []
    found = [load_benchmark(name, args.bench_dir) for name in names]
    found += [load_file(path, read_problems(config, path, print)) for path in files]
    if not found:
        raise ConfigError(f"nothing to evaluate on: name --bench {','.join(PINS)}, or a file with --data")
    if len({benchmark.name for benchmark in found}) < len(found):
        raise ConfigError("two of the problem sets have the same name; rename a file, or leave one out")
    return found


def recipe_for(model: str, recipe: str | None, overrides: list[str]) -> Config:
    """Load the named recipe, else the one in the checkpoint, else torl_1.5b.

    A recipe that the user did not name may ask for bf16 because it was written for a GPU. Its precision becomes
    `auto`, which is bf16 on a GPU and fp32 on a CPU, where most processors emulate bf16.
    """
    inside = Path(model) / "recipe.yaml"
    path = find_recipe(recipe) if recipe else inside if inside.is_file() else find_recipe("torl_1.5b")
    config = load_config(path, overrides)
    named = recipe is not None or any("model.precision" in text for text in overrides)
    precision = "auto" if config.model.precision == "bf16" and not named else config.model.precision
    return change(config, {"model.path": model, "model.precision": precision})

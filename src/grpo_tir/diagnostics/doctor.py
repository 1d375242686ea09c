"""Check a recipe and its machine before training: `grpo-tir doctor [RECIPE]` and `grpo-tir train --dry-run`.

    settings ─ problems ─ grader ─ executor (starts, correct results, isolated, fast enough)
    ─ model (prompt, markers, end-of-text ids, sampling) ─ memory ─ disk

Every check reports what it found. A fault comes with its remedy, and checks that do not depend on it still run.
Without a recipe, only grader and executor are checked. Exit code: 0 no fault, 1 at least one fault.
"""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import indent
from typing import Any

from grpo_tir.config import Config, check_for_training
from grpo_tir.data.load import read_all_problems
from grpo_tir.data.prompts import encode, make_renderer
from grpo_tir.diagnostics.finding import Finding, fault, fine, guarded, warning
from grpo_tir.diagnostics.fit import check_plan
from grpo_tir.diagnostics.memory import Hardware, Shape, describe, plan, shape_of
from grpo_tir.errors import ConfigError, DataError, ModelError
from grpo_tir.rollouts.rewards import make_reward
from grpo_tir.types import Problem
from grpo_tir.utils import hub

MARKS = {"fine": "ok   ", "warning": "warn ", "fault": "FAULT"}


def diagnose(config: Config | None, bench_dir: str | None = None, with_model: bool = True) -> Iterator[Finding]:
    """Yield the findings of all checks, in the order of the picture above.

    Args:
        config: the recipe; None: check grader and executor only.
        bench_dir: folder of the benchmark files; None: the Hub.
        with_model: whether to load the model and check it.
    """
    # Imported here: torch and sympy load slowly, and `--help` must start at once.
    from grpo_tir.diagnostics.executor import check_executor
    from grpo_tir.diagnostics.grader import check_grader
    from grpo_tir.diagnostics.problems import check_problems

    if config is None:
        yield from guarded("grader", lambda: check_grader([]))
        yield from guarded("executor", lambda: check_executor(Config()))
        return
    yield from guarded("settings", lambda: check_settings(config))
    problems: list[Problem] = []
    made_on_the_spot = config.model.path == config.data.train == "quickstart"
    if made_on_the_spot:
        yield warning("problems", "not checked: `grpo-tir quickstart` makes the problems and the model itself")
    else:
        yield from guarded("problems", lambda: check_problems(config, problems, bench_dir))
    yield from guarded("grader", lambda: check_grader(problems))
    if config.tool.max_tool_calls:
        yield from guarded("executor", lambda: check_executor(config))
    if with_model and not made_on_the_spot:
        from grpo_tir.diagnostics.model import check_model

        yield from guarded("model", lambda: check_model(config, problems))


def check_settings(config: Config) -> Iterator[Finding]:
    """Check what `train` would reject at its start."""
    check_for_training(config)
    if (Path(config.train.output_dir) / "checkpoints").is_dir():
        yield fault(
            "settings", f"{config.train.output_dir} already holds a run: --resume it, or name another folder"
        )
    for name in config.train.report_to:
        if importlib.util.find_spec(name) is None:
            yield fault("settings", f"train.report_to names {name}, which is not installed: pip install {name}")
    make_reward(config.reward, config.rollout.max_completion_length)
    if config.reward.code_penalty or config.reward.no_code_penalty:
        yield warning("settings", "code is penalised; the paper's ablation found no gain from this (Figure 6)")
    yield fine("settings", "the recipe is valid")


def dry_run(config: Config, machine: Hardware, certain: bool, log: Callable[[str], None] = print) -> int:
    """Describe what a run would do, without running it. Returns the exit code.

    Args:
        config: the resolved recipe.
        machine: hardware to plan for.
        certain: True if `machine` is the machine of the run. Then a recipe that does not fit is an error.
        log: prints a line.

    Raises:
        UserError: any error that would stop the run before its first rollout.
    """
    check_for_training(config)
    if config.model.path == "quickstart":
        raise ConfigError(
            "`grpo-tir quickstart` makes the model and the problems of this recipe: run it, "
            "or set --model.path and --data.train"
        )
    make_reward(config.reward, config.rollout.max_completion_length)
    rollout = config.rollout
    log(
        f"settings   {rollout.prompts_per_step} x {rollout.samples_per_prompt} rollouts a step, "
        f"{config.train.steps} steps, c = {config.tool.max_tool_calls}, lr {config.optim.lr:g}"
    )
    train, held_out = read_all_problems(config, log)
    tokenizer = load_tokenizer(config.model.path, config.model.revision)
    render = make_renderer(config.data.template, tokenizer, config.data.system)
    shape = shape_of(config.model.path, config.model.revision)
    check_positions(config, shape)
    lengths = [len(encode(tokenizer, render(problem))) for problem in train]
    longest = config.data.max_prompt_length
    fitting = sum(length <= longest for length in lengths)
    if not fitting:
        raise DataError(f"{config.data.train}: no problem is short enough for data.max_prompt_length")
    log(
        f"prompts    {min(lengths)} to {max(lengths)} tokens, median {statistics.median(lengths):.0f}; "
        f"{len(lengths) - fitting} of {len(lengths)} are longer than data.max_prompt_length {longest} and left out"
    )
    log(
        f"problems   {fitting} to train on ({fitting / rollout.prompts_per_step:.1f} steps an epoch), "
        f"{len(held_out)} held out"
    )
    first = indent(render(train[0]), "  | ", lambda line: True)
    log(f"the first prompt, {lengths[0]} tokens:\n{first}\n")
    found = plan(config, shape, machine)
    log(describe(found, shape, machine))
    try:
        check_plan(found, config, shape, machine)
    except ConfigError as error:
        if certain:
            raise
        log(f"warning: {error} (name the machine of the run: --gpus N --gpu-memory 80GB --zero STAGE)")
    log("\ndry run: nothing was trained, nothing was written")
    return 0


def load_tokenizer(path: str, revision: str | None) -> Any:
    """Load the model's tokenizer, from a folder or the Hub.

    Raises:
        ModelError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    path = hub.locate_model(path)
    try:
        return AutoTokenizer.from_pretrained(path, revision=revision)
    except Exception as error:  # transformers raises many types
        fault = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"cannot load the tokenizer of {path}: {fault}") from error


def check_positions(config: Config, shape: Shape) -> None:
    """Check that the longest sequence fits into the model's positions.

    Raises:
        ConfigError: prompt and completion together have more tokens than the model has positions.
    """
    wanted = config.data.max_prompt_length + config.rollout.max_completion_length
    if shape.positions and wanted > shape.positions:
        raise ConfigError(
            f"data.max_prompt_length + rollout.max_completion_length = {wanted}, "
            f"but {config.model.path} has {shape.positions} positions"
        )

"""Check a recipe and its machine before training: `grpo-tir doctor [RECIPE]`.

    settings ─ problems ─ grader ─ executor (starts, correct results, isolated, fast enough)
    ─ model (prompt, markers, end-of-text ids, sampling) ─ memory ─ disk

Every check reports what it found. A fault comes with its remedy, and checks that do not depend on it still run.
Without a recipe, only grader and executor are checked. Exit code: 0 no fault, 1 at least one fault.
"""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from grpo_tir.config import Config, check_for_training
from grpo_tir.diagnostics.finding import Finding, fault, fine, guarded, warning
from grpo_tir.rollouts.rewards import make_reward
from grpo_tir.types import Problem

MARKS = {"fine": "ok   ", "warning": "warn ", "fault": "FAULT"}


def diagnose(config: Config | None, bench_dir: str | None = None, with_model: bool = True) -> Iterator[Finding]:
    """Yield the findings of all checks, in the order of the picture above; without a recipe those of grader and
    executor. `bench_dir` is the folder of the benchmark files; None: the Hub."""
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

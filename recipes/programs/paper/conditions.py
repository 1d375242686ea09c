"""Run the conditions under which the findings of the paper are tested, and keep their results.

    base model of a seed ──► SFT (only `sft`) ──► measure ──► GRPO ──► measure ──► results/NAME-seedN-HASH.json

HASH covers everything that the result depends on: settings, world with base model, and code of the trainer. An
interrupted run continues from its last checkpoint.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpo_tir
from grpo_tir.config import Config, change
from grpo_tir.utils.files import read_jsonl, write_atomically
from grpo_tir.utils.recipe import find_recipe, load_config
from paper.world import PAPER_FAMILIES, paper_world
from quickstart.build import QuickstartFiles, build_quickstart
from quickstart.world import OUTPUT_MARKER

CONDITIONS: dict[str, list[str]] = {
    "c0": ["--tool.max_tool_calls", "0"],
    "c1": [],
    "c2": ["--tool.max_tool_calls", "2"],
    "c4": ["--tool.max_tool_calls", "4"],
    "penalty": ["--reward.code_penalty", "-0.5"],
    "penalty_reference": ["--reward.code_penalty", "-0.5", "--reward.no_code_penalty", "-0.5"],
    "price": ["--reward.call_penalty", "-0.1"],
    "price_unscaled": ["--reward.call_penalty", "-0.1", "--algorithm.scale_rewards", "false"],
    "g4": ["--rollout.samples_per_prompt", "4", "--rollout.prompts_per_step", "32"],
    "sft": [],
}
"""Overrides of each condition. `sft` starts from the base model after SFT on as many responses as GRPO samples."""

KEPT = ("source", "correct", "written", "executed", "passed", "failed", "recovered", "calls")
"""Fields of each response that a result keeps, beside its text."""
SURROUNDING = {"commands", "report", "diagnostics", "curation", "evaluation"}
"""Subpackages on which no training run depends."""


@dataclass(frozen=True)
class Task:
    """Describe one condition with one seed."""

    name: str
    seed: int
    out: Path
    """Folder of runs and results."""
    cache: Path
    """Folder of base models."""
    overrides: tuple[str, ...] = ()
    """Settings of the user, for all conditions."""

    @property
    def folder(self) -> Path:
        """Return the folder of the run."""
        return self.out / f"runs/{self.name}-seed{self.seed}"


def build_world(task: Task) -> QuickstartFiles:
    """Build or reuse problems and base model of the seed."""
    return build_quickstart(task.cache, task.seed, paper_world, log=lambda line: None, progress=False)


def recipe(task: Task) -> Config:
    """Return the recipe: the quickstart's, with longer responses for several calls."""
    files = build_world(task)
    options = {
        "model.path": task.folder / "start/model" if task.name == "sft" else files.model,
        "data.train": files.train,
        "data.eval": files.eval,
        "rollout.max_completion_length": 160,
        "train.steps": 60,
        "train.seed": task.seed,
        "train.save_every": 20,
        "train.eval_every": 0,
        "train.eval_size": 300,
        "train.output_dir": task.folder,
        "train.report_to": "[]",
    }
    given = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    return load_config(find_recipe("quickstart"), [*given, *CONDITIONS[task.name], *task.overrides])


def result_path(task: Task) -> Path:
    """Return the file of the result. Its name has the hash of everything that the result depends on."""
    settings: dict[str, Any] = asdict(recipe(task))
    settings["model"]["path"] = settings["data"]["train"] = settings["data"]["eval"] = None  # in the world's name
    settings["train"]["output_dir"] = None
    digest = hashlib.sha256(json.dumps([task.name, settings, build_world(task).model.parent.name]).encode())
    package = Path(grpo_tir.__file__).parent
    for path in sorted(package.rglob("*.py")):
        if not SURROUNDING & set(path.relative_to(package).parts):
            digest.update(path.read_bytes())
    return task.out / f"results/{task.name}-seed{task.seed}-{digest.hexdigest()[:12]}.json"


def run_condition(task: Task) -> Path:
    """Train and measure, unless the result exists. What the trainer prints goes to the log beside the run."""
    path, config = result_path(task), recipe(task)
    if path.exists():
        return path
    import torch

    from grpo_tir.train import Trainer

    torch.set_num_threads(1)
    stamp = task.folder / f"{path.stem}.before.json"  # named by the hash: another recipe starts anew
    path.parent.mkdir(parents=True, exist_ok=True)
    task.folder.mkdir(parents=True, exist_ok=True)
    with open(task.folder / "log.txt", "a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
        if task.name == "sft" and not stamp.exists():
            make_start(config, build_world(task).model)
        resume = stamp.exists() and any((task.folder / "checkpoints").glob("step_*"))
        with Trainer(config, resume) as trainer:
            if not resume:
                found = {"greedy_before": measure(trainer, 0.0), "before": measure(trainer, 1.0)}
                write_atomically(stamp, json.dumps(found))
            history = trainer.train()
            result = json.loads(stamp.read_text(encoding="utf-8"))
            if not trainer.exit_code:
                result |= {"greedy": measure(trainer, 0.0), "after": measure(trainer, 1.0)}
        if trainer.exit_code:  # stopped by a signal; this process must not begin the next condition
            os._exit(trainer.exit_code)
        result["steps"] = [{"seconds": line["time/step"], "source": ""} for line in history if "time/step" in line]
        write_atomically(path, json.dumps(result))
    return path


def measure(trainer: Any, temperature: float) -> list[dict[str, Any]]:
    """Sample one response to each held-out problem with the current weights; 0 is greedy."""
    from grpo_tir.evaluation.held_out import EVALUATION, complete
    from grpo_tir.generation.sampling import Sampling
    from grpo_tir.monitor.metrics import summarize
    from grpo_tir.rollouts.sample import make_groups

    parts, config = trainer.parts, trainer.config
    groups = make_groups(parts.held_out, parts.policy.render, parts.policy.tokenizer, 1, EVALUATION)
    rollouts = [group.rollouts[0] for group in groups]
    sampling = Sampling(temperature)
    complete(rollouts, parts.policy, parts.tool, parts.reward, config, parts.runtime, sampling)
    rows = []
    for rollout in rollouts:
        found = summarize(rollout, config.tool.max_tool_calls)
        rows.append({key: found[key] for key in KEPT} | {"problem": rollout.problem.problem, "text": rollout.text})
    return rows


def make_start(config: Config, base: Path) -> None:
    """Make the start of the condition `sft`: SFT on correct responses with at most one call, as many as GRPO
    samples."""
    from grpo_tir.learning.supervised import fine_tune

    start = Path(config.model.path).parent
    start.mkdir(parents=True, exist_ok=True)
    traces = correct_traces(read_jsonl(Path(config.data.train)))
    write_atomically(start / "traces.jsonl", "".join(json.dumps(trace) + "\n" for trace in traces))
    batch = config.rollout.prompts_per_step * config.rollout.samples_per_prompt
    settings = {"model.path": str(base), "data.train": str(start / "traces.jsonl"), "train.output_dir": str(start)}
    fine_tune(change(config, {**settings, "rollout.prompts_per_step": batch}))


def correct_traces(problems: Iterable[Mapping[str, str]]) -> Iterator[dict[str, Any]]:
    """Yield a correct response with at most one call to each problem, in the form of `grpo-tir sft`. Problems that
    need two calls have none."""
    for row in problems:
        name, *numbers = row["id"].split("-")
        family, (a, b) = PAPER_FAMILIES[name], map(int, numbers)
        if family.fails(a, b):
            continue
        answer, call = f"\\boxed{{{row['answer']}}}", []
        if not family.derived:
            code = family.programs[0].format(a=a, b=b)
            call = [("model", f"```python\n{code}\n```\n{OUTPUT_MARKER}"), ("tool", f"\n{row['answer']}\n```\n")]
        segments = [{"kind": kind, "text": text} for kind, text in (*call, ("model", answer))]
        yield {"problem": row["problem"], "segments": segments}

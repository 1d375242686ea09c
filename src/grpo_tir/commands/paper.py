"""`grpo-tir paper`: test the paper's findings again, in a miniature world, on a CPU.

    base model of a seed ──► one run for each condition ──► results/CONDITION-seedN-HASH.json ──► findings, page

A result is kept under the hash of its recipe, so a second call runs only what is missing. An interrupted run goes
on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import html
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import grpo_tir
from grpo_tir.config import Config
from grpo_tir.errors import UserError
from grpo_tir.utils.files import read_jsonl, write_atomically
from grpo_tir.utils.recipe import load_config
from grpo_tir.utils.resources import find_recipe

CONDITIONS: dict[str, list[str]] = {
    "c0": ["--tool.max_tool_calls", "0"],
    "c1": [],
    "c2": ["--tool.max_tool_calls", "2"],
    "c4": ["--tool.max_tool_calls", "4"],
    "penalty": ["--reward.code_penalty", "-0.5"],
    "penalty_reference": ["--reward.code_penalty", "-0.5", "--reward.no_code_penalty", "-0.5"],
    "g4": ["--rollout.samples_per_prompt", "4", "--rollout.prompts_per_step", "32"],
    "sft": [],
}
"""Overrides of each condition. `sft` starts from the base model after SFT on as many responses as GRPO samples."""
EXPERIMENTS = {
    "c": ["c0", "c1", "c2", "c4"],
    "penalty": ["c1", "penalty", "penalty_reference"],
    "group": ["c1", "g4"],
    "sft": ["c1", "sft"],
}
"""Names for `--only`."""

STEPS, HELD_OUT, SAVE_EVERY = 80, 300, 20
KEPT = ("source", "correct", "written", "executed", "passed", "failed", "recovered", "calls")
"""What a result keeps of each response."""
SHOWN: list[tuple[str, str, str, Callable[[dict[str, Any]], Any]]] = [
    ("A repaired error", "c2", "after", lambda row: row["recovered"] and row["correct"]),
    ("A needless call", "c1", "before", lambda row: row["calls"] and row["source"] == "tiny/spare"),
    (
        "The same kind of problem without",
        "c1",
        "after",
        lambda row: not row["calls"] and row["source"] == "tiny/spare",
    ),
]
"""Trajectories of the page: title, condition, phase and test."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add seeds, selection and folders."""
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default 3)")
    parser.add_argument("--only", choices=list(EXPERIMENTS), help="run one group of conditions (default all)")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="runs at the same time")
    parser.add_argument("--out", default="runs/paper", help="where runs, results and page go (default runs/paper)")
    parser.add_argument("--cache", default=".cache/grpo-tir", help="where base models are kept")


def run(args: argparse.Namespace) -> int:
    """Run what is missing, judge, and write the page. Prints one JSON object last."""
    from grpo_tir.quickstart.paper import FINDINGS, judge

    if args.seeds < 1 or args.jobs < 1:
        raise UserError("--seeds and --jobs must be 1 or more")
    started, out, cache = time.perf_counter(), Path(args.out), Path(args.cache)
    names = EXPERIMENTS[args.only] if args.only else list(CONDITIONS)
    seeds = range(1, args.seeds + 1)
    (out / "results").mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        list(pool.map(build_world, [cache] * len(seeds), seeds))
        tasks = [(name, seed) for seed in seeds for name in names]
        for task, path in zip(tasks, pool.map(run_condition, *zip(*((*task, out, cache) for task in tasks)))):
            print(f"{task[0]}, seed {task[1]}: {path}", flush=True)
    results = {name: [_load(result_path(name, seed, out, cache)) for seed in seeds] for name in names}
    judged = {found.name: verdict for found in FINDINGS if (verdict := judge(found, results))}
    write_atomically(out / "paper.html", page(judged, results, args.seeds))
    for found in FINDINGS:
        if found.name in judged:
            line = judged[found.name]
            print(
                f"{line['verdict']:<15} {found.statement}: {line['value']} {line['interval']}, paper {found.paper}"
            )
    summary = {"seeds": args.seeds, "findings": judged, "seconds": round(time.perf_counter() - started)}
    print(json.dumps({**summary, "page": str(out / "paper.html")}))
    return 0


def build_world(cache: Path, seed: int) -> Any:
    """Build or reuse problems and base model of a seed. Returns the `QuickstartFiles`."""
    from grpo_tir.quickstart.build import build_quickstart

    return build_quickstart(cache, seed, "paper", log=lambda line: None, progress=False)


def recipe(name: str, seed: int, out: Path, cache: Path) -> Config:
    """Return the recipe of a condition: the quickstart's, with longer responses for several calls."""
    files = build_world(cache, seed)
    options = {
        "model.path": out / f"runs/sft-seed{seed}/start/model" if name == "sft" else files.model,
        "data.train": files.train,
        "data.eval": files.eval,
        "rollout.max_completion_length": 160,
        "train.steps": STEPS,
        "train.seed": seed,
        "train.save_every": SAVE_EVERY,
        "train.eval_every": 0,
        "train.eval_size": HELD_OUT,
        "train.output_dir": out / f"runs/{name}-seed{seed}",
        "train.report_to": "[]",
    }
    given = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    return load_config(find_recipe("quickstart"), [*given, *CONDITIONS[name]])


def result_path(name: str, seed: int, out: Path, cache: Path) -> Path:
    """Return the file of a result. Its name has the hash of all that the result depends on."""
    world = build_world(cache, seed).model.parent.name  # has the hash of the base model
    facts = [
        grpo_tir.__version__,
        world,
        CONDITIONS[name],
        STEPS,
        HELD_OUT,
        Path(find_recipe("quickstart")).read_text(encoding="utf-8"),
    ]
    return out / f"results/{name}-seed{seed}-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]}.json"


def run_condition(name: str, seed: int, out: Path, cache: Path) -> Path:
    """Train and measure one condition, unless its result exists. Its output goes to the log beside the run."""
    import torch

    from grpo_tir.train import Trainer

    path, config = result_path(name, seed, out, cache), recipe(name, seed, out, cache)
    if path.exists():
        return path
    torch.set_num_threads(1)
    folder = Path(config.train.output_dir)
    stamp = folder / f"{path.stem}.before.json"  # of this recipe; a run of another one is started again
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "log.txt", "a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
        if name == "sft" and not (Path(config.model.path) / "config.json").exists():
            fine_tune(config, build_world(cache, seed).model, seed)
        resume = stamp.exists() and any((folder / "checkpoints").glob("step_*"))
        with Trainer(config, resume) as trainer:
            if not resume:
                found = {"greedy_before": measure(trainer, 0.0), "before": measure(trainer, 1.0)}
                write_atomically(stamp, json.dumps(found))
            history = trainer.train()
            if trainer.exit_code:
                raise KeyboardInterrupt
            result = json.loads(stamp.read_text(encoding="utf-8"))
            result |= {"greedy": measure(trainer, 0.0), "after": measure(trainer, 1.0)}
        result["steps"] = [{"seconds": line["time/step"], "source": ""} for line in history if "time/step" in line]
        write_atomically(path, json.dumps(result))
    return path


def measure(trainer: Any, temperature: float) -> list[dict[str, Any]]:
    """Sample one response to each held-out problem with the current weights; 0 is greedy."""
    from grpo_tir.evaluation.held_out import EVALUATION, complete
    from grpo_tir.generation.sampling import Sampling
    from grpo_tir.monitor.metrics import summarize
    from grpo_tir.rollouts.rollout import make_groups

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


def fine_tune(config: Config, base: Path, seed: int) -> None:
    """Make the start of the condition `sft`: SFT on correct responses with at most one call, as many as GRPO
    samples."""
    from grpo_tir.commands import sft
    from grpo_tir.quickstart.paper import correct_traces

    start = Path(config.model.path).parent
    start.mkdir(parents=True, exist_ok=True)
    traces = correct_traces(read_jsonl(Path(config.data.train)))
    write_atomically(start / "traces.jsonl", "".join(json.dumps(trace) + "\n" for trace in traces))
    batch = config.rollout.prompts_per_step * config.rollout.samples_per_prompt
    options = {
        "model.path": base,
        "data.train": start / "traces.jsonl",
        "rollout.prompts_per_step": batch,
        "rollout.max_completion_length": 160,
        "train.steps": STEPS,
        "train.seed": seed,
        "train.output_dir": start,
        "train.report_to": "[]",
    }
    overrides = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    sft.run(argparse.Namespace(recipe="quickstart", overrides=overrides))


def page(judged: dict[str, Any], results: dict[str, Any], seeds: int) -> str:
    """Return the page: for each finding the figures and the verdict, step times, and trajectories."""
    from grpo_tir.quickstart.paper import FINDINGS, RULE

    rows = [("statement", "paper", "first", "second", "value [95%]", "bound", "verdict")]
    for found in FINDINGS:
        if line := judged.get(found.name):
            ends = ["-" if line[key] is None else f"{line[key]:.3f}" for key in ("first", "second")]
            spread = (
                "-"
                if line["interval"] is None
                else "{:+.3f} [{:+.3f}, {:+.3f}]".format(line["value"], *line["interval"])
            )
            rows.append((found.statement, found.paper, *ends, spread, f"{found.bound:+.2f}", line["verdict"]))
    head, *body = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    parts = [f"<h1>The paper's findings in a miniature world, {seeds} seed(s)</h1><p>{html.escape(RULE)}</p>"]
    parts += ["<table>", f"<tr class=head>{head}</tr>", *(f"<tr>{row}</tr>" for row in body), "</table>"]
    for title, condition, phase, test in SHOWN:
        row = next((row for seed in results.get(condition, []) for row in seed[phase] if test(row)), None)
        text = f"{row['problem']}\n{row['text']}" if row else "none was sampled"
        parts.append(f"<h2>{html.escape(f'{title} ({condition}, {phase})')}</h2><pre>{html.escape(text)}</pre>")
    return STYLE + "\n".join(parts)


STYLE = """<!doctype html><meta charset="utf-8"><title>The paper again</title><style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse } td { border-bottom: 1px solid #ccc; padding: .3rem .6rem; vertical-align: top }
.head { font-weight: bold } pre { background: #f4f4f4; color: #111; padding: 1rem; white-space: pre-wrap }
</style>
"""


def _load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))

"""Run `grpo-tir paper`: test the paper's findings again, in a miniature world, on a CPU.

    base model of a seed ──► one run for each condition ──► results ──► findings.json ──► page, one line of JSON

A second call runs only what is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

from grpo_tir.errors import UserError
from grpo_tir.utils.files import write_atomically

TAKES_OVERRIDES = True
TITLE = "The paper's findings in a miniature world, {} seed(s)"
EXPERIMENTS = {
    "c": ["c0", "c1", "c2", "c4"],
    "penalty": ["c1", "penalty", "penalty_reference"],
    "price": ["c1", "price", "price_unscaled"],
    "group": ["c1", "g4"],
    "sft": ["c1", "sft"],
}
"""Conditions of each name for `--only`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add seeds, selection and folders."""
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default 3)")
    parser.add_argument("--only", choices=list(EXPERIMENTS), help="run one group of conditions (default all)")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="runs at the same time")
    parser.add_argument("--out", default="runs/paper", help="where runs, results and page go (default runs/paper)")
    parser.add_argument("--cache", default=".cache/grpo-tir", help="where base models are kept")


def run(args: argparse.Namespace) -> int:
    """Run what is missing, judge, and write the page. Prints one JSON object last."""
    from paper.conditions import CONDITIONS, Task, build_world, run_condition
    from paper.findings import summary
    from paper.page import FILE, value, write_page

    if args.seeds < 1 or args.jobs < 1:
        raise UserError("--seeds and --jobs must be 1 or more")
    started, out = time.perf_counter(), Path(args.out)
    names, seeds = EXPERIMENTS.get(args.only, list(CONDITIONS)), range(1, args.seeds + 1)
    tasks = [Task(name, seed, out, Path(args.cache), tuple(args.overrides)) for seed in seeds for name in names]
    results: dict[str, list[dict[str, list[dict[str, object]]]]] = {name: [] for name in names}
    try:
        with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
            list(pool.map(build_world, tasks[:: len(names)]))
            for task, path in zip(tasks, pool.map(run_condition, tasks)):
                results[task.name].append(json.loads(path.read_text(encoding="utf-8")))
                print(f"{task.name}, seed {task.seed}: {path}", flush=True)
    except BrokenProcessPool:
        raise UserError("a run was stopped; the same command goes on from its last checkpoint") from None
    found = summary(results) | {
        "title": TITLE.format(args.seeds),
        "runs": [f"runs/{name}-seed1" for name in names],
    }
    write_atomically(out / FILE, json.dumps(found, indent=1))
    page = write_page([out], out / "report.html")
    for line in found["findings"]:
        print(f"{line['verdict']:<15} {line['statement']}: {value(line)}, paper {line['paper']}")
    kept = ("value", "interval", "first", "second", "bound", "paper", "verdict")
    judged = {line["name"]: {key: line[key] for key in kept} for line in found["findings"]}
    seconds = round(time.perf_counter() - started)
    print(json.dumps({"seeds": args.seeds, "findings": judged, "seconds": seconds, "page": str(page)}))
    return 0

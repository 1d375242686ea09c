"""Run an evaluation: load each model once, sample its cells, write the result."""

import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from grpo_tir.config import Config, change
from grpo_tir.data.benchmarks import Benchmark
from grpo_tir.distributed.runtime import Runtime
from grpo_tir.distributed.signals import Interrupted, StopRequest
from grpo_tir.evaluation import summary, tables
from grpo_tir.evaluation.held_out import GREEDY
from grpo_tir.evaluation.responses import ResponseLog, digest
from grpo_tir.evaluation.run import Cell, EvalContext, run_cell
from grpo_tir.evaluation.scores import Same
from grpo_tir.evaluation.spec import EvalOptions, EvalSpec
from grpo_tir.evaluation.tool_ablation import AlteredTool, shuffle
from grpo_tir.grading.grader import default_grader
from grpo_tir.monitor.console import Console
from grpo_tir.monitor.run_log import versions
from grpo_tir.rollouts.policy import Policy, load_policy, sampling_of
from grpo_tir.rollouts.rewards import make_reward
from grpo_tir.tools.open import open_tool
from grpo_tir.tools.protocol import Tool
from grpo_tir.types import Problem, ToolResult
from grpo_tir.utils.files import write_atomically

WEIGHTS = ("*.safetensors", "*.bin", "*.json", "*.jinja", "*.txt", "*.model")
"""Files of a model folder that determine its output."""


class Session:
    """One run of `grpo-tir eval`."""

    def __init__(self, options: EvalOptions, plans: Sequence[EvalSpec], benchmarks: Sequence[Benchmark]) -> None:
        self.options, self.plans, self.benchmarks = options, plans, benchmarks
        precision = "fp32" if options.float64 else plans[0].config.model.precision
        self.runtime = Runtime(precision)
        self.console = Console(self.runtime.is_main)
        self.folder = Path(options.out or f"runs/eval/{self._name()}")
        self.journal = ResponseLog(self.folder, self.runtime.rank)
        self.stop = StopRequest(self.runtime, self.console.log, "what is finished is kept")
        self.finished: list[summary.Result] = []

    def run(self) -> int:
        """Run all cells and write the result. Returns the exit code: 0, or 130/143 after a signal."""
        started = time.time()
        if self.journal.rows:
            self.console.log(
                f"{self.folder} holds {len(self.journal.rows)} finished responses; those asked for are reused"
            )
        with self.stop:
            try:
                for plan in self.plans:
                    self.run_plan(plan)
            except Interrupted:  # the wave under way is abandoned
                self.console.log(f"stopped; the same command goes on in {self.folder}")
                return 128 + (self.stop.signal or 0)
        if self.runtime.is_main:
            self.write(started)
        self.runtime.close()
        return 0

    def run_plan(self, plan: EvalSpec) -> None:
        """Load one model and run it under each of its conditions."""
        config = plan.config
        # A prompt that is too long for the model is counted as wrong and named, so no prompt length is required.
        policy = load_policy(config, plan.model, self.runtime.device, prompt_length=1)
        policy.log = self.console.log
        if self.options.float64:
            policy.model.double()
        else:
            self.console.log(f"precision: {self.runtime.precision}")
        reward = make_reward(config.reward, config.rollout.max_completion_length)
        tool = open_tool(config, self.console.log) if set(plan.conditions) - {"no tool"} else None
        true_results: dict[str, list[ToolResult]] = {}
        same: Same = lambda first, second: default_grader().grade(first, second).outcome == "right"  # noqa: E731
        check: Callable[[int, int], None] = lambda finished, waiting: self.stop.check()  # noqa: E731
        try:
            for condition in plan.conditions:
                cell = self.make_cell(plan, config, condition, policy, tool)
                results = {}
                for benchmark in self.benchmarks:
                    altered = alter(condition, tool, true_results.get(benchmark.name, []))
                    bench = EvalContext(policy, altered, reward, self.runtime, self.journal, check)
                    rows = run_cell(cell, benchmark, bench)
                    if condition == "tool":
                        true_results[benchmark.name] = results_of(rows)
                    results[benchmark.name] = summary.score(rows, self.options.samples, same)
                    self.console.log(
                        f"{cell.label} on {benchmark.name}: {100 * results[benchmark.name]['score']:.1f}"
                    )
                self.finished.append(
                    {"label": cell.label, **cell.facts, "results": results, "average": summary.average(results)}
                )
        finally:
            if tool is not None:
                tool.close()

    def make_cell(self, plan: EvalSpec, config: Config, condition: str, policy: Policy, tool: Tool | None) -> Cell:
        """Make a table row with all facts that its responses depend on."""
        options, rollout = self.options, config.rollout
        c = 0 if condition == "no tool" else config.tool.max_tool_calls
        config = change(config, {"tool.max_tool_calls": c})
        drawn = options.sample or options.samples > 1
        sampling = sampling_of(rollout) if drawn else GREEDY
        executor = getattr(tool, "executor", None)
        facts: dict[str, Any] = {
            "model": plan.model,
            "weights": identify(plan.model, policy.model),
            "prompt": policy.render(Problem("", "{problem}", "")),
            "condition": condition,
            "c": c,
            "stop": config.tool.format,
            "tool": config.tool.name,
            "state": config.tool.state,
            "echo": config.tool.echo,
            "sampling": dataclasses.asdict(sampling),
            "samples": options.samples,
            "seed": config.train.seed,
            "max_completion_length": rollout.max_completion_length,
            "generator": "generate" if policy.engine_refused else rollout.generator,
            "precision": f"float64 on {self.runtime.device.type}" if options.float64 else self.runtime.precision,
            "batch": options.batch,
            "reward": config.reward.function,
            "executor": {"kind": executor.describe()["kind"], "timeout": config.executor.timeout}
            if c and executor
            else None,
            "versions": versions(),
        }
        extra = "" if condition in ("tool", "no tool") else f" {condition}"
        label = f"{short_name(plan.model)} ({plan.prompt}, c={c}{extra})"
        return Cell(label, facts, config, sampling, options)

    def write(self, started: float) -> None:
        """Write results.json and results.md; print the table, and one JSON object last."""
        pairs = summary.differences(self.finished)
        result: summary.Result = {
            "format": 1,
            "command": [*sys.argv],
            "versions": versions(),
            "benchmarks": {benchmark.name: benchmark.card() for benchmark in self.benchmarks},
            "cells": self.finished,
            "differences": pairs,
        }
        with_paper = self.options.compare == "paper"
        if with_paper:
            result["paper"] = tables.PAPER
        times = {"started": round(started), "seconds": round(time.time() - started, 1)}
        write_atomically(self.folder / "results.json", json.dumps({**result, "times": times}, indent=1) + "\n")
        write_atomically(self.folder / "results.md", tables.page(result))
        log = self.console.log
        log("\n" + tables.table(self.finished, [b.name for b in self.benchmarks], with_paper))
        if pairs:
            log("\n" + tables.difference_table(pairs))
        scores = {cell["label"]: {n: r["score"] for n, r in cell["results"].items()} for cell in self.finished}
        log(json.dumps({"out": str(self.folder), "scores": scores}))

    def _name(self) -> str:
        """Return the default folder name: a hash, so that the same command finds its finished responses."""
        plans = [
            [plan.model, plan.prompt, plan.conditions, dataclasses.asdict(plan.config)] for plan in self.plans
        ]
        hashes = [benchmark.sha256 for benchmark in self.benchmarks]
        asked = dataclasses.asdict(dataclasses.replace(self.options, out=None, compare=None))
        return digest({"plans": plans, "benchmarks": hashes, "asked": asked})


def alter(condition: str, tool: Tool | None, true_results: Sequence[ToolResult]) -> Tool | None:
    """Return the tool under this condition; None without a tool."""
    if tool is None or condition in ("tool", "no tool"):
        return None if condition == "no tool" else tool
    if condition == "blanked":
        return AlteredTool(tool, lambda observation, segment: "")
    return AlteredTool(tool, shuffle(tool, true_results))


def results_of(rows: Sequence[dict[str, Any]]) -> list[ToolResult]:
    """Return the tool results of stored responses."""
    calls = [call for row in rows for call in row["calls"] if call.get("status")]
    names = ("status", "stdout", "stderr", "exit_code", "signal")
    return [ToolResult(**{name: call[name] for name in names}) for call in calls]


def identify(path: str, model: Any) -> str:
    """Return the commit of a Hub model, or the hash of the files of a folder."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return str(getattr(model.config, "_commit_hash", None))
    total = hashlib.sha256()
    for file in sorted({file for pattern in WEIGHTS for file in folder.glob(pattern)}):
        if file.name != "manifest.json":
            with open(file, "rb") as content:
                total.update(file.name.encode() + hashlib.file_digest(content, "sha256").digest())
    return f"sha256 {total.hexdigest()}"


def short_name(model: str) -> str:
    """Return `run/step_000100` for a checkpoint, `run/model` for a folder of that name, else the last part."""
    path = Path(model).resolve() if Path(model).exists() else Path(model)
    if path.name.startswith("step_") and path.parent.name == "checkpoints":
        return f"{path.parents[1].name}/{path.name}"
    return f"{path.parent.name}/model" if path.name == "model" else path.name

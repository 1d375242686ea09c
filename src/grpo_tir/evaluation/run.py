"""Sample the responses of one table row (model x prompt x tool) to one benchmark.

Responses are sampled in waves with a fixed number of rows, in the order of the benchmark. Within a wave, all tool
results are collected before any row continues. Every forward pass is therefore the same in a second run. A resumed
run repeats an incomplete wave from its start, so it computes the same bits as an uninterrupted run. Another wave
size changes the last bits of the logits; in float64 it does not change a greedy response.

Draws are keyed by (seed, benchmark, problem, sample). They depend neither on the batch nor on other evaluations.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from grpo_tir.config import Config
from grpo_tir.data.benchmarks import Benchmark
from grpo_tir.data.tokens import encode
from grpo_tir.distributed.runtime import Runtime
from grpo_tir.errors import ExecutorOutage
from grpo_tir.evaluation.held_out import EVALUATION, complete
from grpo_tir.evaluation.responses import ResponseLog, digest
from grpo_tir.evaluation.spec import EvalOptions
from grpo_tir.generation.sampling import Sampling
from grpo_tir.grading.extract import model_answer
from grpo_tir.monitor.metrics import summarize
from grpo_tir.monitor.run_log import trajectory
from grpo_tir.rollouts.policy import Policy
from grpo_tir.rollouts.rewards import RewardFunction
from grpo_tir.tools.protocol import Tool
from grpo_tir.types import Problem, Rollout

KEPT = ("sample", "problem_id", "problem", "answer", "calls", "finish_reason", "reward", "reward_parts", "valid")
"""Fields of a trajectory that are stored; its texts replace its tokens."""


@dataclass(frozen=True)
class Cell:
    """One row of the result table: a model with a prompt and a tool condition."""

    label: str
    facts: dict[str, Any]
    """Everything that the responses depend on, as plain data; written into the result."""
    config: Config
    """Recipe with the prompt and the number of calls (c) of this row."""
    sampling: Sampling
    options: EvalOptions

    def key(self, benchmark: Benchmark) -> str:
        """Return the hash that keys responses to this benchmark."""
        return digest({**self.facts, "benchmark": benchmark.sha256})


@dataclass
class EvalContext:
    """The loaded model and what one evaluation needs with it."""

    policy: Policy
    tool: Tool | None
    reward: RewardFunction
    runtime: Runtime
    journal: ResponseLog
    check: Callable[[int, int], None]


def run_cell(cell: Cell, benchmark: Benchmark, bench: EvalContext) -> list[dict[str, Any]]:
    """Return all responses of a cell to one benchmark, in its order: stored ones, and the missing ones sampled
    now.

    Raises:
        ExecutorOutage: some responses were lost. The finished ones are stored.
    """
    key = cell.key(benchmark)
    wanted = [(problem, sample) for problem in benchmark.problems for sample in range(cell.options.samples)]
    waves = [wanted[start : start + cell.options.batch] for start in range(0, len(wanted), cell.options.batch)]
    mine = bench.runtime.share(waves)
    names = [[(key, benchmark.name, problem.id, sample) for problem, sample in wave] for wave in mine]
    lost = 0
    hidden = None if bench.runtime.is_main else True  # None: hidden where the output is no terminal
    title = f"{cell.label} on {benchmark.name}"
    for wave, keys in tqdm([*zip(mine, names)], title, unit="wave", leave=False, disable=hidden):
        if all(name in bench.journal.rows for name in keys):
            continue
        made = _make(cell, benchmark.name, wave, bench)
        kept = [row for row in made if row["finish_reason"] != "aborted"]
        lost += len(made) - len(kept)
        bench.journal.add({"cell": key, "benchmark": benchmark.name, **row} for row in kept)
    lost = int(bench.runtime.sum([lost])[0])
    if lost:
        raise ExecutorOutage(
            f"{lost} responses on {benchmark.name} were lost to the executor: see `grpo-tir sandbox status`; "
            "the same command again makes these and keeps the others"
        )
    rows = bench.runtime.gather([bench.journal.rows[name] for keys in names for name in keys])
    place = {(problem.id, sample): i for i, (problem, sample) in enumerate(wanted)}
    return sorted(rows, key=lambda row: place[row["problem_id"], row["sample"]])


def _make(cell: Cell, name: str, wave: Sequence[tuple[Problem, int]], bench: EvalContext) -> list[dict[str, Any]]:
    """Sample one wave. A prompt too long for the model is not sampled and counts as wrong."""
    rollouts = [_empty(problem, sample, name, bench.policy) for problem, sample in wave]
    positions = getattr(bench.policy.model.config.get_text_config(), "max_position_embeddings", None) or math.inf
    room = positions - cell.config.rollout.max_completion_length
    fitting = [rollout for rollout in rollouts if len(rollout.prompt_ids) <= room]
    parts = bench.policy, bench.tool, bench.reward, cell.config, bench.runtime
    complete(fitting, *parts, cell.sampling, fixed_waves=True, check=bench.check)
    fits = {id(rollout) for rollout in fitting}
    return [_row(rollout, id(rollout) in fits, cell.config) for rollout in rollouts]


def _empty(problem: Problem, sample: int, name: str, policy: Policy) -> Rollout:
    prompt_ids = encode(policy.tokenizer, policy.render(problem))
    ordinal = int.from_bytes(hashlib.sha256(f"{name}\0{problem.id}".encode()).digest()[:5])
    return Rollout(problem, prompt_ids, group=EVALUATION + ordinal, sample=sample)


def _row(rollout: Rollout, fits: bool, config: Config) -> dict[str, Any]:
    """Make the stored line of a response: texts, grade and counts."""
    if not fits:
        rollout.finish_reason = "length"
    counted = summarize(rollout, config.tool.max_tool_calls)
    told = {name: value for name, value in trajectory(rollout, 0).items() if name in KEPT}
    told["segments"] = [{"kind": segment.kind, "text": segment.text} for segment in rollout.segments]
    written = [segment.text for segment in rollout.segments if segment.kind == "model"]
    return {
        **told,
        "correct": counted["correct"] if fits else 0.0,
        "extracted": model_answer(written),
        "prompt_tokens": len(rollout.prompt_ids),
        "too_long": not fits,
        "counts": {name: value for name, value in counted.items() if name not in ("group", "problem_id", "wait")},
    }

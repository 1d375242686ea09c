"""One row of the table, model x prompt x tool, on a benchmark: which responses there are to make, and making them.

Responses are made in waves of fixed rows, in the order of the benchmark, and within a wave results of the tool are
collected before any row goes on. So every forward pass is the same in a second run, and a resumed run, which
repeats a torn wave whole, computes bit for bit what an uninterrupted one does. Waves of another size change
the last bits of the logits; in float64 they do not change a greedy response. `overlap` gives this up for speed.

Draws are keyed by (seed, benchmark, problem, sample): not by the batch, nor by what else is evaluated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from grpo_tir.config import Config
from grpo_tir.data.benchmarks import Benchmark
from grpo_tir.data.prompts import encode
from grpo_tir.distributed.runtime import Runtime
from grpo_tir.errors import ExecutorOutage
from grpo_tir.evaluation.held_out import EVALUATION, complete
from grpo_tir.evaluation.responses import ResponseLog, digest
from grpo_tir.generation.sampling import Sampling
from grpo_tir.grading.extract import model_answer
from grpo_tir.monitor.metrics import summarize
from grpo_tir.monitor.run_log import trajectory
from grpo_tir.rollouts.policy import Policy
from grpo_tir.rollouts.rewards import RewardFunction
from grpo_tir.tools.protocol import Tool
from grpo_tir.types import Problem, Rollout

KEPT = ("sample", "problem_id", "problem", "answer", "calls", "finish_reason", "reward", "reward_parts", "valid")
"""Of a trajectory; texts stand in for its tokens."""


@dataclass(frozen=True)
class Cell:
    """What a row of the table stands for."""

    label: str
    facts: dict[str, Any]
    """All that its responses depend on, as plain data; written into the result."""
    config: Config
    """With its own prompt and c."""
    condition: str
    """`tool`, `no tool`, `blanked` or `shuffled`."""
    sampling: Sampling
    samples: int
    batch: int
    """Rows of a wave."""
    overlap: bool = False

    def key(self, benchmark: Benchmark) -> str:
        """The hash under which responses to this benchmark are journalled."""
        return digest({**self.facts, "benchmark": benchmark.sha256})


@dataclass
class EvalContext:
    """The loaded model with all that one evaluation needs around it."""

    policy: Policy
    tool: Tool | None
    reward: RewardFunction
    runtime: Runtime
    journal: ResponseLog
    check: Callable[[int, int], None]
    progress: Callable[[str], None]


def run_cell(cell: Cell, benchmark: Benchmark, bench: EvalContext) -> list[dict[str, Any]]:
    """All responses of this cell to one benchmark, from the journal or made now, in the benchmark's order.

    Raises:
        ExecutorOutage: some responses were lost; the finished ones are kept.
    """
    key = cell.key(benchmark)
    wanted = [(problem, sample) for problem in benchmark.problems for sample in range(cell.samples)]
    waves = [wanted[start : start + cell.batch] for start in range(0, len(wanted), cell.batch)]
    mine = bench.runtime.share(waves)
    names = [[(key, benchmark.name, problem.id, sample) for problem, sample in wave] for wave in mine]
    lost = 0
    for number, (wave, keys) in enumerate(zip(mine, names), start=1):
        if all(name in bench.journal.rows for name in keys):
            continue
        bench.progress(f"{cell.label} on {benchmark.name}: wave {number}/{len(mine)}")
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
    """The rows of one wave. A prompt that leaves no room for a whole response is not sampled, and is wrong."""
    rollouts = [_empty(problem, sample, name, bench.policy) for problem, sample in wave]
    room = room_for_prompt(bench.policy, cell.config)
    fitting = [rollout for rollout in rollouts if room is None or len(rollout.prompt_ids) <= room]
    complete(
        fitting,
        bench.policy,
        bench.tool,
        bench.reward,
        cell.config,
        bench.runtime,
        cell.sampling,
        fixed_waves=not cell.overlap,
        check=bench.check,
    )
    fits = {id(rollout) for rollout in fitting}
    return [_row(rollout, id(rollout) in fits, cell.config) for rollout in rollouts]


def room_for_prompt(policy: Policy, config: Config) -> int | None:
    """Longest prompt, in tokens, that leaves the model room for a whole response; None: any."""
    positions = getattr(policy.model.config.get_text_config(), "max_position_embeddings", None)
    return positions - config.rollout.max_completion_length if positions else None


def _empty(problem: Problem, sample: int, name: str, policy: Policy) -> Rollout:
    prompt_ids = encode(policy.tokenizer, policy.render(problem))
    ordinal = int.from_bytes(hashlib.sha256(f"{name}\0{problem.id}".encode()).digest()[:5])
    return Rollout(problem, prompt_ids, group=EVALUATION + ordinal, sample=sample)


def _row(rollout: Rollout, fits: bool, config: Config) -> dict[str, Any]:
    """A line of the journal: the response, its verdict and what is counted of it."""
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

"""Estimate what `rollout.carry_over` saves on a GPU, and measure it on this machine with forced lengths.

    python benchmarks/carry_over.py [--repeats 3] [--steps 4] [--no-run]

GPU, simulated: Qwen2.5-1.5B in bf16; groups of 16; prompts of 150 tokens; no tool calls; one rank. Seconds of
sampling are compared per trained group, after 20 steps of warm-up, with those of a run that waits for all groups:

    same rows     with as many rows in flight (`prompts_per_step`), so that it trains more groups in a step
    same batch    with fewer rows in flight, so that it trains as many groups in a step

Costs:

    decode step    fixed + max(weights / bandwidth, 2 x parameters x rows / products) + KV of live rows / bandwidth
    prefill        2 x parameters x tokens / products: prompts once a group, and all tokens of carried rows again

`limit` has no fixed cost. `engine` adds 2.5 ms, which fits the compiled steps of the engine on an H200: 3.7 ms at
64 rows and 5.0 ms at 256 rows of 1,000 tokens (docs/experiments.md).

ToRL publishes no lengths but the budget of 3,072 tokens. Two assumptions, both log-normal with a median of 550
tokens; half of the variance of the logarithm (sigma 0.7) belongs to the problem, half to the sample:

    natural    cut off at 3,072
    runaway    besides, 5% of the rows never end, such as those of a base model that repeats itself

CPU, run: collector, engine, learner and optimizer, with a model of the quickstart's size and the lengths of
`natural` divided by 8 (budget 384). Forwards are counted as well, because on a CPU a forward costs what its rows
cost.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from workload import SHAPES, print_table, random_model, timed

from grpo_tir.checkpoint.journal import Journal, digest
from grpo_tir.config import AlgorithmConfig, Config, OptimConfig, RolloutConfig, ToolConfig
from grpo_tir.distributed.runtime import Runtime
from grpo_tir.distributed.signals import StopRequest
from grpo_tir.engine.engine import Engine
from grpo_tir.engine.scheduler import SequenceState
from grpo_tir.generation.sampling import Sampling, row_key
from grpo_tir.generation.stopping import CodeBlockStopping
from grpo_tir.learning.advantages import assign_advantages
from grpo_tir.learning.learner import Learner
from grpo_tir.monitor.console import Console
from grpo_tir.monitor.metrics import carry_metrics, summarize
from grpo_tir.rollouts.collect import Collector
from grpo_tir.rollouts.policy import Policy
from grpo_tir.testing import byte_tokenizer
from grpo_tir.types import Problem, Reward
from grpo_tir.utils.files import Writer

SAMPLES, PROMPT, BUDGET = 16, 150, 3072
ROWS, SHARES = (64, 128, 256, 512), (0.5, 0.75, 0.9)
PARAMETERS, KV_TOKEN = 1.54e9, 28 * 2 * 2 * 128 * 2
"""Parameters, and bytes of KV a token, of Qwen2.5-1.5B."""
BANDWIDTH, PRODUCTS = 4.0e12, 5.0e14
"""Bytes a second of a copy on an H200; multiply-adds a second, counted twice, that large bf16 products reach."""
FIXED = {"limit": 0.0, "engine": 2.5e-3}
RUNAWAY = {"natural": 0.0, "runaway": 0.05}


def draw_lengths(rng: random.Random, runaway: float, budget: int = BUDGET) -> list[int]:
    """Draw the lengths of the responses of one group."""
    problem, median, sigma = rng.gauss(0, 1), 550 * budget / BUDGET, 0.7 * 0.5**0.5
    lengths = [int(median * np.exp(sigma * (problem + rng.gauss(0, 1)))) for _ in range(SAMPLES)]
    return [budget if rng.random() < runaway else min(budget, max(1, length)) for length in lengths]


@dataclass
class Outcome:
    """Means over the steps of a simulation."""

    seconds: float
    """Seconds of sampling per trained group."""
    trained: float
    """Groups trained in a step."""
    staleness: float
    """Mean age of the trained tokens, in steps."""
    prefill: float
    """Share of the seconds in which prompts and carried rows are computed."""


def simulate(
    groups: int, share: float, runaway: float, fixed: float, steps: int = 120, warm_up: int = 20
) -> Outcome:
    """Run the steps of one rank; `share` 0 waits for all groups."""
    rng = random.Random(0)
    lengths = np.array([draw_lengths(rng, runaway) for _ in range(groups)])  # (groups, samples), as all below
    done, ages = np.zeros_like(lengths), np.zeros_like(lengths)  # ages: sum over the tokens so far
    needed = int(np.ceil((share or 1.0) * groups - 1e-9))
    seconds = prefilled = age = tokens = trained = 0.0
    for step in range(steps):
        # 1. Prefill the prompts, and the carried rows that have not ended.
        fed = PROMPT * groups + (done * (done < lengths)).sum()
        prefill = 2 * PARAMETERS * fed / PRODUCTS
        # 2. Decode until `needed` groups are whole.
        left = lengths - done
        last = int(np.sort(left.max(axis=1))[needed - 1])
        n = np.arange(last)[:, None]
        live = left.reshape(1, -1) > n  # (tokens drawn, rows)
        context = (live * (PROMPT + done.reshape(1, -1) + n)).sum(axis=1)
        read = np.maximum(2 * PARAMETERS / BANDWIDTH, 2 * PARAMETERS * live.sum(axis=1) / PRODUCTS)
        decode = (fixed + read + context * KV_TOKEN / BANDWIDTH).sum()
        done = np.minimum(done + last, lengths)
        # 3. Train the whole groups and draw others in their place.
        whole = (done == lengths).all(axis=1)
        if step >= warm_up:
            seconds, prefilled, trained = seconds + prefill + decode, prefilled + prefill, trained + whole.sum()
            age, tokens = age + ages[whole].sum(), tokens + lengths[whole].sum()
        ages += done
        for group in np.flatnonzero(whole):
            lengths[group], done[group], ages[group] = draw_lengths(rng, runaway), 0, 0
    return Outcome(seconds / trained, trained / (steps - warm_up), age / tokens, prefilled / seconds)


# --- a real run with forced lengths -----------------------------------------------------------------------------


class ForcedLengths(Engine):
    """Engine in which the key of a row decides where it ends."""

    ends_at: dict[int, int]

    def _ends(self, row: SequenceState, token: int) -> Literal["eos", "call", "length"] | None:
        return "eos" if len(row.tokens) - len(row.prompt) >= self.ends_at[row.request.key] else None


class ForcedPolicy(Policy):
    """Policy whose responses have given lengths."""

    ends_at: dict[int, int]
    engine: ForcedLengths | None = None

    def generator(self, config: Config, sampling: Any = None, rollouts: Any = ()) -> Engine:
        self.model.eval()
        engine = ForcedLengths(self.model, None, Sampling(), [], step=config.rollout.step)  # type: ignore[arg-type]
        engine.pool_tokens = self.pool_tokens
        engine.ends_at, self.engine = self.ends_at, engine
        return engine


def training_steps(
    share: float, groups: int, budget: int, folder: Path, model: Any, step: Any = "eager", learns: bool = True
) -> Iterator[tuple[int, int, float]]:
    """Take whole steps: rollouts, advantages and, if it `learns`, update. Yields trained groups, forwards of the
    engine, and staleness of each."""
    tokenizer = byte_tokenizer()
    config = Config(
        rollout=RolloutConfig(
            prompts_per_step=groups,
            samples_per_prompt=SAMPLES,
            max_completion_length=budget,
            carry_over=share,
            step=step,
        ),
        tool=ToolConfig(max_tool_calls=0),
        algorithm=AlgorithmConfig(importance_cap=2.0 if share else 0.0),
        optim=OptimConfig(lr=1e-6),
    )
    rng = random.Random(0)
    lengths = {
        row_key(config.train.seed, group, sample): length
        for group in range(2000)
        for sample, length in enumerate(draw_lengths(rng, RUNAWAY["natural"], budget))
    }
    policy = ForcedPolicy(model, tokenizer, CodeBlockStopping(tokenizer), lambda problem: problem.problem, [0])
    policy.ends_at = lengths
    runtime = Runtime("fp32")
    collector = Collector(
        config, runtime, policy, None, lambda problem, rollout: Reward(float(rollout.sample % 2)),
        [Problem(f"{n}", f"What is {n} + {n}?", "") for n in range(500)],
        Journal(folder, 0, digest(config), Writer("journal"), False), StopRequest(runtime, print), Console(False),
    )  # fmt: skip
    learner = Learner(runtime, model, config) if learns else None
    for number in range(10_000):
        with collector.batch(number + 1):
            batch = collector.sample_rollouts()
            collector.assign_rewards(batch)
        assign_advantages(batch, config.algorithm)
        if learner:
            with learner.updating(number):
                for part in learner.mini_batches(batch):
                    learner.backward(part)
                    learner.step(part)
            learner.report()
        found = carry_metrics([summarize(r, 0) for g in batch for r in g.rollouts], number + 1, 0)
        age = found["rollouts/staleness"] if share else 0.0
        assert policy.engine is not None and age is not None
        yield len(batch), policy.engine.counts["forwards"], age


def measure(groups: int, budget: int, steps: int, repeats: int) -> dict[float, list[float]]:
    """Return for each share: CPU seconds per trained group (median of alternating turns of `steps` steps),
    forwards per trained group, trained groups a step, and staleness."""
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            share: training_steps(share, groups, budget, Path(folder) / str(share), random_model("tiny"))
            for share in (0.0, *SHARES)
        }
        costs: dict[float, list[float]] = {share: [] for share in runs}
        seen: dict[float, list[tuple[int, int, float]]] = {share: [] for share in runs}
        for turn in range(repeats + 1):
            for share, run in runs.items():
                found: list[tuple[int, int, float]] = []
                cost = timed(partial(found.extend, itertools.islice(run, steps)))
                if turn:  # the first turn warms up: the first steps carry little
                    costs[share].append(cost.cpu / sum(number for number, _, _ in found))
                    seen[share] += found
                    print(f"  turn {turn}: share {share}: {cost.cpu:.1f} CPU-s", flush=True)
    result = {}
    for share, steps_seen in seen.items():
        trained, forwards, ages = zip(*steps_seen, strict=True)
        result[share] = [
            statistics.median(costs[share]), sum(forwards) / sum(trained),
            statistics.fmean(trained), statistics.fmean(ages),
        ]  # fmt: skip
    return result


def main() -> None:
    """Print the tables, and one JSON line last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="training steps in a turn")
    parser.add_argument("--groups", type=int, default=8, help="groups in flight in the real run")
    parser.add_argument("--no-run", action="store_true", help="simulate only")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"simulated": []}
    for lengths, runaway in RUNAWAY.items():
        drawn = [length for seed in range(10_000) for length in draw_lengths(random.Random(seed), runaway)]
        full = drawn.count(BUDGET) / len(drawn)
        lines = []
        for rows in ROWS:
            for share in SHARES:
                line: list[Any] = [rows, share]
                for model, fixed in FIXED.items():
                    goes_on = simulate(rows // SAMPLES, share, runaway, fixed)
                    same_rows = simulate(rows // SAMPLES, 0.0, runaway, fixed)
                    same_batch = simulate(round(goes_on.trained), 0.0, runaway, fixed)
                    saved = [1 - goes_on.seconds / waits.seconds for waits in (same_rows, same_batch)]
                    line += [f"{1e3 * goes_on.seconds:.0f}", *(f"{each:.0%}" for each in saved)]
                    found["simulated"].append(
                        {
                            "lengths": lengths, "cost": model, "rows": rows, "share": share,
                            "same_rows": round(saved[0], 3), "same_batch": round(saved[1], 3),
                            "staleness": round(goes_on.staleness, 3), "groups": round(goes_on.trained, 2),
                        }
                    )  # fmt: skip
                lines.append([*line, f"{goes_on.prefill:.0%}", f"{goes_on.trained:.1f}", goes_on.staleness])
        columns = [
            "rows",
            "share",
            "limit: ms",
            "same rows",
            "same batch",
            "engine: ms",
            "same rows",
            "same batch",
        ]
        print_table(
            f"Simulated, lengths `{lengths}` (mean {statistics.fmean(drawn):.0f}, {full:.1%} at the budget): ms "
            "of sampling per trained group, and the shares saved",
            [*columns, "prefill", "groups a step", "staleness"],
            lines,
        )
    if not args.no_run:
        SHAPES["tiny"] = {"vocab_size": 300, "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
                          "intermediate_size": 256}  # fmt: skip
        measured = measure(args.groups, BUDGET // 8, args.steps, args.repeats)
        base, *_ = measured[0.0]
        print_table(
            f"Run: {args.groups * SAMPLES} rows of up to {BUDGET // 8} tokens on a CPU; whole steps",
            [
                "share",
                "CPU-s per trained group",
                "over waiting",
                "forwards per group",
                "groups a step",
                "staleness",
            ],
            [[share, f"{cost:.3f}", cost / base, *rest] for share, (cost, *rest) in measured.items()],
        )
        names = ("cpu_seconds", "forwards", "groups", "staleness")
        found["run"] = {
            share: dict(zip(names, (round(each, 3) for each in line), strict=True))
            for share, line in measured.items()
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()

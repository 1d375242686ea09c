"""Compute accuracies, intervals and differences from graded responses."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from grpo_tir.evaluation.scores import Same, bootstrap, difference, majority, pass_at_k
from grpo_tir.monitor.metrics import source_metrics, tool_metrics

Result = dict[str, Any]
AVERAGE = "average"


def score(rows: Sequence[dict[str, Any]], samples: int, same: Same) -> Result:
    """Compute the scores of one cell on one benchmark from its responses."""
    problems: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        problems.setdefault(row["problem_id"], []).append(row)
    right = {name: sum(row["correct"] == 1 for row in some) for name, some in problems.items()}
    means = [count / samples for count in right.values()]
    low, high = bootstrap(means)
    result: Result = {"score": float(np.mean(means)), "low": low, "high": high, "problems": len(problems)}
    if samples > 1:
        sizes = [k for k in (1 << i for i in range(samples.bit_length())) if k < samples] + [samples]
        result["pass_at"] = {
            str(k): float(np.mean([pass_at_k(samples, n, k) for n in right.values()])) for k in sizes
        }
        votes = [[(row["extracted"], row["correct"] == 1) for row in some] for some in problems.values()]
        result["majority"] = float(np.mean([majority(answers, same) for answers in votes]))
    return {**result, **_counts(rows), "scores": dict(zip(problems, means))}


def _counts(rows: Sequence[dict[str, Any]]) -> Result:
    """Count tool use, response lengths, and responses that could not be sampled or judged."""
    counts = [row["counts"] | {"wait": 0.0} for row in rows]
    tools = tool_metrics(counts)
    named = {"unjudged": lambda row: row["correct"] is None, "too_long": lambda row: row["too_long"]}
    return {
        "code_ratio": tools["tools/code_ratio"],
        "pass_ratio": tools["tools/pass_ratio"],
        "calls_mean": tools["tools/calls_mean"],
        "by_source": source_metrics(counts),
        "mean_length": float(np.mean([count["length"] for count in counts])),
        "cut": float(np.mean([count["cut"] for count in counts])),
        **{name: sorted({row["problem_id"] for row in rows if test(row)}) for name, test in named.items()},
    }


def average(results: dict[str, Result]) -> Result:
    """Compute the unweighted mean over benchmarks, as in the paper's last column."""
    low, high = bootstrap(*([*result["scores"].values()] for result in results.values()))
    return {"score": float(np.mean([result["score"] for result in results.values()])), "low": low, "high": high}


def differences(cells: Sequence[Result]) -> list[Result]:
    """Compute `second` minus `first` for every two cells on each benchmark. `second` is the cell with true tool
    outputs if only one has them, else the later one."""
    found = []
    for earlier, later in itertools.combinations(cells, 2):
        first, second = (
            (later, earlier) if earlier["condition"] == "tool" != later["condition"] else (earlier, later)
        )
        parts = {
            name: ([second["results"][name]["scores"][i] for i in result["scores"]], [*result["scores"].values()])
            for name, result in first["results"].items()
        }
        gaps = {name: difference(part) for name, part in parts.items()}
        if len(parts) > 1:
            gaps[AVERAGE] = difference(*parts.values())
        pair = {"first": first["label"], "second": second["label"]}
        found += [{**pair, "benchmark": name, **gap} for name, gap in gaps.items()]
    return found


def points(pair: Result) -> str:
    """Format a difference as `+3.2 points [-1.0, +7.4]`."""
    if pair["won"] + pair["lost"] == 0:
        return "equal on every problem"
    return f"{100 * pair['mean']:+.1f} points [{100 * pair['low']:+.1f}, {100 * pair['high']:+.1f}]"

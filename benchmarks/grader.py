"""Measure the grader: error rates, time per answer, and its behaviour on hostile answers.

Four parts: grades of the labelled pairs, compared with math-verify alone (its own timeout, main thread); time for
one answer; hostile answers; 10,000 gradings from 8 threads, each compared with the grade of the first part.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from grpo_tir.grading.grader import Grader

TESTS = Path(__file__).resolve().parents[1] / "tests"
Pair = tuple[str, str, str, str]


def labelled() -> list[Pair]:
    """Return the labelled pairs as (set, gold, answer, label)."""
    lines = (TESTS / "unit" / "grading" / "grading_pairs.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    labels = ("right", "wrong")
    return [(row["set"], row["gold"], answer, label) for row in rows for label in labels for answer in row[label]]


def by_math_verify(pairs: list[Pair]) -> tuple[list[str], list[float]]:
    """Return math-verify's grade of each pair and the seconds. Both sides are inline LaTeX, its best case."""
    import logging

    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)  # it logs every failure with a traceback
    outcomes, seconds = [], []
    for _, gold, answer, _ in pairs:
        began = time.perf_counter()
        right = verify(parse(f"${gold}$"), parse(f"${answer}$"))
        seconds.append(time.perf_counter() - began)
        outcomes.append("right" if right else "wrong")
    return outcomes, seconds


def confusion(title: str, pairs: list[Pair], outcomes: Sequence[str]) -> dict[str, float]:
    """Print the table. Returns the shares of right answers rejected and of wrong answers accepted."""
    counts = Counter((label, outcome) for (_, _, _, label), outcome in zip(pairs, outcomes))
    print(f"\n{title:32} {'right':>8} {'wrong':>8} {'unjudged':>9}")
    for label in ("right", "wrong"):
        cells = [counts[label, outcome] for outcome in ("right", "wrong", "unjudged")]
        print(f"  labelled {label:21} {cells[0]:8} {cells[1]:8} {cells[2]:9}")
    right = sum(count for (label, _), count in counts.items() if label == "right")
    wrong = sum(count for (label, _), count in counts.items() if label == "wrong")
    return {
        "false_negatives": round(1 - counts["right", "right"] / right, 5),
        "false_positives": round(counts["wrong", "right"] / wrong, 5),
    }


def quantiles(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(1000 * second for second in seconds)
    return {
        "median_ms": round(ordered[len(ordered) // 2], 2),
        "p99_ms": round(ordered[int(0.99 * len(ordered))], 1),
        "max_ms": round(ordered[-1], 1),
    }


def hostile(grader: Grader) -> dict[str, float]:
    sys.path.insert(0, str(TESTS))
    from hostile_answers import hostile_answers

    print(f"\n{'hostile answer, gold 7':34} {'outcome':>9} {'seconds':>8}  reason")
    slowest, passed = 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        marker = Path(folder) / "ran"
        for name, answer in hostile_answers(str(marker)).items():
            grade = grader.grade(answer, "7")
            slowest, passed = max(slowest, grade.seconds), passed + (grade.outcome != "wrong")
            print(f"  {name:32} {grade.outcome:>9} {grade.seconds:8.3f}  {grade.reason[:60]}")
        ran = marker.exists()
    return {"hostile_not_wrong": passed, "hostile_code_ran": int(ran), "hostile_slowest_s": round(slowest, 2)}


def load(grader: Grader, pairs: list[Pair], outcomes: Sequence[str], count: int, threads: int) -> dict[str, float]:
    chosen = random.Random(0).choices(range(len(pairs)), k=count)
    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        grades = list(pool.map(lambda index: grader.grade(pairs[index][2], pairs[index][1]), chosen))
    wall = time.perf_counter() - began
    changed = sum(grade.outcome != outcomes[index] for grade, index in zip(grades, chosen))
    mixed_up = sum(grade.extracted != pairs[index][2] for grade, index in zip(grades, chosen))
    rate = f"{wall:.1f} s, {count / wall:.0f}/s"
    print(f"\n{count} gradings from {threads} threads: {rate}; {changed} verdicts changed")
    print(f"  {mixed_up} mixed up, {count - len(grades)} lost")
    return {
        "load_changed": changed,
        "load_mixed_up": mixed_up,
        "load_lost": count - len(grades),
        "load_per_s": round(count / wall, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 2)
    parser.add_argument("--gradings", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=8)
    args = parser.parse_args()
    pairs = labelled()
    with Grader(args.workers) as grader:
        grader.grade("x+1", "1+x")
        grades = [grader.grade(answer, gold) for _, gold, answer, _ in pairs]
        outcomes = [grade.outcome for grade in grades]
        result: dict[str, Any] = {"benchmark": "grader", "pairs": len(pairs), "workers": args.workers}
        result |= confusion("this grader", pairs, outcomes)
        other, other_seconds = by_math_verify(pairs)
        result["math_verify"] = confusion("math-verify alone", pairs, other) | quantiles(other_seconds)
        result |= quantiles([grade.seconds for grade in grades])
        for name, timing in (("this grader", result), ("math-verify alone", result["math_verify"])):
            print(f"  {name:20} ms: median {timing['median_ms']}, p99 {timing['p99_ms']}, max {timing['max_ms']}")
        result |= hostile(grader)
        result |= load(grader, pairs, outcomes, args.gradings, args.threads)
    print(json.dumps(result))


if __name__ == "__main__":
    main()

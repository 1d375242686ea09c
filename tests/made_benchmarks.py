"""Benchmarks of made problems, under the names of the published five and pinned to their own text."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from grpo_tir.data import benchmarks
from grpo_tir.types import Problem
from quickstart.world import WorldConfig, make_problems

SIZES = {"aime24": 3, "aime25": 2, "math500": 5, "olympiadbench": 4, "amc23": 1}


def write_benchmarks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Problem]]:
    """Write `NAME.jsonl` for each of the five to `folder` and, for one test, change the pins to these files."""
    problems, _, _ = make_problems(WorldConfig(seed=7, train_problems=sum(SIZES.values()), eval_problems=0))
    made: dict[str, list[Problem]] = {}
    for name, size in SIZES.items():
        made[name], problems = problems[:size], problems[size:]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(vars(p)) + "\n" for p in made[name]))
        pin = dataclasses.replace(benchmarks.PINS[name], rows=size, sha256=benchmarks.content_hash(made[name]))
        monkeypatch.setitem(benchmarks.PINS, name, pin)
    return made

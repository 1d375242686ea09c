"""`grpo-tir bench` measures on any machine and ends with one JSON object."""

from __future__ import annotations

import json

import pytest

from grpo_tir.cli import main


def test_bench_prints_rates_and_shares_of_both_halves(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--prompts", "1", "--samples", "2", "--prompt-tokens", "8", "--response-tokens", "4"]
    assert main(["bench", *sizes]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    halves = [
        f"{half}_{figure}"
        for half in ("sampling", "learning")
        for figure in ("tokens_per_second", "share_of_limit")
    ]
    assert set(figures) == set(halves)
    assert all(value >= 0 for value in figures.values())

"""The way of LIM scores from a real run: every visit of every epoch is in its history, and is scored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from grpo_tir import cli
from grpo_tir.curation.limr import lim_scores, read_history
from tiny_policy import save_byte_model


def test_the_history_of_a_run_is_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Five problems, two a step, seven steps: two whole epochs and four visits of a third."""
    rows = [{"id": f"p{n}", "problem": f"{n}?", "answer": "1"} for n in range(5)]
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "model": {"path": str(save_byte_model(tmp_path / "model", num_hidden_layers=1))},
        "data": {"train": str(tmp_path / "problems.jsonl"), "template": "plain"},
        "rollout": {"prompts_per_step": 2, "samples_per_prompt": 2, "max_completion_length": 8},
        "tool": {"max_tool_calls": 0},
        "train": {"steps": 7, "output_dir": str(tmp_path / "run"), "report_to": []},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert cli.main(["train", str(tmp_path / "recipe.yaml")]) == 0
    visits = read_history(tmp_path / "run").visits
    assert sorted(visits) == [f"p{n}" for n in range(5)]
    epochs = [epoch for by_epoch in visits.values() for epoch in by_epoch]
    assert [epochs.count(epoch) for epoch in (0, 1, 2)] == [5, 5, 4]
    lim = lim_scores(visits)
    assert lim.filled == 0 and len(lim.dropped) == 1 and len(lim.scores) == 4
    capsys.readouterr()
    out = tmp_path / "chosen.jsonl"
    arguments = ["data", "limr", str(tmp_path / "run"), "--threshold", "-9"]
    assert cli.main([*arguments, "--problems", str(tmp_path / "problems.jsonl"), "--out", str(out)]) == 0
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == sorted(lim.scores)
    assert "5 problems in 3 epochs; 0 visits without a verdict" in capsys.readouterr().out

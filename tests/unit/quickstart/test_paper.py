"""The paper's findings in the miniature world: intervals, verdicts and traces, against numbers worked by hand."""

from __future__ import annotations

import json
import math
import random
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from grpo_tir.commands import paper as command
from grpo_tir.commands.paper import CONDITIONS, EXPERIMENTS
from grpo_tir.config import check_for_training
from grpo_tir.quickstart import paper
from grpo_tir.quickstart.build import QuickstartFiles, write_problems
from grpo_tir.quickstart.paper import FINDINGS, Finding, judge, verdict
from grpo_tir.quickstart.world import WorldConfig, make_problems
from tiny_policy import save_byte_model

BETTER = Finding("x", "x", "x", "b greedy accuracy", "a greedy accuracy")


def graded(marks: str, source: str = "") -> dict[str, list[dict[str, Any]]]:
    return {"greedy": [{"correct": float(mark), "source": source} for mark in marks]}


@pytest.mark.parametrize(
    "low, high, bound, expected",
    [
        (0.01, 0.2, 0.0, "reproduced"),
        (-0.2, -0.01, 0.0, "not reproduced"),
        (-0.1, 0.1, 0.0, "undecided"),
        (0.0, 0.1, 0.0, "undecided"),
        (-0.01, 0.03, -0.02, "reproduced"),
        (None, None, 0.0, "undecided"),
    ],
)
def test_verdict_is_the_side_of_the_bound_on_which_the_whole_interval_lies(
    low: float | None, high: float | None, bound: float, expected: str
) -> None:
    assert verdict(low, high, bound) == expected


def test_value_is_the_mean_over_seeds_of_the_paired_difference() -> None:
    found = judge(BETTER, {"a": [graded("0101"), graded("0000")], "b": [graded("0111"), graded("1110")]})
    assert found is not None
    assert (found["value"], found["first"], found["second"]) == (0.5, 0.75, 0.25)  # (1/4 + 3/4) / 2
    assert judge(BETTER, {"a": [graded("01")]}) is None, "the other condition was not run"


def test_pairing_leaves_no_spread_where_every_problem_differs_alike() -> None:
    """All problems are won, so the interval is a point, although both accuracies could vary."""
    found = judge(BETTER, {"a": [graded("0" * 20)], "b": [graded("1" * 20)]})
    assert found is not None and found["interval"] == [1.0, 1.0] and found["verdict"] == "reproduced"


def test_interval_agrees_with_a_bootstrap_written_as_loops() -> None:
    rng = random.Random(1)
    seeds = [
        ("".join(rng.choice("01") for _ in range(40)), "".join(rng.choice("0111") for _ in range(40)))
        for _ in range(3)
    ]
    found = judge(BETTER, {"a": [graded(a) for a, _ in seeds], "b": [graded(b) for _, b in seeds]})
    values = []
    for _ in range(3000):
        means = []
        for _ in seeds:
            a, b = rng.choice(seeds)
            picks = [rng.randrange(40) for _ in range(40)]
            means.append(statistics.fmean(int(b[i]) - int(a[i]) for i in picks))
        values.append(statistics.fmean(means))
    values.sort()
    assert found is not None
    assert found["interval"] == pytest.approx([values[75], values[2925]], abs=0.03)


def test_a_ratio_sums_before_it_divides_and_is_empty_without_a_denominator() -> None:
    finding = Finding("x", "x", "x", "a after recovery s", "a before recovery s")

    def row(failed: int, recovered: int, source: str = "s") -> dict[str, Any]:
        return {"failed": failed, "recovered": recovered, "source": source}

    phases = {"before": [row(1, 0), row(3, 1), row(0, 0)], "after": [row(2, 2), row(2, 1), row(9, 0, "other")]}
    found = judge(finding, {"a": [phases]})
    assert found is not None and (found["first"], found["second"]) == (0.75, 0.25)
    nothing = judge(finding, {"a": [{**phases, "before": [row(0, 0)]}]})
    assert nothing is not None
    assert (nothing["value"], nothing["second"], nothing["verdict"]) == (None, None, "undecided")


def test_times_are_compared_as_a_ratio() -> None:
    times = {"c0": [{"steps": [{"seconds": s, "source": ""} for s in (1, 3)]}]}
    times["c1"] = [{"steps": [{"seconds": s, "source": ""} for s in (4, 4)]}]
    found = judge(next(f for f in FINDINGS if f.name == "time_tool"), times)
    assert found is not None and found["value"] == 2.0 and math.isclose(found["bound"], 1.5)


def test_every_condition_that_a_finding_or_group_names_has_a_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = set().union(*(finding.conditions for finding in FINDINGS))
    assert named | {name for names in EXPERIMENTS.values() for name in names} == set(CONDITIONS)
    files = QuickstartFiles(tmp_path / "w/train.jsonl", tmp_path / "w/eval.jsonl", tmp_path / "w/model")
    monkeypatch.setattr(command, "build_world", lambda cache, seed: files)
    recipes = {name: command.recipe(name, 1, tmp_path, tmp_path) for name in CONDITIONS}
    for config in recipes.values():
        check_for_training(config)
        sampled = config.rollout.prompts_per_step * config.rollout.samples_per_prompt
        assert sampled == 128, "every condition samples as many responses"
    assert [recipes[name].tool.max_tool_calls for name in ("c0", "c1", "c2", "c4")] == [0, 1, 2, 4]
    assert recipes["penalty"].reward.no_code_penalty == 0 != recipes["penalty_reference"].reward.no_code_penalty
    paths = {command.result_path(name, 1, tmp_path, tmp_path) for name in CONDITIONS}
    assert len(paths) == len(CONDITIONS)


def test_traces_for_sft_are_right_and_call_only_to_compute() -> None:
    problems = make_problems(WorldConfig(1, train_problems=60, eval_problems=1, name="paper"))[0]
    by_text = {problem.problem: problem for problem in problems}
    traces = list(paper.correct_traces(vars(problem) for problem in problems))
    left_out = len(problems) - len(traces)
    assert 0 < left_out < 20
    for trace in traces:
        problem, segments = by_text[trace["problem"]], trace["segments"]
        assert segments[-1]["text"] == f"\\boxed{{{problem.answer}}}"
        assert (len(segments) == 3) == (problem.source in ("tiny/mul", "tiny/mod", "tiny/inv"))
    call = next(t for t in traces if len(t["segments"]) == 3)["segments"]
    code = call[0]["text"].split("```python\n")[1].split("\n```")[0]
    shown = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=60).stdout
    assert call[1]["text"] == f"\n{shown.strip()}\n```\n"


def test_page_shows_text_of_a_model_as_text() -> None:
    row = {"recovered": 1, "correct": 1.0, "calls": 2, "source": "tiny/inv", "problem": "?", "text": "<script>x"}
    line = {"value": 0.5, "interval": [0.4, 0.6], "first": 0.9, "second": 0.4, "verdict": "reproduced"}
    page = command.page({"calls": line}, {"c2": [{"after": [row]}]}, 1)
    assert "&lt;script&gt;x" in page and "<script>" not in page
    assert "+0.500 [+0.400, +0.600]" in page and "reproduced" in page


@pytest.fixture
def tiny_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A random model instead of the base model, and two small steps."""
    home = tmp_path / "cache/paper-1-0"
    home.mkdir(parents=True)
    train, held_out, _ = make_problems(WorldConfig(1, train_problems=20, eval_problems=6, name="paper"))
    write_problems(home / "train.jsonl", train)
    write_problems(home / "eval.jsonl", held_out)
    save_byte_model(home / "model")
    files = QuickstartFiles(home / "train.jsonl", home / "eval.jsonl", home / "model")
    monkeypatch.setattr(command, "build_world", lambda cache, seed: files)
    monkeypatch.setattr(command, "STEPS", 2)
    monkeypatch.setattr(command, "SAVE_EVERY", 1)
    small = ["--rollout.prompts_per_step", "2", "--rollout.samples_per_prompt", "2", "--executor.kind", "process"]
    small += ["--rollout.max_completion_length", "60", "--data.max_prompt_length", "100"]
    for name in ("c2", "sft"):
        monkeypatch.setitem(CONDITIONS, name, [*CONDITIONS[name], *small])
    (tmp_path / "results").mkdir()
    return tmp_path


def test_a_condition_is_measured_before_and_after_and_not_run_again(
    tiny_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = command.run_condition("c2", 1, tiny_world, tiny_world)
    result = json.loads(path.read_text())
    assert {name: len(rows) for name, rows in result.items()} == {
        "greedy_before": 6, "before": 6, "greedy": 6, "after": 6, "steps": 2,
    }  # fmt: skip
    assert [row["problem"] for row in result["before"]] == [row["problem"] for row in result["greedy"]]
    content = path.read_bytes()
    monkeypatch.setattr("grpo_tir.train.Trainer", None)  # a second run would fail
    assert command.run_condition("c2", 1, tiny_world, tiny_world) == path and path.read_bytes() == content


def test_an_interrupted_condition_goes_on_with_what_was_measured_before_training(
    tiny_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    def fail(*_: object) -> None:
        raise Killed

    write = command.write_atomically
    monkeypatch.setattr(
        command, "write_atomically", lambda path, text: fail() if "results" in str(path) else write(path, text)
    )
    with pytest.raises(Killed):
        command.run_condition("c2", 1, tiny_world, tiny_world)
    monkeypatch.setattr(command, "write_atomically", write)
    before = json.loads(next((tiny_world / "runs/c2-seed1").glob("*.before.json")).read_text())
    result = json.loads(command.run_condition("c2", 1, tiny_world, tiny_world).read_text())
    assert result["before"] == before["before"] and len(result["steps"]) == 2
    assert "resuming after step 2" in (tiny_world / "runs/c2-seed1/log.txt").read_text()


def test_the_condition_sft_starts_from_the_fine_tuned_model(tiny_world: Path) -> None:
    command.run_condition("sft", 1, tiny_world, tiny_world)
    start = tiny_world / "runs/sft-seed1/start"
    assert (start / "model/config.json").exists()
    recipe = (tiny_world / "runs/sft-seed1/config.yaml").read_text()
    assert str(start / "model") in recipe

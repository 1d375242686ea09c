"""The paper's findings in the miniature world: intervals, verdicts and traces, against numbers worked by hand."""

from __future__ import annotations

import base64
import gzip
import json
import math
import random
import re
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from grpo_tir import cli
from grpo_tir.config import check_for_training
from grpo_tir.errors import UserError
from grpo_tir.utils.files import read_jsonl
from paper import conditions
from paper.command import EXPERIMENTS
from paper.conditions import CONDITIONS, Task, run_condition
from paper.findings import FINDINGS, Finding, judge, summary, verdict
from paper.page import section, write_page
from paper.world import paper_world
from quickstart.build import QuickstartFiles, _fingerprint, write_problems
from quickstart.world import make_problems
from tiny_policy import save_byte_model

BETTER = Finding("x", "x", "x", "b greedy accuracy", "a greedy accuracy")


def graded(marks: str, source: str = "") -> dict[str, list[dict[str, Any]]]:
    return {"greedy": [{"correct": float(mark), "source": source} for mark in marks]}


@pytest.mark.parametrize(
    "interval, bound, expected",
    [
        ((0.01, 0.2), 0.0, "reproduced"),
        ((-0.2, -0.01), 0.0, "not reproduced"),
        ((-0.1, 0.1), 0.0, "undecided"),
        ((0.0, 0.1), 0.0, "undecided"),
        ((-0.01, 0.03), -0.02, "reproduced"),
        (None, 0.0, "undecided"),
    ],
)
def test_verdict_is_the_side_of_the_bound_on_which_the_whole_interval_lies(
    interval: tuple[float, float] | None, bound: float, expected: str
) -> None:
    assert verdict(interval, bound) == expected


def test_value_is_the_mean_over_seeds_of_the_paired_difference() -> None:
    found = judge(BETTER, {"a": [graded("0101"), graded("0000")], "b": [graded("0111"), graded("1110")]})
    assert (found["value"], found["first"], found["second"]) == (0.5, 0.75, 0.25)  # (1/4 + 3/4) / 2


def test_pairing_leaves_no_spread_where_every_problem_differs_alike() -> None:
    """All problems are won, so the interval is a point, although both accuracies could vary."""
    found = judge(BETTER, {"a": [graded("0" * 20)], "b": [graded("1" * 20)]})
    assert found["interval"] == [1.0, 1.0] and found["verdict"] == "reproduced"


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
    assert found["interval"] == pytest.approx([values[75], values[2925]], abs=0.03)


def test_a_ratio_sums_before_it_divides_and_is_empty_without_a_denominator() -> None:
    finding = Finding("x", "x", "x", "a after recovery s", "a before recovery s")

    def row(failed: int, recovered: int, source: str = "s") -> dict[str, Any]:
        return {"failed": failed, "recovered": recovered, "source": source}

    phases = {"before": [row(1, 0), row(3, 1), row(0, 0)], "after": [row(2, 2), row(2, 1), row(9, 0, "other")]}
    found = judge(finding, {"a": [phases]})
    assert (found["first"], found["second"]) == (0.75, 0.25)
    other = {"before": [row(0, 0)], "after": [row(2, 0)]}
    both = judge(finding, {"a": [phases, other]})
    assert (both["first"], both["second"]) == (0.5, 0.25), "over all seeds: 3 / 6, and 1 / 4"
    nothing = judge(finding, {"a": [{**phases, "before": [row(0, 0)]}]})
    assert (nothing["value"], nothing["second"], nothing["verdict"]) == (None, None, "undecided")
    rare = judge(finding, {"a": [{**phases, "before": [row(1, 0)] + 29 * [row(0, 0)]}]})
    assert (rare["second"], rare["value"], rare["interval"]) == (0.0, None, None), (
        "a third of the draws has no call"
    )


def test_times_are_compared_as_a_ratio() -> None:
    times = {"c0": [{"steps": [{"seconds": s, "source": ""} for s in (1, 3)]}]}
    times["c1"] = [{"steps": [{"seconds": s, "source": ""} for s in (4, 4)]}]
    found = judge(next(f for f in FINDINGS if f.name == "time_tool"), times)
    assert found["value"] == 2.0 and math.isclose(found["bound"], 1.5)


def test_a_finding_is_shown_by_the_first_problem_whose_responses_all_fit() -> None:
    """Two seeds of three problems. Only the last one of the second seed has a needless call that disappears."""

    def rows(*pairs: tuple[int, int], source: str = "tiny/spare") -> list[dict[str, Any]]:
        names = [f"{calls}{right}{i}" for i, (calls, right) in enumerate(pairs)]
        keys = {"source": source, "written": 0, "executed": 0, "passed": 0, "failed": 0, "recovered": 0}
        return [
            {**keys, "calls": calls, "correct": float(right), "problem": f"p{i}", "text": name}
            for i, (name, (calls, right)) in enumerate(zip(names, pairs))
        ]

    phases = ("greedy_before", "greedy", "before", "after")
    first = {phase: rows((1, 1), (0, 1), (0, 1)) for phase in phases}
    second = {**first, "before": rows((1, 0), (1, 0), (1, 0)), "after": rows((1, 1), (0, 0), (0, 1))}
    found = summary({"c1": [first, second]})
    assert {line["name"] for line in found["findings"]} == {"code", "pass", "executed", "useless", "chooses"}
    useless = next(line for line in found["findings"] if line["name"] == "useless")
    assert useless["ran"].endswith("; 2 seed(s).")
    (example,) = useless["examples"]
    assert example["problem"] == "p2" and [one["text"] for one in example["responses"]] == ["102", "012"]
    assert section(found).count("<article") == 5


def findings(**changed: Any) -> dict[str, Any]:
    evil = "</pre><script>x"
    example = {"title": "t", "problem": evil, "responses": [{"who": "w", "text": evil}]}
    line = {"statement": "two beat one", "paper": "+2", "ran": "c = 2.", "verdict": "not reproduced", "bound": 0.0}
    line |= {"value": 0.5, "interval": [0.4, 0.6], "first": 0.9, "second": 0.4, "is_ratio": False}
    return {
        "title": "Again",
        "rule": "r",
        "runs": ["runs/b"],
        "findings": [{**line, "examples": [example], **changed}],
    }


def test_findings_stand_above_the_runs_that_they_name_and_are_text(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "metrics.jsonl").write_text('{"step": 1, "a": 1}\n')
    (tmp_path / "findings.json").write_text(json.dumps(findings()))
    page = write_page([tmp_path], tmp_path / "page.html").read_text(encoding="utf-8")
    data = re.findall(r'id="data">([A-Za-z0-9+/=]*)<', page)[0]
    assert [run["name"] for run in json.loads(gzip.decompress(base64.b64decode(data)))["runs"]] == ["b"]
    assert "<title>Again" in page and "&lt;/pre&gt;&lt;script&gt;x" in page and "<script>x" not in page
    assert "Not reproduced: 0.9 against 0.4, difference +0.500 [+0.400, +0.600]; bound 0." in page
    assert page.index('id="findings"') < page.index('<section id="figures"')
    for value, text in ((1.5, "ratio 1.50 [0.40, 0.60]"), (None, "Undecided: too few responses to compare.")):
        (tmp_path / "findings.json").write_text(json.dumps(findings(value=value, is_ratio=True)))
        assert text in write_page([tmp_path], tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("text", ["{", "[]", '{"rule": 1}', '{"rule": "r", "findings": [{}]}'])
def test_findings_that_cannot_be_read_are_one_clear_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "findings.json").write_text(text)
    with pytest.raises(UserError, match=r"findings\.json cannot be read: run grpo-tir paper again"):
        write_page([tmp_path], tmp_path / "page.html")


def test_the_command_judges_what_was_run_and_prints_one_line_of_json_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The results of two conditions exist, and so does the folder of the base model: nothing is run."""
    monkeypatch.chdir(tmp_path)
    world = paper_world(1)
    (tmp_path / f".cache/grpo-tir/paper-1-{_fingerprint(world)}").mkdir(parents=True)
    keys = {
        "written": 1,
        "executed": 1,
        "passed": 1,
        "failed": 0,
        "recovered": 0,
        "calls": 1,
        "source": "tiny/mul",
    }
    for name, marks in (("c1", "1111"), ("g4", "0000")):
        task = Task(name, 1, Path("runs/paper"), Path(".cache/grpo-tir"))
        rows = [{**keys, "correct": float(mark), "problem": "?", "text": "!"} for mark in marks]
        phases = {phase: rows for phase in ("greedy_before", "greedy", "before", "after")}
        conditions.result_path(task).parent.mkdir(parents=True, exist_ok=True)
        conditions.result_path(task).write_text(json.dumps(phases | {"steps": [{"seconds": 1.0, "source": ""}]}))
        task.folder.mkdir(parents=True)
        (task.folder / "metrics.jsonl").write_text('{"step": 1, "rewards/mean": 0.5}\n')
    assert cli.main(["paper", "--seeds", "1", "--only", "group", "--jobs", "1"]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["findings"]["group"] == {
        "value": 1.0, "interval": [1.0, 1.0], "first": 1.0, "second": 0.0, "bound": 0.0, "paper": "not studied",
        "verdict": "reproduced",
    }  # fmt: skip
    assert "G = 16 beats G = 4" in Path(last["page"]).read_text(encoding="utf-8")


def test_every_condition_that_a_finding_or_group_names_has_a_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = set().union(*(finding.conditions for finding in FINDINGS))
    assert named == {name for names in EXPERIMENTS.values() for name in names} == set(CONDITIONS)
    files = QuickstartFiles(tmp_path / "w/train.jsonl", tmp_path / "w/eval.jsonl", tmp_path / "w/model")
    monkeypatch.setattr(conditions, "build_world", lambda task: files)
    tasks = {name: Task(name, 1, tmp_path, tmp_path) for name in CONDITIONS}
    recipes = {name: conditions.recipe(task) for name, task in tasks.items()}
    for config in recipes.values():
        check_for_training(config)
        sampled = config.rollout.prompts_per_step * config.rollout.samples_per_prompt
        assert sampled == 128, "every condition samples as many responses"
    assert [recipes[name].tool.max_tool_calls for name in ("c0", "c1", "c2", "c4")] == [0, 1, 2, 4]
    assert recipes["penalty"].reward.no_code_penalty == 0 != recipes["penalty_reference"].reward.no_code_penalty
    assert len({conditions.result_path(task) for task in tasks.values()}) == len(CONDITIONS)


def test_a_result_is_named_by_its_settings_its_world_and_the_code_of_the_trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = QuickstartFiles(tmp_path / "w/train.jsonl", tmp_path / "w/eval.jsonl", tmp_path / "w/model")
    monkeypatch.setattr(conditions, "build_world", lambda task: files)
    package = tmp_path / "grpo_tir"
    for name in ("learning/loss.py", "report/page.py"):
        (package / name).parent.mkdir(parents=True)
        (package / name).write_text("")
    monkeypatch.setattr(conditions.grpo_tir, "__file__", str(package / "__init__.py"))

    def name(out: str = "a", *overrides: str) -> str:
        return conditions.result_path(Task("c1", 1, tmp_path / out, tmp_path, overrides)).name

    first = name()
    assert name("b") == first, "the folder does not matter"
    assert name("a", "--optim.lr", "1e-4") != first
    (package / "report/page.py").write_text("x = 1")
    assert name() == first, "no run depends on the report"
    (package / "learning/loss.py").write_text("x = 1")
    changed = name()
    assert changed != first
    monkeypatch.setattr(conditions, "build_world", lambda task: replace(files, model=tmp_path / "other/model"))
    assert name() != changed


def test_traces_for_sft_are_right_and_call_only_to_compute() -> None:
    problems = make_problems(paper_world(1, train_problems=60, eval_problems=1))[0]
    by_text = {problem.problem: problem for problem in problems}
    traces = list(conditions.correct_traces(vars(problem) for problem in problems))
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


@pytest.fixture
def tiny_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Task]:
    """A random model instead of the base model, and two small steps."""
    home = tmp_path / "cache/paper-1-0"
    home.mkdir(parents=True)
    train, held_out, _ = make_problems(paper_world(1, train_problems=20, eval_problems=6))
    write_problems(home / "train.jsonl", train)
    write_problems(home / "eval.jsonl", held_out)
    save_byte_model(home / "model")
    files = QuickstartFiles(home / "train.jsonl", home / "eval.jsonl", home / "model")
    monkeypatch.setattr(conditions, "build_world", lambda task: files)
    small = "--rollout.prompts_per_step 2 --rollout.samples_per_prompt 2 --executor.kind process --train.steps 2"
    small += " --train.save_every 1 --rollout.max_completion_length 60 --data.max_prompt_length 100"
    return lambda name: Task(name, 1, tmp_path, tmp_path, tuple(small.split()))


def test_a_condition_is_measured_before_and_after_and_not_run_again(
    tiny_task: Callable[[str], Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = run_condition(tiny_task("c2"))
    result = json.loads(path.read_text())
    assert {name: len(rows) for name, rows in result.items()} == {
        "greedy_before": 6, "before": 6, "greedy": 6, "after": 6, "steps": 2,
    }  # fmt: skip
    assert [row["problem"] for row in result["before"]] == [row["problem"] for row in result["greedy"]]
    content = path.read_bytes()
    monkeypatch.setattr("grpo_tir.train.Trainer", None)  # a second run would fail
    assert run_condition(tiny_task("c2")) == path and path.read_bytes() == content


def test_an_interrupted_condition_goes_on_with_what_was_measured_before_training(
    tiny_task: Callable[[str], Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    def fail(*_: object) -> None:
        raise Killed

    task, write = tiny_task("c2"), conditions.write_atomically
    monkeypatch.setattr(
        conditions, "write_atomically", lambda path, text: fail() if "results" in str(path) else write(path, text)
    )
    with pytest.raises(Killed):
        run_condition(task)
    monkeypatch.setattr(conditions, "write_atomically", write)
    before = json.loads(next(task.folder.glob("*.before.json")).read_text())
    result = json.loads(run_condition(task).read_text())
    assert result["before"] == before["before"] and len(result["steps"]) == 2
    assert "resuming after step 2" in (task.folder / "log.txt").read_text()


def test_the_condition_sft_starts_from_the_fine_tuned_model(tiny_task: Callable[[str], Task]) -> None:
    task = tiny_task("sft")
    run_condition(task)
    assert (task.folder / "start/model/config.json").exists()
    assert len(read_jsonl(task.folder / "start/metrics.jsonl")) == 2, "as many steps of SFT as of GRPO"
    assert str(task.folder / "start/model") in (task.folder / "config.yaml").read_text()

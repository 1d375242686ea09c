"""Cells, journal and card with scripted policies: one that reads what its tool printed, one that need not."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from grpo_tir.commands.eval import add_arguments, plan_cells
from grpo_tir.config import Config
from grpo_tir.data.benchmarks import Benchmark, content_hash
from grpo_tir.distributed.runtime import Runtime
from grpo_tir.errors import ExecutorOutage, OutputError
from grpo_tir.evaluation import summary
from grpo_tir.evaluation.held_out import GREEDY
from grpo_tir.evaluation.responses import ResponseLog
from grpo_tir.evaluation.run import Cell, EvalContext, run_cell
from grpo_tir.evaluation.session import alter, results_of
from grpo_tir.evaluation.spec import EvalOptions
from grpo_tir.evaluation.tool_ablation import seen, shuffle
from grpo_tir.generation.stopping import CodeBlockStopping
from grpo_tir.rollouts.policy import Policy
from grpo_tir.rollouts.rewards import math_reward
from grpo_tir.testing import ScriptedExecutor
from grpo_tir.tools.python import PythonTool, observation
from grpo_tir.types import Problem, ToolResult
from scripted import BYTES, ScriptedModel, ids, script_model
from tiny_policy import change

PROBLEMS = [Problem(f"p{i}", f"{i}*{i}?", str(i * i)) for i in range(11, 17)]
CONDITIONS = ("tool", "no tool", "blanked", "shuffled")


def program(problem: Problem) -> str:
    return f"```python\nprint({problem.problem[:-1]})\n```\n```output"


class Reader(ScriptedModel):
    """Boxes whatever stands in the output block that its tool answered with."""

    def next_token(self, row: list[int]) -> int:
        """Boxes the last line of the output; without one, a guess."""
        text = BYTES.decode(row)
        _, marker, answered = text.partition("```output")
        if not marker:
            return super().next_token(row)
        shown = answered.split("\n")[1] if answered.count("\n") > 2 else "0"
        said = ids(f"\\boxed{{{shown}}}")
        done = len(ids(answered.split("```\n")[-1])) if answered.count("\n") > 2 else len(ids(answered))
        return said[done] if done < len(said) else int(self.config.eos_token_id)


def reader() -> ScriptedModel:
    model = script_model({problem.problem: [program(problem)] for problem in PROBLEMS})
    model.__class__ = Reader
    return model


def knower() -> ScriptedModel:
    """Runs the same programs and boxes the right answer, whatever came of them."""
    return script_model({p.problem: [program(p), f"\\boxed{{{p.answer}}}"] for p in PROBLEMS})


def answer(code: str) -> ToolResult:
    return ToolResult("ok", stdout=f"{eval(code[6:-1])}\n", exit_code=0)


@pytest.fixture
def evaluate(tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Rows of one cell, of scripted models, in a journal of its own."""

    def run(model: Any, condition: str = "tool", true: Sequence[ToolResult] = (), **settings: Any) -> list[Any]:
        config = change(Config(), rollout__max_completion_length=settings.get("budget", 120))
        config = change(config, tool__max_tool_calls=int(condition != "no tool"), rollout__generator="generate")
        tool = PythonTool(settings.get("executor") or ScriptedExecutor(answer))
        problems = settings.get("problems", PROBLEMS)
        benchmark = Benchmark("squares", problems, "here", content_hash(problems))
        policy = Policy(
            model.eval(), BYTES, CodeBlockStopping(BYTES), lambda p: p.problem, [BYTES.eos_token_id], "scripted"
        )
        cell = Cell(
            condition, {"condition": condition}, config, GREEDY, EvalOptions(batch=settings.get("batch", 4))
        )
        journal = ResponseLog(tmp_path / settings.get("out", "journal"))
        altered = alter(condition, tool, true)
        bench = EvalContext(policy, altered, math_reward, Runtime("fp32"), journal, lambda *_: None)
        return run_cell(cell, benchmark, bench)

    return run


def accuracy(rows: list[dict[str, Any]]) -> float:
    return sum(row["correct"] == 1 for row in rows) / len(rows)


@pytest.mark.parametrize("make, scores", [(reader, (1, 0, 0, 0)), (knower, (1, 0, 1, 1))])
def test_tool_benefit_tells_reading_from_writing(
    make: Callable[[], Any], scores: tuple[int, ...], evaluate: Callable[..., list[Any]]
) -> None:
    """The reader loses everything without true outputs, the knower nothing. (Without a tool both write on past
    their own marker and never box an answer.)"""
    true = results_of(evaluate(make()))
    assert len(true) == len(PROBLEMS)
    found = [evaluate(make(), condition, true) for condition in CONDITIONS]
    assert [accuracy(rows) for rows in found] == list(scores)
    cells = [
        {
            "label": name,
            "model": "m",
            "prompt": "q",
            "condition": name,
            "results": {"squares": summary.score(rows, 1, str.__eq__)},
        }
        for name, rows in zip(CONDITIONS, found)
    ]
    pairs = [pair for pair in summary.differences(cells) if pair["second"] == "tool"]
    assert [pair["first"] for pair in pairs] == ["no tool", "blanked", "shuffled"]
    lost = summary.points(pairs[1])
    assert lost.startswith("+100.0 points") if make is reader else lost == "equal on every problem"


def test_shuffled_outputs_are_those_of_other_programs(evaluate: Callable[..., list[Any]]) -> None:
    true = results_of(evaluate(reader()))
    rows = evaluate(reader(), "shuffled", true)
    answers = {problem.answer for problem in PROBLEMS}
    for row in rows:
        assert row["extracted"] in answers - {row["answer"]}
        assert row["calls"][0]["stdout"].strip() == row["answer"], "its own program ran all the same"
    again = evaluate(reader(), "shuffled", true, batch=1, out="alone")
    assert [row["extracted"] for row in again] == [row["extracted"] for row in rows]


def test_a_shuffled_output_is_never_the_program_s_own() -> None:
    """Of two outputs it is always the other one, whatever the response says."""
    tool = PythonTool(ScriptedExecutor(answer))
    one, two = (ToolResult("ok", stdout=f"{number}\n", exit_code=0) for number in (1, 2))
    alter_output = shuffle(tool, [one, two])
    assert {alter_output(seen(tool, one), f"response {n}") for n in range(20)} == {observation(two)}


def test_a_prompt_without_room_for_a_response_is_wrong_and_named(evaluate: Callable[..., list[Any]]) -> None:
    model = knower()
    model.config.max_position_embeddings = 126  # 6 for the prompt: all but one fit
    long = Problem("long", "12*12, please?", "144")
    rows = evaluate(model, problems=[*PROBLEMS, long])
    result = summary.score(rows, 1, str.__eq__)
    assert result["too_long"] == ["long"] and result["scores"]["long"] == 0 and result["problems"] == 7
    assert result["score"] == pytest.approx(6 / 7)
    assert rows[-1]["segments"] == []


def test_what_cannot_be_judged_is_named_and_no_point(evaluate: Callable[..., list[Any]]) -> None:
    problems = [*PROBLEMS[:5], Problem("p16", "16*16?", "None")]
    result = summary.score(evaluate(knower(), problems=problems), 1, str.__eq__)
    assert result["unjudged"] == ["p16"] and result["score"] == pytest.approx(5 / 6)


def test_finished_responses_are_not_made_again(evaluate: Callable[..., list[Any]]) -> None:
    first, second = ScriptedExecutor(answer), ScriptedExecutor(answer)
    rows = evaluate(reader(), executor=first)
    assert evaluate(reader(), executor=second) == rows
    assert len(first.seen) == 6 and second.seen == []


def test_a_torn_wave_is_made_again_whole_and_a_torn_line_harms_nothing(
    evaluate: Callable[..., list[Any]], tmp_path: Path
) -> None:
    rows = evaluate(reader())
    path = tmp_path / "journal" / "responses-0.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:5]) + lines[5][:40])  # a wave of 4, one line of the second, half of the next
    executor = ScriptedExecutor(answer)
    again = evaluate(reader(), executor=executor)
    assert [row["segments"] for row in again] == [row["segments"] for row in rows]
    assert len(executor.seen) == 2, "the second wave, and nothing of the first"
    assert all(json.loads(line) for line in path.read_text().splitlines())


class Lossy(ScriptedExecutor):
    """Loses the call of one problem."""

    def submit(self, code: str, *, timeout: float | None = None) -> Future[ToolResult]:
        """Answered at once."""
        future = super().submit(code)
        if "13*13" in code:
            future = Future()
            future.set_result(ToolResult("infrastructure"))
        return future


def test_a_lost_call_is_no_wrong_answer(evaluate: Callable[..., list[Any]]) -> None:
    with pytest.raises(ExecutorOutage, match="1 responses on squares were lost"):
        evaluate(reader(), executor=Lossy(answer))
    executor = ScriptedExecutor(answer)
    assert accuracy(evaluate(reader(), executor=executor)) == 1
    assert len(executor.seen) == 4, "its wave is made again as it was, the other one kept"


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write to --out"):
        ResponseLog(tmp_path / "file" / "out")


def plans(*arguments: str) -> list[tuple[str, str, str | None, int, tuple[str, ...]]]:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    made = plan_cells(parser.parse_args(arguments, argparse.Namespace(overrides=[])))
    return [
        (p.model, p.config.data.template, p.config.data.system, p.config.tool.max_tool_calls, p.conditions)
        for p in made
    ]


def test_each_model_has_its_own_prompt_and_tool() -> None:
    """The three rows of the paper's table for one size: chain of thought, TIR, and the trained base model."""
    step_by_step = "Please reason step by step, and put your final answer within \\boxed{}."
    assert plans("I", "I", "base", "--template", "instruct,tir,base", "--tool", "without,with,with") == [
        ("I", "chat", step_by_step, 1, ("no tool",)),
        ("I", "chat", None, 1, ("tool",)),  # None is Qwen2.5-Math's TIR instruction
        ("base", "torl", None, 1, ("tool",)),
    ]
    assert plans("m", "--tool", "both")[0][-1] == ("tool", "no tool")
    assert plans("m", "--tool-benefit")[0][-1] == CONDITIONS
    assert plans("m", "--template", "plain")[0][1:3] == ("plain", None)


def test_the_average_weighs_benchmarks_not_problems() -> None:
    """1 of 2 problems and 3 of 3: (1/2 + 1) / 2, where the mean over problems is 4/5."""
    results = {
        "short": {"score": 0.5, "scores": {"a": 1.0, "b": 0.0}},
        "long": {"score": 1.0, "scores": {"c": 1.0, "d": 1.0, "e": 1.0}},
    }
    found = summary.average(results)
    assert found["score"] == 0.75 and found["low"] <= 0.75 <= found["high"]

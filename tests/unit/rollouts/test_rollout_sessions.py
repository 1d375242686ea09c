"""Each rollout has a session of a tool that offers them; a tool without sessions serves all rollouts itself."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from grpo_tir.evaluation.tool_ablation import AlteredTool
from grpo_tir.rollouts.rollout import RolloutLoop
from grpo_tir.testing import ScriptedExecutor
from grpo_tir.tools.python import PythonTool
from grpo_tir.types import Rollout, ToolResult
from scripted import CALL, empty_rollouts, kinds, make_loop, script_model, stdout

END = "\\boxed{42}"


class CounterSession:
    """Answers each call with its number in the response."""

    def __init__(self, tool: Counter, rollout: Rollout) -> None:
        self.tool, self.rollout, self.closed = tool, rollout, 0

    def find_call(self, text: str) -> str | None:
        return "count"

    def submit(self, code: str) -> Future[ToolResult]:
        future: Future[ToolResult] = Future()
        number = len(self.rollout.calls) + 1
        future.set_result(ToolResult(self.tool.status(self.rollout, number), f"{number}\n"))  # type: ignore[arg-type]
        return future

    def observe(self, result: ToolResult | None, text: str) -> str:
        assert result is not None and self.rollout.segments[-1].text.endswith(text.strip())
        return f"\n{result.stdout}```\n"

    def close(self) -> None:
        self.closed += 1


class Counter:
    stop = "output"

    def __init__(self, status: Callable[[Rollout, int], str] = lambda rollout, number: "ok") -> None:
        self.sessions, self.status, self.closed = list[CounterSession](), status, 0

    def session(self, rollout: Rollout) -> CounterSession:
        self.sessions.append(CounterSession(self, rollout))
        return self.sessions[-1]

    def close(self) -> None:
        self.closed += 1


def loop_of(scripts: dict[str, list[Any]], tool: Any, **settings: Any) -> RolloutLoop:
    return make_loop(script_model(scripts), tool, c=3, **settings)


def test_each_rollout_with_a_call_has_one_session_and_it_is_closed_at_its_end() -> None:
    """A calls twice, B once, C never."""
    tool, rollouts = Counter(), empty_rollouts(["A", "B", "C"])
    loop_of({"A": [CALL, CALL, END], "B": [CALL, END], "C": [END]}, tool).run(rollouts)
    shown = [[text for kind, text in kinds(rollout) if kind == "tool"] for rollout in rollouts]
    assert shown == [["\n1\n```\n", "\n2\n```\n"], ["\n1\n```\n"], []]
    assert sorted((session.rollout.problem.id, session.closed) for session in tool.sessions) == [
        ("A", 1),
        ("B", 1),
    ]
    assert tool.closed == 0, "the tool belongs to whoever opened it"


def test_the_session_of_a_rollout_that_is_set_aside_or_cut_is_closed() -> None:
    """A is lost at its second call. B's budget ends inside the tool's answer."""
    lost = Counter(lambda rollout, number: "infrastructure" if number == 2 else "ok")
    rollouts = empty_rollouts(["A"])
    loop_of({"A": [CALL, CALL, END]}, lost).run(rollouts)
    assert not rollouts[0].valid and [session.closed for session in lost.sessions] == [1]
    cut, rollouts = Counter(), empty_rollouts(["B"])
    loop_of({"B": [CALL, END]}, cut, budget=len(CALL) + 3).run(rollouts)
    assert rollouts[0].finish_reason == "length" and [session.closed for session in cut.sessions] == [1]


def test_an_abandoned_batch_closes_its_sessions() -> None:
    def check(finished: int, waiting: int) -> None:
        raise RuntimeError("abandoned")

    tool = Counter()
    loop = loop_of({"A": [CALL, END], "B": [CALL, END]}, tool, check=check)
    with pytest.raises(RuntimeError, match="abandoned"):
        loop.run(empty_rollouts(["A", "B"]))
    assert [session.closed for session in tool.sessions] == [1, 1] and not loop.sessions


def test_a_tool_without_sessions_serves_all_rollouts_and_stays_open() -> None:
    executor = ScriptedExecutor(stdout("42"))
    tool = PythonTool(executor)
    tool.close = lambda: pytest.fail("closed by a rollout")  # type: ignore[method-assign]
    loop_of({"A": [CALL, END], "B": [CALL, END]}, tool).run(empty_rollouts(["A", "B"]))
    assert len(executor.seen) == 2


class Recording(ScriptedExecutor):
    """Keeps what is replayed before each call."""

    def __init__(self) -> None:
        super().__init__(stdout("42"))
        self.settings: list[dict[str, Any]] = []

    def submit(self, code: str, **session: Any) -> Future[ToolResult]:
        self.settings.append(session)
        return super().submit(code, **session)


def test_replay_gives_each_call_the_earlier_calls_of_its_own_rollout() -> None:
    executor, rollouts = Recording(), empty_rollouts(["A", "B"])
    tool = PythonTool(executor, state="replay", echo=True)
    loop_of({"A": [CALL, CALL, END], "B": [CALL, END]}, tool).run(rollouts)
    assert sorted(len(settings["earlier"]) for settings in executor.settings) == [0, 0, 1]
    longest = max((settings["earlier"] for settings in executor.settings), key=len)
    assert longest == rollouts[0].calls[:1] and longest[0].code == "print(6*7)"
    assert all(settings["echo"] for settings in executor.settings)


def test_fresh_asks_for_nothing_new_of_the_executor() -> None:
    """The paper's way: also an executor that knows neither state nor echo serves it."""
    executor = Recording()
    loop_of({"A": [CALL, CALL, END]}, PythonTool(executor)).run(empty_rollouts(["A"]))
    assert executor.settings == [{}, {}]


def test_an_altered_tool_alters_and_closes_the_session_of_its_rollout() -> None:
    tool, rollouts = Counter(), empty_rollouts(["A"])
    loop_of({"A": [CALL, CALL, END]}, AlteredTool(tool, lambda observation, segment: "")).run(rollouts)  # type: ignore[arg-type]
    assert [text for kind, text in kinds(rollouts[0]) if kind == "tool"] == ["\n```\n", "\n```\n"]
    assert [call.result.stdout for call in rollouts[0].calls if call.result] == ["1\n", "2\n"]
    assert [session.closed for session in tool.sessions] == [1] and tool.closed == 0

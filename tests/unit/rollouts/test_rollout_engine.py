"""The loop over a generator that does not hold rows up for one another, and groups."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from grpo_tir.data.prompts import make_renderer
from grpo_tir.generation.protocol import Request, Stopped
from grpo_tir.generation.sampling import row_key
from grpo_tir.rollouts.rollout import RolloutLoop
from grpo_tir.rollouts.sample import make_groups
from grpo_tir.testing import ScriptedExecutor
from grpo_tir.tools.python import PythonTool
from grpo_tir.types import Problem, ToolResult
from scripted import (
    BYTES,
    CALL,
    SHOWN,
    empty_rollouts,
    ids,
    kinds,
    stdout,
)

END = "so \\boxed{42}"


# --- a generator without barrier -----------------------------------------------------------------------------


class Turns:
    """A generator that says scripted turns and returns after each one; what the loop does to it is kept."""

    def __init__(self, turns: dict[int, list[Stopped]], barrier: bool = False) -> None:
        self.turns, self.barrier = turns, barrier
        self.ready = lambda: False
        self.live: list[int] = []
        self.log: list[tuple[Any, ...]] = []

    def submit(self, request: Request) -> None:
        self.live.append(request.row)

    def step(self) -> list[Stopped]:
        if not self.live:
            return []
        stopped = self.turns[self.live.pop(0)].pop(0)
        self.log.append(("stopped", stopped.row))
        return [stopped]

    def resume(self, row: int, token_ids: list[int], may_call: bool) -> None:
        self.log.append(("resumed", row, may_call))
        self.live.append(row)

    def release(self, row: int) -> None:
        self.log.append(("released", row))

    def close(self) -> None:
        self.log.append(("closed",))


def turns(row: int, calls: int) -> list[Stopped]:
    call = [Stopped(row, ids(CALL), [-0.5] * len(CALL), "call") for _ in range(calls)]
    return [*call, Stopped(row, [*ids(END), BYTES.eos_token_id], [-0.5] * (len(END) + 1), "eos")]


class SlowExecutor(ScriptedExecutor):
    """Answers when told to."""

    def __init__(self) -> None:
        super().__init__(stdout("42"))
        self.open: list[Future[ToolResult]] = []

    def submit(self, code: str, *, timeout: float | None = None) -> Future[ToolResult]:
        self.open.append(Future())
        return self.open[-1]


def test_in_fixed_waves_results_wait_until_no_row_can_go_on_without() -> None:
    """The tool has answered row 0 at once; still it goes on only together with row 1."""
    generator = Turns({0: turns(0, 1), 1: turns(1, 1), 2: turns(2, 0)})
    tool = PythonTool(ScriptedExecutor(stdout("42")))
    RolloutLoop(generator, tool, BYTES, 400, 1, 0, fixed_waves=True).run(empty_rollouts(["A", "B", "C"]))
    assert generator.log[:5] == [
        *(("stopped", row) for row in (0, 1, 2)),
        *(("resumed", row, False) for row in (0, 1)),
    ]


def test_rows_decode_on_while_another_waits_for_its_tool() -> None:
    generator, executor = Turns({0: turns(0, 1), 1: turns(1, 0), 2: turns(2, 0)}), SlowExecutor()

    def check(finished: int, waiting: int) -> None:
        if finished == 2 and not executor.open[0].done():
            executor.open[0].set_result(ToolResult("ok", "42"))

    loop = RolloutLoop(generator, PythonTool(executor), BYTES, 400, 1, 0, check=check)
    rollouts = empty_rollouts(["A", "B", "C"])
    loop.run(rollouts)
    order = [("stopped", 0), ("stopped", 1), ("stopped", 2), ("resumed", 0, False), ("stopped", 0)]
    assert generator.log == order
    assert kinds(rollouts[0]) == [("model", CALL), ("tool", SHOWN), ("model", END)]
    assert generator.ready() is False


def test_fixed_waves_collect_all_results_and_resume_in_the_order_of_rows() -> None:
    generator = Turns({0: turns(0, 2), 1: turns(1, 2)})

    def step() -> list[Stopped]:
        """Both rows stop at once, and are reported in the wrong order; the tool answers the later one first."""
        rows = sorted(generator.live, reverse=True)
        generator.live.clear()
        return [generator.turns[row].pop(0) for row in rows]

    class Backwards(SlowExecutor):
        def submit(self, code: str, *, timeout: float | None = None) -> Future[ToolResult]:
            future = super().submit(code)
            if len(self.open) == 2:
                for other in reversed(self.open):
                    other.set_result(ToolResult("ok", "42"))
                self.open = []
            return future

    generator.step = step  # type: ignore[method-assign]
    loop = RolloutLoop(generator, PythonTool(Backwards()), BYTES, 400, 2, 0, fixed_waves=True)
    loop.run(empty_rollouts(["A", "B"]))
    assert generator.log == [
        ("resumed", 0, True),
        ("resumed", 1, True),
        ("resumed", 0, False),
        ("resumed", 1, False),
    ]


def test_a_row_without_room_for_more_is_released_not_resumed() -> None:
    generator = Turns({0: turns(0, 1)})
    loop = RolloutLoop(generator, PythonTool(ScriptedExecutor(stdout("42"))), BYTES, len(CALL) + 3, 1, 0)
    rollouts = empty_rollouts(["A"])
    loop.run(rollouts)
    assert generator.log == [("stopped", 0), ("released", 0)]
    assert rollouts[0].finish_reason == "length"
    assert rollouts[0].segments[1].token_ids == ids(SHOWN)[:3]


# --- groups --------------------------------------------------------------------------------------------------


def test_groups_are_numbered_through_the_run_and_samples_within_a_group() -> None:
    problems = [Problem("p", "one", "1"), Problem("q", "two", "2"), Problem("p", "one", "1")]
    groups = make_groups(problems, make_renderer("plain"), BYTES, samples=3, first_group=7)
    keys = [(r.group, r.sample) for group in groups for r in group.rollouts]
    assert keys == [(g, s) for g in (7, 8, 9) for s in range(3)]
    assert groups[0].rollouts[0].prompt_ids == ids("one\n")
    # a problem drawn twice gets other samples
    assert len({row_key(0, *key) for key in keys}) == 9

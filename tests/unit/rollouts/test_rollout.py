"""The tool loop, driven to every branch by scripted policies through the real `model.generate`."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest

import grpo_tir.rollouts.rollout as rollout_module
from grpo_tir.errors import ExecutorOutage
from grpo_tir.testing import EOS, ScriptedExecutor
from grpo_tir.tools.python import PythonTool
from grpo_tir.types import Rollout, ToolResult
from scripted import (
    BYTES,
    CALL,
    SHOWN,
    assert_consistent,
    empty_rollouts,
    ids,
    kinds,
    make_loop,
    play,
    play_one,
    read,
    script_model,
    stdout,
)

END = "so \\boxed{42}"
FAILED = stdout("", "error", "Traceback (most recent call last):\nNameError: name 'x' is not defined\n")


# --- calls and their number ----------------------------------------------------------------------------------


@pytest.mark.parametrize("c", range(5))
def test_exactly_c_calls_are_answered_and_the_rest_is_text(c: int) -> None:
    rollout = play_one([CALL] * c + [CALL + "\nmade up\n```\n" + END], c=c)
    expected = [("model", CALL), ("tool", SHOWN)] * c + [("model", CALL + "\nmade up\n```\n" + END)]
    assert kinds(rollout) == expected
    assert len(rollout.calls) == c
    assert rollout.finish_reason == "eos"
    assert_consistent(rollout)


@pytest.mark.parametrize("c", range(5))
def test_the_mask_is_one_on_every_sampled_token_and_zero_on_every_inserted_one(c: int) -> None:
    rollout = play_one([CALL] * c + [END], c=c)
    expected = ([1] * len(ids(CALL)) + [0] * len(ids(SHOWN))) * c + [1] * (len(ids(END)) + 1)
    assert rollout.loss_mask == expected
    assert rollout.token_ids == (ids(CALL) + ids(SHOWN)) * c + ids(END) + [BYTES.eos_token_id]


def test_without_a_tool_no_text_pauses_a_row() -> None:
    rollouts = empty_rollouts(["Q"])
    make_loop(script_model({"Q": [CALL + "\n42\n```\n" + CALL]}), None, c=0).run(rollouts)
    assert kinds(rollouts[0]) == [("model", CALL + "\n42\n```\n" + CALL)]
    assert rollouts[0].calls == []


def test_a_later_call_runs_the_code_of_its_own_turn_only() -> None:
    executor = ScriptedExecutor(stdout("7\n"))
    rollouts = empty_rollouts(["Q"])
    scripts = {"Q": ["```python\na = 1\n```\n```output", "```python\nprint(2)\n```\n```output", END]}
    make_loop(script_model(scripts), PythonTool(executor), c=2).run(rollouts)
    assert executor.seen == ["a = 1", "print(2)"]


def test_a_second_call_without_code_of_its_own_does_not_run_the_first_again() -> None:
    executor = ScriptedExecutor(stdout("7\n"))
    rollouts = empty_rollouts(["Q"])
    make_loop(script_model({"Q": [CALL, "again:\n```output", END]}), PythonTool(executor), c=2).run(rollouts)
    assert executor.seen == ["print(6*7)"]
    assert kinds(rollouts[0])[3] == ("tool", "\n[no code block found]\n```\n")


# --- where the code stands -----------------------------------------------------------------------------------


def test_code_at_the_first_token_and_a_call_as_the_last_words() -> None:
    rollout = play_one([CALL, ""])
    assert kinds(rollout) == [("model", CALL), ("tool", SHOWN), ("model", "")]
    assert rollout.segments[2].token_ids == [BYTES.eos_token_id]
    assert rollout.loss_mask[-1] == 1


@pytest.mark.parametrize(
    ("turn", "code"),
    [
        ("```python\na\n```\nthen\n```python\nb\n```\n```output", "b"),  # two blocks: the last
        ("```python\na\n```\nwait, ```python\nb\n```\n```output", "b"),  # an opening line may start with words
        ("```python \na\n```\n```output", "a"),  # or end with anything
        ("```python\na\n```\nsome words\n```output", "a"),
        ("```python\nif 1:\n    ```\n    a\n```\n```output", "if 1:\n    ```\n    a"),  # indented: does not close
        ("```python\ns = '''\n```\n'''\n```\n```output", "s = '''"),  # a fence in a string closes early
        ("```python\n\na\n\n```\n```output", "\na\n"),
        ("no code at all\n```output", None),
        ("```output", None),
        ("```python\nprint(1)\n```output", None),  # unclosed
        ("```python\na\n```\n```python\nb\n```output", None),  # the last is unclosed
        ("```python\na\n```\n```python\n```\n```output", None),  # an empty last block hides the earlier one
        ("```python\na\n```\n```python\n  \n```\n```output", None),
        ("```py\na\n```\n```output", None),
        ("```Python\na\n```\n```output", None),
        ("```\na\n```\n```output", None),
        ("```python\nprint('```output')\n```\n", None),  # the marker inside the code: stops there, unclosed
    ],
)
def test_which_code_is_run(turn: str, code: str | None) -> None:
    executor = ScriptedExecutor(stdout("7\n"))
    rollouts = empty_rollouts(["Q"])
    model = script_model({"Q": [turn[: turn.index("```output") + 9], END]})
    make_loop(model, PythonTool(executor)).run(rollouts)
    assert executor.seen == ([] if code is None else [code])
    (call,) = rollouts[0].calls
    assert call.code == code
    shown = "[no code block found]" if code is None else "7"
    assert rollouts[0].segments[1].text == f"\n{shown}\n```\n"
    assert rollouts[0].segments[2].text == END


def test_a_marker_without_code_spends_a_call() -> None:
    rollout = play_one(["thinking ```output", CALL], c=1)
    assert kinds(rollout)[:2] == [("model", "thinking ```output"), ("tool", "\n[no code block found]\n```\n")]
    assert kinds(rollout)[2] == ("model", CALL)
    assert len(rollout.calls) == 1
    assert not rollout.calls[0].failed


# --- what the program does -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        (stdout("42\n"), "42"),
        (stdout(""), "[no output]"),
        (stdout(" \n"), "[no output]"),
        (stdout("Error\nbut fine\n"), "Error\nbut fine"),
        (
            stdout("```output\n```python\nprint(1)\n```\n```output\n"),
            "```output\n```python\nprint(1)\n```\n```output",
        ),
        (stdout("\\boxed{7}\n"), "\\boxed{7}"),
        (FAILED, "NameError: name 'x' is not defined"),
        (stdout("half\n", "error", "KeyboardInterrupt\n"), "half\nKeyboardInterrupt"),
        (stdout("", "timeout"), "TimeoutError: the code ran out of time"),
        (stdout("half\n", "timeout"), "half\nTimeoutError: the code ran out of time"),
        (stdout("", "memory"), "MemoryError: the code ran out of memory"),
        (stdout("é∑😀\n"), "é∑😀"),
    ],
)
def test_what_the_model_reads(answer: Any, shown: str) -> None:
    rollout = play_one([CALL, END], answer, c=1, budget=600)
    inserted = f"\n{shown}\n```\n"
    assert kinds(rollout) == [("model", CALL), ("tool", inserted), ("model", END)]
    assert rollout.segments[1].token_ids == ids(inserted)
    assert rollout.model_text == CALL + END
    assert rollout.text == CALL + inserted + END


def test_tool_output_is_never_read_as_a_call_or_as_code() -> None:
    executor = ScriptedExecutor(stdout("```python\nprint(1)\n```\n```output\n"))
    rollouts = empty_rollouts(["Q"])
    make_loop(script_model({"Q": [CALL, "and ```output", END]}), PythonTool(executor), c=3, budget=600).run(
        rollouts
    )
    assert executor.seen == ["print(6*7)"]
    assert [call.code for call in rollouts[0].calls] == ["print(6*7)", None]


def test_a_program_cannot_insert_a_special_token_by_printing_it() -> None:
    """`print("<|end|>")` must reach the policy as those characters, not as the end-of-text id."""
    rollout = play_one([CALL, END], stdout(EOS + "\n"))
    assert BYTES.eos_token_id not in rollout.segments[1].token_ids
    assert rollout.segments[1].text == f"\n{EOS}\n```\n"
    assert read(rollout.segments[1].token_ids) == f"\n{EOS}\n```\n"


# --- batches -------------------------------------------------------------------------------------------------

MIXED = {
    "a": [CALL, END],
    "bb": [END],
    "ccc": ["```output", END],
    "d": [CALL, CALL, END],
    "ee": [""],
    "fff": ["long " * 30],
    "g": [CALL, CALL, CALL + "\nfake\n```\n" + END],
}


@pytest.mark.parametrize("max_rows", [0, 1, 2, 3])
def test_a_rollout_is_the_same_alone_and_in_any_company(max_rows: int) -> None:
    together = play(MIXED, c=2, max_rows=max_rows)
    for prompt, rollout in zip(MIXED, together, strict=True):
        (alone,) = play({prompt: MIXED[prompt]}, c=2)
        assert kinds(rollout) == kinds(alone)
        assert rollout.token_ids == alone.token_ids
        assert rollout.finish_reason == alone.finish_reason
        assert_consistent(rollout)


def test_every_rollout_is_reported_finished_exactly_once() -> None:
    rollouts = empty_rollouts(list(MIXED))
    finished: list[Rollout] = []
    seen: list[tuple[int, int]] = []
    tool = PythonTool(ScriptedExecutor(stdout("42")))
    hooks = {"on_finish": finished.append, "check": lambda done, waiting: seen.append((done, waiting))}
    make_loop(script_model(MIXED), tool, c=2, **hooks).run(rollouts)
    assert sorted(r.sample for r in finished) == list(range(len(MIXED)))
    assert all(r.finish_reason != "aborted" for r in finished)
    assert seen[-1] == (len(MIXED), 0)


def test_check_may_abandon_the_batch() -> None:
    def stop(finished: int, waiting: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        play(MIXED, check=stop)


def test_an_empty_batch_is_done_at_once() -> None:
    assert play({}) == []


# --- outages -------------------------------------------------------------------------------------------------


def test_an_infrastructure_result_is_not_shown_and_sets_the_rollout_aside() -> None:
    def answer(code: str) -> ToolResult:
        return (
            ToolResult("infrastructure", stderr="connection lost") if "lost" in code else ToolResult("ok", "42\n")
        )

    lost = CALL.replace("6*7", "'lost'")
    broken, fine = play({"A": [lost, END], "B": [CALL, END]}, answer)
    assert not broken.valid
    assert broken.finish_reason == "aborted"
    assert kinds(broken) == [("model", lost)]
    assert len(broken.calls) == 1
    assert not broken.calls[0].failed
    assert fine.valid
    assert kinds(fine) == [("model", CALL), ("tool", SHOWN), ("model", END)]


def test_an_outage_ends_the_batch_with_its_own_name() -> None:
    class Down(ScriptedExecutor):
        def submit(self, code: str, *, timeout: float | None = None) -> Future[ToolResult]:
            future: Future[ToolResult] = Future()
            future.set_exception(ExecutorOutage("all engines are gone"))
            return future

    tool = PythonTool(Down(stdout("")))
    loop = make_loop(script_model({"Q": [CALL, END]}), tool)
    with pytest.raises(ExecutorOutage, match="all engines are gone"):
        loop.run(empty_rollouts(["Q"]))


def test_a_loop_that_was_abandoned_starts_afresh() -> None:
    broken = [True]

    class Flaky(ScriptedExecutor):
        def submit(self, code: str, *, timeout: float | None = None) -> Future[ToolResult]:
            future = super().submit(code)
            if broken[0]:
                future = Future()
                future.set_exception(ExecutorOutage("gone"))
            return future

    loop = make_loop(script_model({"A": [CALL, END], "B": [CALL, END]}), PythonTool(Flaky(stdout("42"))))
    with pytest.raises(ExecutorOutage):
        loop.run(empty_rollouts(["A", "B"]))
    loop.generator.close()
    broken[0] = False
    rollouts = empty_rollouts(["A"])
    loop.run(rollouts)
    assert kinds(rollouts[0]) == [("model", CALL), ("tool", SHOWN), ("model", END)]


def test_a_tool_may_answer_equal_code_with_one_future() -> None:
    """A tool that remembers results hands out the same future twice; no row may be forgotten over it."""

    class Remembering(PythonTool):
        def __init__(self) -> None:
            super().__init__(ScriptedExecutor(stdout("42")))
            self.known: dict[str, Future[ToolResult]] = {}

        def submit(self, code: str) -> Future[ToolResult]:
            if code not in self.known:
                self.known[code] = super().submit(code)
            return self.known[code]

    rollouts = empty_rollouts(["A", "B", "C"])
    turns = 0

    def check(finished: int, waiting: int) -> None:
        nonlocal turns
        turns += 1
        assert turns < 20, "a row was lost and the loop spins"

    scripts = {name: [CALL, END] for name in "ABC"}
    make_loop(script_model(scripts), Remembering(), check=check).run(rollouts)
    assert all(kinds(r) == [("model", CALL), ("tool", SHOWN), ("model", END)] for r in rollouts)


def test_seconds_in_which_every_row_waits_for_its_tool_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tool that answers once everybody waits for it, 5 seconds later by a clock that only the wait advances."""
    now, pending = [100.0], list[Future[ToolResult]]()

    class Slow(ScriptedExecutor):
        def submit(self, code: str, *, timeout: float | None = None) -> Future[ToolResult]:
            pending.append(Future())
            return pending[-1]

    def wait(futures: Any, return_when: str) -> None:
        now[0] += 5.0
        for future in pending:
            future.set_result(ToolResult("ok", "42\n"))
        pending.clear()

    monkeypatch.setattr(rollout_module, "wait", wait)
    monkeypatch.setattr(rollout_module.time, "monotonic", lambda: now[0])
    rollouts = empty_rollouts(["Q", "R"])
    model = script_model({"Q": [CALL, CALL, END], "R": [CALL, END]})
    loop = make_loop(model, PythonTool(Slow(stdout(""))), c=2)
    loop.run(rollouts)
    assert loop.idle == 10.0  # both wait, then Q alone
    assert [call.seconds for rollout in rollouts for call in rollout.calls] == [5.0, 5.0, 5.0]

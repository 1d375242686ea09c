"""What was sampled before a kill is there after it, to the last bit; and nothing of another run is."""

from __future__ import annotations

import struct
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from grpo_tir.checkpoint.journal import Journal, digest
from grpo_tir.config import Config
from grpo_tir.distributed.runtime import Runtime
from grpo_tir.testing import ScriptedExecutor
from grpo_tir.tools.python import PythonTool
from grpo_tir.types import Rollout, Segment, ToolCall, ToolResult, stamp
from grpo_tir.utils.files import Writer
from scripted import CALL, SHOWN, Answer, empty_rollouts, make_loop, rollout_of, script_model, stdout
from tiny_policy import change

OK = ToolCall("print(6*7)", ToolResult("ok", "42\n", exit_code=0, seconds=0.25), 0.5)


def journal(folder: Path, resume: bool = True, rank: int = 0, recipe: str = "this", step: int = 1) -> Journal:
    made = Journal(folder, rank, recipe, Writer("test"), resume)
    made.begin(step)
    made.writer.flush()  # several live at once here, each with a thread that writes
    return made


def left_behind(folder: Path, *rollouts: Rollout, **settings: Any) -> None:
    """What a process wrote before it was killed."""
    writing = journal(folder, resume=False, **settings)
    for rollout in rollouts:
        writing.record(rollout)
    writing.writer.flush()


def blank(rollout: Rollout) -> Rollout:
    return Rollout(rollout.problem, rollout.prompt_ids, group=rollout.group, sample=rollout.sample)


def test_a_finished_rollout_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    rollout = rollout_of(CALL, SHOWN, "é \\boxed{42}", calls=[OK, ToolCall(None, None)], group=7, sample=3)
    # ids that their own text would never be encoded to, and log-probs of a float32
    (third,) = struct.unpack("f", struct.pack("f", -1 / 3))
    rollout.segments[0] = Segment("model", [299, 1, 299], [third, -0.0, float("-inf")], "not what the ids say")
    rollout.stamps = [stamp(segment.kind, segment.token_ids) for segment in rollout.segments]
    left_behind(tmp_path, rollout)
    again = blank(rollout)
    assert journal(tmp_path).recall([again], whole=False) == []
    assert again == rollout


def test_only_what_is_missing_is_sampled_or_else_the_whole_wave(tmp_path: Path) -> None:
    done, open_ = (rollout_of("a", group=1, sample=sample) for sample in (0, 1))
    left_behind(tmp_path, done)
    first, second = blank(done), blank(open_)
    assert journal(tmp_path).recall([first, second], whole=True) == [first, second]
    assert first.segments == second.segments == []
    assert journal(tmp_path).recall([first, second], whole=False) == [second]
    assert first.text == "a" and second.segments == []


@pytest.mark.parametrize("torn", [b'{"rollout": [1, 1], "segm', b'{"rollout": [1, 1]}', b"\0\0\0\n"])
def test_a_torn_line_is_cut_off_and_written_over(torn: bytes, tmp_path: Path) -> None:
    first, second = (rollout_of("a", group=1, sample=sample) for sample in (0, 1))
    left_behind(tmp_path, first)
    with open(tmp_path / "step_000001.rank0.jsonl", "ab") as file:
        file.write(torn)
    resumed = journal(tmp_path)
    resumed.record(second)
    resumed.writer.flush()
    assert journal(tmp_path).recall([blank(first), blank(second)], whole=False) == []


def test_another_recipe_another_prompt_and_a_new_run_start_from_nothing(tmp_path: Path) -> None:
    rollout = rollout_of("a")
    left_behind(tmp_path, rollout, recipe="that")
    assert journal(tmp_path).recall([blank(rollout)], whole=False)
    left_behind(tmp_path, rollout)
    other = blank(rollout)
    other.prompt_ids = [1, 2]
    assert journal(tmp_path).recall([other], whole=False)
    assert journal(tmp_path, resume=False).recall([blank(rollout)], whole=False)


def test_another_number_of_ranks_finds_what_all_had_finished(tmp_path: Path) -> None:
    rollouts = [rollout_of("a", group=group) for group in range(3)]
    for rank, rollout in enumerate(rollouts):
        left_behind(tmp_path, rollout, rank=rank)
    assert journal(tmp_path, rank=0).recall([blank(rollout) for rollout in rollouts], whole=True) == []


def test_steps_before_a_checkpoint_and_after_a_new_turn_are_forgotten(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        left_behind(tmp_path, rollout_of("a"), step=step)
    resumed = journal(tmp_path, step=3)
    resumed.drop(last=1)
    resumed.drop(first=4)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step_000002.rank0.jsonl",
        "step_000003.rank0.jsonl",
    ]


@pytest.mark.parametrize(("sampled", "forgotten"), [(0, False), (1, True)])
def test_once_a_step_had_to_be_sampled_later_steps_are_another_future(
    sampled: int, forgotten: bool, tmp_path: Path
) -> None:
    """Step 1 has two rollouts; step 2 was journalled by the attempt before."""
    later = rollout_of("a")
    left_behind(tmp_path, later, step=2)
    resumed = journal(tmp_path, step=1)
    resumed.end_batch(1, sampled, 2, Runtime("fp32"), print)
    assert (tmp_path / "step_000002.rank0.jsonl").exists() is not forgotten
    resumed.begin(2)
    assert bool(resumed.recall([blank(later)], whole=False)) is forgotten


def test_a_run_that_begins_anew_reads_and_deletes_nothing_of_other_steps(tmp_path: Path) -> None:
    left_behind(tmp_path, rollout_of("a"), step=2)
    fresh = journal(tmp_path, resume=False, step=1)
    fresh.end_batch(1, 2, 2, Runtime("fp32"), print)
    assert len(list(tmp_path.glob("step_000002.*"))) == 1


def test_what_was_lost_to_the_executor_is_tried_again(tmp_path: Path) -> None:
    left_behind(tmp_path, rollout_of("a", valid=False, finish_reason="aborted"))
    assert journal(tmp_path).recall([blank(rollout_of("a"))], whole=False)


class Counting(ScriptedExecutor):
    """Never answers a program twice alike, as one that prints the time."""

    def __init__(self, start: int) -> None:
        super().__init__(lambda code: ToolResult("ok", f"{start + len(self.seen)}\n", exit_code=0))


def sample(
    folder: Path, executor: ScriptedExecutor, kill_after: int | None = None, state: str = "fresh"
) -> list[Rollout]:
    """Two rows with two calls each; killed, if asked, when so many calls have been answered."""
    turns = [CALL, CALL, "\\boxed{1}"]
    rollouts = empty_rollouts(["A", "B"])
    log = journal(folder)
    tool = PythonTool(executor, state=state)

    def check(finished: int, waiting: int) -> None:
        log.writer.flush()
        if kill_after is not None and len(executor.seen) >= kill_after:
            raise SystemExit

    loop = make_loop(script_model({"A": turns, "B": turns}), tool, c=2, check=check, run_tool=log.run)
    loop.run(log.recall(rollouts, whole=True))
    return rollouts


class Replaying(Counting):
    """Keeps what was to be replayed before each call."""

    def submit(self, code: str, **session: Any) -> Future[ToolResult]:
        self.replayed = [*getattr(self, "replayed", []), [call.result.stdout for call in session["earlier"]]]
        return super().submit(code)


def test_a_resumed_rollout_replays_the_calls_that_were_recorded(tmp_path: Path) -> None:
    """Both rows have had their first call before the kill. The resumed second calls run after those results."""
    with pytest.raises(SystemExit):
        sample(tmp_path, Replaying(0), kill_after=2, state="replay")
    second = Replaying(100)
    sample(tmp_path, second, state="replay")
    assert second.replayed == [["1\n"], ["2\n"]]


def test_a_torn_wave_starts_again_with_the_results_that_were_recorded(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        sample(tmp_path, Counting(0), kill_after=2)
    second = Counting(100)
    shown = [[call.result.stdout for call in r.calls if call.result] for r in sample(tmp_path, second)]
    assert shown == [["1\n", "101\n"], ["2\n", "102\n"]]
    assert len(second.seen) == 2, "what is known is not run again"
    # now all is recorded: a third attempt asks nobody
    third = Counting(1000)
    again = [[call.result.stdout for call in r.calls if call.result] for r in sample(tmp_path, third)]
    assert again == shown and third.seen == []


def test_a_recorded_result_answers_only_the_code_that_it_came_from(tmp_path: Path) -> None:
    rollout = rollout_of("a", group=1)
    first = journal(tmp_path)
    first.run(PythonTool(Counting(0)), rollout, "print(1)").result()
    first.writer.flush()
    executor = Counting(100)
    resumed, tool = journal(tmp_path), PythonTool(executor)
    assert resumed.run(tool, rollout, "print(1)").result().stdout == "1\n"
    assert resumed.run(tool, rollout, "print(2)").result().stdout == "101\n"
    assert executor.seen == ["print(2)"]


def outage_then(answer: Answer) -> Answer:
    results = iter([ToolResult("infrastructure", stderr="gone")])
    return lambda code: next(results, None) or answer(code)


def test_an_outage_is_not_recorded(tmp_path: Path) -> None:
    executor = ScriptedExecutor(outage_then(stdout("42\n")))
    log, tool, rollout = journal(tmp_path), PythonTool(executor), rollout_of("a", group=1)
    for _ in range(2):
        future: Future[ToolResult] = log.run(tool, rollout, "print(42)")
    log.writer.flush()
    assert future.result().status == "ok"
    assert [result.status for _, result in journal(tmp_path).calls.values()] == ["ok"]


def test_the_recipe_that_counts_is_what_decides_the_rollouts() -> None:
    base = digest(Config())
    assert digest(change(Config(), train__output_dir="elsewhere", train__save_every=1, executor__slots=3)) == base
    assert digest(change(Config(), train__steps=7)) == base, "with a constant learning rate"
    for other in (
        {"rollout__temperature": 0.9},
        {"optim__lr": 1.0},
        {"train__seed": 2},
        {"tool__max_tool_calls": 0},
        {"algorithm__epochs": 2},
        {"data__template": "plain"},
        {"model__path": "another"},
        {"reward__wrong": 0.0},
        {"train__deterministic": True},
    ):
        assert digest(change(Config(), **other)) != base
    cosine = change(Config(), optim__schedule="cosine")
    assert digest(change(cosine, train__steps=7)) != digest(cosine)


def test_a_writer_says_at_the_next_call_what_went_wrong_and_does_no_more() -> None:
    done: list[int] = []
    writer = Writer("test")

    def fail() -> None:
        raise OSError(28, "No space left on device")

    writer.do(done.append, 1)
    writer.do(fail)
    with pytest.raises(OSError, match="No space"):
        writer.flush()
    with pytest.raises(OSError, match="No space"):
        writer.do(done.append, 2)
    writer.close()
    assert done == [1]

"""One of two processes fails: the launch ends, and its last lines name that one and why."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from grpo_tir.distributed.watchdog import Progress, Watchdog
from training_run import LAUNCH, finish, metrics_without_time, prepare, start, weights_hash

STRIKE = str(Path(__file__).with_name("strike.py"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("ranks"))


def launch(folder: Path, name: str, strike: str = "", *arguments: str, **extra: str) -> tuple[int, str, str]:
    """Two processes; rank 1 is struck."""
    process = start(
        folder,
        "--train.output_dir",
        name,
        *arguments,
        launcher=(*LAUNCH, STRIKE),
        STRIKE=strike,
        STRIKE_RANK="1",
        **extra,
    )
    return finish(process)


def verdict(err: str) -> str:
    """What the launcher says last: the first failure that it saw."""
    assert "Root Cause (first observed failure):" in err, err
    return err.rpartition("Root Cause (first observed failure):")[2]


def test_a_rank_that_raises_is_named_with_its_traceback(folder: Path) -> None:
    code, _out, err = launch(folder, "raises", "backward:2 raise")
    assert code != 0
    last = verdict(err)
    assert "rank      : 1 " in last, err
    assert "ZeroDivisionError: a fault that was asked for" in last and "learner.py" in last
    # what its peer saw of it is not shown as a failure of its own
    assert "by peer" not in err and err.count("Traceback") <= 3


def test_a_rank_that_is_killed_is_named(folder: Path) -> None:
    code, _out, err = launch(folder, "killed", "decode:10 kill-rank")
    assert code != 0
    last = verdict(err)
    assert "rank      : 1 " in last and "Signal 9 (SIGKILL)" in last, err


def test_a_rank_that_hangs_ends_the_launch_and_says_where_it_stood(folder: Path) -> None:
    code, _out, err = launch(folder, "hangs", "reward:1 hang", "--train.watchdog_minutes=0.3")
    assert code != 0
    last = verdict(err)
    assert "rank      : 1 " in last and "grpo-tir: rank 1 hung: no progress for" in last, err
    assert "strike.py" in last and "time.sleep(3600)" in last


@pytest.mark.slow
def test_a_rank_that_is_stopped_is_named_by_the_other(folder: Path) -> None:
    code, _out, err = launch(folder, "stops", "reward:1 stop", "--train.watchdog_minutes=0.2")
    assert code != 0
    assert "grpo-tir: rank 1 hangs and does not answer: no progress for" in verdict(err), err


def test_a_bad_recipe_is_said_once_and_last(folder: Path) -> None:
    code, _out, err = launch(folder, "bad", "", "--optim.lrr=1")
    assert code != 0
    said = [line for line in err.splitlines() if line.startswith("grpo-tir: unknown key `optim.lrr`")]
    assert len(said) == 1, err
    assert "grpo-tir: unknown key `optim.lrr`; did you mean `optim.lr`?" in verdict(err)


def test_an_executor_killed_in_the_middle_of_a_step_costs_nothing(folder: Path) -> None:
    """Rank 1 loses its executor with a program in flight; both ranks end with the weights of a quiet run. They ask
    for the same collective operations in the same order: over NCCL, another order would hang."""
    for name, strike in (("quiet", ""), ("disturbed", "call:2 kill-executor")):
        code, out, err = launch(folder, name, strike, "--train.steps=2", COLLECTIVES=str(folder / name))
        assert code == 0, out + err
        first, second = (Path(f"{folder / name}.{rank}").read_text().splitlines() for rank in (0, 1))
        assert first == second and len(first) > 20
        assert any("report" in line for line in first) and any("certify" in line for line in first)
    assert "strike: call:2 kill-executor" in err
    found = metrics_without_time(folder / "disturbed")
    assert found == metrics_without_time(folder / "quiet")
    assert [line["rollouts/lost"] for line in found] == [0, 0]
    hashes = {weights_hash(folder / name / "checkpoints/step_000002") for name in ("quiet", "disturbed")}
    assert len(hashes) == 1


def published(collectives: int, beats: int) -> dict[str, object]:
    progress = Progress()
    progress.collectives, progress.beats = collectives, beats
    return {**vars(progress), "pid": os.getpid(), "host": "here"}


def test_the_culprit_is_who_has_entered_the_fewest_collectives_and_makes_no_progress(tmp_path: Path) -> None:
    dog = Watchdog(tmp_path, 0, 2, Progress(), minutes=1)
    assert dog.find_hanging({0: published(5, 1), 1: published(5, 1)}, now=0)[0] is None
    # rank 0 waits in the sixth; rank 1 is slow, but it samples
    assert dog.find_hanging({0: published(6, 1), 1: published(5, 2)}, now=50)[0] is None
    assert dog.find_hanging({0: published(6, 1), 1: published(5, 3)}, now=100)[0] is None
    # for a minute it has not
    assert dog.find_hanging({0: published(6, 1), 1: published(5, 3)}, now=159)[0] is None
    assert dog.find_hanging({0: published(6, 1), 1: published(5, 3)}, now=161) == (1, 61.0)


def test_alone_or_switched_off_nobody_watches(tmp_path: Path) -> None:
    assert not Watchdog(tmp_path, 0, 1, Progress(), 30).active
    assert not Watchdog(tmp_path, 0, 2, Progress(), 0).active


def drawn(run: Path) -> dict[tuple[int, int], list[list[int]]]:
    """Ids of the segments of every trained rollout, by group and sample."""
    lines = [json.loads(line) for path in run.glob("rollouts/*") for line in path.read_text().splitlines()]
    found = {(line["group"], line["sample"]): [s["token_ids"] for s in line["segments"]] for line in lines}
    assert len(found) == len(lines), "a rollout was trained twice"
    return found


def test_ranks_carry_groups_over_each_on_its_own_and_one_process_goes_on_with_them(folder: Path) -> None:
    """Three groups in flight: with a share of 0.5, a rank with two goes on with one of them, a rank with one waits
    for it. The weights stay the same, so the rollouts are those of a run that waits for all."""
    options = ["--rollout.prompts_per_step=3", "--rollout.max_completion_length=120", "--optim.lr=0"]
    options += ["--train.rollouts_every=1"]
    carry = [*options, "--rollout.carry_over=0.5", "--algorithm.importance_cap=2"]
    code, out, err = launch(folder, "carry", "", *carry, "--train.steps=3")
    assert code == 0, out + err
    assert [line["rollouts/carried"] for line in metrics_without_time(folder / "carry")] == [1, 1, 1]
    code, out, err = finish(start(folder, "--train.output_dir=carry", *carry, "--train.steps=6", "--resume"))
    assert code == 0 and "resuming after step 3" in out, out + err
    code, out, err = finish(start(folder, "--train.output_dir=wait", *options, "--train.steps=4"))
    assert code == 0, out + err
    ours, theirs = drawn(folder / "carry"), drawn(folder / "wait")
    common = ours.keys() & theirs.keys()
    assert len(common) >= 18 and {key: ours[key] for key in common} == {key: theirs[key] for key in common}

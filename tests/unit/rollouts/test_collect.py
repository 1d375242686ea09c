"""One rollout batch: flat groups are replaced, unjudged rollouts leave it, an abandoned batch is drawn again.

The last tests are of the evaluation, which samples by the same code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from grpo_tir.checkpoint.journal import Journal, digest
from grpo_tir.config import Config
from grpo_tir.data.load import keep_fitting
from grpo_tir.distributed.runtime import Runtime
from grpo_tir.distributed.signals import Interrupted, StopRequest
from grpo_tir.errors import DataError, ExecutorOutage, GraderOutage
from grpo_tir.evaluation import held_out
from grpo_tir.generation.stopping import CodeBlockStopping
from grpo_tir.learning.advantages import assign_advantages
from grpo_tir.monitor.console import Console
from grpo_tir.rollouts import rollout as rollout_module
from grpo_tir.rollouts.collect import Collector
from grpo_tir.rollouts.policy import Policy
from grpo_tir.rollouts.rewards import RewardFunction
from grpo_tir.testing import ScriptedExecutor
from grpo_tir.tools.python import PythonTool
from grpo_tir.types import Problem, Reward, Rollout, RolloutGroup
from grpo_tir.utils.files import Writer
from scripted import BYTES, CALL, Answer, script_model, stdout
from tiny_policy import change, make_learner, tiny_qwen2

Rewards = Mapping[str, Sequence[float | None]]


def make_policy(names: Sequence[str]) -> Policy:
    """A policy that answers `yes` to every problem. The prompt of a problem is its name."""
    model = script_model({name: ["yes"] for name in names}).eval()
    stopping = CodeBlockStopping(BYTES)
    return Policy(model, BYTES, stopping, lambda problem: problem.problem, [BYTES.eos_token_id], "scripted")


def make_collector(folder: Path, rewards: Rewards, resume: bool = False, **settings: object) -> Collector:
    """Two problems a step in the order of `rewards`, with two samples each. A reward of None: not judged."""
    settings = {"executor__max_outage": 1.0, "rollout__samples_per_prompt": 2, **settings}
    config = change(Config(), rollout__prompts_per_step=2, tool__max_tool_calls=0, data__shuffle=False, **settings)

    def reward(problem: Problem, rollout: Rollout) -> Reward | None:
        value = rewards[problem.id][rollout.sample]
        return None if value is None else Reward(value, {"correct": float(value > 0)})

    runtime = Runtime("fp32")
    journal = Journal(folder / "journal", 0, digest(config), Writer("test"), resume)
    problems = [Problem(name, name, "yes") for name in rewards]
    stop, console = StopRequest(runtime, print), Console(active=False)
    return Collector(config, runtime, make_policy(list(rewards)), None, reward, problems, journal, stop, console)


def collect(collector: Collector, step: int = 1) -> list[RolloutGroup]:
    """A rollout batch as `Trainer.step` takes it."""
    with collector.batch(step):
        groups = collector.sample_rollouts()
        collector.assign_rewards(groups)
        return collector.replace_flat_groups(groups)


def drawn(groups: Sequence[RolloutGroup]) -> list[tuple[str, int]]:
    """Problem and number of each group."""
    return sorted((group.problem.id, group.rollouts[0].group) for group in groups)


FLAT_AND_MIXED = {"A": [1, 1], "B": [1, 0], "C": [0, 0], "D": [0, 1], "E": [1, 0]}


@pytest.mark.parametrize(
    ("attempts", "expected"),
    [
        (0, [("A", 0), ("B", 1)]),  # off: the flat group A is kept
        (1, [("A", 0), ("B", 1)]),  # no further batch is allowed, so A fills the batch up
        (2, [("A", 0), ("B", 1)]),  # C is flat, too; of two flat groups the older one fills up
        (3, [("B", 1), ("D", 3)]),  # A and C are replaced
        (9, [("B", 1), ("D", 3)]),  # and E is never drawn
    ],
)
def test_dynamic_sampling_replaces_flat_groups_within_its_attempts(
    attempts: int, expected: list[tuple[str, int]], tmp_path: Path
) -> None:
    collector = make_collector(tmp_path, FLAT_AND_MIXED, algorithm__dynamic_sampling=attempts)
    assert drawn(collect(collector)) == expected
    assert collector.next_group == {0: 2, 1: 2, 2: 3}.get(attempts, 4)


def test_where_every_group_is_flat_the_batch_keeps_its_size(tmp_path: Path) -> None:
    collector = make_collector(tmp_path, {"A": [1, 1], "B": [0, 0]}, algorithm__dynamic_sampling=3)
    assert drawn(collect(collector)) == [("A", 0), ("B", 1)]


def test_resample_on_correct_draws_twice_as_many_and_keeps_g(tmp_path: Path) -> None:
    rewards = {"A": [1, 0, 0, 1], "B": [0, 0, 0, 0], "C": [1, 1, 1, 0]}
    collector = make_collector(tmp_path, rewards, algorithm__resample_on_correct=True)
    first = collect(collector)
    assert len(collector.current.rollouts) == 8, "two problems, 2 x 2 samples each"
    assert [sorted(group.rewards) for group in first] == [[0, 1], [0, 0]]
    assert sorted(collect(collector, 2)[0].rewards) == [1, 1]


def test_an_unjudged_rollout_is_neither_compared_nor_trained(tmp_path: Path) -> None:
    groups = collect(make_collector(tmp_path, {"A": [1, None], "B": [1, 0]}))
    (judged, unjudged), _ = (group.rollouts for group in groups)
    assert (judged.valid, unjudged.valid, unjudged.reward) == (True, False, None)
    assert [group.rewards for group in groups] == [[1], [1, 0]]
    assign_advantages(groups, Config().algorithm)
    learner = make_learner(tiny_qwen2())
    with learner.updating(0):
        (batch,) = learner.mini_batches(groups)
    assert [id(sample.rollout) for sample in batch.samples] == [
        id(rollout) for group in groups for rollout in group.rollouts if rollout is not unjudged
    ]
    assert batch.normalizer == 3 * 4, "three rollouts of `y`, `e`, `s` and the end of text"


@pytest.mark.parametrize(("limit", "stops"), [(0.25, True), (0.5, False)])
def test_more_unjudged_rollouts_than_allowed_stop_the_run(limit: float, stops: bool, tmp_path: Path) -> None:
    """Two of four."""
    collector = make_collector(tmp_path, {"A": [1, None], "B": [None, 0]}, executor__max_outage=limit)
    if stops:
        with pytest.raises(GraderOutage, match="2 of 4 rollouts could not be judged"):
            collect(collector)
    else:
        assert [r.valid for group in collect(collector) for r in group.rollouts] == [True, False, False, True]


@pytest.mark.parametrize(("limit", "stops"), [(0.25, True), (0.5, False)])
def test_more_lost_rollouts_than_allowed_stop_the_run(limit: float, stops: bool, tmp_path: Path) -> None:
    """Two of four; a third is not judged, and the lost ones do not count as unjudged as well."""
    collector = make_collector(tmp_path, {"A": [1, 1], "B": [None, 0]}, executor__max_outage=limit)
    with collector.batch(1):
        groups = collector.sample_rollouts()
        for rollout in groups[0].rollouts:
            rollout.valid, rollout.finish_reason = False, "aborted"
        if stops:
            with pytest.raises(ExecutorOutage, match="2 of 4 rollouts were lost to the executor"):
                collector.assign_rewards(groups)
        else:
            collector.assign_rewards(groups)
            assert [r.valid for group in groups for r in group.rollouts] == [False, False, False, True]


def test_what_an_interrupted_attempt_had_finished_is_not_sampled_again(tmp_path: Path) -> None:
    first = collect(make_collector(tmp_path, FLAT_AND_MIXED))
    resumed = make_collector(tmp_path, FLAT_AND_MIXED, resume=True)
    again = collect(resumed)
    assert (resumed.current.sampled, resumed.current.finished) == (0, 4)
    for ours, theirs in zip(again, first, strict=True):
        assert ours.rewards == theirs.rewards
        assert [vars(r)["segments"] for r in ours.rollouts] == [vars(r)["segments"] for r in theirs.rollouts]


def test_a_prompt_of_exactly_the_limit_is_kept() -> None:
    """Prompts of 1, 4 and 5 tokens; a byte is a token here."""
    problems = [Problem(text, text, "yes") for text in ("a", "four", "fives")]
    config, said = change(Config(), data__max_prompt_length=4), list[str]()
    kept = keep_fitting(problems, config, BYTES, lambda problem: problem.problem, said.append)
    assert [problem.id for problem in kept] == ["a", "four"] and "1 of 3 problems left out" in said[0]
    with pytest.raises(DataError, match=r"the shortest prompt has 5 tokens, data\.max_prompt_length is 4"):
        keep_fitting(problems[2:], config, BYTES, lambda problem: problem.problem, said.append)


def test_an_abandoned_batch_is_drawn_again(tmp_path: Path) -> None:
    collector = make_collector(tmp_path, FLAT_AND_MIXED)
    assert drawn(collect(collector)) == [("A", 0), ("B", 1)]
    with pytest.raises(Interrupted), collector.batch(2):
        assert drawn(collector.sample_rollouts()) == [("C", 2), ("D", 3)]
        raise Interrupted
    assert drawn(collect(collector, step=2)) == [("C", 2), ("D", 3)]
    assert drawn(collect(collector, step=3)) == [("A", 5), ("E", 4)]


def test_evaluation_draws_with_keys_that_no_training_step_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rollout's draws are keyed by seed, group and sample; training numbers its groups from 0."""
    keys: list[tuple[int, int, int]] = []
    row_key = rollout_module.row_key
    monkeypatch.setattr(rollout_module, "row_key", lambda *parts: keys.append(parts) or row_key(*parts))
    collector = make_collector(tmp_path, FLAT_AND_MIXED, rollout__samples_per_prompt=1)
    collector.reward = lambda problem, rollout: Reward(1.0, {"correct": 1.0})
    for step in (1, 2, 3):
        collect(collector, step)
    training, problems = set(keys), collector.problems.problems
    keys.clear()
    held_out.evaluate(
        collector.policy, None, collector.reward, problems, collector.config, collector.runtime, collector.stop
    )
    assert len(training) == 6 and len(set(keys)) == 5 and not training & set(keys)
    # nor has one of a run of a million steps with a thousand problems each
    assert min(group for _, group, _ in keys) >= 10**9


def evaluate(policy: Policy, answer: Answer, seed: int = 1) -> tuple[list[Rollout], dict[str, float | None]]:
    """Two problems, of one greedy sample each. Every response that is judged is right."""
    config = change(Config(), rollout__max_completion_length=60, train__seed=seed)
    runtime = Runtime("fp32")
    problems = [Problem(name, name, "yes") for name in ("A", "B")]
    tool = PythonTool(ScriptedExecutor(answer))
    right: RewardFunction = lambda problem, rollout: Reward(1.0, {"correct": 1.0})  # noqa: E731
    return held_out.evaluate(policy, tool, right, problems, config, runtime, StopRequest(runtime, print))


def test_evaluation_is_greedy() -> None:
    """A random policy gives the same responses under another seed, which keys the draws."""
    model = tiny_qwen2(0, len(BYTES))
    policy = Policy(model, BYTES, CodeBlockStopping(BYTES), lambda p: p.problem, [BYTES.eos_token_id], "small")
    first, second = (evaluate(policy, stdout("42\n"), seed)[0] for seed in (1, 2))
    assert [r.token_ids for r in first] == [r.token_ids for r in second]
    assert first[0].token_ids != first[1].token_ids, "responses differ by their prompt"


def test_a_response_lost_to_the_executor_is_no_wrong_answer_in_the_evaluation() -> None:
    policy = make_policy(["A", "B"])
    policy.model = script_model({"A": [CALL, "yes"], "B": ["yes"]}).eval()
    rollouts, metrics = evaluate(policy, stdout("", status="infrastructure"))
    assert [rollout.valid for rollout in rollouts] == [False, True]
    assert (metrics["eval/accuracy"], metrics["eval/unjudged"]) == (1.0, 1.0)

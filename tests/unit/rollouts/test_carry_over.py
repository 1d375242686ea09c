"""`rollout.carry_over`: a step ends before all its groups are whole, and the next one continues them."""

from __future__ import annotations

import math
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo_tir.checkpoint.journal import Journal, digest
from grpo_tir.checkpoint.load import load_trainer
from grpo_tir.config import Config, check
from grpo_tir.distributed.runtime import Runtime
from grpo_tir.distributed.signals import Interrupted, StopRequest
from grpo_tir.engine.engine import Engine
from grpo_tir.errors import CertificateError, ConfigError
from grpo_tir.generation.protocol import Request
from grpo_tir.generation.sampling import Sampling, row_key
from grpo_tir.generation.stopping import CodeBlockStopping
from grpo_tir.learning.batching import to_row
from grpo_tir.monitor.console import Console
from grpo_tir.monitor.metrics import carry_metrics, summarize
from grpo_tir.rollouts.collect import Collector
from grpo_tir.rollouts.policy import Policy
from grpo_tir.testing import ScriptedExecutor, byte_tokenizer
from grpo_tir.tools.python import PythonTool
from grpo_tir.types import Problem, Reward, Rollout, RolloutGroup, Segment, ToolResult, stamp
from grpo_tir.utils.files import Writer
from parity.engine_models import FAMILIES, make_model, make_tokenizer
from scripted import CALL, SHOWN, empty_rollouts, kinds, make_loop, script_model, stdout
from tiny_policy import change, make_learner, tiny_qwen2, update
from training_run import BOXES, CALLS

CARRY = {"rollout__carry_over": 0.5, "algorithm__importance_cap": 2.0}


def make_collector(folder: Path, tool: Any = None, resume: bool = False, **settings: Any) -> Collector:
    """A random policy in float64 that writes programs and ends by one token in forty; 4 groups of 2 a step."""
    tokenizer = byte_tokenizer([*CALLS, *BOXES])
    model = tiny_qwen2(3, len(tokenizer), eos_token_id=tokenizer.eos_token_id).double()
    eos_ids = [tokenizer.eos_token_id, *range(65, 75)]
    config = change(
        Config(), rollout__prompts_per_step=4, rollout__samples_per_prompt=2, rollout__max_completion_length=120,
        tool__max_tool_calls=2, data__shuffle=False, **settings,
    )  # fmt: skip
    stopping = CodeBlockStopping(tokenizer, eos_ids=eos_ids)
    refused = "asked for" if config.rollout.generator == "generate" else None
    policy = Policy(model, tokenizer, stopping, lambda problem: problem.problem, eos_ids, refused)
    problems = [Problem(f"{n}", f"{n} + {n}", "yes") for n in range(12)]
    runtime = Runtime("fp32")
    journal = Journal(folder, 0, digest(config), Writer("test"), resume)
    tool = tool or PythonTool(ScriptedExecutor(lambda code: ToolResult("ok", f"{len(code)}", exit_code=0)))
    reward = lambda problem, rollout: Reward(float(len(rollout.token_ids) % 2))  # noqa: E731
    stop, console = StopRequest(runtime, print), Console(active=False)
    return Collector(config, runtime, policy, tool, reward, problems, journal, stop, console)


def collect(collector: Collector, step: int) -> list[RolloutGroup]:
    with collector.batch(step):
        groups = collector.sample_rollouts()
        collector.assign_rewards(groups)
        return collector.replace_flat_groups(groups)


def content(groups: list[RolloutGroup]) -> dict[tuple[int, int], Any]:
    """What must not depend on the step in which a rollout ended."""
    return {
        (r.group, r.sample): (
            [(s.kind, s.token_ids, s.text) for s in r.segments],
            [(call.code, call.result) for call in r.calls],
            [round(logprob, 9) for logprob in r.logprobs],
            (list(r.stamps), r.finish_reason, r.reward, r.problem),
        )
        for group in groups
        for r in group.rollouts
    }


@pytest.mark.parametrize("generator", ["engine", "generate"])
@pytest.mark.parametrize("settings", [{}, {"rollout__max_rows": 3}, {"train__deterministic": True}])
def test_with_the_same_weights_the_rollouts_are_those_of_a_run_that_waits(
    generator: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    waits = make_collector(tmp_path / "a", rollout__generator=generator, **settings)
    whole = [group for step in (1, 2, 3) for group in collect(waits, step)]
    goes_on = make_collector(tmp_path / "b", rollout__generator=generator, **settings, **CARRY)
    trained: list[RolloutGroup] = []
    for step in range(1, 20):
        groups = collect(goes_on, step)
        assert len(groups) >= 2 and len(groups) + len(goes_on.carried) == 4
        trained += groups
        numbers = {group.rollouts[0].group for group in trained}
        assert len(numbers) == len(trained), "no group is trained twice"
        if numbers >= set(range(12)):
            break
    theirs, ours = content(whole), content(trained)
    assert {key: ours[key] for key in theirs} == theirs
    ages = [set(r.versions) - {0} for g in trained for r in g.rollouts]
    if generator == "engine" or "rollout__max_rows" in settings:  # else all rows end in the same round
        assert any(len(age) > 1 for age in ages), "no response was drawn in two steps"
    if generator == "engine" and not settings:
        cut = [s for g in trained for r in g.rollouts for s in r.segments if len(set(s.versions)) > 1]
        assert cut, "no turn was cut"
    for rollout in (r for g in trained for r in g.rollouts):
        drawn = [v for v, model in zip(rollout.versions, rollout.loss_mask, strict=True) if model]
        assert drawn == sorted(drawn) and 0 not in drawn
        assert any(to_row(rollout).compared)


def test_without_it_nothing_is_recorded_that_was_not_before(tmp_path: Path) -> None:
    groups = collect(make_collector(tmp_path), 1)
    assert len(groups) == 4 and not any(s.versions for g in groups for r in g.rollouts for s in r.segments)


@pytest.mark.parametrize(("share", "needed"), [(0.1, 1), (0.5, 2), (0.75, 3), (0.76, 4), (1.0, 4)])
def test_a_step_ends_with_the_share_of_groups_rounded_up(share: float, needed: int, tmp_path: Path) -> None:
    collector = make_collector(tmp_path, rollout__carry_over=share, algorithm__importance_cap=2.0)
    groups = collect(collector, 1)
    assert collector.current.needed == needed <= len(groups)


@pytest.mark.parametrize("step", ["eager", "plain"])
@pytest.mark.parametrize("stop", ["output", "tool_call"])
def test_a_row_cut_at_any_token_goes_on_with_the_same_draws_and_the_same_marker(step: Any, stop: str) -> None:
    """A marker may stand across the cut. Two rows of one prompt, so that the prompt's KV is shared."""
    model, tokenizer = make_model(FAMILIES["qwen2"], torch.float64), make_tokenizer()
    keys = [row_key(0, 0, sample) for sample in range(24)]

    def sample(**changes: Any) -> dict[int, Any]:
        engine = Engine(model, CodeBlockStopping(tokenizer, stop, eos_ids=[1]), Sampling(), [1], step=step, page=8)
        for row, key in enumerate(keys):
            response, cut = changes.get(str(row), ([], 0))
            engine.submit(Request(row, [7, 8, 9], key, 40, True, response, cut))
        done = {}
        while stopped := engine.step():
            done |= {each.row: each for each in stopped}
        return done

    whole = sample()
    assert {each.reason for each in whole.values()} >= {"call", "length"}
    for share in (0.0, 0.3, 0.6, 1.0):
        cuts = {row: int(share * (len(each.token_ids) - 1)) for row, each in whole.items()}
        again = sample(**{str(row): (whole[row].token_ids[:cut], cut) for row, cut in cuts.items()})
        for row, cut in cuts.items():
            assert again[row].token_ids == whole[row].token_ids[cut:]
            assert again[row].logprobs == pytest.approx(whole[row].logprobs[cut:], abs=1e-9)
            assert again[row].reason == whole[row].reason


class SlowExecutor(ScriptedExecutor):
    """Answers after a twentieth of a second, in another thread."""

    def __init__(self) -> None:
        super().__init__(stdout("42"))
        self.earlier: list[int] = []

    def submit(self, code: str, *, earlier: Any = (), **_: Any) -> Future[ToolResult]:
        self.earlier.append(len(earlier))
        future: Future[ToolResult] = Future()
        threading.Timer(0.05, future.set_result, [ToolResult("ok", "42")]).start()
        return future


def test_a_call_under_way_at_the_cut_is_awaited_and_answered_once() -> None:
    """B ends at once, while A waits for the first of its calls. A goes on in the next step with the same state."""
    executor, pending = SlowExecutor(), list[int]()
    tool, scripts = PythonTool(executor, state="replay"), {"A": [CALL, CALL, "\\boxed{42}"], "B": ["yes"]}

    def enough() -> bool:
        pending.append(len(first.turns))
        return first.finished == 1

    first = make_loop(script_model(scripts), tool, c=2, enough=enough, version=4)
    first.generator.barrier = False  # so that the loop does not wait before the cut
    a, b = rollouts = empty_rollouts(["A", "B"])
    first.run(rollouts)
    assert pending == [0, 1] and executor.earlier == [0]
    assert kinds(a) == [("model", CALL), ("tool", SHOWN)] and len(a.calls) == 1
    assert (a.ended, a.cut, b.ended) == (False, False, True)
    make_loop(script_model(scripts), tool, c=2, version=5).run([a])
    assert kinds(a)[2:] == [("model", CALL), ("tool", SHOWN), ("model", "\\boxed{42}")]
    assert a.finish_reason == "eos" and len(a.calls) == 2
    assert executor.earlier == [0, 1], "the second call knows the first"
    assert [set(s.versions) for s in a.segments] == [{4}, set(), {5}, set(), {5}]


def test_an_abandoned_batch_gives_the_carried_rollouts_back_as_they_were(tmp_path: Path) -> None:
    """Also those of a checkpoint, which holds plain values only."""
    collector = make_collector(tmp_path / "a", **CARRY)
    collect(collector, 1)
    before = content(collector.carried)
    assert any(r.ended for g in collector.carried for r in g.rollouts) and any(
        r.cut for g in collector.carried for r in g.rollouts
    )
    torch.save(collector.state_dict(), tmp_path / "trainer.pt")
    with pytest.raises(Interrupted), collector.batch(2):
        collector.sample_rollouts()
        raise Interrupted
    assert content(collector.carried) == before
    other = make_collector(tmp_path / "b", **CARRY)
    other.load_state_dict(load_trainer(tmp_path))
    assert other.carried == collector.carried
    assert content(collect(other, 2)) == content(collect(collector, 2))


@pytest.mark.parametrize("deterministic", [True, False])
def test_the_journal_holds_what_was_carried(deterministic: bool, tmp_path: Path) -> None:
    """Two steps after a checkpoint are taken again from the journal: nothing is sampled."""
    settings = {"train__deterministic": deterministic, **CARRY}
    collector = make_collector(tmp_path, **settings)
    first = [content(collect(collector, step)) for step in (1, 2)]
    again = make_collector(tmp_path, resume=True, **settings)
    for step in (1, 2):
        assert content(collect(again, step)) == first[step - 1] and again.current.sampled == 0
    assert again.carried == collector.carried
    assert content(collect(again, 3)) == content(collect(collector, 3))


def test_a_smaller_budget_ends_what_was_carried(tmp_path: Path) -> None:
    """A run may resume with another `max_completion_length`, below the length of a carried response."""
    collector = make_collector(tmp_path, **CARRY)
    collect(collector, 1)
    before = {(r.group, r.sample): len(r.token_ids) for g in collector.carried for r in g.rollouts if not r.ended}
    assert max(before.values()) > 3
    collector.config = change(collector.config, rollout__max_completion_length=3, rollout__carry_over=0.0)
    after = {(r.group, r.sample): r for group in collect(collector, 2) for r in group.rollouts}
    for key, length in before.items():
        assert after[key].ended and len(after[key].token_ids) <= max(3, length + 1)


def test_the_journal_keeps_the_longer_attempt_and_the_finished_one(tmp_path: Path) -> None:
    digest_ = digest(Config())

    def attempt(length: int, reason: Any) -> Rollout:
        segments = [Segment("model", [1] * length, [-1.0] * length)]
        return Rollout(Problem("p", "", ""), [7], 0, 0, segments=segments, finish_reason=reason)

    def recalled() -> int:
        again, rollout = Journal(tmp_path, 0, digest_, Writer("test"), True), attempt(0, "aborted")
        rollout.segments.clear()
        again.begin(1)
        again.recall([rollout], whole=False)
        return len(rollout.token_ids)

    for length, reason, wanted in ((3, "aborted", 3), (7, "aborted", 7), (9, "eos", 9), (5, "aborted", 9)):
        journal = Journal(tmp_path, 0, digest_, Writer("test"), True)
        journal.begin(1)
        journal.record(attempt(length, reason))
        journal.writer.flush()
        assert recalled() == wanted


# --- the update ---------------------------------------------------------------------------------------------


def two_versions(gap: float, fresh_gap: float = 0.0) -> list[RolloutGroup]:
    """One group of two responses of 4 tokens. Step 3 trains them; step 2 drew the first half of each, with
    log-probs that are lower by `gap` than the learner's."""
    rollouts = [
        Rollout(
            Problem("p", "?", "!"), [1, 2], sample=sample, finish_reason="eos", reward=Reward(0.0), advantage=sign,
            segments=[Segment("model", [5 + sample, 6, 7, 8], versions=[2, 2, 3, 3])],
        )
        for sample, sign in enumerate((1.0, -0.5))
    ]  # fmt: skip
    learner = make_learner(tiny_qwen2())
    for rollout in rollouts:
        ids = torch.tensor([rollout.prompt_ids + rollout.token_ids])
        mask = torch.tensor([[0, 0, 1, 1, 1, 1]])
        true = learner.module(ids, torch.ones_like(ids), mask)[0][0, 2:].tolist()
        gaps = [gap, gap, fresh_gap, fresh_gap]
        rollout.segments[0].logprobs = [value - off for value, off in zip(true, gaps, strict=True)]
        rollout.stamps = [stamp("model", rollout.token_ids)]
    return [RolloutGroup(rollouts[0].problem, rollouts)]


@pytest.mark.parametrize(("gap", "weight"), [(math.log(1.5), 1.5), (math.log(3), 2.0), (-math.log(4), 0.25)])
def test_tokens_of_earlier_weights_are_weighted_and_not_certified(
    gap: float, weight: float, tmp_path: Path
) -> None:
    """The learner finds the stale half `exp(gap)` times as probable as those who drew it; the cap is 2. At ratio 1
    the loss is - sum of weight x advantage / tokens = -(1 - .5)(2 weight + 2) / 8."""
    learner = make_learner(tiny_qwen2(), algorithm__importance_cap=2.0)
    metrics = update(learner, two_versions(gap), step=2, dump=tmp_path)
    assert metrics["loss"] == pytest.approx(-0.5 * (2 * weight + 2) / 8, rel=1e-4)
    assert metrics["certificate/used"] < 0.1
    with pytest.raises(CertificateError):  # had the current weights drawn them, it would be a fault
        update(make_learner(tiny_qwen2(), algorithm__importance_cap=2.0), two_versions(gap), 1, tmp_path)


def test_a_fault_in_the_fresh_tokens_is_still_found(tmp_path: Path) -> None:
    with pytest.raises(CertificateError):
        update(make_learner(tiny_qwen2(), algorithm__importance_cap=2.0), two_versions(0.4, 0.4), 2, tmp_path)


def test_the_sequence_mask_counts_the_stale_tokens(tmp_path: Path) -> None:
    """The ratio of a response is 1.5 x 1.5 = 2.25: outside of [1/2, 2], inside of [1/3, 3]."""
    for bounds, masked in (([0.5, 2.0], 1.0), ([0.3, 3.0], 0.0)):
        learner = make_learner(tiny_qwen2(), algorithm__importance_cap=2.0, algorithm__sequence_mask=bounds)
        metrics = update(learner, two_versions(math.log(1.5)), step=2, dump=tmp_path)
        assert metrics["sampling/sequence_masked"] == masked


def test_a_turn_cut_twice_has_one_segment_with_the_stamp_of_its_ids() -> None:
    rollout = Rollout(Problem("p", "?", "!"), [1])
    for version, ids in enumerate(([5, 6], [7], [8, 9, 10]), start=1):
        rollout.add(Segment("model", ids, [-0.5] * len(ids), versions=[version] * len(ids)))
        rollout.cut = version < 3
    rollout.add(Segment("tool", [11]))
    assert [s.token_ids for s in rollout.segments] == [[5, 6, 7, 8, 9, 10], [11]]
    assert rollout.versions == [1, 1, 2, 3, 3, 3, 0]
    assert rollout.stamps == [stamp("model", [5, 6, 7, 8, 9, 10]), stamp("tool", [11])]


def test_an_id_changed_between_two_steps_breaks_the_certificate() -> None:
    rollout = Rollout(Problem("p", "?", "!"), [1])
    rollout.add(Segment("model", [5, 6], [-0.5] * 2))
    rollout.cut = True
    rollout.segments[0].token_ids[0] = 4
    rollout.add(Segment("model", [7], [-0.5]))
    with pytest.raises(CertificateError, match="the ids to be trained are not the ids that were sampled"):
        to_row(rollout)


def test_staleness_is_the_mean_age_of_the_trained_model_tokens() -> None:
    """In step 3: two tokens of step 1, one of step 3, a tool token, and a response that is not trained."""
    rollout = Rollout(Problem("p", "?", "!"), [1], finish_reason="eos")
    rollout.add(Segment("model", [5, 6, 7], [-1.0] * 3, versions=[1, 1, 3]))
    rollout.add(Segment("tool", [8]))
    left_out = Rollout(Problem("p", "?", "!"), [1], finish_reason="eos", trained=False)
    left_out.add(Segment("model", [5], [-1.0], versions=[1]))
    found = carry_metrics([summarize(rollout, 1), summarize(left_out, 1)], step=3, carried=6)
    assert found == {"rollouts/carried": 6.0, "rollouts/staleness": pytest.approx(4 / 3)}


# --- settings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rollout__carry_over": 1.5}, r"rollout\.carry_over is 1\.5: it must be from 0 to 1"),
        ({"rollout__carry_over": -1.0}, r"rollout\.carry_over is -1\.0: it must be from 0 to 1"),
        ({"rollout__carry_over": math.nan}, r"rollout\.carry_over is nan: it must be from 0 to 1"),
        ({"rollout__carry_over": 0.5}, r"needs algorithm\.importance_cap"),
        ({**CARRY, "algorithm__dynamic_sampling": 2}, r"excludes algorithm\.dynamic_sampling"),
        ({**CARRY, "train__deterministic": True, "rollout__max_rows": 4}, r"needs rollout\.max_rows 0"),
    ],
)
def test_what_cannot_work_together_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check(change(Config(), **settings))


class WithSession:
    stop = "output"

    def session(self, rollout: Rollout) -> Any:
        return self


def test_a_tool_whose_sessions_hold_state_is_refused_unless_it_restores_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="resumable = True"):
        make_collector(tmp_path, tool=WithSession(), **CARRY)
    tool = WithSession()
    tool.resumable = True  # type: ignore[attr-defined]
    make_collector(tmp_path, tool=tool, **CARRY)
    make_collector(tmp_path, tool=WithSession())

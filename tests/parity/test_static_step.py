"""Static steps draw what eager steps draw: token for token, for any block, page, memory and company."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity, profile

from grpo_tir.config import Config, RolloutConfig, ToolConfig
from grpo_tir.distributed.runtime import Runtime
from grpo_tir.engine import decode_weights, static_step
from grpo_tir.engine.choose_step import TRIAL_TOKENS, choose_step, time_step
from grpo_tir.engine.engine import STEPS, Engine, may_call_next
from grpo_tir.engine.paged_cache import PagedCache
from grpo_tir.engine.static_step import StaticStep
from grpo_tir.generation.generate import GenerateRounds
from grpo_tir.generation.protocol import Request, Stopped
from grpo_tir.generation.sampling import Sampling, row_key
from grpo_tir.generation.stopping import CodeBlockStopping
from grpo_tir.rollouts.policy import Policy
from grpo_tir.rollouts.sample import sample_responses
from grpo_tir.types import Problem, Rollout
from parity.engine_models import FAMILIES, make_model, make_requests, make_tokenizer, run, run_with_tool

INSERTED = [3, 1, 4, 1, 5]


def assert_same(ours: dict[int, Stopped], theirs: dict[int, Stopped]) -> None:
    """Equal tokens and reasons; log-probs within 1e-5."""
    assert ours.keys() == theirs.keys()
    for row, wanted in theirs.items():
        assert (ours[row].token_ids, ours[row].reason) == (wanted.token_ids, wanted.reason)
        assert ours[row].logprobs == pytest.approx(wanted.logprobs, abs=1e-5)


@pytest.mark.parametrize("block", [1, 16])
@pytest.mark.parametrize("family", FAMILIES)
def test_static_steps_draw_the_eager_tokens(family: str, block: int) -> None:
    model = make_model(FAMILIES[family])
    requests = make_requests(groups=4, samples=4, budget=40)
    eager = run(Engine(model, None, Sampling(), [11, 12, 13, 14]), requests)
    static = Engine(model, None, Sampling(), [11, 12, 13, 14], step="plain", block=block, page=4)
    assert_same(run(static, requests), eager)
    assert static.counts["blocks"] > 0 and static.failed is None
    assert {stopped.reason for stopped in eager.values()} == {"eos", "length"}


@pytest.mark.parametrize("max_rows,kv_tokens", [(0, 0), (2, 0), (0, 80), (0, 200)])
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("block,stop", [(1, "output"), (16, "output"), (16, "tool_call")])
def test_rows_with_tools_are_those_of_the_readable_twin(
    max_rows: int, kv_tokens: int, late: bool, block: int, stop: str
) -> None:
    """Real markers, or ends of turns, up to two calls, refill, evicted rows: tokens drawn past a stop change
    nothing."""
    model = make_model(FAMILIES["qwen2"], torch.float64)
    stopping = CodeBlockStopping(make_tokenizer(), stop, eos_ids=[11, 12, 13, 14])
    requests = make_requests(groups=4, samples=4, budget=40, seed=3)
    engine = Engine(model, stopping, Sampling(), [11, 12, 13, 14], max_rows, kv_tokens, "plain", block, page=4)
    ours = run_with_tool(engine, requests, INSERTED, calls=2, late=late)
    theirs = run_with_tool(
        GenerateRounds(model, stopping, Sampling(), [11, 12, 13, 14]), requests, INSERTED, calls=2
    )
    assert ours == theirs
    assert sum(len(segments) > 1 for segments in ours.values()) >= 5, "too few rows called a tool"
    if kv_tokens == 80:
        assert engine.counts["evictions"] > 0


def test_a_long_text_gets_a_forward_and_a_short_one_is_fed_by_steps() -> None:
    """A prompt of 200 tokens and an insertion of 50 take forwards; one of 5 takes none."""
    model = make_model(FAMILIES["qwen2"], torch.float64)
    stopping = CodeBlockStopping(make_tokenizer())
    requests = [Request(0, [7] * 200, row_key(0, 0, 0), 50, True), Request(1, [9] * 3, row_key(0, 0, 1), 30, True)]
    for inserted in ([5] * 5, [5] * 40):
        engine = Engine(model, stopping, Sampling(), [], step="plain", page=16)
        ours = run_with_tool(engine, requests, inserted, calls=1)
        assert ours == run_with_tool(Engine(model, stopping, Sampling(), []), requests, inserted, calls=1)


def test_rows_may_be_submitted_later_and_be_longer() -> None:
    """The tables of a bucket are made anew when a row needs more pages than any before."""
    model = make_model(FAMILIES["qwen2"], torch.float64)
    first, second = Request(0, [3], row_key(0, 0, 0), 30, False), Request(1, [5] * 9, row_key(0, 0, 1), 60, False)
    engine = Engine(model, None, Sampling(), [], kv_tokens=400, step="plain", block=4, page=4)
    engine.submit(first)
    engine.ready = lambda: True
    assert engine.step() == []
    engine.submit(second)
    done: dict[int, Stopped] = {}
    while engine.scheduler.rows:
        done |= {stopped.row: stopped for stopped in engine.step()}
    assert_same(done, run(Engine(model, None, Sampling(), []), [first, second]))


def test_samples_of_a_prompt_share_its_full_pages() -> None:
    """A prompt of 10 tokens in pages of 4: two shared pages, and one copy of the third for each of 8 rows."""
    model = make_model(FAMILIES["qwen2"])
    engine = Engine(model, None, Sampling(), [], step="plain", block=1, page=4)
    for sample in range(8):
        engine.submit(Request(sample, [1] * 40, row_key(0, 0, sample), 30, False))
    engine.ready = lambda: True
    while len(engine.scheduler.running_rows()) < 8:
        engine.step()
    cache = engine.scheduler.cache
    assert isinstance(cache, PagedCache)
    assert all(table[:9] == cache.tables[0][:9] for table in cache.tables)
    assert [cache.users[page] for page in cache.tables[0]][:9] == [8] * 9
    tenth = {table[9] for table in cache.tables}
    assert len(tenth) == 8, "the page that rows write to is not shared"
    engine.close()


def test_pages_come_back() -> None:
    cache = PagedCache(1, 1, 2, torch.device("cpu"), torch.float32, page=4)
    cache.allocate(20)
    cache.resize(3, 0, 0)
    assert cache.grow(0, 9) and not cache.grow(1, 9) and cache.grow(1, 8)  # 3 + 2 of 5 pages
    cache.clear(1)
    assert cache.copy(0, 2, 9) == 9  # two shared pages and a copy of the third
    assert cache.tables[2][:2] == cache.tables[0][:2] and cache.tables[2][2] != cache.tables[0][2]
    cache.clear(0)
    assert len(cache.free) == 2
    cache.clear(2)
    assert sorted(cache.free) == [1, 2, 3, 4, 5] and not any(cache.users)


def test_the_host_reads_once_a_block_and_at_every_token_near_a_marker() -> None:
    model = make_model(FAMILIES["qwen2"])
    engine = Engine(model, None, Sampling(), [], step="plain", page=4)
    run(engine, [Request(0, [1], 0, 65, False)])
    assert engine.counts["forwards"] == 65 and engine.counts["blocks"] == 5
    stopping = CodeBlockStopping(make_tokenizer())
    assert may_call_next(stopping, [1, 21]) and may_call_next(stopping, [21])  # "```"
    assert not may_call_next(stopping, [1, 2])
    assert not may_call_next(stopping, [20])  # the whole marker: it has stopped


def test_compiled_steps_are_one_graph_a_bucket_without_breaks() -> None:
    """Two graphs, the layer and the draw, for each of the buckets 4, 2 and 1."""
    torch._dynamo.reset()
    counters.clear()
    model = make_model(FAMILIES["qwen2"])
    requests = [Request(n, [3, 4 + n], row_key(0, 0, n), 6 + 6 * n, False) for n in range(3)]
    engine = Engine(model, None, Sampling(), [], step="compiled", block=4)
    assert_same(run(engine, requests), run(Engine(model, None, Sampling(), []), requests))
    assert engine.failed is None
    assert counters["stats"]["unique_graphs"] == 2 * 3
    assert not counters["graph_break"]


def test_compiled_layers_multiply_with_the_weights_in_onednns_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_weights, "WORTH_A_CALL", 1)  # the models of tests are small
    torch._dynamo.reset()
    model = make_model(FAMILIES["qwen2"])
    requests = [Request(n, [3] * 40, row_key(0, 0, n), 12, False) for n in range(4)]
    engine = Engine(model, None, Sampling(), [], step="compiled")
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        ours = run(engine, requests)
    assert_same(ours, run(Engine(model, None, Sampling(), []), requests))
    assert engine.failed is None
    assert "grpo_tir::blocked_linear" in {event.key for event in seen.key_averages()}


def test_a_later_batch_with_compiled_steps_compiles_nothing() -> None:
    """Its pool of pages gets the size of the first batch's, although it needs less."""
    torch._dynamo.reset()
    stopping = CodeBlockStopping(make_tokenizer())
    policy = Policy(make_model(FAMILIES["qwen2"]), make_tokenizer(), stopping, lambda problem: "", [])
    drawn, graphs, pools, lines = {}, [], [], []
    policy.log = lines.append
    for step in ("eager", "compiled"):
        rollout = RolloutConfig(max_completion_length=12, step=step)  # type: ignore[arg-type]
        config = Config(rollout=rollout, tool=ToolConfig(max_tool_calls=0))
        for length in (70, 40):  # over 32: a forward prefills, and all rows decode together
            rollouts = [Rollout(Problem("p", "", ""), [3] * length, group=1, sample=sample) for sample in range(3)]
            counters.clear()
            sample_responses(rollouts, policy, None, config, Runtime("fp32"))
            graphs.append(counters["stats"]["unique_graphs"])
            pools.append(policy.pool_tokens)
            tokens = [rollout.token_ids for rollout in rollouts]
            assert drawn.setdefault(length, tokens) == tokens
    assert not [line for line in lines if "eager from here" in line]
    assert graphs[:2] == [0, 0] and graphs[2] >= 2 and graphs[3] == 0
    assert pools == [0, 0, 320, 320]  # 3 rows of 82 tokens: 9 pages of 32, rounded up to 3 bits


def test_a_step_that_cannot_be_made_gives_way_to_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(FAMILIES["qwen2"], torch.float64)
    stopping = CodeBlockStopping(make_tokenizer())
    requests = make_requests(groups=4, samples=4, budget=40, seed=3)
    wanted = run_with_tool(Engine(model, stopping, Sampling(), [11, 12, 13, 14]), requests, INSERTED, calls=2)
    real, made = StaticStep, []

    def fail_at_the_second(*args: Any) -> Any:
        made.append(args)
        if len(made) == 2:
            raise RuntimeError("no memory\nfor the graph")
        return real(*args)

    monkeypatch.setattr(static_step, "StaticStep", fail_at_the_second)
    engine = Engine(model, stopping, Sampling(), [11, 12, 13, 14], step="plain", page=4)
    assert run_with_tool(engine, requests, INSERTED, calls=2) == wanted
    assert engine.failed == "RuntimeError: no memory" and engine.counts["blocks"] > 0


def test_a_trial_ends_although_new_rows_begin_all_the_time() -> None:
    """Two of 64 rows run at a time, and most end within a few tokens."""
    requests = make_requests(groups=16, samples=4, budget=40)
    engine = Engine(make_model(FAMILIES["qwen2"]), None, Sampling(), list(range(8, 40)), max_rows=2)
    time_step(engine, requests)
    assert engine.counts["forwards"] <= STEPS + TRIAL_TOKENS


def test_a_trial_does_not_time_the_compilation_for_fewer_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of the test, making a step takes 100 s and running it 1 s. Rows end, so that steps for 4, 2 and
    1 rows are made, two of them after the first block."""
    clock, made = [0.0], list[int]()

    class Slow(StaticStep):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            clock[0] += 100
            made.append(len(self.record[0, 0]))

        def run(self, *args: Any) -> Any:
            clock[0] += args[-1]
            return super().run(*args)

    monkeypatch.setattr(static_step, "StaticStep", Slow)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    requests = [Request(n, [3, 4 + n], row_key(0, 0, n), 6 + 6 * n, False) for n in range(4)]
    engine = Engine(make_model(FAMILIES["qwen2"]), None, Sampling(), [], step="plain", block=4)
    seconds, _ = time_step(engine, requests)
    assert made == [4, 2, 1] and seconds == 1.0


def test_the_fastest_step_that_agrees_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(FAMILIES["qwen2"])
    other = make_model(FAMILIES["qwen2"], seed=1)
    requests = make_requests(groups=2, samples=2, budget=40)

    def make(step: str) -> Engine:
        if step == "wrong":
            return Engine(other, None, Sampling(), [], step="plain")
        return Engine(model, None, Sampling(), [], step=step)  # type: ignore[arg-type]

    choice = choose_step(make, requests, ["plain", "wrong"])
    assert set(choice.seconds) == {"eager", "plain"} and choice.mode in choice.seconds
    assert choice.seconds[choice.mode] == min(choice.seconds.values())
    assert choice.refused == {"wrong": "it draws other tokens"}
    assert "wrong not used: it draws other tokens" in choice.describe()

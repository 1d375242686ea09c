"""A row that pauses for its tool and comes back is the row that never paused."""

from __future__ import annotations

import pytest
import torch

from grpo_tir.engine.engine import Engine
from grpo_tir.generation.generate import GenerateRounds
from grpo_tir.generation.protocol import Request
from grpo_tir.generation.sampling import Sampling, row_key
from grpo_tir.generation.stopping import CodeBlockStopping
from parity.engine_models import (
    FAMILIES,
    VOCABULARY,
    assert_same_unless_tied,
    greedy,
    make_model,
    make_requests,
    make_tokenizer,
    run,
    run_with_tool,
)

GREEDY = Sampling(temperature=0)
INSERTED = [3, 1, 4, 1, 5]


class StopAfter:
    """Calls the tool when a segment is so many tokens long."""

    def __init__(self, length: int) -> None:
        self.length, self.closers = length, frozenset(range(VOCABULARY))

    def stops(self, token_ids: list[int]) -> bool:
        return len(token_ids) == self.length


@pytest.mark.parametrize("after", range(1, 15))
@pytest.mark.parametrize("late", [False, True])
def test_a_tool_may_answer_at_any_position(after: int, late: bool) -> None:
    """From after the first token to just before the last of the budget of 20, among rows that never pause."""
    model = make_model(FAMILIES["qwen2"])
    engine = Engine(model, StopAfter(after), GREEDY, [])  # type: ignore[arg-type]
    prompts = [[7, 8, 9], [1], [2] * 11, [7, 8, 9]]
    requests = [Request(i, prompt, i, 20, may_call=i != 3) for i, prompt in enumerate(prompts)]
    segments = run_with_tool(engine, requests, INSERTED, calls=1, late=late)
    for request in requests[:3]:
        first, tool, second = segments[request.row]
        assert tool == INSERTED and len(first) == after and len(second) == 15 - after
        assert_same_unless_tied(model, request.prompt_ids, first, greedy(model, request.prompt_ids, after))
        context = request.prompt_ids + first + tool
        assert_same_unless_tied(model, context, second, greedy(model, context, 15 - after))
    assert_same_unless_tied(model, prompts[3], segments[3][0], greedy(model, prompts[3], 20))


@pytest.mark.parametrize("max_rows,kv_tokens", [(0, 0), (2, 0), (0, 80), (0, 200)])
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("stop", ["output", "tool_call"])
def test_rows_with_tools_are_those_of_the_readable_twin(
    max_rows: int, kv_tokens: int, late: bool, stop: str
) -> None:
    """Real markers, or ends of turns, up to two calls a row, parked rows that are evicted: the same ids from the
    same keys."""
    model = make_model(FAMILIES["qwen2"], torch.float64)
    eos = [11] if stop == "output" else [11, 12, 13, 14]
    stopping = CodeBlockStopping(make_tokenizer(), stop, eos_ids=eos)
    requests = make_requests(groups=4, samples=4, budget=40, seed=3)
    engine = Engine(model, stopping, Sampling(), eos, max_rows, kv_tokens)
    ours = run_with_tool(engine, requests, INSERTED, calls=2, late=late)
    twin = GenerateRounds(model, stopping, Sampling(), eos)
    theirs = run_with_tool(twin, requests, INSERTED, calls=2)
    assert ours == theirs
    assert sum(len(segments) > 1 for segments in ours.values()) >= 5, "too few rows called a tool"
    if kv_tokens == 80:
        assert engine.counts["evictions"] > 0


def test_a_returning_row_feeds_only_what_is_new() -> None:
    """Prompt 3 + 4 sampled - 1, then that last one and 5 inserted in one forward, then 10 - 1."""
    model = make_model(FAMILIES["qwen2"])
    engine = Engine(model, StopAfter(4), Sampling(), [])  # type: ignore[arg-type]
    run_with_tool(engine, [Request(0, [7, 8, 9], 0, 19, True)], INSERTED, calls=1)
    assert engine.counts == {"forwards": 4 + 10, "tokens": (3 + 4 - 1) + (1 + 5) + (10 - 1)}


def test_a_parked_row_costs_nothing_and_keeps_its_keys() -> None:
    model = make_model(FAMILIES["qwen2"])
    engine = Engine(model, StopAfter(2), GREEDY, [])  # type: ignore[arg-type]
    engine.submit(Request(0, [1, 2, 3], 0, 30, True))
    assert [stopped.reason for stopped in engine.step()] == ["call"]
    tokens = engine.counts["tokens"]
    assert engine.step() == []
    engine.submit(Request(1, [5], 0, 10, False))
    assert [stopped.row for stopped in engine.step()] == [1]
    assert engine.counts["tokens"] == tokens + 10
    engine.resume(0, [4], False)
    engine.step()
    assert engine.counts["tokens"] == tokens + 10 + 2 + 26


def test_step_returns_early_when_the_caller_is_ready() -> None:
    engine = Engine(make_model(FAMILIES["qwen2"]), None, GREEDY, [])
    engine.submit(Request(0, [1, 2, 3], 0, 30, False))
    engine.ready = lambda: True
    assert engine.step() == []
    assert engine.counts["forwards"] == 1
    engine.ready = lambda: False
    assert len(engine.step()[0].token_ids) == 30


def test_a_released_row_frees_its_slot_and_the_last_one_the_cache() -> None:
    engine = Engine(make_model(FAMILIES["qwen2"]), StopAfter(2), GREEDY, [])  # type: ignore[arg-type]
    for row in range(2):
        engine.submit(Request(row, [1, 2, 3], row_key(0, 0, row), 30, True))
    while engine.step():
        pass
    engine.release(0)
    assert engine.scheduler.cache.slots > 0
    engine.release(1)
    assert engine.scheduler.cache.slots == 0 and engine.step() == []
    done = run(engine, [Request(0, [1, 2, 3], 0, 2, False)])
    assert done[0].reason == "length"

"""The engine is Hugging Face generation, only faster: token for token, for any slots, memory and company."""

from __future__ import annotations

import pytest
import torch

from grpo_tir.engine.engine import Engine
from grpo_tir.errors import ConfigError
from grpo_tir.generation.generate import GenerateRounds
from grpo_tir.generation.protocol import Request
from grpo_tir.generation.sampling import Sampling, row_key
from parity.engine_models import FAMILIES, assert_same_unless_tied, greedy, make_model, make_requests, run

GREEDY = Sampling(temperature=0)


class NeverStopping:
    """Stands in for `CodeBlockStopping` where no row may pause."""

    closers: frozenset[int] = frozenset()

    def begin(self, start: int, may_stop: list[bool]) -> None:
        self.stopped_at = [None] * len(may_stop)

    def __call__(self, input_ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
        return torch.zeros(len(input_ids), dtype=torch.bool)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("max_rows", [0, 3])
def test_greedy_tokens_are_those_of_generate(family: str, max_rows: int) -> None:
    model = make_model(FAMILIES[family])
    requests = make_requests(groups=3, samples=3, budget=24)
    done = run(Engine(model, None, GREEDY, [], max_rows), requests)
    for request in requests:
        theirs = greedy(model, request.prompt_ids, request.budget)
        assert_same_unless_tied(model, request.prompt_ids, done[request.row].token_ids, theirs)
        assert done[request.row].reason == "length"


@pytest.mark.parametrize("max_rows,kv_tokens", [(1, 0), (2, 0), (0, 54), (0, 120), (5, 200), (0, 1000)])
def test_rows_do_not_depend_on_slots_refill_or_eviction(max_rows: int, kv_tokens: int) -> None:
    """54 tokens hold one row: everything else is evicted, computed again, and still the same."""
    model = make_model(FAMILIES["qwen2"], torch.float64)
    requests = make_requests(groups=4, samples=4, budget=24)
    longest = max(len(request.prompt_ids) + request.budget for request in requests)
    assert 48 < longest <= 54
    free = run(Engine(model, None, Sampling(), []), requests)
    engine = Engine(model, None, Sampling(), [], max_rows, kv_tokens)
    tight = run(engine, requests)
    assert {row: stopped.token_ids for row, stopped in tight.items()} == {
        row: stopped.token_ids for row, stopped in free.items()
    }
    if 0 < kv_tokens < 500:
        assert engine.counts["evictions"] > 0 or kv_tokens < 2 * longest


def test_sampled_ids_are_those_of_the_readable_twin() -> None:
    """Same keys, same draws: exact in float64."""
    model = make_model(FAMILIES["qwen2"], torch.float64)
    requests = make_requests(groups=4, samples=4, budget=40)
    ours = run(Engine(model, None, Sampling(0.9), [11, 12]), requests)
    theirs = run(GenerateRounds(model, NeverStopping(), Sampling(0.9), [11, 12]), requests)  # type: ignore[arg-type]
    assert {stopped.reason for stopped in ours.values()} == {"eos", "length"}
    for request in requests:
        assert ours[request.row].token_ids == theirs[request.row].token_ids
        assert ours[request.row].reason == theirs[request.row].reason
        assert ours[request.row].logprobs == pytest.approx(theirs[request.row].logprobs, abs=1e-5)


def test_a_row_alone_is_the_row_among_64() -> None:
    model = make_model(FAMILIES["qwen3"], torch.float64)
    requests = make_requests(groups=16, samples=4, budget=40)
    together = run(Engine(model, None, Sampling(), [11]), requests)
    for request in requests[::7]:
        alone = run(Engine(model, None, Sampling(), [11]), [request])
        assert alone[request.row].token_ids == together[request.row].token_ids


@pytest.mark.parametrize("sampling", [Sampling(0.7), Sampling(1.0, top_k=5), GREEDY])
def test_recorded_logprobs_are_those_of_a_full_forward(sampling: Sampling) -> None:
    model = make_model(FAMILIES["llama-rope-scaled"])
    requests = make_requests(groups=2, samples=3, budget=24)
    done = run(Engine(model, None, sampling, [], max_rows=4), requests)
    for request in requests:
        stopped = done[request.row]
        logits = model(torch.tensor([request.prompt_ids + stopped.token_ids])).logits[0].double()
        logits = logits[len(request.prompt_ids) - 1 : -1] / (sampling.temperature or 1.0)
        if sampling.top_k:
            logits[logits < logits.topk(5).values[:, -1:]] = -torch.inf
        expected = logits.log_softmax(-1)[range(len(stopped.token_ids)), stopped.token_ids]
        assert stopped.logprobs == pytest.approx(expected.tolist(), abs=1e-4)


def test_sorting_the_slots_changes_no_row() -> None:
    """Long and short rows in turn, so that every band holds a long one until they are sorted."""
    model = make_model(FAMILIES["qwen2"], torch.float64)
    requests = [Request(i, [i] * (30 if i % 2 else 1), row_key(0, i, 0), 60, True) for i in range(16)]
    engine = Engine(model, None, Sampling(), [])
    together = run(engine, requests)
    assert engine.counts["sorts"] > 0
    for request in requests[:4]:
        alone = run(Engine(model, None, Sampling(), []), [request])
        assert alone[request.row].token_ids == together[request.row].token_ids


def test_the_prompt_of_a_group_is_computed_once() -> None:
    """1 x 20 prompt tokens, of which the other 7 samples feed only the last, and 8 x (10 - 1) sampled ones."""
    model = make_model(FAMILIES["qwen2"])
    requests = [Request(i, list(range(20)), row_key(0, 0, i), 10, True) for i in range(8)]
    for max_rows in (0, 2):
        engine = Engine(model, None, Sampling(), [], max_rows)
        run(engine, requests)
        assert engine.counts["tokens"] == 20 + 7 + 8 * 9


def test_finished_rows_leave_the_computation() -> None:
    """Rows of 1, 2, ... 10 tokens after a prompt of one: each sampled token costs one row-step, no more."""
    model = make_model(FAMILIES["qwen2"])
    requests = [Request(i, [i], row_key(0, i, 0), i + 1, True) for i in range(10)]
    engine = Engine(model, None, Sampling(), [])
    run(engine, requests)
    assert engine.counts["tokens"] == sum(range(1, 11))
    assert engine.counts["forwards"] == 10


def test_a_row_that_cannot_fit_is_refused_by_name() -> None:
    engine = Engine(make_model(FAMILIES["qwen2"]), None, Sampling(), [], kv_tokens=20)
    with pytest.raises(ConfigError, match="20 tokens cannot hold a row of 21"):
        engine.submit(Request(0, [1, 2, 3, 4, 5], 0, 16, True))


def test_new_weights_are_used_and_old_keys_forgotten() -> None:
    model = make_model(FAMILIES["qwen2"])
    engine = Engine(model, None, GREEDY, [])
    request = Request(0, [1, 2, 3], 0, 16, True)
    before = run(engine, [request])[0].token_ids
    model.load_state_dict(make_model(FAMILIES["qwen2"], seed=1).state_dict())
    after = run(engine, [request])[0].token_ids
    assert after != before
    assert_same_unless_tied(model, [1, 2, 3], after, greedy(model, [1, 2, 3], 16))


def test_the_model_is_given_back_as_it_was() -> None:
    model = make_model(FAMILIES["qwen2"]).train()
    model.model.norm.eval()
    forwards = [module.forward for module in model.modules()]
    attention = model.config._attn_implementation
    run(Engine(model, None, Sampling(), []), make_requests(1, 2, 4))
    assert model.config._attn_implementation == attention
    assert [module.forward for module in model.modules()] == forwards
    assert [name for name, module in model.named_modules() if not module.training] == ["model.norm"]

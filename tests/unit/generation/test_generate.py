"""The readable generator against plain forwards of the same model: log-probs, draws, batches, checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

from grpo_tir.data.tokens import find_eos_ids
from grpo_tir.engine.fast_draw import fast_draw
from grpo_tir.generation.generate import GenerateRounds
from grpo_tir.generation.protocol import Request
from grpo_tir.generation.sampling import Sampling, draw, row_key, uniforms
from grpo_tir.generation.stopping import CodeBlockStopping
from grpo_tir.testing import ScriptedExecutor, byte_tokenizer
from grpo_tir.tools.python import PythonTool
from grpo_tir.types import Rollout
from scripted import BYTES, FORTY_TWO, GREEDY, UrnModel, empty_rollouts, ids, make_loop, script_model

TOKENIZER = byte_tokenizer(["```python\n", "print(1)\n", "```\n", "```output", "out", "put"])
PROMPTS = [
    "a",
    "what is 6*7?",
    "b b",
    "a somewhat longer question, so that rows are padded",
    "?",
    "xy",
    "zzz",
    "end",
]


def tiny_qwen(dtype: torch.dtype = torch.float32) -> Any:
    """A random Qwen2 that likes to call: the pieces of a call get a constant on their logits."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(TOKENIZER), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
        eos_token_id=TOKENIZER.eos_token_id, bos_token_id=None, pad_token_id=None, tie_word_embeddings=False,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config).to(dtype).eval()
    for name, parameter in model.named_parameters():
        if "norm" not in name and "bias" not in name:
            parameter.data.normal_(0, 0.3)
    bias = torch.zeros(len(TOKENIZER), dtype=dtype)
    bias[256:] = 4.0  # the pieces of a call
    bias[TOKENIZER.eos_token_id] = 1.0

    def add_bias(module: Any, inputs: Any, output: Any) -> None:
        output.logits = output.logits + bias

    model.register_forward_hook(add_bias)
    return model


def sample(model: Any, prompts: list[str] = PROMPTS, *, only: int | None = None, **settings: Any) -> list[Rollout]:
    rollouts = empty_rollouts(prompts, TOKENIZER)
    chosen = rollouts if only is None else [rollouts[only]]
    tool = PythonTool(ScriptedExecutor(FORTY_TWO))
    make_loop(model, tool, TOKENIZER, **{"c": 2, "budget": 60, "sampling": Sampling(), **settings}).run(chosen)
    return chosen


def full_logits(model: Any, rollout: Rollout) -> torch.Tensor:
    """(T, V) that the model gives to each response token, from one forward without cache or padding."""
    with torch.no_grad():
        logits = model(torch.tensor([rollout.prompt_ids + rollout.token_ids])).logits[0]
    return logits[len(rollout.prompt_ids) - 1 : -1]


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.3])
def test_recorded_logprobs_are_those_of_a_full_forward_at_temperature(temperature: float) -> None:
    model = tiny_qwen()
    rollouts = sample(model, sampling=Sampling(temperature), seed=3)
    assert sum(len(r.calls) for r in rollouts) >= 4
    for rollout in rollouts:
        expected = (full_logits(model, rollout) / temperature).log_softmax(-1)
        expected = expected.gather(1, torch.tensor(rollout.token_ids)[:, None])[:, 0]
        mask = torch.tensor(rollout.loss_mask, dtype=torch.bool)
        recorded = torch.tensor(rollout.logprobs)
        assert torch.allclose(recorded[mask], expected[mask], atol=1e-4)
        assert (recorded[~mask] == 0).all()


def test_every_token_is_the_keyed_draw_of_its_own_position() -> None:
    """Position counts response tokens, the tool's included; the key is that of the rollout."""
    model = tiny_qwen(torch.float64)
    for rollout in sample(model, seed=11):
        logits = full_logits(model, rollout)
        key = torch.tensor([row_key(11, rollout.group, rollout.sample)])
        for position, (token, flag) in enumerate(zip(rollout.token_ids, rollout.loss_mask, strict=True)):
            if flag:
                u = uniforms(key, torch.tensor([position]))
                assert draw(logits[position : position + 1], u, Sampling())[0].item() == token


@pytest.fixture(scope="module", params=[0, 3], ids=["one wave", "waves of 3"])
def batch(request: pytest.FixtureRequest) -> list[Rollout]:
    return sample(tiny_qwen(torch.float64), seed=5, max_rows=request.param)


@pytest.mark.parametrize("only", range(len(PROMPTS)))
def test_a_rollout_is_the_same_alone_and_in_a_batch(batch: list[Rollout], only: int) -> None:
    (alone,) = sample(tiny_qwen(torch.float64), only=only, seed=5)
    assert batch[only].token_ids == alone.token_ids
    assert batch[only].loss_mask == alone.loss_mask
    assert batch[only].finish_reason == alone.finish_reason
    assert batch[only].logprobs == pytest.approx(alone.logprobs, abs=1e-6)


def test_greedy_takes_the_most_likely_token_of_a_full_forward() -> None:
    model = tiny_qwen(torch.float64)
    for rollout in sample(model, sampling=GREEDY):
        best = full_logits(model, rollout).argmax(-1).tolist()
        said = [(b, t) for b, t, flag in zip(best, rollout.token_ids, rollout.loss_mask, strict=True) if flag]
        assert all(b == t for b, t in said)


def test_other_seeds_groups_and_samples_draw_other_tokens() -> None:
    model = tiny_qwen()
    texts = {tuple(sample(model, ["a"], seed=seed)[0].token_ids) for seed in range(4)}
    texts |= {tuple(r.token_ids) for r in sample(model, ["a"] * 4, seed=9)}
    assert len(texts) == 8


def test_the_checkpoints_own_generation_config_changes_nothing(tmp_path: Path) -> None:
    """A checkpoint that says temperature 0.1, top-k 1, a repetition penalty and a minimal length."""
    model = tiny_qwen()
    plain = [r.token_ids for r in sample(model, seed=7)]
    leaks = GenerationConfig(
        do_sample=True, temperature=0.1, top_k=1, top_p=0.1, repetition_penalty=5.0, no_repeat_ngram_size=1,
        min_new_tokens=50, max_new_tokens=3, eos_token_id=TOKENIZER.eos_token_id, bad_words_ids=[[256]],
        suppress_tokens=[257], num_beams=1,
    )  # fmt: skip
    leaks.save_pretrained(tmp_path)
    model.generation_config = GenerationConfig.from_pretrained(tmp_path)
    assert [r.token_ids for r in sample(model, seed=7)] == plain
    assert model.generation_config.temperature == 0.1, "the checkpoint's own settings must survive the round"


def test_the_checkpoints_settings_come_back_after_a_failure() -> None:
    model = tiny_qwen()
    theirs = model.generation_config
    model.forward = lambda *args, **rest: (_ for _ in ()).throw(RuntimeError("out of memory"))
    with pytest.raises(RuntimeError, match="out of memory"):
        sample(model)
    assert model.generation_config is theirs


# --- the draws ----------------------------------------------------------------------------------------------


def chi_square(counts: torch.Tensor, probabilities: torch.Tensor) -> float:
    expected = probabilities * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


def test_tokens_come_with_the_probabilities_of_the_policy() -> None:
    """Whole generate, 400 rows of 25 tokens; chi-square with 5 degrees of freedom: 20.5 at p = 0.001."""
    weights = {65: 0.35, 66: 0.3, 67: 0.2, 68: 0.1, 69: 0.04, 70: 0.01}
    model = UrnModel(weights, len(BYTES), BYTES.eos_token_id)
    rollouts = empty_rollouts(["Q"] * 400)
    make_loop(model, None, c=0, budget=25, seed=1, sampling=Sampling()).run(rollouts)
    tokens = torch.tensor([r.token_ids for r in rollouts])  # (400, 25)
    probabilities = torch.tensor(list(weights.values()))
    counts = torch.stack([(tokens == token).sum() for token in weights]).double()
    assert counts.sum() == tokens.numel()
    assert chi_square(counts, probabilities) < 20.5
    # neither does a token say anything about the one before it, or about its neighbour in the batch
    for first, second in ((tokens[:, :-1], tokens[:, 1:]), (tokens[:-1], tokens[1:])):
        pairs = torch.stack(
            [((first == 65) == a).logical_and((second == 65) == b).sum() for a in (0, 1) for b in (0, 1)]
        )
        p = torch.tensor([0.65 * 0.65, 0.65 * 0.35, 0.35 * 0.65, 0.35 * 0.35])
        assert chi_square(pairs.double(), p) < 16.3  # 3 degrees of freedom


def test_uniforms_are_uniform_over_rows_and_over_positions() -> None:
    keys = torch.tensor([row_key(0, group, s) for group in range(100) for s in range(16)])
    over_rows = uniforms(keys, torch.zeros_like(keys))
    over_positions = uniforms(keys[:1].expand(3000), torch.arange(3000))
    for u in (over_rows, over_positions):
        assert u.min() >= 0
        assert u.max() < 1
        counts = torch.histc(u, bins=20, min=0, max=1)
        assert chi_square(counts, torch.full((20,), 0.05, dtype=u.dtype)) < 43.8  # 19 degrees, p = 0.001
    assert len(keys.unique()) == len(keys)


def test_a_uniform_is_splitmix64_of_key_and_position() -> None:
    """Against the published algorithm on Python integers."""

    def splitmix64(state: int) -> int:
        z = state & (2**64 - 1)
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        return z ^ (z >> 31)

    for key in (0, 1, -1, row_key(3, 5, 7), -(2**63), 2**63 - 1):
        for position in (0, 1, 4095):
            bits = splitmix64(key + position * 0x9E3779B97F4A7C15)
            u = uniforms(torch.tensor([key]), torch.tensor([position]))
            assert u.item() == (bits >> 11) / 2**53


def test_a_token_without_probability_is_never_drawn() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(3, -1)
    u = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
    drawn, logprobs = draw(logits, u, Sampling())
    assert drawn.tolist() == [1, 3, 3]
    assert logprobs.tolist() == pytest.approx([-0.6931472] * 3)


@pytest.mark.parametrize("one_way", [draw, fast_draw])
def test_a_policy_that_has_diverged_still_draws_some_token(one_way: Any) -> None:
    """Its log-prob is nan, which the learner reports; an index out of range would be reported by nobody."""
    logits = torch.full((2, 130), torch.nan)
    drawn, logprobs = one_way(logits, torch.tensor([0.0, 0.9], dtype=torch.float64), Sampling())
    assert all(0 <= token < 130 for token in drawn.tolist())
    assert logprobs.isnan().all()


@pytest.mark.parametrize(
    ("sampling", "allowed"),
    [
        (Sampling(top_k=2), {0, 1}),
        (Sampling(top_p=0.5), {0}),
        (Sampling(top_p=0.51), {0, 1}),
        (Sampling(top_p=0.81), {0, 1, 2}),
        (Sampling(min_p=0.5), {0, 1}),
        (Sampling(top_k=3, top_p=0.7), {0, 1}),
        (Sampling(), {0, 1, 2, 3}),
    ],
)
def test_truncation_leaves_exactly_the_tokens_it_names(sampling: Sampling, allowed: set[int]) -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    u = torch.linspace(0, 1 - 1e-9, 400, dtype=torch.float64)
    drawn, logprobs = draw(probabilities.log().expand(400, -1), u, sampling)
    assert set(drawn.tolist()) == allowed
    kept = sum(probabilities[token].item() for token in allowed)
    expected = [(probabilities[token] / kept).log().item() for token in drawn.tolist()]
    assert logprobs.tolist() == pytest.approx(expected, abs=1e-5)


# --- the protocol -------------------------------------------------------------------------------------------


def rounds(turns: dict[str, list[str]], max_rows: int = 0) -> GenerateRounds:
    model = script_model(turns)
    return GenerateRounds(model.eval(), CodeBlockStopping(BYTES), GREEDY, find_eos_ids(model, BYTES), max_rows)


def test_a_parked_row_is_left_alone_until_it_is_resumed() -> None:
    generator = rounds({"A": ["```output", "x"], "B": ["y"]})
    generator.submit(Request(0, ids("A"), 0, 50, may_call=True))
    generator.submit(Request(1, ids("B"), 0, 50, may_call=True))
    first = {stop.row: stop.reason for stop in generator.step()}
    assert first == {0: "call", 1: "eos"}
    assert generator.step() == []
    generator.resume(0, ids("\n42\n```\n"), may_call=False)
    (stop,) = generator.step()
    assert (stop.row, stop.token_ids, stop.reason) == (0, [*ids("x"), BYTES.eos_token_id], "eos")
    assert generator.step() == []


def test_a_released_row_is_forgotten_and_its_name_may_be_used_again() -> None:
    generator = rounds({"A": ["```output", "x"], "B": ["y"]})
    generator.submit(Request(0, ids("A"), 0, 50, may_call=True))
    generator.step()
    generator.release(0)
    assert generator.step() == []
    generator.submit(Request(0, ids("B"), 0, 50, may_call=True))
    assert generator.step()[0].token_ids == [*ids("y"), BYTES.eos_token_id]


def test_no_more_than_max_rows_are_decoded_together() -> None:
    generator = rounds({name: ["x"] for name in "ABCDE"}, max_rows=2)
    for row, name in enumerate("ABCDE"):
        generator.submit(Request(row, ids(name), 0, 50, may_call=True))
    assert [[stop.row for stop in generator.step()] for _ in range(4)] == [[0, 1], [2, 3], [4], []]


def test_end_of_text_ids_come_from_tokenizer_config_and_generation_config() -> None:
    model = script_model({"A": [""]}, eos_token_id=[7, BYTES.eos_token_id])
    model.generation_config = GenerationConfig(eos_token_id=[9, 7])
    assert find_eos_ids(model, BYTES) == [BYTES.eos_token_id, 7, 9]


def test_a_round_ends_when_no_row_may_continue() -> None:
    """A row with 3 tokens left is not decoded on while nothing is left to do for the others."""
    model, forwards = tiny_qwen(), list[int]()
    eos = find_eos_ids(model, TOKENIZER)
    model.register_forward_hook(lambda *_: forwards.append(1))
    generator = GenerateRounds(model, CodeBlockStopping(TOKENIZER), Sampling(), eos)
    generator.submit(Request(0, ids("a", TOKENIZER), row_key(0, 0, 0), 3, False))
    generator.submit(Request(1, ids("b", TOKENIZER), row_key(0, 0, 1), 200, False))
    ends = {stop.row: len(stop.token_ids) for stop in generator.step()}
    assert ends[0] <= 3 and len(forwards) == max(ends.values()) < 200

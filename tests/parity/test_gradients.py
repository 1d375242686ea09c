"""The gradient is that of the sampled tokens and of nothing else, however the batch is cut."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPT2Config, GPT2LMHeadModel

from grpo_tir.config import Config
from grpo_tir.distributed.runtime import Runtime
from grpo_tir.learning.batching import collate, to_row
from grpo_tir.learning.learner import Learner
from grpo_tir.learning.loss import grpo_loss
from grpo_tir.types import RolloutGroup
from tiny_policy import (
    VOCABULARY,
    change,
    gradient_of,
    make_groups,
    make_learner,
    make_rollout,
    tiny_qwen2,
    update,
)

OPTIONS: dict[str, dict[str, Any]] = {
    "token": {},
    "sequence": {"algorithm__aggregation": "sequence"},
    "constant": {"algorithm__aggregation": "constant"},
    "gspo": {"algorithm__ratio": "sequence"},
}


def distance(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Relative difference of two gradients as one long vector."""
    assert ours.keys() == theirs.keys() and ours
    a, b = (torch.cat([grads[name].flatten() for name in sorted(grads)]).double() for grads in (ours, theirs))
    assert b.norm() > 1e-4
    return float((a - b).norm() / b.norm())


def plain_gradient(groups: list[RolloutGroup], aggregation: str, longest: int) -> dict[str, torch.Tensor]:
    """From first principles: row by row, full logits, a loop over tokens, ratio 1."""
    model = tiny_qwen2().double()
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    lengths = [sum(rollout.loss_mask) for rollout in rollouts]
    loss = torch.zeros((), dtype=torch.float64)
    for rollout, length in zip(rollouts, lengths, strict=True):
        ids = torch.tensor([rollout.prompt_ids + rollout.token_ids])
        table = model(input_ids=ids).logits[0].log_softmax(-1)
        weight = {
            "token": 1 / sum(lengths),
            "sequence": 1 / (length * len(rollouts)),
            "constant": 1 / (len(rollouts) * longest),
        }[aggregation]
        position = len(rollout.prompt_ids)
        for segment in rollout.segments:
            for token in segment.token_ids:
                if segment.kind == "model":
                    loss = loss - weight * rollout.advantage * table[position - 1, token]
                position += 1
    loss.backward()
    return {name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
def test_learner_computes_the_policy_gradient_of_a_loop_over_tokens(aggregation: str, tmp_path: Path) -> None:
    groups = make_groups()
    options: dict[str, Any] = {"algorithm__aggregation": aggregation, "rollout__max_completion_length": 70}
    ours = gradient_of(tiny_qwen2(), groups, tmp_path, **options)
    assert distance(ours, plain_gradient(groups, aggregation, 70)) < 1e-5


@pytest.mark.parametrize("name", OPTIONS)
def test_gradient_does_not_depend_on_how_the_batch_is_cut_or_ordered(name: str, tmp_path: Path) -> None:
    groups = make_groups()
    whole = gradient_of(tiny_qwen2(), groups, tmp_path, optim__micro_batch_tokens=4096, **OPTIONS[name])
    for budget in (1, 64, 256, 1024):
        cut = gradient_of(tiny_qwen2(), groups, tmp_path, optim__micro_batch_tokens=budget, **OPTIONS[name])
        assert distance(cut, whole) < 1e-5, f"micro_batch_tokens {budget}"
    shuffled = [
        RolloutGroup(group.problem, random.Random(1).sample(group.rollouts, len(group.rollouts)))
        for group in reversed(groups)
    ]
    mixed = gradient_of(tiny_qwen2(), shuffled, tmp_path, optim__micro_batch_tokens=100, **OPTIONS[name])
    assert distance(mixed, whole) < 1e-5


def test_gradient_checkpointing_changes_nothing(tmp_path: Path) -> None:
    plain, frugal = tiny_qwen2(), tiny_qwen2()
    getattr(frugal, "activation_checkpointing_enable", frugal.gradient_checkpointing_enable)()
    ours, theirs = (gradient_of(model, make_groups(), tmp_path) for model in (frugal, plain))
    assert distance(ours, theirs) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("packing", [True, False])
def test_compiling_changes_nothing(packing: bool, recomputed: bool, tmp_path: Path) -> None:
    """All four layers share their graphs, whatever the lengths of the micro-batches."""
    torch._dynamo.reset()
    counters.clear()
    options = {"optim__packing": packing, "optim__micro_batch_tokens": 64}
    plain, model = tiny_qwen2(num_hidden_layers=4), tiny_qwen2(num_hidden_layers=4)
    if recomputed:
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    methods = [layer.forward for layer in model.model.layers]
    compiled = gradient_of(model, make_groups(), tmp_path, model__compile=True, **options)
    assert 2 <= counters["stats"]["unique_graphs"] <= 8
    assert distance(compiled, gradient_of(plain, make_groups(), tmp_path, **options)) < 1e-5
    assert [layer.forward for layer in model.model.layers] == methods  # the engine decodes with the same layers


def test_compiled_layers_compute_nothing_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, a graph that takes a scalar tensor from the CPU runs a C++ compiler, for a minute or more."""
    torch._dynamo.reset()
    inputs: list[torch.Tensor] = []

    def record(graph: Any, examples: list[Any]) -> Any:
        inputs.extend(example for example in examples if isinstance(example, torch.Tensor))
        return graph

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=record))
    gradient_of(tiny_qwen2(), make_groups(), tmp_path, model__compile=True)
    assert inputs and all(tensor.dim() for tensor in inputs)


@pytest.mark.slow
def test_choosing_layers_leaves_no_gradient(tmp_path: Path) -> None:
    weights, lines = [], list[str]()
    for chosen in (True, False):
        learner = make_learner(tiny_qwen2())
        learner.layers.chosen, learner.layers.log = chosen, lines.append
        update(learner, make_groups(), 0, tmp_path)
        assert learner.layers.chosen
        weights.append({name: p.detach() for name, p in learner.module.named_parameters()})
    assert distance(*weights) < 1e-7
    assert len(lines) == 2 and "takes about a minute" in lines[0]
    assert "plain" in lines[1] and "compiled" in lines[1]


class CountCasts(TorchDispatchMode):
    """Count the casts of a model's parameters."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.addresses = {parameter.data_ptr() for parameter in model.parameters()}
        self.casts = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.casts += func is torch.ops.aten._to_copy.default and args[0].data_ptr() in self.addresses
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_bf16_weights_are_made_once_a_step(
    checkpointing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of 14 matrices, 6 biases and the head is cast once, not once a micro-batch, and no bit changes."""
    gradients = []
    for apart in (False, True):
        model = tiny_qwen2(tie_word_embeddings=False)
        if checkpointing:
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        runtime = Runtime("bf16")
        learner = Learner(runtime, model, change(Config(), optim__micro_batch_tokens=64))
        learner.module.logits_mb = 4 * 4 * VOCABULARY / 2**20  # the head in chunks of 4 tokens
        with learner.updating(0), CountCasts(model) as counted:
            (batch,) = learner.mini_batches(make_groups())
            if apart:  # the cache is emptied after every forward
                monkeypatch.setattr(learner.statistics, "add", lambda **_: torch.clear_autocast_cache())
            learner.backward(batch)
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
        assert counted.casts == 21 if not apart else counted.casts >= 3 * 21
    assert all(torch.equal(ours, gradients[1][name]) for name, ours in gradients[0].items())


def tiny_gpt2(dropout: float) -> GPT2LMHeadModel:
    """A model whose dropout lies in modules; Qwen2's is a number that its attention is called with."""
    torch.manual_seed(0)
    rates = {name: dropout for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop")}
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.1}
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=2048, **shape, **rates)).eval()


MODELS = {"qwen2": lambda rate: tiny_qwen2(attention_dropout=rate), "gpt2": tiny_gpt2}


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_dropout_of_the_checkpoint_is_off_while_learning(name: str, packing: bool, tmp_path: Path) -> None:
    # with it the trained log-probs would not be those of the policy that sampled
    with_dropout, without = (
        gradient_of(MODELS[name](rate), make_groups(), tmp_path, optim__packing=packing) for rate in (0.5, 0.0)
    )
    assert distance(with_dropout, without) < 1e-6


class PerturbedTool(torch.nn.Module):
    """A head whose logits are changed at every position that predicts a token of `positions`."""

    def __init__(self, head: torch.nn.Linear, noise: torch.Tensor) -> None:
        super().__init__()
        self.head, self.noise = head, noise  # (B, T, V)

    @property
    def weight(self) -> torch.Tensor:
        return self.head.weight

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.head(hidden) + self.noise


@pytest.mark.parametrize("c", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("name", OPTIONS)
def test_logits_of_tool_tokens_reach_no_gradient(c: int, name: str, tmp_path: Path) -> None:
    """The model's own forward makes all logits (as of a family with capped logits); those that predict tool
    tokens, the prompt or nothing are then changed at random, and those of model tokens as a control."""
    rng = random.Random(c)
    rollouts = [make_rollout(rng, c, advantage) for advantage in (1.0, -0.6, 0.3)]
    groups = [RolloutGroup(rollouts[0].problem, rollouts)]
    batch = collate(sorted((to_row(r) for r in rollouts), key=lambda r: -len(r.token_ids)), torch.device("cpu"))
    predicts_model = torch.nn.functional.pad(batch.loss_mask, (0, 1))[
        :, 1:
    ].bool()  # (B, T) of the position before
    torch.manual_seed(7)
    noise = 5 * torch.randn(*batch.input_ids.shape, VOCABULARY)
    gradients = []
    for disturbance in (
        torch.zeros_like(noise),
        noise * ~predicts_model[..., None],
        noise * predicts_model[..., None],
    ):
        model = tiny_qwen2(tie_word_embeddings=False)
        model.config.logit_scale = 2.0  # not a plain head: the learner asks the model for all of its logits
        model.lm_head = PerturbedTool(model.lm_head, disturbance)
        gradients.append(gradient_of(model, groups, tmp_path, **OPTIONS[name]))
    clean, at_tool, at_model = gradients
    assert all(torch.equal(clean[key], at_tool[key]) for key in clean)
    assert distance(at_model, clean) > 0.1


@pytest.mark.parametrize("c", [1, 2, 3, 4])
def test_tool_tokens_steer_what_follows_but_are_not_learnt(c: int, tmp_path: Path) -> None:
    """Through the usual path, which makes no logits at tool tokens at all: other tool tokens change the gradient
    (the model read them), yet none of it pushes their own probability: the head's rows of ids that only the
    tool writes move by the softmax alone, downwards or upwards with the sign of the advantage, never both."""
    rng = random.Random(c)
    rollout = make_rollout(rng, c, 1.0)
    only_tool = VOCABULARY - 1
    for segment in rollout.segments:
        if segment.kind == "tool":
            segment.token_ids[:] = [only_tool] * len(segment.token_ids)
        else:
            segment.token_ids[:] = [token % only_tool for token in segment.token_ids]
    model = tiny_qwen2(tie_word_embeddings=False)
    ours = gradient_of(model, [RolloutGroup(rollout.problem, [rollout])], tmp_path)["lm_head.weight"]
    ids = torch.tensor([rollout.prompt_ids + rollout.token_ids])
    with torch.no_grad():
        hidden = model.model(input_ids=ids).last_hidden_state[0]
        chance = model.lm_head(hidden).softmax(-1)[:, only_tool]  # (T,)
    before_model = [t - 1 for t, flag in enumerate(to_row(rollout).loss_mask) if flag]
    # -A log p(token): d/d(head row of an id that is never chosen) = + A p(id) hidden, summed over model tokens
    expected = sum(chance[t] * hidden[t] for t in before_model) / len(before_model)
    torch.testing.assert_close(ours[only_tool], expected, rtol=1e-4, atol=1e-6)


def test_rollout_that_is_not_trained_leaves_no_trace(tmp_path: Path) -> None:
    groups = make_groups()
    groups[0].rollouts[1].trained = False
    fewer = make_groups()
    del fewer[0].rollouts[1]
    ours, theirs = (gradient_of(tiny_qwen2(), g, tmp_path) for g in (groups, fewer))
    assert distance(ours, theirs) < 1e-6


def test_several_updates_take_the_ratio_against_the_policy_that_sampled(tmp_path: Path) -> None:
    """Two mini-batches by hand: the second gradient is taken at moved weights, with old log-probs of before."""
    groups = make_groups(groups=2)
    # a large eps: Adam would blow the rounding of tiny gradients up to whole steps
    optimum: dict[str, float] = {"lr": 0.05, "weight_decay": 0.0, "eps": 1e-2}
    values: dict[str, Any] = {"algorithm__mini_batches": 2, **{f"optim__{k}": v for k, v in optimum.items()}}
    learner = make_learner(tiny_qwen2(), **values)
    update(learner, groups, 0, tmp_path)

    model = tiny_qwen2()
    optimizer = torch.optim.AdamW(model.parameters(), **optimum)
    batches = [collate([to_row(r) for r in group.rollouts], torch.device("cpu")) for group in groups]
    reader = make_learner(model, **values).module
    with torch.no_grad():
        old = [reader(b.input_ids, b.attention_mask, b.loss_mask)[0] for b in batches]
    for batch, before in zip(batches, old, strict=True):
        logprobs, _ = reader(batch.input_ids, batch.attention_mask, batch.loss_mask)
        loss, info = grpo_loss(logprobs, before, batch.advantages, batch.loss_mask)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert info["clipped_low"] + info["clipped_high"] > 0, "the first update is too small to be seen in the second"
    ours, theirs = learner.module.model.state_dict(), model.state_dict()
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)

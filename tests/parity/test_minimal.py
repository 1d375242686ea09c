"""The one-file version and the trainer are the same algorithm: same draws, rewards, advantages and weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo_tir.config import Config
from grpo_tir.executor.open import open_executor
from grpo_tir.grading import default_grader, model_answer
from grpo_tir.minimal import Minimal
from grpo_tir.train import Trainer
from grpo_tir.types import RolloutGroup
from tiny_policy import change
from training_run import prepare

STEPS, SEED = 3, 5


def is_right(turns: list[str], answer: str) -> bool:
    return default_grader().grade(model_answer(turns), answer).outcome == "right"


@pytest.mark.parametrize("calls", [0, 1, 2])
def test_three_steps_of_the_trainer_and_of_the_minimal_version_are_equal(
    calls: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adam divides by the gradient's size; the larger eps keeps rounding of tiny gradients out of the weights."""
    monkeypatch.chdir(tmp_path)
    # Golds are boxes that the model of `prepare` writes by chance, so that rewards differ within a group.
    problems = [(f"What is {i}?", str(i % 30)) for i in range(6)]
    rows = [{"id": str(i), "problem": text, "answer": gold} for i, (text, gold) in enumerate(problems)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare(tmp_path)
    config = change(
        Config(),
        model__path="model",
        model__precision="fp32",
        data__train="p.jsonl",
        data__template="plain",
        data__max_prompt_length=100,
        rollout__prompts_per_step=2,
        rollout__samples_per_prompt=8,
        rollout__max_completion_length=40,
        rollout__generator="generate",
        tool__max_tool_calls=calls,
        executor__kind="process",
        executor__slots=2,
        reward__code_penalty=0.0,
        optim__lr=1e-2,
        optim__eps=1e-4,
        train__steps=STEPS,
        train__seed=SEED,
        train__eval_every=0,
        train__save_every=0,
        train__report_to=[],
        train__output_dir=str(tmp_path / "run"),
    )
    batches: list[list[RolloutGroup]] = []
    trainer = Trainer(config)
    assign = "grpo_tir.train.assign_advantages"
    from grpo_tir.learning.advantages import assign_advantages

    monkeypatch.setattr(
        assign, lambda groups, options: (batches.append(groups), assign_advantages(groups, options))
    )
    try:
        trainer.parts.policy.model.double()
        start = {name: p.detach().clone() for name, p in trainer.parts.policy.model.named_parameters()}
        for _ in range(STEPS):
            trainer.step()
        trained = {name: p.detach().clone() for name, p in trainer.parts.policy.model.named_parameters()}
    finally:
        trainer.close()

    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained("model").double()
    optim = config.optim
    with open_executor(config.executor, log=lambda _: None) as executor:
        minimal = Minimal(
            model, AutoTokenizer.from_pretrained("model"), problems, executor.run, is_right,
            prompts=2, samples=8, max_tokens=40, max_calls=calls, lr=optim.lr, eps=optim.eps,
            seed=SEED,
        )  # fmt: skip
        for groups in batches:
            ours = [response for group in minimal.step() for response in group]
            theirs = [rollout for group in groups for rollout in group.rollouts]
            assert [r.ids for r in ours] == [r.token_ids for r in theirs]
            assert [r.mask for r in ours] == [r.loss_mask for r in theirs]
            assert [r.reward for r in ours] == [r.reward.value for r in theirs if r.reward]
            assert [r.advantage for r in ours] == pytest.approx([r.advantage for r in theirs], abs=1e-12)
            assert sum(r.calls for r in ours) == sum(len(r.calls) for r in theirs)
    assert calls == 0 or any(r.calls for r in ours), "the model of `prepare` calls its tool"
    moved = max((trained[name] - start[name]).abs().max().item() for name in start)
    assert moved > 1e-4, "nothing was learned: the comparison would be empty"
    weights = dict(model.named_parameters())
    torch.testing.assert_close({n: weights[n].detach() for n in trained}, trained, rtol=0, atol=1e-6)

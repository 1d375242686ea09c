"""The loss and its gradient equal TRL's on the same batch: `GRPOTrainer._compute_loss` itself, run on a stand-in
for its trainer. Rows without a model token are left out of the batch: TRL counts them, and we do not."""

from __future__ import annotations

import collections
import types
from typing import Any

import pytest
import torch

from grpo_tir.learning.batching import to_row
from grpo_tir.learning.loss import grpo_loss
from tiny_policy import make_groups

trl = pytest.importorskip("trl.trainer.grpo_trainer", reason="trl is not installed: pip install trl==1.16.0")

LONGEST = 64
NAMES = {"token": "dapo", "sequence": "grpo", "constant": "dr_grpo", "cispo": "cispo"}


def stand_in(loss_type: str, level: str, beta: float, logprobs: torch.Tensor) -> Any:
    """What `_compute_loss` reads of its trainer: one process, no accumulation, the log-probs given."""
    accelerator = types.SimpleNamespace(
        num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x, gather_for_metrics=lambda x: x
    )
    arguments = types.SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1)
    return types.SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, torch.zeros_like(logprobs), None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=level,
        beta=beta,
        args=arguments,
        loss_type=loss_type,
        epsilon_low=0.2,
        epsilon_high=1.28 if loss_type == "cispo" else 0.28,  # of CISPO it is the largest weight itself
        use_vllm=False,
        model=types.SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        max_completion_length=LONGEST,
        accelerator=accelerator,
        _entropy_bonus_enabled=False,
        _metrics={"train": collections.defaultdict(list)},
    )


@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant", "cispo"])
def test_loss_and_gradient_equal_trl(aggregation: Any, level: Any, beta: float) -> None:
    torch.manual_seed(3)
    rollouts = [rollout for group in make_groups(seed=5) for rollout in group.rollouts]
    rows, prompts = [to_row(rollout) for rollout in rollouts], [len(rollout.prompt_ids) for rollout in rollouts]
    tool_mask = torch.zeros(len(rows), LONGEST)
    completion_mask = torch.zeros(len(rows), LONGEST)
    for i, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        assert len(row.token_ids) - prompt <= LONGEST
        tool_mask[i, : len(row.token_ids) - prompt] = torch.tensor(row.loss_mask[prompt:]).float()
        completion_mask[i, : len(row.token_ids) - prompt] = 1
    assert tool_mask.sum(1).min() > 0 and (completion_mask > tool_mask).any()
    old, ref = (-3 * torch.rand(tool_mask.shape, dtype=torch.float64) for _ in range(2))
    advantages = torch.tensor([rollout.advantage for rollout in rollouts], dtype=torch.float64)
    theirs = (-3 * torch.rand(tool_mask.shape, dtype=torch.float64)).requires_grad_()
    ours = theirs.detach().clone().requires_grad_()

    trainer = stand_in(NAMES[aggregation], level, beta, theirs)
    inputs = {
        "prompt_ids": torch.zeros(len(rows), 1, dtype=torch.long),
        "prompt_mask": torch.ones(len(rows), 1),
        "completion_ids": torch.zeros(tool_mask.shape, dtype=torch.long),
        "completion_mask": completion_mask,
        "tool_mask": tool_mask,
        "advantages": advantages,
        "old_per_token_logps": old,
        "ref_per_token_logps": ref,
        "num_items_in_batch": tool_mask.sum(),
    }
    expected = trl.GRPOTrainer._compute_loss(trainer, None, inputs)
    loss, info = grpo_loss(
        ours,
        old,
        advantages,
        tool_mask,
        aggregation="token" if aggregation == "cispo" else aggregation,
        objective="cispo" if aggregation == "cispo" else "clip",
        clip_low=1.0 if aggregation == "cispo" else 0.2,  # TRL's CISPO has no lower clip
        clip_high=0.28,
        ratio=level,
        ref_logprobs=ref,
        kl_coef=beta,
    )
    expected.backward()
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-12)
    assert theirs.grad is not None and theirs.grad.abs().max() > 0
    if level == "token" and aggregation != "cispo":  # per response, TRL counts rows where we count tokens
        measured = {name: values[-1] for name, values in trainer._metrics["train"].items()}
        for name in ("low", "high"):
            share = info[f"clipped_{name}"].item() / info["tokens"].item()
            assert share == pytest.approx(measured[f"clip_ratio/{name}_mean"], abs=1e-6) and share > 0

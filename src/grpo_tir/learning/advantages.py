"""Compute group-relative advantages (GRPO, arXiv 2402.03300, eq. 3).

    A_i = (r_i - mean(r)) / (std(r) + eps)          std with n - 1; Dr. GRPO does not divide

Mean and std are over the valid rollouts of a group. A rollout lost to an outage has no reward, and is left out of
mean, std and loss.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from grpo_tir.config import AlgorithmConfig
from grpo_tir.grading.extract import extract_answer
from grpo_tir.tools.python import find_code
from grpo_tir.types import Rollout, RolloutGroup


def group_advantages(rewards: Sequence[float], *, scale: bool = True, eps: float = 1e-6) -> list[float]:
    """Map rewards (G,) to advantages (G,). They are 0 if all rewards are equal, or if there is only one."""
    if is_flat(rewards):
        return [0.0] * len(rewards)
    mean = statistics.fmean(rewards)
    spread = statistics.stdev(rewards) + eps if scale else 1.0
    return [(reward - mean) / spread for reward in rewards]


def is_flat(rewards: Sequence[float]) -> bool:
    """True if all rewards are equal: such a group gives no gradient."""
    return len(set(rewards)) < 2


def assign_advantages(groups: Sequence[RolloutGroup], config: AlgorithmConfig) -> None:
    """Set `advantage` and `trained` of every rollout. An option may leave a rollout out of the loss. Its reward
    still counts in mean and std of its group."""
    for group in groups:
        valid = [r for r in group.rollouts if r.valid and r.reward is not None]
        rewards = group.rewards
        advantages = group_advantages(rewards, scale=config.scale_rewards, eps=config.advantage_eps)
        for rollout in group.rollouts:
            rollout.advantage, rollout.trained = 0.0, False
        for rollout, advantage in zip(valid, advantages, strict=True):
            rollout.advantage = advantage
            rollout.trained = not (
                (config.drop_flat_groups and is_flat(rewards))
                or (config.mask_overlong and rollout.finish_reason == "length")
                or (config.mask_void_turns and has_void_turn(rollout))
            )


def has_void_turn(rollout: Rollout) -> bool:
    """True if some turn has neither a closed code block nor a final answer (SimpleTIR, arXiv 2509.02479)."""
    turns = [segment.text for segment in rollout.segments if segment.kind == "model"]
    return any(find_code(turn) is None and extract_answer(turn) is None for turn in turns)

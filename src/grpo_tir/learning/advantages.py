"""Compute group-relative advantages (GRPO, arXiv 2402.03300, eq. 3).

    A_i = (r_i - mean(r)) / (std(r) + eps)          std with n - 1; Dr. GRPO does not divide

Mean and std are over the valid rollouts of a group. A rollout lost to an outage has no reward, and is left out of
mean, std and loss. With `gtpo_gamma` each turn has an advantage of its own (`turns.py`).
"""

import statistics
from collections.abc import Sequence

from grpo_tir.config import AlgorithmConfig
from grpo_tir.learning.turns import has_void_turn, turn_returns
from grpo_tir.types import RolloutGroup


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
            rollout.advantage, rollout.turn_advantages, rollout.trained = 0.0, [], False
        returns = [turn_returns(r, config.gtpo_gamma) if config.gtpo_gamma else [] for r in valid]
        pooled = [value for turns in returns for value in turns]
        turn_advantages = iter(group_advantages(pooled, scale=config.scale_rewards, eps=config.advantage_eps))
        for rollout, advantage, turns in zip(valid, advantages, returns, strict=True):
            rollout.advantage = advantage
            rollout.turn_advantages = [next(turn_advantages) for _ in turns]
            rollout.trained = not (
                (config.drop_flat_groups and is_flat(rewards))
                or (config.mask_overlong and rollout.finish_reason == "length")
                or (config.mask_void_turns and has_void_turn(rollout))
            )

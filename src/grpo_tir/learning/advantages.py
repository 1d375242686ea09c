"""Compute group-relative advantages (GRPO, arXiv 2402.03300, eq. 3).

    A_i = (r_i - mean(r)) / (std(r) + eps)          std with n - 1; Dr. GRPO does not divide

Mean and std are over the valid rollouts of a group. A rollout lost to an outage has no reward, and is left out of
mean, std and loss. Two options change which rollouts a group has (`resample_on_correct`), and what the reward of a
turn is (`turn_returns`).
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Sequence

from grpo_tir.config import AlgorithmConfig
from grpo_tir.grading.extract import boxed_answers, extract_answer
from grpo_tir.tools.formats import native_calls
from grpo_tir.tools.python import find_code
from grpo_tir.types import Rollout, RolloutGroup

FORMAT_REWARD = -0.1
"""Reward of a turn whose call has no code, with `gtpo_gamma`."""
NO_FAULT = 1e-6
"""Value added to the penalty of a right response, so that its inverse is finite. Its small size gives responses
without faults nearly all of the probability."""


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


def has_void_turn(rollout: Rollout) -> bool:
    """True if some turn has neither a call nor a final answer (SimpleTIR, arXiv 2509.02479)."""
    return any(
        find_code(turn) is None and not native_calls(turn) and extract_answer(turn) is None
        for turn in _turns(rollout)
    )


def turn_returns(rollout: Rollout, gamma: float) -> list[float]:
    """Compute the discounted return of each turn (GTPO, arXiv 2511.14846):  R_j = r_j + gamma R_{j+1}.

    r_j is 0, plus the reward of the response at the last turn, plus `FORMAT_REWARD` at a turn whose call has no
    code. The advantage of a turn is its return, normalized over all turns of the group. As in the paper, the
    reward of a wrong answer should be 0: discounting a negative reward would favour wrong responses with more
    turns.
    """
    assert rollout.reward is not None
    rewards = [0.0] * len(_turns(rollout))
    for turn, call in enumerate(rollout.calls):
        if call.code is None:  # only in formats with one call a turn
            rewards[turn] += FORMAT_REWARD
    rewards[-1] += rollout.reward.value
    return [*itertools.accumulate(reversed(rewards), lambda later, reward: reward + gamma * later)][::-1]


def resample_on_correct(rollouts: Sequence[Rollout], number: int, seed: str) -> list[Rollout]:
    """Keep `number` rollouts of a group, usually G of 2 G (GRPO-RoC, arXiv 2508.20722, section 2.2.3).

        wrong    floor(number x share of wrong), each with the same probability
        right    the rest, with probabilities ~ 1 / (p_err + p_format)

    Rollouts that were not judged stay, so that they are counted. Draws depend on `seed` only.
    """
    rng = random.Random(seed)
    right = [r for r in rollouts if r.valid and r.reward is not None and r.reward.parts.get("correct")]
    wrong = [r for r in rollouts if r.valid and r.reward is not None and not r.reward.parts.get("correct")]
    number = min(number, len(right) + len(wrong))
    kept_wrong = number * len(wrong) // max(len(right) + len(wrong), 1)
    # Weighted draws without replacement: the largest log(u) / weight (Efraimidis and Spirakis, 2006).
    right.sort(key=lambda r: math.log(1.0 - rng.random()) * (fault_penalty(r) + NO_FAULT), reverse=True)
    dropped = {r.sample for r in [*rng.sample(wrong, len(wrong) - kept_wrong), *right[number - kept_wrong :]]}
    return [r for r in rollouts if r.sample not in dropped]


def fault_penalty(rollout: Rollout) -> float:
    """Compute p_err + p_format of GRPO-RoC.

    p_err       failed calls / calls; 0.5 without a call
    p_format    min(1, (answers - 1) / turns); 1 without an answer. An answer is a box outside of code.
    """
    calls, turns = rollout.calls, _turns(rollout)
    errors = sum(call.failed or call.code is None for call in calls)
    answers = sum(len(boxed_answers(turn)) for turn in turns)
    return (errors / len(calls) if calls else 0.5) + (min(1.0, (answers - 1) / len(turns)) if answers else 1.0)


def _turns(rollout: Rollout) -> list[str]:
    return [segment.text for segment in rollout.segments if segment.kind == "model"]

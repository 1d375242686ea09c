"""Judge responses by their turns: options that weigh each turn, or that choose among the responses of a group."""

import itertools
import math
import random
from collections.abc import Sequence

from grpo_tir.grading.extract import boxed_answers, extract_answer
from grpo_tir.tools.formats import native_calls
from grpo_tir.tools.python import find_code
from grpo_tir.types import Rollout

FORMAT_REWARD = -0.1
"""Reward of a turn whose call has no code, with `gtpo_gamma`."""
NO_FAULT = 1e-6
"""Value added to the penalty of a right response, so that its inverse is finite. Its small size gives responses
without faults nearly all of the probability."""


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

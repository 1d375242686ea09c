"""Custom reward: a right answer that the model did not check with code counts half.

grpo-tir train RECIPE --reward.function recipes/custom/reward.py:checked
"""

from grpo_tir.rollouts.rewards import math_reward
from grpo_tir.types import Problem, Reward, Rollout


def checked(problem: Problem, rollout: Rollout) -> Reward | None:
    """Return 1 for right and checked, 0.5 for right, 0 for wrong; None if the grader did not judge the answer."""
    graded = math_reward(problem, rollout)
    if graded is None:
        return None
    ran = any(call.result is not None and call.result.status == "ok" for call in rollout.calls)
    value = graded.parts["correct"] * (1.0 if ran else 0.5)
    return Reward(value, {**graded.parts, "checked": float(ran)})

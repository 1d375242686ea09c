"""Compute rule-based rewards (paper, section 3.3).

    R = +1 if the last box of the model's own text equals the gold answer, else -1
        -0.5 if some executed code failed                      (optional; the paper's ablation)
        call_penalty * executed calls                          (optional)
        -min(1, overrun of the soft limit / buffer)            (optional; DAPO eq. 13)

A custom reward is a function `reward(problem, rollout) -> Reward | None`. None means that the response could not
be judged, for a reason outside of it. Group statistics and loss then leave the response out.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from grpo_tir.config import RewardConfig
from grpo_tir.grading.extract import model_answer
from grpo_tir.grading.grader import Grader, default_grader
from grpo_tir.types import Problem, Reward, Rollout
from grpo_tir.utils.resources import load_object

RewardFunction = Callable[[Problem, Rollout], Reward | None]


def math_reward(
    problem: Problem, rollout: Rollout, grader: Grader | None = None, rounding: int = 0
) -> Reward | None:
    """Return 1 for a right final answer, else 0. `make_reward` maps these to the recipe's `correct` and `wrong`.

    Only model-written text is read, and in it only boxes outside of code (bug 18). An answer that hangs the grader
    is wrong. Returns None for an unusable gold answer or a grader outage.
    """
    texts = [segment.text for segment in rollout.segments if segment.kind == "model"]
    grade = (grader or default_grader()).grade(model_answer(texts), problem.answer, rounding)
    if grade.outcome == "unjudged":
        return None
    correct = float(grade.outcome == "right")
    return Reward(correct, {"correct": correct, **({"rounded": 1.0} if grade.rounded else {})})


def make_reward(config: RewardConfig, budget: int, given: RewardFunction | None = None) -> RewardFunction:
    """Make the recipe's reward: its function, or the `given` one, plus the optional penalties, each recorded in
    `parts`. `budget` is `max_completion_length` (tokens).

    Raises:
        ConfigError: `config.function` cannot be loaded.
    """
    function: RewardFunction = given or load_object(config.function)
    is_default = function is math_reward
    if is_default:
        function = partial(math_reward, rounding=0 if config.rounding == "exact" else int(config.rounding))

    def reward(problem: Problem, rollout: Rollout) -> Reward | None:
        base = function(problem, rollout)
        if base is None:
            return None
        if is_default:
            base = replace(base, value=config.correct if base.parts["correct"] else config.wrong)
        penalties = {
            "code_penalty": code_penalty(rollout, config),
            "call_penalty": config.call_penalty * sum(call.result is not None for call in rollout.calls),
            "overlong": overlong_penalty(len(rollout.token_ids), budget, config.soft_overlong_buffer),
        }
        used = {name: value for name, value in penalties.items() if value}
        return Reward(base.value + sum(used.values()), {**base.parts, **used})

    return reward


def code_penalty(rollout: Rollout, config: RewardConfig) -> float:
    """Return the penalty for a response in which any executed code failed. Every call counts, not only the last
    (bug 11). A response without executed code gets `no_code_penalty`, 0 by default (bug 12)."""
    executed = [call for call in rollout.calls if call.result is not None]
    if not executed:
        return config.no_code_penalty
    return config.code_penalty if any(call.failed for call in executed) else 0.0


def overlong_penalty(length: int, budget: int, buffer: int) -> float:
    """Return DAPO's eq. 13: 0 up to `budget - buffer` tokens, then linearly down to -1 at the budget."""
    if buffer <= 0:
        return 0.0
    return -min(1.0, max(0.0, (length - (budget - buffer)) / buffer))

"""Sample a batch of responses, for training, evaluation, `solve` and `doctor`: groups, generator and tool loop."""

from collections.abc import Sequence
from typing import Any

from grpo_tir.config import Config
from grpo_tir.data.prompts import Renderer
from grpo_tir.data.tokens import encode
from grpo_tir.distributed.runtime import Runtime
from grpo_tir.generation.sampling import Sampling
from grpo_tir.rollouts.policy import Policy
from grpo_tir.rollouts.rollout import RolloutLoop
from grpo_tir.tools.protocol import Tool
from grpo_tir.types import Problem, Rollout, RolloutGroup


def make_groups(
    problems: Sequence[Problem], render: Renderer, tokenizer: Any, samples: int, first_group: int
) -> list[RolloutGroup]:
    """Make G empty rollouts for each problem. Groups are numbered through the run, here from `first_group` on."""
    groups = []
    for ordinal, problem in enumerate(problems, start=first_group):
        prompt_ids = encode(tokenizer, render(problem))
        rollouts = [Rollout(problem, prompt_ids, group=ordinal, sample=sample) for sample in range(samples)]
        groups.append(RolloutGroup(problem, rollouts))
    return groups


def cost(group: RolloutGroup) -> float:
    """Estimate the cost of a group: longer problems get longer responses. A carried group has responses so far."""
    return len(group.rollouts[0].prompt_ids) + sum(len(rollout.token_ids) for rollout in group.rollouts)


def sample_responses(
    rollouts: list[Rollout],
    policy: Policy,
    tool: Tool | None,
    config: Config,
    runtime: Runtime,
    *,
    sampling: Sampling | None = None,
    fixed_waves: bool = False,
    **hooks: Any,
) -> float:
    """Sample rollouts to their end, in place.

    Args:
        rollouts: from `make_groups`, empty or carried over from an earlier step.
        policy: with its current weights. Under ZeRO-3 the caller gathers them first (`Policy.gathered`).
        tool: None only where no call is allowed.
        config: its sections `rollout`, `tool` and `train.seed` are read.
        runtime: gives the precision of the forward passes.
        sampling: distribution of the draws; default: that of the section `rollout`.
        fixed_waves: see `RolloutLoop`, as for the following.
        hooks: `run_tool`, `on_finish`, `check`, `enough` and `version`.

    Returns:
        Seconds in which no row could continue, because all waited for their tool.

    Raises:
        ExecutorOutage: the executor lost so many calls that it gave up.
    """
    budget, calls, seed = config.rollout.max_completion_length, config.tool.max_tool_calls, config.train.seed
    with runtime.autocast(), policy.generating(config, sampling, rollouts) as generator:
        loop = RolloutLoop(generator, tool, policy.tokenizer, budget, calls, seed, fixed_waves, **hooks)
        loop.run(rollouts)
    return loop.idle

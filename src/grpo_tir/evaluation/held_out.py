"""Measure accuracy on held-out problems during training.

Decoding is greedy, with one response to a problem and with the tool, as in the paper (section 4.1). Accuracy is
the share of right answers; penalties of the reward do not count (bug 17 of the reference). The grade of a response
does not depend on the other responses (bugs 2 and 19).
"""

from collections.abc import Callable, Sequence

from grpo_tir.config import Config
from grpo_tir.distributed.runtime import Runtime
from grpo_tir.distributed.signals import StopRequest
from grpo_tir.generation.sampling import Sampling
from grpo_tir.monitor.metrics import eval_metrics, summarize
from grpo_tir.rollouts.policy import Policy
from grpo_tir.rollouts.rewards import RewardFunction
from grpo_tir.rollouts.sample import cost, make_groups, sample_responses
from grpo_tir.tools.protocol import Tool
from grpo_tir.types import Problem, Rollout

EVALUATION = 1 << 40
"""Group numbers start here, so that no draw repeats one of training."""
GREEDY = Sampling(temperature=0.0)


def evaluate(
    policy: Policy,
    tool: Tool | None,
    reward: RewardFunction,
    problems: Sequence[Problem],
    config: Config,
    runtime: Runtime,
    stop: StopRequest,
) -> tuple[list[Rollout], dict[str, float | None]]:
    """Sample and grade one greedy response to each problem. All ranks must call it together; each takes a share.

    Returns:
        The rollouts of this rank, and the metrics of all ranks.

    Raises:
        Interrupted: on all ranks, as soon as one rank got a signal.
    """
    groups = make_groups(problems, policy.render, policy.tokenizer, 1, first_group=EVALUATION)
    groups = runtime.share(groups, cost)
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    with stop.abandonable(), policy.gathered(runtime, config):
        parts = policy, tool, reward, config, runtime
        complete(rollouts, *parts, GREEDY, config.train.deterministic, lambda finished, waiting: stop.check())
    summaries = runtime.gather([summarize(rollout, config.tool.max_tool_calls) for rollout in rollouts])
    return rollouts, eval_metrics(summaries)


def complete(
    rollouts: list[Rollout],
    policy: Policy,
    tool: Tool | None,
    reward: RewardFunction,
    config: Config,
    runtime: Runtime,
    sampling: Sampling,
    fixed_waves: bool = False,
    check: Callable[[int, int], None] = lambda finished, waiting: None,
) -> None:
    """Sample empty rollouts and grade them, in place. `check` is called between steps; it may raise to abandon."""
    sample_responses(
        rollouts, policy, tool, config, runtime, sampling=sampling, fixed_waves=fixed_waves, check=check
    )
    for number, rollout in enumerate(rollouts):
        check(number, 0)
        rollout.reward = reward(rollout.problem, rollout) if rollout.valid else None
        rollout.valid = rollout.reward is not None

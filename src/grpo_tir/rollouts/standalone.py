"""Sample outside of any run: `grpo_tir.rollout`."""

from collections.abc import Iterable
from typing import Any

from grpo_tir.config import Config, ExecutorConfig
from grpo_tir.data.prompts import make_renderer
from grpo_tir.distributed.runtime import Runtime
from grpo_tir.rollouts.policy import load_policy
from grpo_tir.rollouts.sample import make_groups, sample_responses
from grpo_tir.tools.open import open_tool, tool_schemas
from grpo_tir.tools.protocol import Tool
from grpo_tir.types import RolloutGroup
from grpo_tir.utils.objects import as_problems, name_of


def rollout(
    model: Any,
    tokenizer: Any,
    problems: Iterable[Any],
    *,
    samples: int = 1,
    tool: Tool | None = None,
    config: Config | None = None,
) -> list[RolloutGroup]:
    """Sample responses with tool calls. The rollouts have no rewards.

    Args:
        model: a causal language model. It stays on its device, in its precision.
        tokenizer: of the model.
        problems: `Problem`s, or mappings with `problem` and `answer`.
        samples: number of responses to each problem.
        tool: default: the tool of the config, opened for this call. A tool given here is not closed.
        config: its sections `data`, `rollout`, `tool`, `executor` and `train.seed` are read. Default: `Config()`
            with the executor `auto`.

    Raises:
        UserError: the problems, the model or the executor cannot be used.
    """
    # 1. Render the prompts.
    config = config or Config(executor=ExecutorConfig(kind="auto"))
    render = make_renderer(config.data.template, tokenizer, config.data.system, tool_schemas(config))
    groups = make_groups(as_problems(problems, config, "problems"), render, tokenizer, samples, first_group=0)
    # 2. Make a policy of the model.
    longest, was_training = max(len(group.rollouts[0].prompt_ids) for group in groups), model.training
    policy = load_policy(config, name_of(model), model.device, prompt_length=longest, loaded=(model, tokenizer))
    # 3. Sample.
    used = tool or open_tool(config, lambda line: None)
    try:
        rollouts = [each for group in groups for each in group.rollouts]
        sample_responses(rollouts, policy, used, config, Runtime(config.model.precision))
    finally:
        model.train(was_training)
        if used is not None and used is not tool:
            used.close()
    return groups

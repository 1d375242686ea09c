"""Train language models to reason with a Python tool: GRPO with tool calls (ToRL, arXiv 2503.23383).

The names below are the library. Each is imported when it is first used, so `import grpo_tir` loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from grpo_tir.config import (
        AlgorithmConfig,
        Config,
        DataConfig,
        ExecutorConfig,
        ModelConfig,
        OptimConfig,
        RewardConfig,
        RolloutConfig,
        ToolConfig,
        TrainConfig,
    )
    from grpo_tir.engine.engine import Engine
    from grpo_tir.executor.open import open_executor, run_code
    from grpo_tir.generation.stopping import CodeBlockStopping
    from grpo_tir.grading.grader import Grade, Grader, grade
    from grpo_tir.learning.advantages import group_advantages
    from grpo_tir.learning.loss import grpo_loss
    from grpo_tir.rollouts.rollout import rollout
    from grpo_tir.tools.protocol import Tool
    from grpo_tir.tools.python import PythonTool
    from grpo_tir.train import Trainer
    from grpo_tir.types import Problem, Reward, Rollout, RolloutGroup, ToolResult

_NAMES = {
    "config": "AlgorithmConfig Config DataConfig ExecutorConfig ModelConfig OptimConfig RewardConfig "
    "RolloutConfig ToolConfig TrainConfig",
    "engine.engine": "Engine",
    "executor.open": "open_executor run_code",
    "generation.stopping": "CodeBlockStopping",
    "grading.grader": "Grade Grader grade",
    "learning.advantages": "group_advantages",
    "learning.loss": "grpo_loss",
    "rollouts.rollout": "rollout",
    "tools.protocol": "Tool",
    "tools.python": "PythonTool",
    "train": "Trainer",
    "types": "Problem Reward Rollout RolloutGroup ToolResult",
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = [
    "AlgorithmConfig",
    "CodeBlockStopping",
    "Config",
    "DataConfig",
    "Engine",
    "ExecutorConfig",
    "Grade",
    "Grader",
    "ModelConfig",
    "OptimConfig",
    "Problem",
    "PythonTool",
    "Reward",
    "RewardConfig",
    "Rollout",
    "RolloutConfig",
    "RolloutGroup",
    "Tool",
    "ToolConfig",
    "ToolResult",
    "TrainConfig",
    "Trainer",
    "grade",
    "group_advantages",
    "grpo_loss",
    "open_executor",
    "rollout",
    "run_code",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module `grpo_tir` has no attribute `{name}`")
    return getattr(importlib.import_module(f"grpo_tir.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

"""Train language models to reason with a Python tool: GRPO with tool calls (ToRL, arXiv 2503.23383).

The names below are the library. Each is imported when it is first used, so `import grpo_tir` loads no torch.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# sympy and mpmath do without gmpy2 if it is installed: GMP ends the process where Python raises a MemoryError.
os.environ |= {"SYMPY_GROUND_TYPES": "python", "MPMATH_NOGMPY": "1", **os.environ}

if TYPE_CHECKING:
    from grpo_tir.config import AlgorithmConfig as AlgorithmConfig
    from grpo_tir.config import Config as Config
    from grpo_tir.config import DataConfig as DataConfig
    from grpo_tir.config import ExecutorConfig as ExecutorConfig
    from grpo_tir.config import ModelConfig as ModelConfig
    from grpo_tir.config import OptimConfig as OptimConfig
    from grpo_tir.config import RewardConfig as RewardConfig
    from grpo_tir.config import RolloutConfig as RolloutConfig
    from grpo_tir.config import ToolConfig as ToolConfig
    from grpo_tir.config import TrainConfig as TrainConfig
    from grpo_tir.engine.engine import Engine as Engine
    from grpo_tir.executor.open import open_executor as open_executor
    from grpo_tir.executor.open import run_code as run_code
    from grpo_tir.generation.stopping import CodeBlockStopping as CodeBlockStopping
    from grpo_tir.grading.grader import Grade as Grade
    from grpo_tir.grading.grader import Grader as Grader
    from grpo_tir.grading.grader import grade as grade
    from grpo_tir.learning.advantages import group_advantages as group_advantages
    from grpo_tir.learning.loss import grpo_loss as grpo_loss
    from grpo_tir.rollouts.rollout import rollout as rollout
    from grpo_tir.tools.protocol import Tool as Tool
    from grpo_tir.tools.python import PythonTool as PythonTool
    from grpo_tir.train import Trainer as Trainer
    from grpo_tir.types import Problem as Problem
    from grpo_tir.types import Reward as Reward
    from grpo_tir.types import Rollout as Rollout
    from grpo_tir.types import RolloutGroup as RolloutGroup
    from grpo_tir.types import ToolResult as ToolResult

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

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module `grpo_tir` has no attribute `{name}`")
    return getattr(importlib.import_module(f"grpo_tir.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

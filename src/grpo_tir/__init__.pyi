"""Declare the library. `__init__.py` reads here where each name is imported from, when it is first used."""

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
from grpo_tir.executor.standalone import run_code as run_code
from grpo_tir.generation.stopping import CodeBlockStopping as CodeBlockStopping
from grpo_tir.grading.grader import Grade as Grade
from grpo_tir.grading.grader import Grader as Grader
from grpo_tir.grading.grader import grade as grade
from grpo_tir.learning.advantages import group_advantages as group_advantages
from grpo_tir.learning.loss import grpo_loss as grpo_loss
from grpo_tir.rollouts.standalone import rollout as rollout
from grpo_tir.tools.protocol import Tool as Tool
from grpo_tir.tools.python import PythonTool as PythonTool
from grpo_tir.train import Trainer as Trainer
from grpo_tir.types import Problem as Problem
from grpo_tir.types import Reward as Reward
from grpo_tir.types import Rollout as Rollout
from grpo_tir.types import RolloutGroup as RolloutGroup
from grpo_tir.types import ToolResult as ToolResult

__version__: str

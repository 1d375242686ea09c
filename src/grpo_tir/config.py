"""The manual: every setting of a run, with its unit, its default and its source.

A recipe is a YAML file that maps to `Config` one to one: `algorithm.clip_high` is the field `clip_high` of
the section `algorithm`. `--algorithm.clip_high 0.28` on the command line overrides it. Unknown and ill-typed
keys are refused with the nearest name. The defaults are ToRL's (arXiv 2503.23383, and its released script).

This module imports no torch, so that `grpo-tir --help` is instant.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from grpo_tir.errors import ConfigError


@dataclass(frozen=True)
class ModelConfig:
    """The policy."""

    path: str = "Qwen/Qwen2.5-Math-1.5B"
    """Hugging Face id or local folder of any causal language model."""
    revision: str | None = None
    """Commit or tag on the Hub; name one, so that the run can be repeated."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Autocast of forward and backward. Weights are always fp32: at lr 1e-6 a bf16 weight does not move.
    `auto` is bf16 on a GPU that has it and fp32 on a CPU."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: slower, much less memory."""
    lora_rank: int = 0
    """Rank of the low-rank adapters that are trained instead of the weights (LoRA, arXiv 2106.09685); 0: off."""
    lora_alpha: float = 32.0
    """The adapters' product is scaled by alpha / rank."""
    lora_targets: list[str] = field(default_factory=list)
    """Names of linear layers with adapters, as in q_proj; empty: all but the head."""
    compile: bool = False
    """torch.compile for the learner's forward."""


@dataclass(frozen=True)
class DataConfig:
    """Problems: JSONL with one object a line."""

    train: str = ""
    """Path of the training problems, or the dotted path / `file.py:function` of a function that yields
    `Problem`s."""
    eval: str | None = None
    """Problems held out for `train.eval_every`; None: no evaluation while training."""
    problem_field: str = "problem"
    """Column with the question."""
    answer_field: str = "answer"
    """Column with the gold answer, a string."""
    id_field: str = "id"
    """Column with a unique id; where it is missing everywhere, the line number serves."""
    max_prompt_length: int = 400
    """Tokens; longer prompts are left out and counted. (ToRL: 400)"""
    on_bad: Literal["stop", "skip"] = "stop"
    """Action at an unusable row: stop and name it, or skip and count it."""
    template: str = "torl"
    """`torl` (= the reference's tir_base_0309), `torl_0307`, `chat`, `plain`, or the path of a text file
    with one `{problem}` in it."""
    system: str | None = None
    """System message of `chat`; None: the TIR instruction of Qwen2.5-Math."""
    shuffle: bool = True
    """A new order every epoch, drawn from the run's seed."""


@dataclass(frozen=True)
class RolloutConfig:
    """Sampling. One budget counts every response token, tool output included."""

    generator: Literal["engine", "generate"] = "engine"
    """`engine`: continuous batching, falls back with a line that says why. `generate`: HF `model.generate` in
    rounds, its readable twin."""
    prompts_per_step: int = 128
    """Groups in one rollout batch, over all ranks. (ToRL: 128)"""
    samples_per_prompt: int = 16
    """G, the group size. (ToRL: 16)"""
    max_completion_length: int = 3072
    """Response tokens in all, observations included. (ToRL: 3072)"""
    temperature: float = 1.0
    """0 is greedy, which training refuses. (ToRL: 1)"""
    top_p: float = 1.0
    """Evaluation only: training on truncated distributions would need other log-probs."""
    top_k: int = 0
    """Evaluation only; 0 is off."""
    min_p: float = 0.0
    """Evaluation only; 0 is off."""
    max_rows: int = 0
    """Rows decoded at the same time on one rank; 0: all of its rows."""
    kv_tokens: int = 0
    """Tokens that the engine's KV cache may hold on one rank; 0: as many as its rows need."""


@dataclass(frozen=True)
class ToolConfig:
    """When the model's code is run, and how its output is shown."""

    name: str = "python"
    """`python`, or the dotted path / `file.py:Class` of a tool of one's own."""
    max_tool_calls: int = 1
    """c: calls in one response; afterwards text only. 0 is plain chain-of-thought RL. (ToRL: 1)"""
    stop: Literal["output", "fence"] = "output"
    """Text that pauses a row: the paper's marker "```output", or the fence that closes a "```python" block."""


@dataclass(frozen=True)
class ExecutorConfig:
    """Settings of the executor, which runs the model's code."""

    kind: Literal["docker", "process", "auto"] = "docker"
    """`docker`: a closed container. `process`: this machine, weaker isolation, must be asked for by name.
    `auto`: docker if an engine answers, else process (the quickstart only)."""
    image: str = "grpo-tir-sandbox"
    """Image that `grpo-tir sandbox build` made."""
    hosts: list[str] = field(default_factory=list)
    """Docker engines (unix://, ssh://, tcp://); empty: the local one."""
    slots: int = 0
    """Calls that run at the same time on one engine; 0: twice its cores."""
    timeout: float = 10.0
    """Seconds of CPU time for one call, counted from its fork. (ToRL: 10)"""
    wall_factor: float = 2.0
    """Wall limit of one call = this x `timeout`."""
    memory_mb: int = 512
    """Memory of one call."""
    retries: int = 3
    """Times that a call lost to the infrastructure is run again before its rollout is set aside."""
    max_outage: float = 0.05
    """Share of lost calls in a step above which the run stops."""


@dataclass(frozen=True)
class RewardConfig:
    """Settings of the rule-based reward (paper, section 3.3)."""

    function: str = "grpo_tir.rollouts.rewards:math_reward"
    """Dotted path or `file.py:function` of `reward(problem, rollout) -> Reward`."""
    correct: float = 1.0
    """(ToRL: +1)"""
    wrong: float = -1.0
    """(ToRL: -1)"""
    code_penalty: float = 0.0
    """Added when some executed code failed, at most once; -0.5 in the paper's ablation. Never for a response
    without code (bug 12 of the reference)."""
    no_code_penalty: float = 0.0
    """Added when no code was executed: what the reference's ablation did by accident. For comparison only."""
    soft_overlong_buffer: int = 0
    """DAPO eq. 13: the reward falls linearly by up to 1 over the last so many tokens of the budget; 0: off."""
    rounding: str = "exact"
    """`exact`: 0.333 is not 1/3. A number N: a decimal with N digits or more, correctly rounded, answers an exact
    gold. `rewards/rounded_ratio` counts such answers either way."""


@dataclass(frozen=True)
class AlgorithmConfig:
    """GRPO (arXiv 2402.03300) and the options of its successors, each off by default."""

    aggregation: Literal["token", "sequence", "constant"] = "token"
    """Loss normaliser over the whole optimizer step: all valid tokens (DAPO), mean of sequence means (GRPO),
    or rows x max_completion_length (Dr. GRPO)."""
    clip_low: float = 0.2
    """ratio >= 1 - clip_low. (ToRL: 0.2)"""
    clip_high: float = 0.2
    """ratio <= 1 + clip_high; 0.28 is DAPO's clip-higher. (ToRL: 0.2)"""
    ratio: Literal["token", "sequence"] = "token"
    """`sequence` is GSPO (arXiv 2507.18071): one ratio a response, the geometric mean of its tokens'."""
    scale_rewards: bool = True
    """Divide the advantage by the group's sample std (n - 1); False is Dr. GRPO."""
    advantage_eps: float = 1e-6
    """Added to the std. (ToRL: 1e-6)"""
    drop_flat_groups: bool = False
    """Leave groups whose rewards are all equal out of the loss and its denominators. (ToRL: kept)"""
    kl_coef: float = 0.0
    """KL penalty against the initial policy; 0 loads no reference model. (ToRL: 0)"""
    mini_batches: int = 1
    """Optimizer steps per pass over a rollout batch. (ToRL: 1, so its ratio is 1 and never clipped)"""
    epochs: int = 1
    """Passes over a rollout batch. (ToRL: 1)"""
    dynamic_sampling: int = 0
    """DAPO: flat groups are replaced by fresh ones, at most so many times the batch in all; 0: off."""
    mask_overlong: bool = False
    """DAPO: a response cut off by the budget is left out of the loss (not of the group's statistics)."""
    mask_void_turns: bool = False
    """SimpleTIR: a response with a turn that has neither code nor an answer is left out of the loss."""
    importance_cap: float = 0.0
    """Truncated importance sampling: weight min(learner/generator probability, cap); 0: off."""


@dataclass(frozen=True)
class OptimConfig:
    """AdamW."""

    lr: float = 1e-6
    """(ToRL: 1e-6)"""
    betas: tuple[float, float] = (0.9, 0.999)
    """(ToRL: 0.9, 0.999)"""
    eps: float = 1e-8
    weight_decay: float = 0.01
    """(ToRL: 0.01)"""
    max_grad_norm: float = 1.0
    """Clipping by global norm. (ToRL: 1)"""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After the warm-up, down to 0 one step after the last. (ToRL: constant)"""
    warmup_steps: int = 0
    """Linear warm-up, in training steps. (ToRL: 0)"""
    micro_batch_tokens: int = 16384
    """Tokens in one forward-backward on one rank, padding included where there is any. The gradient does not
    depend on it."""
    packing: bool = True
    """Rows end to end instead of padded, where the model's attention allows it. The gradient is the same."""
    logits_mb: int = 256
    """Memory for logits at one time: more tokens than fit are taken in chunks that are computed again in the
    backward pass. It bounds a vocabulary of 152k, not the gradient."""


@dataclass(frozen=True)
class TrainConfig:
    """The run."""

    output_dir: str = "runs/torl"
    """Metrics, rollouts, checkpoints and report go here."""
    steps: int = 1000
    """Rollout batches. (ToRL 1.5B: about 1000)"""
    seed: int = 1
    """Keys the data order and every draw."""
    deterministic: bool = False
    """A resumed run is bit-identical to an uninterrupted one: `rollout.max_rows` rows decode together to their
    end, tool results enter together, kernels are deterministic. Slower, the more so the slower the tool."""
    save_every: int = 20
    """Steps; 0: only at the end. (ToRL: 20)"""
    save_total_limit: int = 3
    """Checkpoints kept; 0: all."""
    save_in_background: bool = True
    """Write checkpoints while training goes on, from a copy of weights and optimizer in the CPU's memory (12 bytes
    a parameter); False: training waits, without a copy."""
    eval_every: int = 0
    """Steps between greedy evaluations on `data.eval`, also before the first step; 0: off. (ToRL: 4)"""
    eval_size: int = 0
    """Problems of `data.eval` that are used; 0: all."""
    rollouts_every: int = 10
    """Steps between two that are written down whole, token by token, for the report; from the first one on, which
    makes it those after a checkpoint, whose log-probs `replay` can recompute. Also the last one. 0: the first."""
    sample_every: int = 10
    """Steps between two trajectories printed to the console; 0: none."""
    report_to: list[str] = field(default_factory=lambda: ["tensorboard"])
    """`tensorboard`, `wandb`, `trackio`; metrics.jsonl is always written."""
    logprob_tolerance: float = 0.0
    """Nats a token by which the log-probs of generator and learner may differ on average over a batch, and ten
    times that in any one response; beyond, the run stops (certificate.py). 0: 0.001 in fp32, 0.05 in bf16. Above
    that, what their slope may be (2% from 1) is widened in proportion."""
    watchdog_minutes: float = 30.0
    """Minutes without a sign of progress after which a rank among several counts as hung: the launch ends, and
    names it. 0: never."""
    max_skipped: int = 3
    """Optimizer steps in a row without a finite gradient after which the run stops."""


@dataclass(frozen=True)
class Config:
    """A whole recipe."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    tool: ToolConfig = field(default_factory=ToolConfig)
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    deviations: list[str] = field(default_factory=list)
    """Free text: where this recipe knowingly departs from its source, and why."""


ABOVE_ZERO = (
    *("rollout.prompts_per_step", "rollout.max_completion_length", "rollout.top_p", "data.max_prompt_length"),
    *("executor.timeout", "executor.wall_factor", "executor.memory_mb"),
    *("algorithm.mini_batches", "algorithm.epochs"),
    *("optim.micro_batch_tokens", "optim.logits_mb", "optim.max_grad_norm"),
    *("train.steps", "train.max_skipped"),
)
AT_LEAST_ZERO = (
    *("model.lora_rank", "rollout.temperature", "rollout.top_k", "rollout.max_rows", "tool.max_tool_calls"),
    *("executor.slots", "executor.retries", "reward.soft_overlong_buffer"),
    *("algorithm.clip_low", "algorithm.clip_high", "algorithm.advantage_eps", "algorithm.kl_coef"),
    *("algorithm.dynamic_sampling", "algorithm.importance_cap"),
    *("optim.lr", "optim.eps", "optim.weight_decay", "optim.warmup_steps"),
    *("train.save_every", "train.save_total_limit", "train.eval_every", "train.eval_size"),
    *("train.rollouts_every", "train.sample_every", "train.logprob_tolerance"),
    "train.watchdog_minutes",
)
SHARES = ("rollout.top_p", "rollout.min_p", "executor.max_outage")


def check(config: Config) -> None:
    """Refuse what cannot work before anything is loaded.

    Raises:
        ConfigError: one line that names the key and the mend.
    """
    for names, allowed, words in (
        (ABOVE_ZERO, lambda number: 0 < number < math.inf, "above 0"),
        (AT_LEAST_ZERO, lambda number: 0 <= number < math.inf, "0 or more"),
        (SHARES, lambda number: 0 <= number <= 1, "from 0 to 1"),
    ):
        for name in names:
            section, key = name.split(".")
            number = getattr(getattr(config, section), key)
            if not allowed(number):  # so that NaN, which is neither above nor below, is refused
                raise ConfigError(f"{name} is {number}: it must be {words}")
    rounding = config.reward.rounding
    if rounding != "exact" and not (rounding.isdecimal() and int(rounding) >= 2):
        raise ConfigError(f"reward.rounding is {rounding!r}: it must be `exact`, or a number of digits from 2 on")
    if not all(0 <= beta < 1 for beta in config.optim.betas):
        raise ConfigError(f"optim.betas is {list(config.optim.betas)}: both must be from 0 to below 1")
    if config.rollout.samples_per_prompt < 2:
        raise ConfigError("rollout.samples_per_prompt must be 2 or more: GRPO compares samples of one prompt")
    if config.algorithm.mini_batches > config.rollout.prompts_per_step:
        raise ConfigError("algorithm.mini_batches cannot exceed rollout.prompts_per_step")
    unknown = set(config.train.report_to) - {"tensorboard", "wandb", "trackio"}
    if unknown:
        raise ConfigError(f"train.report_to: unknown {sorted(unknown)}; known: tensorboard, wandb, trackio")


def check_for_training(config: Config) -> None:
    """Check what training needs beyond `check`: log-probs must be those of the distribution sampled from."""
    sampling = config.rollout
    if sampling.temperature == 0:
        raise ConfigError("rollout.temperature 0 is greedy: all samples of a group would be equal; use 1.0")
    if sampling.top_p != 1 or sampling.top_k or sampling.min_p:
        raise ConfigError(
            "rollout.top_p/top_k/min_p are for evaluation: training on a truncated distribution would need "
            "its log-probs; leave them at 1.0/0/0.0"
        )
    if not config.data.train:
        raise ConfigError("data.train is empty: name a JSONL file with `problem` and `answer`")

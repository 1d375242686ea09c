"""Define every setting of a run, with its unit, the reason for its default, and its source.

A recipe is a YAML file that maps to `Config` one to one: the key `algorithm.clip_high` is the field `clip_high` of
the section `algorithm`. `--algorithm.clip_high 0.28` on the command line overrides it. An unknown key raises an
error that suggests the nearest one; a value of the wrong type raises one that names the type. "(ToRL: 1)" marks
a value of the paper (arXiv 2503.23383) or of its released script. Other defaults are ours, with their reason where
it is not obvious.

This module does not import torch, so that `grpo-tir --help` starts fast.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from grpo_tir.errors import ConfigError


@dataclass(frozen=True)
class ModelConfig:
    """Configure the policy model."""

    path: str = "Qwen/Qwen2.5-Math-1.5B"
    """Hugging Face id or local folder of a causal language model. (ToRL: this model, and its 7B version)"""
    revision: str | None = None
    """Commit or tag on the Hub. None means the newest; set it, so that the run can be repeated."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Autocast precision of forward and backward. `auto`: bf16 on a GPU that supports it, else fp32: most CPUs
    emulate bf16. Weights are always fp32, because at lr 1e-6 an update is lost in the rounding of bf16."""
    head_precision: Literal["auto", "fp32"] = "auto"
    """Precision of the logits in generator and learner. `auto`: as `precision`. `fp32`: on both sides, logits
    (ScaleRL, arXiv 2510.13786) and hidden states between layers are float32; the head then runs at a GPU's
    float32 rate."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: much less memory, but slower, so it is off by default."""
    lora_rank: int = 0
    """Rank of low-rank adapters, trained instead of the weights (LoRA, arXiv 2106.09685). 0 means none."""
    lora_alpha: float = 32.0
    """Numerator of the adapters' scale, alpha / rank. Used only with `lora_rank`."""
    lora_targets: list[str] = field(default_factory=list)
    """Names of the linear layers that get adapters, such as q_proj. Empty means all linear layers but the head."""
    compile: bool | None = None
    """Compile the learner's decoder layers and head (not with DeepSpeed). None: on a GPU, if that is faster,
    measured at the first update, but not under `train.deterministic`; on a CPU not."""


@dataclass(frozen=True)
class DataConfig:
    """Configure problems and prompts. A problem file is JSONL, a JSON list or parquet. A key is a column."""

    train: str = ""
    """Path of the training problems, or a function that yields `Problem`s, as a dotted path or `file.py:function`.
    It has no default; training requires it."""
    eval: str | None = None
    """Held-out problems for `train.eval_every`, given like `train`. None means no evaluation during training."""
    problem_field: str = "problem"
    """Column of the question."""
    answer_field: str = "answer"
    """Column of the gold answer, a string."""
    id_field: str = "id"
    """Column of the unique id. If no line has it, the line number is the id."""
    max_prompt_length: int = 400
    """Maximum length of a prompt in tokens. Problems with longer prompts are left out and counted. (ToRL: 400)"""
    on_bad: Literal["stop", "skip"] = "stop"
    """Action at an unusable line. `stop`: raise an error that names it. `skip`: leave it out and count it."""
    template: str = "torl"
    """Prompt template: `torl` (ToRL's tir_base_0309), `torl_0307`, `chat` (the template of the tokenizer),
    `plain`, or the path of a text file that contains `{problem}` once."""
    system: str | None = None
    """System message of the template `chat`. None means the TIR instruction of Qwen2.5-Math."""
    shuffle: bool = True
    """Draw a new order in every epoch, from `train.seed`."""


@dataclass(frozen=True)
class RolloutConfig:
    """Configure sampling. One token budget counts the whole response, tool output included."""

    generator: Literal["engine", "generate"] = "engine"
    """`engine`: continuous batching; for a model that it does not support, it prints why and `generate` is used.
    `generate`: Hugging Face's `model.generate` in rounds; slower, but easy to read."""
    prompts_per_step: int = 128
    """Number of groups in a rollout batch, over all ranks. (ToRL: 128)"""
    samples_per_prompt: int = 16
    """Group size G: number of rollouts per problem. (ToRL: 16)"""
    max_completion_length: int = 3072
    """Maximum length of a response in tokens, tool output included. (ToRL: 3072)"""
    temperature: float = 1.0
    """Sampling temperature. 0 means greedy, for evaluation only. (ToRL: 1)"""
    top_p: float = 1.0
    """Nucleus sampling, for evaluation only: training would need the log-probs of the truncated distribution."""
    top_k: int = 0
    """Number of most probable tokens to sample from, for evaluation only. 0 means all."""
    min_p: float = 0.0
    """Minimum probability of a token, relative to the most probable one; for evaluation only. 0 means none."""
    max_rows: int = 0
    """Maximum number of rollouts decoded at the same time on one rank. 0 means no limit."""
    carry_over: float = 0.0
    """A rank ends sampling once this share of its groups, from 0 to 1, is whole. The others are carried over to
    the next step, which continues them with its weights and draws fewer new problems. Needs
    `algorithm.importance_cap`, which corrects for the earlier weights. 0 means that all groups are awaited."""
    kv_tokens: int = 0
    """Capacity of the engine's KV cache on one rank, in tokens. 0 means as many as its rollouts need or, on a GPU
    with static steps, as many of them as fit into its free memory."""
    step: Literal["auto", "eager", "captured", "compiled"] = "auto"
    """Decode step of the engine. `eager`: operators launched one by one. `captured`: replayed as a CUDA graph.
    `compiled`: its layers compiled, and on a GPU captured too. `auto`: eager on a CPU and under
    `train.deterministic`; else the fastest one that agrees with eager, measured at the first rollout batch."""


@dataclass(frozen=True)
class ToolConfig:
    """Configure when the model's code is executed."""

    name: str = "python"
    """`python`, or a custom tool as a dotted path or `file.py:Class`."""
    names: list[str] = field(default_factory=lambda: ["python"])
    """Tools that a model calls by name: `python`, `calculator`, or functions as dotted paths or
    `file.py:function`. More than `python` needs a `format` that names tools."""
    max_tool_calls: int = 1
    """Maximum number of calls in a response; then only text is sampled. 0 means chain of thought. (ToRL: C = 1)"""
    calls_by_tool: list[int] = field(default_factory=list)
    """Maximum number of calls of each of `names`, within `max_tool_calls`. Empty means no further limit."""
    format: str = "output"
    """Format of calls (tools/formats.py). `output`: a "```python" block and the paper's marker "```output",
    which pauses sampling. `fence`: the fence that closes the block pauses it. `tool_call`: as in the model's chat
    template, `<tool_call>{json}</tool_call>` or Llama's form. Else the path of a YAML file. Old name: `stop`."""
    state: Literal["fresh", "replay"] = "fresh"
    """`fresh`: each call starts from nothing, as in the paper. `replay`: earlier successful blocks run
    first, without output, so that their variables exist. Their time is not charged to the call, but together they
    may take `executor.timeout` seconds of CPU time. Random draws repeat."""
    echo: bool = False
    """Show the value of a last expression, as a notebook does, unless a semicolon ends it."""


@dataclass(frozen=True)
class ExecutorConfig:
    """Configure the executor, which runs the model's code."""

    kind: Literal["docker", "process", "auto"] = "docker"
    """`docker`: a closed container; the default, because it isolates best. `process`: processes of this machine.
    `auto`: docker if an engine answers and has the image, else process. The quickstart, `run_code` and
    `rollout()` use it."""
    image: str = "grpo-tir-sandbox"
    """Name of the container image. `grpo-tir sandbox build` builds the default."""
    hosts: list[str] = field(default_factory=list)
    """URLs of Docker engines (unix://, ssh://, tcp://). Empty means the local engine."""
    slots: int = 0
    """Maximum number of calls that run at the same time on one engine. 0 means 2 for each of its CPU cores."""
    timeout: float = 10.0
    """CPU time limit of a call in seconds, counted from its fork. (ToRL: 10)"""
    wall_factor: float = 2.0
    """Wall time limit of a call, as a multiple of `timeout`. It ends calls that sleep or wait without CPU time."""
    memory_mb: int = 512
    """Memory limit of each process of a call, in MiB."""
    retries: int = 3
    """Maximum number of times that a call is run again if the executor lost it. Then its rollout is invalid."""
    max_outage: float = 0.05
    """Maximum share of lost rollouts, or of ungraded ones, in a step. Above it, the run stops. It also limits the
    share of recent calls that are lost."""


@dataclass(frozen=True)
class RewardConfig:
    """Configure the rule-based reward (paper, section 3.3)."""

    function: str = "grpo_tir.rollouts.rewards:math_reward"
    """Function `reward(problem, rollout) -> Reward`, as a dotted path or `file.py:function`."""
    correct: float = 1.0
    """Reward of a correct final answer. (ToRL: +1)"""
    wrong: float = -1.0
    """Reward of any other response. (ToRL: -1)"""
    code_penalty: float = 0.0
    """Value added once if any executed code failed, but not for a response without code (bug 12 of the reference).
    (ToRL: 0; its ablation: -0.5)"""
    no_code_penalty: float = 0.0
    """Value added if no code was executed. Its only use is to reproduce the reference's ablation (bug 12)."""
    call_penalty: float = 0.0
    """Value added for each executed call, so that a model calls only where that pays. (ToRL: 0)"""
    soft_overlong_buffer: int = 0
    """Number of last tokens of the budget over which the reward falls by 1 (DAPO, eq. 13). 0 means none."""
    rounding: str = "exact"
    """`exact`: 0.333 does not answer 1/3. A number N: a correctly rounded decimal of N or more digits also answers
    an exact gold. `rewards/rounded_ratio` counts such answers in both cases."""


@dataclass(frozen=True)
class AlgorithmConfig:
    """Configure GRPO (arXiv 2402.03300), and options of DAPO (2503.14476), Dr. GRPO (2503.20783) and others. Each
    option is off by default."""

    aggregation: Literal["token", "sequence", "constant"] = "token"
    """Normalization of the loss over an optimizer step. `token`: mean over model tokens (DAPO, ToRL). `sequence`:
    mean of response means (GRPO). `constant`: sum / (responses x max_completion_length) (Dr. GRPO)."""
    clip_low: float = 0.2
    """Lower clip: ratio >= 1 - clip_low. (ToRL: 0.2)"""
    clip_high: float = 0.2
    """Upper clip: ratio <= 1 + clip_high. DAPO's clip-higher is 0.28. (ToRL: 0.2)"""
    ratio: Literal["token", "sequence"] = "token"
    """`token`: one ratio per token. `sequence`: the geometric mean per response (GSPO, arXiv 2507.18071)."""
    scale_rewards: bool = True
    """Divide the advantage by the sample std (n - 1) of the group's rewards, as GRPO does. False is Dr. GRPO."""
    advantage_eps: float = 1e-6
    """Value added to that std. (ToRL: 1e-6)"""
    drop_flat_groups: bool = False
    """Leave groups with equal rewards out of the loss and its denominator. (ToRL: false)"""
    kl_coef: float = 0.0
    """Weight of the KL penalty against the initial policy. With 0 no reference model is loaded. (ToRL: 0)"""
    mini_batches: int = 1
    """Number of optimizer steps per pass over a rollout batch. (ToRL: 1, so the ratio is 1 and never clipped)"""
    epochs: int = 1
    """Number of passes over a rollout batch. (ToRL: 1)"""
    dynamic_sampling: int = 0
    """Maximum number of sampling rounds in a step. Rounds after the first replace groups with equal rewards (DAPO,
    3.2). 0 means one round, as in ToRL."""
    mask_overlong: bool = False
    """Leave responses cut off by the token budget out of the loss, but not out of group statistics (DAPO, 3.4)."""
    mask_void_turns: bool = False
    """Leave responses with a turn without code or answer out of the loss (SimpleTIR, arXiv 2509.02479)."""
    importance_cap: float = 0.0
    """Cap of the truncated importance weight min(learner / generator probability, cap). 0 means no weights."""
    sequence_mask: list[float] = field(default_factory=list)
    """[lo, hi]: train a response only if exp(sum over its model tokens of learner - generator log-prob) is inside
    (Trust Region Masking, arXiv 2512.23075). The denominator still counts the others. Empty means no mask."""
    sequence_mask_by: Literal["sum", "mean"] = "sum"
    """`mean`: exp of the mean instead of the sum, so that long responses are not masked more often."""
    objective: Literal["clip", "cispo"] = "clip"
    """`clip`: PPO's clipped objective. `cispo`: clip only the weight of the log-prob, so that every token keeps a
    gradient (MiniMax-M1, arXiv 2506.13585, eq. 4; it has no lower clip: `clip_low` 1)."""
    resample_on_correct: bool = False
    """Sample 2 G responses per problem and train on G: half of the wrong ones at random, and right ones with few
    tool errors and format faults (GRPO-RoC, arXiv 2508.20722). All metrics but rollouts/lost are of the G."""
    gtpo_gamma: float = 0.0
    """Discount of turn-level returns, which replace the reward in the advantage of each turn (GTPO, arXiv
    2511.14846: 0.9, with `reward.wrong` 0). 0 means one advantage per response."""


@dataclass(frozen=True)
class OptimConfig:
    """Configure AdamW and the micro-batches."""

    lr: float = 1e-6
    """Peak learning rate. (ToRL: 1e-6)"""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the two moment estimates. (ToRL: 0.9, 0.999)"""
    eps: float = 1e-8
    """Value added to the denominator of the update. (PyTorch: 1e-8)"""
    weight_decay: float = 0.01
    """Coefficient of decoupled weight decay. (ToRL: 0.01)"""
    max_grad_norm: float = 1.0
    """Maximum global gradient norm; larger gradients are scaled down to it. (ToRL: 1)"""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after the warm-up. `linear` and `cosine` reach 0 one step after the last. (ToRL: constant)"""
    warmup_steps: int = 0
    """Length of the linear warm-up in training steps. (ToRL: 0)"""
    micro_batch_tokens: int = 16384
    """Maximum number of tokens, padding included, in a forward-backward on one rank. The gradient is the same."""
    packing: bool = True
    """Put sequences end to end instead of padding them, if the model's attention allows it. Same gradient."""
    logits_mb: int = 256
    """Memory for logits in MiB. If they do not fit, they are computed in chunks, and again in the backward pass.
    At 256, an update of 2,048 tokens with a vocabulary of 152k peaks at 871 MiB, not 4,710, and an H200 takes 11%
    longer than at 1,024. Same gradient."""


@dataclass(frozen=True)
class TrainConfig:
    """Configure the run."""

    output_dir: str = "runs/torl"
    """Folder of metrics, rollouts, checkpoints and report."""
    steps: int = 1000
    """Number of training steps, each on one rollout batch. (ToRL 1.5B: about 1000)"""
    seed: int = 1
    """Seed of the data order and of all sampling."""
    deterministic: bool = False
    """Make a resumed run bit-identical to an uninterrupted one. Waves of `rollout.max_rows` rollouts decode to the
    end, tool results enter together, and kernels are deterministic. This is slower, above all with a slow tool."""
    save_every: int = 20
    """Number of steps between checkpoints. 0 means only one at the end. (ToRL: 20)"""
    save_total_limit: int = 3
    """Maximum number of checkpoints kept. 0 means all."""
    save_in_background: bool = True
    """Write checkpoints in a background thread. This needs a copy in CPU memory, 12 bytes per parameter."""
    eval_every: int = 0
    """Steps between greedy evaluations on `data.eval`, also at the start and end. 0 means none. (ToRL: 4)"""
    eval_size: int = 0
    """Number of problems of `data.eval` that are used. 0 means all."""
    rollouts_every: int = 10
    """Number of steps between full records of rollouts, for report and `replay`. Steps 1, 11, 21, … and the last
    are recorded: for a step after a checkpoint, `replay` can recompute log-probs. 0 means step 1 only."""
    sample_every: int = 10
    """Number of steps between rollouts printed to the console. 0 means none."""
    report_to: list[str] = field(default_factory=lambda: ["tensorboard"])
    """Trackers: `tensorboard`, `wandb`, `trackio`. metrics.jsonl is always written."""
    logprob_tolerance: float = 0.0
    """Maximum mean difference of generator and learner log-probs over a batch, in nats per token. The limit for
    one response is 10 times as high. Above either, the run stops (learning/certificate.py). 0 means 0.001 in fp32,
    0.03 in bf16. A value above 0.03 also raises the limit on their slope (2% from 1) in proportion."""
    watchdog_minutes: float = 30.0
    """Minutes without progress after which one of several ranks counts as hung; the launch ends. 0 means never."""
    max_skipped: int = 3
    """Number of optimizer steps in a row without a finite gradient at which the run stops."""


@dataclass(frozen=True)
class Config:
    """Hold a complete recipe."""

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
    """Free text: known differences between this recipe and its source, with the reason."""

    @property
    def sampled_per_prompt(self) -> int:
        """Number of rollouts sampled per problem: G, or 2 G with `algorithm.resample_on_correct`."""
        return self.rollout.samples_per_prompt * (2 if self.algorithm.resample_on_correct else 1)


ABOVE_ZERO = (
    *("rollout.prompts_per_step", "rollout.max_completion_length", "rollout.top_p", "data.max_prompt_length"),
    *("executor.timeout", "executor.wall_factor", "executor.memory_mb"),
    *("algorithm.mini_batches", "algorithm.epochs"),
    *("optim.micro_batch_tokens", "optim.logits_mb", "optim.max_grad_norm"),
    *("train.steps", "train.max_skipped"),
)
AT_LEAST_ZERO = (
    *("model.lora_rank", "model.lora_alpha", "rollout.temperature", "rollout.top_k", "rollout.max_rows"),
    *("rollout.kv_tokens", "tool.max_tool_calls"),
    *("executor.slots", "executor.retries", "reward.soft_overlong_buffer"),
    *("algorithm.clip_low", "algorithm.clip_high", "algorithm.advantage_eps", "algorithm.kl_coef"),
    *("algorithm.dynamic_sampling", "algorithm.importance_cap"),
    *("optim.lr", "optim.eps", "optim.weight_decay", "optim.warmup_steps"),
    *("train.save_every", "train.save_total_limit", "train.eval_every", "train.eval_size"),
    *("train.rollouts_every", "train.sample_every", "train.logprob_tolerance"),
    "train.watchdog_minutes",
)
SHARES = (
    *("rollout.top_p", "rollout.min_p", "rollout.carry_over"),
    *("executor.max_outage", "algorithm.gtpo_gamma"),
)


def check(config: Config) -> None:
    """Check for settings that cannot work, before anything is loaded.

    Raises:
        ConfigError: a setting is out of range; the message names the key and the allowed values.
    """
    for names, allowed, words in (
        (ABOVE_ZERO, lambda number: 0 < number < math.inf, "above 0"),
        (AT_LEAST_ZERO, lambda number: 0 <= number < math.inf, "0 or more"),
        (SHARES, lambda number: 0 <= number <= 1, "from 0 to 1"),
    ):
        for name in names:
            section, key = name.split(".")
            number = getattr(getattr(config, section), key)
            if not allowed(number):  # written this way, so that NaN is refused too
                raise ConfigError(f"{name} is {number}: it must be {words}")
    rounding = config.reward.rounding
    if rounding != "exact" and not (rounding.isdecimal() and int(rounding) >= 2):
        raise ConfigError(f"reward.rounding is {rounding!r}: it must be `exact`, or a number of digits, 2 or more")
    if not all(0 <= beta < 1 for beta in config.optim.betas):
        raise ConfigError(f"optim.betas is {list(config.optim.betas)}: both must be at least 0 and below 1")
    if config.rollout.samples_per_prompt < 2:
        raise ConfigError("rollout.samples_per_prompt must be 2 or more: GRPO compares samples of one prompt")
    if config.algorithm.mini_batches > config.rollout.prompts_per_step:
        raise ConfigError("algorithm.mini_batches cannot exceed rollout.prompts_per_step")
    bounds = config.algorithm.sequence_mask
    if bounds and not (len(bounds) == 2 and 0 <= bounds[0] < 1 < bounds[1]):
        raise ConfigError(f"algorithm.sequence_mask is {bounds}: it must be [lo, hi] with 0 <= lo < 1 < hi, or []")
    if config.rollout.carry_over:
        if not config.algorithm.importance_cap:
            raise ConfigError(
                "rollout.carry_over needs algorithm.importance_cap, such as 2: earlier weights drew some tokens"
            )
        if config.algorithm.dynamic_sampling:
            raise ConfigError("rollout.carry_over excludes algorithm.dynamic_sampling: set one of them to 0")
        if config.train.deterministic and config.rollout.max_rows:
            raise ConfigError("rollout.carry_over with train.deterministic needs rollout.max_rows 0: one wave")
    tool = config.tool
    if tool.format in ("output", "fence") and tool.names != ["python"]:
        raise ConfigError(f"tool.format {tool.format} names no tool, but tool.names has others: use tool_call")
    if not tool.names or (tool.calls_by_tool and len(tool.calls_by_tool) != len(tool.names)):
        raise ConfigError("tool.names must name a tool, and tool.calls_by_tool have a number for each, or none")
    unknown = set(config.train.report_to) - {"tensorboard", "wandb", "trackio"}
    if unknown:
        raise ConfigError(f"train.report_to: unknown {sorted(unknown)}; known: tensorboard, wandb, trackio")


def check_for_training(config: Config) -> None:
    """Check what training needs beyond `check`: log-probs must be those of the sampling distribution.

    Raises:
        ConfigError: greedy or truncated sampling, or no training problems."""
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


def change(config: Config, settings: Mapping[str, Any]) -> Config:
    """Return a copy with other values: `change(config, {"optim.lr": 1e-5})`."""
    for name, value in settings.items():
        section, _, key = name.partition(".")
        config = replace(config, **{section: replace(getattr(config, section), **{key: value})})
    return config


def save_config(config: Config, path: Path) -> None:
    """Write the resolved recipe as YAML. `utils.recipe.load_config` reads it back as an equal `Config`."""
    import yaml  # not at the top: `run_code` works without it

    path.write_text(yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True), encoding="utf-8")

"""Load the policy: model, tokenizer, prompt template, stop marker and end-of-text ids."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from grpo_tir.config import Config, RolloutConfig
from grpo_tir.data.prompts import Renderer, make_renderer
from grpo_tir.data.tokens import find_eos_ids
from grpo_tir.distributed.runtime import Runtime
from grpo_tir.engine.decode_weights import make_decode_copy, refresh_decode_copy
from grpo_tir.engine.engine import Engine, unsupported_reason
from grpo_tir.errors import ConfigError, ModelError
from grpo_tir.generation.generate import GenerateRounds
from grpo_tir.generation.protocol import Generator, Request
from grpo_tir.generation.sampling import Sampling, row_key
from grpo_tir.generation.stopping import CodeBlockStopping
from grpo_tir.learning.lora import has_adapters
from grpo_tir.learning.prepare import follow_autocast, use_float32_head
from grpo_tir.tools.open import tool_schemas
from grpo_tir.types import Rollout
from grpo_tir.utils import hub

if TYPE_CHECKING:
    from grpo_tir.engine.choose_step import Choice

NOTED_SETUP = 5.0
"""Seconds of compilation in a batch, over which the console tells of it."""
FullWeights = Callable[[Any], AbstractContextManager[Any]]
"""Type of `distributed.Runtime.full_weights`. With `nullcontext`, every rank already holds all weights."""


@dataclass
class Policy:
    """A loaded model with its tokenizer, prompt template and stopping criterion."""

    model: Any
    tokenizer: Any
    stopping: CodeBlockStopping
    render: Renderer
    eos_ids: list[int]
    engine_refused: str | None = None
    """Reason why the engine cannot decode this model; None if it can."""
    decode_copy: Any = None
    """bf16 copy of the weights that a GPU decodes with."""
    log: Callable[[str], None] = lambda line: None
    """Gets lines about the decode step: how it is chosen, what was compiled, why it failed."""
    pool_tokens: int = 0
    """Capacity of the engine's last pool of pages (`Engine.pool_tokens`)."""
    choice: "Choice | None" = None
    """The measured decode step, after the first rollout batch on a GPU with `rollout.step: auto`."""

    @property
    def sharded(self) -> bool:
        """True under ZeRO-3: this rank has a part of each weight."""
        return any(hasattr(parameter, "ds_id") for parameter in self.model.parameters())

    @contextmanager
    def gathered(self, runtime: Runtime, config: Config) -> Iterator[None]:
        """Hold all weights on this rank, to sample with, in a context. All ranks must enter together.

        Under ZeRO-3 the engine on a GPU gets a bf16 copy, made from a few matrices at a time and freed at the end:
        half the memory of the float32 weights, which `generate`, a CPU and adapters need.
        """
        exact = config.model.precision == "fp32" or not decodes_in_bf16(self.model)
        rounds = self.engine_refused or config.rollout.generator == "generate"
        if not self.sharded or exact or rounds or has_adapters(self.model):
            with runtime.full_weights(self.model):
                yield
            return
        self.decode_copy = runtime.gather_decode_copy(self.model)
        try:
            yield
        finally:
            self.decode_copy = None

    def decoder(self, precision: str) -> Any:
        """Return the model to decode with: the trained one or, on a GPU, its bf16 copy, refreshed here."""
        if precision == "fp32" or not decodes_in_bf16(self.model):
            return self.model
        if self.sharded:  # see `gathered`
            return self.model if self.decode_copy is None else self.decode_copy
        if self.decode_copy is None:
            self.decode_copy = make_decode_copy(self.model)
        else:
            refresh_decode_copy(self.decode_copy, self.model)
        return self.decode_copy

    def generator(
        self, config: Config, sampling: Sampling | None = None, rollouts: Sequence[Rollout] = ()
    ) -> Generator:
        """Make a generator for one batch of rollouts, with the current weights. On a GPU with `rollout.step:
        auto`, the first call with `rollouts` measures and chooses the decode step."""
        self.model.eval()  # in train mode, gradient checkpointing switches the KV cache off
        settings = config.rollout
        sampling = sampling or sampling_of(settings)
        if self.engine_refused or settings.generator == "generate":
            return GenerateRounds(self.model, self.stopping, sampling, self.eos_ids, settings.max_rows)
        decoder = self.decoder(config.model.precision)

        def engine(step: Any) -> Engine:
            made = Engine(
                decoder, self.stopping, sampling, self.eos_ids, settings.max_rows, settings.kv_tokens, step
            )
            made.pool_tokens = self.pool_tokens
            return made

        if settings.step == "captured" and decoder.device.type != "cuda":
            raise ConfigError("rollout.step: captured needs a CUDA device; use auto, eager or compiled")
        if settings.step != "auto":
            return engine(settings.step)
        if decoder.device.type != "cuda" or config.train.deterministic:
            return engine("eager")  # a choice by time could differ from run to run
        if self.choice is None and rollouts:
            from grpo_tir.engine.choose_step import choose_step  # needed once, and only on a GPU

            budget = settings.max_completion_length
            requests = [
                Request(row, each.prompt_ids, row_key(config.train.seed, each.group, each.sample), budget, False)
                for row, each in enumerate(rollouts)
            ]
            self.log("decode step: compiling and timing candidates; takes a minute or two, once")
            self.choice = choose_step(engine, requests)
            self.log(self.choice.describe())
        return engine(self.choice.mode if self.choice else "eager")

    @contextmanager
    def generating(
        self, config: Config, sampling: Sampling | None, rollouts: Sequence[Rollout]
    ) -> Iterator[Generator]:
        """Open the generator of a batch in a context. At its end, log what the engine compiled or gave up."""
        generator = self.generator(config, sampling, rollouts)
        try:
            yield generator
        finally:
            generator.close()
        if isinstance(generator, Engine):
            self.pool_tokens = generator.pool_tokens
            if generator.setup_seconds > NOTED_SETUP:
                seconds = f"{generator.setup_seconds:.0f} s"
                self.log(f"decode step: compiled and captured in {seconds}; later batches do not need it")
            if generator.failed:
                self.log(f"decode step: eager from here on ({generator.failed})")


def sampling_of(settings: RolloutConfig) -> Sampling:
    """Return the sampling distribution of the section `rollout`."""
    return Sampling(settings.temperature, settings.top_p, settings.top_k, settings.min_p)


def decodes_in_bf16(model: Any) -> bool:
    """True for a transformers model on a GPU with bf16."""
    on_gpu: bool = isinstance(model, PreTrainedModel) and model.device.type == "cuda"
    return on_gpu and torch.cuda.is_bf16_supported()


def load_policy(
    config: Config,
    path: str,
    device: torch.device,
    full_weights: FullWeights = nullcontext,
    prompt_length: int | None = None,
    loaded: tuple[Any, Any] | None = None,
) -> Policy:
    """Load a policy in float32: at lr 1e-6 an update is lost in the rounding of a bf16 weight.

    Args:
        path: folder or Hub id of the model.
        full_weights: gathers the parameters of a model that ZeRO-3 sharded while it was loaded.
        prompt_length: prompt tokens that must fit in the model's positions together with the completion; default:
            `data.max_prompt_length`.
        loaded: a model and its tokenizer, instead of those at `path`. The model keeps its precision.

    Raises:
        ModelError: there is no such model, it is no causal language model, or its tokenizer does not fit.
        ConfigError: prompt and completion together exceed the model's positions, or the head cannot be float32.
    """
    if loaded is not None:
        model, tokenizer = loaded
        check_model(path, model, tokenizer, full_weights)
    else:
        revision = config.model.revision if path == config.model.path else None
        model, tokenizer = load_model(path, revision, full_weights)
    room = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    prompt_length = config.data.max_prompt_length if prompt_length is None else prompt_length
    wanted = prompt_length + config.rollout.max_completion_length
    if room and wanted > room:
        raise ConfigError(
            f"data.max_prompt_length + rollout.max_completion_length = {wanted}, but {path} has {room} positions"
        )
    if config.model.gradient_checkpointing:
        # the method has this name from transformers 5.20 on; the old name is deprecated
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    if config.model.head_precision == "fp32":
        use_float32_head(model)
    follow_autocast(model)
    model = model.to(device)
    with full_weights(model):
        refused = unsupported_reason(model) if config.rollout.generator == "engine" else None
    eos_ids = find_eos_ids(model, tokenizer)
    return Policy(
        model,
        tokenizer,
        CodeBlockStopping(tokenizer, config.tool.format, eos_ids=eos_ids),
        make_renderer(config.data.template, tokenizer, config.data.system, tool_schemas(config)),
        eos_ids,
        refused,
    )


def load_reference(config: Config, full_weights: FullWeights = nullcontext, given: Any = None) -> Any:
    """Load the frozen initial policy, or copy the `given` model. Returns None without `kl_coef`, and with LoRA
    (turn its adapters off)."""
    if not config.algorithm.kl_coef or config.model.lora_rank:
        return None
    if given is not None:
        model = copy.deepcopy(given).float()
    else:
        model, _ = load_model(config.model.path, config.model.revision, full_weights)
    if config.model.head_precision == "fp32":
        use_float32_head(model)
    return model.requires_grad_(False).eval()


def load_model(path: str, revision: str | None = None, full_weights: FullWeights = nullcontext) -> tuple[Any, Any]:
    """Load model (float32) and tokenizer.

    Raises:
        ModelError: one line with the reason.
    """
    disable_progress_bar()  # progress bars of loads and saves would break our progress line
    path = hub.locate_model(path)
    if Path(path).is_dir() and not (Path(path) / "config.json").is_file():
        found = sorted(file.parent for file in Path(path).glob("**/checkpoints/step_*/config.json"))
        hint = f"; did you mean {found[-1]}?" if found else ""
        raise ModelError(f"cannot load the model {path}: it holds no config.json{hint}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision)
        model, loaded = AutoModelForCausalLM.from_pretrained(
            path, revision=revision, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:  # transformers raises many types of error
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise ModelError(f"cannot load the model {path}: {lines[0] if lines else type(error).__name__}") from error
    if missing := sorted(loaded["missing_keys"]):
        raise ModelError(f"{path} lacks {len(missing)} weights of a language model, among them {missing[0]}")
    check_model(path, model, tokenizer, full_weights)
    return model, tokenizer


def check_model(name: str, model: Any, tokenizer: Any, full_weights: FullWeights = nullcontext) -> None:
    """Check that a model predicts the next token and fits its tokenizer.

    Raises:
        ModelError: one line with the reason.
    """
    with full_weights(model):
        vocabulary = model.get_input_embeddings().weight.shape[0]
        fault = _try_out(model)
    if len(tokenizer) > vocabulary:
        raise ModelError(f"{name}: the tokenizer has {len(tokenizer)} tokens, the model only {vocabulary}")
    if fault:
        raise ModelError(f"{name} {fault}")
    if not find_eos_ids(model, tokenizer):
        raise ModelError(f"{name}: neither tokenizer nor config name an end-of-text token")


@torch.no_grad()
def _try_out(model: Any) -> str | None:
    """Check a model with two tokens; return the fault, or None. transformers silently loads encoders such as BERT
    as causal models; their first prediction changes with the second token."""
    pairs = torch.tensor([[1, 2], [1, 3]], device=model.device)
    first = model.eval()(input_ids=pairs, use_cache=False).logits[:, 0].float()  # (2, V)
    if first.isnan().any():
        return "predicts NaN: its weights are damaged"
    if not torch.allclose(first[0], first[1], rtol=1e-4, atol=1e-5):
        return "is no causal language model: later tokens change its earlier predictions"
    return None

"""Configure DeepSpeed ZeRO beyond what accelerate does.

    stage   sharded over the ranks
    1       optimizer state
    2       optimizer state and gradients
    3       optimizer state, gradients and weights

All of these stay in float32, because at lr 1e-6 an update is lost in the rounding of a bf16 weight. With bf16,
forward passes use DeepSpeed's own autocast.
"""

import copy
import importlib.util
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.integrations import unset_hf_deepspeed_config

from grpo_tir.distributed.optimizer_state import ParamShard
from grpo_tir.errors import ConfigError
from grpo_tir.learning.prepare import Float32Head, use_float32_head

GATHERED = 250_000_000
"""Largest number of elements that are gathered at a time; a larger matrix is gathered alone."""


def prepare() -> None:
    """Prepare this process for DeepSpeed.

    Raises:
        ConfigError: DeepSpeed is not installed.
    """
    if importlib.util.find_spec("deepspeed") is None:
        raise ConfigError("this launch asks for DeepSpeed; install it: pip install 'grpo-tir[deepspeed]'")
    warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)  # one line per DeepSpeed call
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        import deepspeed.ops

        # else DeepSpeed compiles a shared-memory collective at the start, which needs a C++ compiler
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def configure(config: dict[str, Any], bf16: bool, shard_on_loading: bool) -> int:
    """Set micro-batches and precision in DeepSpeed's config as the trainer needs them. Returns the ZeRO stage.

    Raises:
        ConfigError: a DeepSpeed setting contradicts the recipe.
    """
    stage: int = config["zero_optimization"]["stage"]
    if stage not in (1, 2, 3):
        raise ConfigError(f"DeepSpeed with ZeRO stage {stage}: use 1, 2 or 3, or launch without DeepSpeed")
    for name in ("fp16", "bf16"):
        if config.get(name, {}).get("enabled") is True:
            raise ConfigError(
                f"DeepSpeed's {name} keeps the weights in 16 bits; remove it, and set model.precision: bf16"
            )
    for name in ("optimizer", "scheduler"):
        if name in config:
            raise ConfigError(f"remove `{name}` from the DeepSpeed config: the recipe's section `optim` sets it")
    offload = [config["zero_optimization"].get(f"offload_{what}") or {} for what in ("optimizer", "param")]
    if any(part.get("device", "none") != "none" for part in offload):
        raise ConfigError("offloading is not supported: remove offload_* from the DeepSpeed config")
    if not shard_on_loading:
        unset_hf_deepspeed_config()
    config.pop("train_batch_size", None)
    config.update(train_micro_batch_size_per_gpu=1, gradient_accumulation_steps=1)
    config["torch_autocast"] = {"enabled": bf16, "dtype": "bfloat16"}
    return stage


def parameter_shards(model: torch.nn.Module, engine: Any, rank: int) -> Iterator[ParamShard]:
    """Yield the slices of trained parameters in this rank's optimizer. ZeRO-3 splits every parameter over the
    ranks. ZeRO-1 and ZeRO-2 split the concatenation of all parameters."""
    optimizer = engine.optimizer
    parameter: Any  # DeepSpeed adds attributes to it
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if hasattr(parameter, "ds_id"):
            group, offset, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
            start = rank * size
            size = min(size, parameter.ds_numel - start)  # the last part is padded
            if size > 0:
                yield ParamShard(name, start, size, optimizer.fp32_partitioned_groups_flat[group], offset)
        elif (mapping := parameter._hp_mapping) is not None:
            owner = optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
            start, size = mapping.lp_fragment_address.start, mapping.lp_fragment_address.numel
            yield ParamShard(name, start, size, owner, mapping.hp_fragment_address.start)


@contextmanager
def full_weights(model: torch.nn.Module, engine: Any = None) -> Iterator[None]:
    """Gather all weights of a sharded model and remove its hooks, so that each rank may run any number of
    forwards.

    All ranks must enter together; each leaves on its own. With the hooks, layers would be gathered one by one.
    That is slower, and a rank with more forwards than the others would wait forever. If DeepSpeed's `engine` holds
    the model, its hooks are removed inside.
    """
    parameters = [p for p in model.parameters() if hasattr(p, "ds_id")]
    if not parameters:
        yield
        return
    import deepspeed

    hooked = engine is not None and any(p is parameters[0] for p in engine.module.parameters())
    offload = engine.optimizer.parameter_offload if hooked else None
    with deepspeed.zero.GatheredParameters(parameters):
        if offload is not None:
            _remove_hooks(offload)
        try:
            yield
        finally:
            if offload is not None:
                _restore_hooks(offload)


@torch.no_grad()
def gather_decode_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Make the copy of `engine.decode_weights.make_decode_copy` from a sharded model without adapters. At no time
    are all float32 weights on this rank. All ranks must call it together."""
    import deepspeed

    # 1. Make the same model with empty parameters. Buffers are not sharded, and are shared.
    with torch.device("meta"):
        decode_copy = type(model)(copy.deepcopy(model.config)).eval()
    float32 = isinstance(model.get_output_embeddings(), Float32Head)
    if float32:
        use_float32_head(decode_copy)
    made: dict[int, tuple[torch.nn.Parameter, Any]] = {}  # by id: tied matrices are one parameter
    for ours, theirs in zip(decode_copy.modules(), model.modules(), strict=True):
        ours._buffers.update(theirs._buffers)
        parameter: Any  # DeepSpeed adds attributes to it
        for name, parameter in theirs._parameters.items():
            if parameter is not None and id(parameter) not in made:
                kind = torch.float32 if float32 and type(theirs) is not torch.nn.Linear else torch.bfloat16
                empty = torch.empty(parameter.ds_shape, dtype=kind, device=model.device)
                made[id(parameter)] = torch.nn.Parameter(empty, requires_grad=False), parameter
            ours._parameters[name] = made[id(parameter)][0] if parameter is not None else None
    # 2. Fill them.
    parts: list[list[tuple[torch.nn.Parameter, Any]]] = [[]]
    for pair in made.values():
        if parts[-1] and sum(each.numel() for each, _ in (*parts[-1], pair)) > GATHERED:
            parts.append([])
        parts[-1].append(pair)
    for part in parts:
        copies, trained = map(list, zip(*part, strict=True))
        with deepspeed.zero.GatheredParameters(trained):
            torch._foreach_copy_(copies, trained)
    return decode_copy


def _remove_hooks(offload: Any) -> None:
    """Remove ZeRO-3's hooks, and empty their lists, which would otherwise grow at every rollout batch."""
    for parameter in offload.module.parameters():
        parameter.ds_active_sub_modules.clear()
    for hook in (*offload.forward_hooks, *offload.backward_hooks, offload.fwd_pre_hook):
        hook.remove()
    offload.forward_hooks.clear()
    offload.backward_hooks.clear()


def _restore_hooks(offload: Any) -> None:
    """Register the hooks of ZeRO-3 again."""
    from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK

    offload.setup_zero_stage3_hooks()
    FWD_MODULE_STACK.pop()  # the module is still on it from the first setup

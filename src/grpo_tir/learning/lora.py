"""Add low-rank adapters (LoRA, arXiv 2106.09685): train two small matrices per layer, freeze the weights.

    y = W x + (alpha / rank) B A x        A (rank, in), B (out, rank), initially B = 0

The model keeps its class, so that every generator can decode the adapted policy. The initial policy is the same
model with the adapters scaled to 0. A checkpoint holds the merged weights for users, and the adapters to resume.
"""

import importlib.util
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from grpo_tir.config import ModelConfig
from grpo_tir.errors import CheckpointError, ConfigError

FOLDER = "adapter"
"""Folder of the adapters in a checkpoint, in peft's format."""


def add_adapters(model: Any, settings: ModelConfig, checkpoint: Path | None = None) -> None:
    """Freeze the weights and add adapters: new ones, or those of a checkpoint.

    Raises:
        ConfigError: peft is not installed, or a target is not a linear layer of this model.
        CheckpointError: the checkpoint has no adapters, or adapters of another rank or of other layers.
    """
    if importlib.util.find_spec("peft") is None:
        raise ConfigError("model.lora_rank needs peft; install it: pip install 'grpo-tir[peft]'")
    from peft import LoraConfig, set_peft_model_state_dict

    targets: Any = settings.lora_targets or "all-linear"
    try:
        model.add_adapter(LoraConfig(r=settings.lora_rank, lora_alpha=settings.lora_alpha, target_modules=targets))
    except ValueError as error:
        raise ConfigError(f"model.lora_targets {settings.lora_targets}: {str(error).splitlines()[0]}") from error
    if checkpoint is not None:
        try:
            state = load_file(checkpoint / FOLDER / "adapter_model.safetensors")
            set_peft_model_state_dict(model, state)
        except (OSError, RuntimeError) as error:
            raise CheckpointError(
                f"{checkpoint} has no adapters of rank {settings.lora_rank} on these layers"
            ) from error


def has_adapters(model: Any) -> bool:
    """True if the model has adapters."""
    return bool(getattr(model, "_hf_peft_config_loaded", False))


def without_adapters(model: Any) -> AbstractContextManager[None]:
    """Return a context that turns the adapters off. The model is then the initial policy."""
    from peft.helpers import rescale_adapter_scale

    context: AbstractContextManager[None] = rescale_adapter_scale(model, 0.0)
    return context


@torch.no_grad()
def merge(model: Any, weights: dict[str, torch.Tensor]) -> tuple[Any, dict[str, torch.Tensor]]:
    """Return an empty model without adapters, and its weights: `weights` plus the products B A of the adapters.
    The given model is unchanged, because adding a product and subtracting it again does not restore every bit."""
    from peft.tuners.lora import LoraLayer

    state = {name.replace(".base_layer.", "."): tensor for name, tensor in weights.items() if ".lora_" not in name}
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            a, b = (weights[f"{name}.lora_{part}.default.weight"] for part in "AB")
            product = layer.scaling["default"] * (b @ a)  # (out, in)
            state[f"{name}.weight"] = state[f"{name}.weight"] + (product.T if layer.fan_in_fan_out else product)
    with torch.device("meta"):
        return type(model)(model.config), state

"""Prepare a model for learning: no dropout, and a head and a residual stream of the wanted precision."""

from typing import Any

import torch
from torch import nn

from grpo_tir.errors import ConfigError


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout probability to 0. Otherwise the learner's policy would differ from the generator's, the
    gradient would depend on the split into micro-batches, and a resume would need the random generator's state."""
    for module in model.modules():
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
        if isinstance(module, nn.Dropout):
            module.p = 0.0


class Float32Head(nn.Linear):
    """A head that computes in float32 also under autocast (`model.head_precision: fp32`)."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map hidden states (..., H) of any type to float32 logits (..., V)."""
        return float32_linear(input, self.weight, self.bias)


def float32_linear(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Compute a linear layer in float32, also under autocast."""
    with torch.autocast(hidden.device.type, enabled=False):
        return nn.functional.linear(hidden.float(), weight.float(), bias if bias is None else bias.float())


def use_float32_head(model: Any) -> None:
    """Let a model compute its logits in float32, in generators and learner. Its weights stay the same objects.

    Raises:
        ConfigError: its head is not an ordinary linear layer.
    """
    head = model.get_output_embeddings()
    if type(head) not in (nn.Linear, Float32Head):
        raise ConfigError(f"model.head_precision: fp32 needs a linear head, not {type(head).__name__}; use `auto`")
    head.__class__ = Float32Head


def follow_autocast(model: Any) -> None:
    """Let a model's residual stream have the type of autocast. That is its type in the generator's bf16 copy, and
    half the memory traffic. With a float32 head, both keep it in float32."""
    embeddings, exact = model.get_input_embeddings(), isinstance(model.get_output_embeddings(), Float32Head)
    if not exact and _cast not in embeddings._forward_hooks.values():
        embeddings.register_forward_hook(_cast)


def _cast(module: nn.Module, inputs: object, hidden: torch.Tensor) -> torch.Tensor:
    kind = hidden.device.type
    return hidden.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else hidden


def plain_head(model: Any) -> bool:
    """True if the logits are `head(hidden)`. Some model families scale or cap them."""
    config = model.config.get_text_config()
    scaled = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")
    return (
        all(getattr(config, name, None) in (None, 1, 1.0) for name in scaled)
        and isinstance(model.get_output_embeddings(), nn.Linear)
        and model.get_decoder() is not model
    )

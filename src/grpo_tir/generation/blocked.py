"""A copy of a CPU model's linear weights in oneDNN's blocked layout, to decode from.

    y = x W^T        x (64, 384), W (32000, 384)        BLAS 55 to 60 GFLOP/s        blocked 97 of about 105

A product of few rows must read each weight once and use it for all rows. BLAS copies the weights into such an
order at every call, which costs as much as the product itself; here they are put in order once for all tokens of a
rollout batch. It is what `torch.compile` does to frozen weights, by the same operators. The plain layers are its
readable twin, and what is used wherever it cannot be: on GPUs, for other types than float32, without oneDNN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

ROWS = 64  # for which the layout is chosen; any number may then be multiplied


class BlockedWeights:
    """Makes the copies when they are first used, and holds them until they are dropped."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.layers: list[Any] = [layer for layer in model.modules() if _fits(layer)]
        self.versions: list[int] = []
        self.forwards: list[Callable[[torch.Tensor], torch.Tensor]] = []

    def drop(self) -> None:
        """Free the copies. Due before any update: not every way to write to a weight raises its version."""
        self.forwards, self.versions = [], []

    @contextmanager
    def used(self) -> Iterator[None]:
        """The model computes with the copies, made anew where a weight's version says that it was written to."""
        if torch.is_autocast_enabled("cpu"):  # which would hand the layers another type
            yield
            return
        if self.versions != (versions := [layer.weight._version for layer in self.layers]):
            self.forwards, self.versions = [_blocked(layer) for layer in self.layers], versions
        for layer, forward in zip(self.layers, self.forwards, strict=True):
            layer.forward = forward
        try:
            yield
        finally:
            for layer in self.layers:
                del layer.forward  # the instance's; the class's is behind it


def _fits(layer: torch.nn.Module) -> bool:
    return (
        type(layer) is torch.nn.Linear
        and "forward" not in vars(layer)  # somebody else has put theirs
        and (layer.weight.device.type, layer.weight.dtype) == ("cpu", torch.float32)
        and not layer.weight.is_inference()  # which has no version
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


@torch.no_grad()
def _blocked(layer: torch.nn.Linear) -> Callable[[torch.Tensor], torch.Tensor]:
    weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), ROWS)
    bias = layer.bias

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(hidden, weight, bias, "none", [], "")
        return product

    return forward

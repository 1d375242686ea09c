"""Keep copies of the policy's weights to decode with: bf16 on a GPU, blocked layouts on a CPU.

Trained weights are float32. Decoding reads every weight once for each token, so a bf16 copy makes it twice as fast
on a GPU. The copy keeps its tensors at fixed addresses and is overwritten in place before each rollout batch, so
that it is never stale and allocates nothing. On a CPU bf16 is slower than float32. There the engine decodes with
float32 weights in oneDNN's layout (`BlockedWeights`).
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import library
from transformers import PreTrainedModel

from grpo_tir.learning.prepare import Float32Head


def make_decode_copy(model: PreTrainedModel, dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
    """Copy a model for decoding. Parameters are cast; buffers are not, because RoPE's frequencies need float32.

    With a `Float32Head`, only linear layers are cast, which are those that autocast casts in the learner. All
    other parameters are those of the model itself, so that hidden states between layers are float32 too. Such a
    copy needs autocast.
    """
    decode_copy = copy.deepcopy(model).requires_grad_(False).eval()
    if isinstance(model.get_output_embeddings(), Float32Head):
        for ours, theirs in zip(decode_copy.modules(), model.modules(), strict=True):
            if type(ours) is not torch.nn.Linear:
                ours._parameters.update(theirs._parameters)
    trained = {id(parameter) for parameter in model.parameters()}
    for parameter in decode_copy.parameters():
        if id(parameter) in trained:
            continue
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
        parameter.grad = None
    return decode_copy


@torch.no_grad()
def refresh_decode_copy(decode_copy: PreTrainedModel, model: PreTrainedModel) -> None:
    """Overwrite the copy with the current weights. Call after the weights have changed."""
    copies, trained = (dict(each.named_parameters(remove_duplicate=False)) for each in (decode_copy, model))
    names = [name for name in dict(decode_copy.named_parameters()) if copies[name] is not trained[name]]
    torch._foreach_copy_([copies[name] for name in names], [trained[name] for name in names])


WORTH_A_CALL = 100_000
"""Elements of a weight from which a compiled step calls oneDNN: the call from compiled code takes some 50 us."""
ROWS = 64  # batch size for which oneDNN chooses the layout; other sizes also work


class BlockedWeights:
    """Hold copies of linear weights in oneDNN's layout. They are made on first use and kept until dropped."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.layers: list[Any] = [layer for layer in model.modules() if _fits(layer)]
        self.versions: list[int] = []
        self.copies: list[torch.Tensor] = []

    def drop(self) -> None:
        """Free the copies. Call before any update, because some writes to a weight do not raise its version."""
        self.copies, self.versions = [], []

    @contextmanager
    def used(self) -> Iterator[None]:
        """Let the model compute with the copies. All are made again if the version of any weight has changed."""
        if torch.is_autocast_enabled("cpu"):  # the layers would get inputs of another type
            yield
            return
        if self.versions != (versions := [layer.weight._version for layer in self.layers]):
            self.copies, self.versions = [_reordered(layer.weight) for layer in self.layers], versions
        for layer, weight in zip(self.layers, self.copies, strict=True):
            _COPIES[layer.weight.data_ptr()] = weight
            layer.forward = MethodType(_forward, layer)
        try:
            yield
        finally:
            for layer in self.layers:
                del layer.forward  # the instance attribute; the class's method is used again
                _COPIES.pop(layer.weight.data_ptr(), None)


def _fits(layer: Any) -> bool:
    return bool(
        type(layer) in (torch.nn.Linear, Float32Head)
        and "forward" not in vars(layer)  # another library has replaced it
        and (layer.weight.device.type, layer.weight.dtype) == ("cpu", torch.float32)
        and not layer.weight.is_inference()  # inference tensors have no version
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


@torch.no_grad()
def _reordered(weight: torch.Tensor) -> torch.Tensor:
    copy: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)
    return copy


_COPIES: dict[int, torch.Tensor] = {}
"""The copies in use, by address of the weight."""


def _product(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
        hidden, _COPIES[weight.data_ptr()], bias, "none", [], ""
    )
    return out


# One operator for the compiler, which cannot trace tensors in oneDNN's layout.
_compilable = library.custom_op("grpo_tir::blocked_linear", _product, mutates_args=())
_compilable.register_fake(lambda hidden, weight, bias: hidden.new_empty(*hidden.shape[:-1], len(weight)))


def _forward(layer: Any, hidden: torch.Tensor) -> torch.Tensor:
    if not torch.compiler.is_compiling():
        return _product(hidden, layer.weight, layer.bias)
    product = _compilable if layer.weight.numel() >= WORTH_A_CALL else torch.nn.functional.linear
    return product(hidden, layer.weight, layer.bias)

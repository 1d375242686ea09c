"""A pretended CUDA device: tensors that compute on the CPU, report `cuda:0`, and count what a GPU would wait for.

Mixed devices are refused. Every read by the host and every copy to the device is counted under the function of our
package that asked for it. Gradients are not supported: a backward pass needs a build with CUDA.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("cuda", 0)
# each waits for the device: the host needs the value, or the number of its elements
READS = {
    "item",
    "tolist",
    "cpu",
    "numpy",
    "__bool__",
    "__int__",
    "__float__",
    "__index__",
    "nonzero",
    "masked_select",
}
# these take a tensor of the host for an index or a shape, and copy it
INDEXED = {"__getitem__", "__setitem__", "index_put_"}


@dataclass
class Log:
    """Reads by the host and copies to the device, by function of our package."""

    reads: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)


LOG = Log()


class CudaTensor(torch.Tensor):
    """A tensor of the CPU that reports `cuda:0`."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return call(func, args, kwargs or {})


class Factories(TorchFunctionMode):
    """Make tensors of the device where a factory gets `device="cuda"`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return call(func, args, kwargs or {})


def call(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Call a function of torch with the held tensors. Its results are on the device if its inputs are."""
    name = getattr(func, "__name__", str(func))
    flat = tree_flatten((args, kwargs))[0]
    ours = [each for each in flat if isinstance(each, CudaTensor)]
    if name == "__get__" and ours:
        owner = getattr(func, "__self__", None)
        return _attribute(getattr(owner, "__name__", ""), func, ours[0])
    target = _target(name, args, kwargs)
    kwargs = {key: value for key, value in kwargs.items() if key != "pin_memory"}
    if name == "pin_memory":
        return args[0]
    if not ours and target != "cuda":
        return func(*args, **kwargs)
    hosts = [each for each in flat if isinstance(each, torch.Tensor) and not isinstance(each, CudaTensor)]
    # 1. Count what waits, refuse what a GPU refuses.
    if name in READS or (ours and target == "cpu") or (name == "copy_" and not isinstance(args[0], CudaTensor)):
        LOG.reads[_caller()] += 1
    elif name == "copy_" or name in INDEXED or (target == "cuda" and not ours and hosts) or name == "tensor":
        if number := len(hosts) if name != "tensor" else 1:
            LOG.copies[_caller()] += number
    elif mixed := [each for each in hosts if each.dim() > 0]:
        raise AssertionError(f"{name} mixes devices in {_caller()}: {[tuple(each.shape) for each in mixed]}")
    by_mask = name == "__getitem__" and any(
        getattr(e, "dtype", None) == torch.bool for e in tree_flatten(args[1])[0]
    )
    if by_mask:  # the host needs the number of True entries
        LOG.reads[_caller()] += 1
    # 2. Compute on the CPU.
    args, kwargs = tree_map(_to_host, (args, kwargs))
    with torch._C.DisableTorchFunction():
        result = func(*args, **kwargs)
    # 3. Wrap.
    if name.endswith("_") and not name.endswith("__") and isinstance(flat[0], torch.Tensor):
        return flat[0]
    leaves = name in READS - {"nonzero", "masked_select"} or target == "cpu"
    return result if leaves else tree_map(_to_device, result)


def _attribute(name: str, func: Any, tensor: CudaTensor) -> Any:
    if name == "device":
        return DEVICE
    if name == "is_cuda":
        return True
    return tree_map(_to_device, getattr(_to_host(tensor), name))


def _target(name: str, args: Any, kwargs: dict[str, Any]) -> str | None:
    """Return the type of the device that the call names; None if it names none."""
    named = [kwargs.get("device"), *(args[1:] if name == "to" else ())]
    if name == "cpu":
        return "cpu"
    for each in named:
        if isinstance(each, CudaTensor):
            return "cuda"
        if isinstance(each, torch.device) or (isinstance(each, str) and each.split(":")[0] in ("cpu", "cuda")):
            return torch.device(each).type
    return None


def _to_host(value: Any) -> Any:
    if isinstance(value, CudaTensor):
        with torch._C.DisableTorchFunctionSubclass():
            return value.as_subclass(torch.Tensor)
    if isinstance(value, torch.device) or (isinstance(value, str) and value.startswith("cuda")):
        return torch.device("cpu")
    return value


def _to_device(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and not isinstance(value, CudaTensor):
        return value.detach().as_subclass(CudaTensor)
    return value


def _caller() -> str:
    for frame in reversed(traceback.extract_stack()):
        if "/grpo_tir/" in frame.filename:
            return f"{frame.filename.rsplit('/grpo_tir/', 1)[1]}:{frame.name}"
    return "elsewhere"


@contextmanager
def pretended_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    """Use the device in a context. Counts begin at zero."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (1 << 33, 1 << 34))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    LOG.reads.clear()
    LOG.copies.clear()
    with Factories():
        yield LOG


def to_device(model: Any) -> Any:
    """Move parameters and buffers of a model to the device."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = _to_device(parameter)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = _to_device(buffer)
    return model

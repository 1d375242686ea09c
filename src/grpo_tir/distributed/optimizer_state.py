"""Save AdamW state per parameter slice, so that a run can resume on any number of ranks or ZeRO stage.

Each rank writes its slices of the flattened parameters. On loading, each rank reads the parts of all files that
overlap with its own slices. One parameter of 10 elements:

    written by two ranks      [0 ……… 5)[5 ……… 10)
    read by three ranks       [0 … 4)[4 … 8)[8 … 10)

Without ZeRO every rank holds complete parameters, and rank 0 writes one file.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from grpo_tir.errors import CheckpointError

KEYS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class ParamShard:
    """Slice of one flattened parameter, and the tensor that holds its optimizer state on this rank."""

    name: str
    start: int
    size: int
    owner: torch.Tensor
    """Tensor that the optimizer updates: the parameter itself, or a flat buffer of several parameters."""
    offset: int
    """Start of the slice in the flattened owner."""

    def of(self, state: torch.Tensor) -> torch.Tensor:
        """Return the slice, (size,), of a tensor shaped like the owner."""
        return state.view(-1)[self.offset : self.offset + self.size]


def full_parameters(model: torch.nn.Module) -> Iterable[ParamShard]:
    """Return every trained parameter as one slice."""
    return [ParamShard(n, 0, p.numel(), p, 0) for n, p in model.named_parameters() if p.requires_grad]


def read_state(
    optimizer: torch.optim.Optimizer, shards: Iterable[ParamShard], copy: bool = True
) -> dict[str, Any]:
    """Return `{"step", "moments": {name: {"start", "exp_avg", "exp_avg_sq"}}}` on the CPU. Before the first step,
    `step` is 0 and there are no moments."""
    step, moments = 0, {}
    for part in shards:
        if state := optimizer.state.get(part.owner):
            step = int(state["step"])
            values: dict[str, Any] = {key: part.of(state[key]).to("cpu", copy=copy) for key in KEYS}
            moments[part.name] = {"start": part.start, **values}
    return {"step": step, "moments": moments}


@torch.no_grad()
def write_state(
    optimizer: torch.optim.Optimizer, shards: Iterable[ParamShard], files: Sequence[dict[str, Any]]
) -> None:
    """Fill an optimizer from the states that `read_state` returned on all ranks of a launch.

    Raises:
        CheckpointError: the states belong to other parameters, or to parameters of another size.
    """
    step = max(file["step"] for file in files)
    if not step:
        return
    known = {name for file in files for name in file["moments"]}
    for part in shards:
        if part.name not in known:
            raise CheckpointError(f"the checkpoint has no optimizer state of {part.name}: it is another recipe's")
        state = optimizer.state[part.owner]
        # PyTorch's fused kernel reads the step on the device of the parameter, other implementations on the CPU.
        device = part.owner.device if optimizer.defaults.get("fused") else "cpu"
        state["step"] = torch.tensor(float(step), device=device)
        for key in KEYS:
            target = part.of(state.setdefault(key, torch.zeros_like(part.owner)))
            filled = sum(_copy_overlap(target, part.start, file["moments"].get(part.name), key) for file in files)
            if filled != part.size:
                raise CheckpointError(f"the optimizer state of {part.name} has another size than this parameter")


def _copy_overlap(target: torch.Tensor, start: int, source: dict[str, Any] | None, key: str) -> int:
    """Copy the overlap of two slices of one parameter into `target`. Returns the number of copied elements."""
    if source is None:
        return 0
    low = max(start, source["start"])
    high = min(start + len(target), source["start"] + len(source[key]))
    if low < high:
        target[low - start : high - start] = source[key][low - source["start"] : high - source["start"]]
    return max(0, high - low)

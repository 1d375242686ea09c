"""Wrap accelerate and DeepSpeed for one process or many.

Each group belongs to one rank. Each rank samples and learns from its own groups. Gradients, loss denominators,
metrics and stop requests are reduced over all ranks. Only this package imports accelerate and, if the launch asks
for it, DeepSpeed (`zero.py`).
"""

import importlib
import math
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from accelerate import Accelerator, InitProcessGroupKwargs

from grpo_tir.distributed import optimizer_state
from grpo_tir.distributed.watchdog import Progress
from grpo_tir.errors import ConfigError


class Runtime:
    """Represent this rank, and communicate with the others.

    Args:
        precision: precision of forward passes; `auto` is bf16 on a GPU that supports it, else fp32.
        patience: minutes that a collective waits for the slowest rank.
        trains: if true, ZeRO-3 shards a model while it is loaded. If false, each rank loads all weights.
    """

    def __init__(
        self,
        precision: Literal["auto", "fp32", "bf16"] = "auto",
        patience: float = 30.0,
        trains: bool = False,
    ) -> None:
        # 1. Read what the launch and the device allow.
        self.progress = Progress()
        cpu = not torch.cuda.is_available()
        sharded = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
        self._zero: Any = None  # the module `zero`, which only a launch with DeepSpeed loads
        if sharded:
            self._zero = importlib.import_module("grpo_tir.distributed.zero")
            self._zero.prepare()
        world = int(os.environ.get("WORLD_SIZE", "1"))
        # without an explicit backend, accelerate on a CPU assumes one process
        group = InitProcessGroupKwargs(backend="gloo" if cpu else None, timeout=timedelta(minutes=patience))
        bf16 = precision == "bf16" or (precision == "auto" and not cpu and torch.cuda.is_bf16_supported())
        # 2. Connect the ranks.
        self._accelerator = Accelerator(
            cpu=cpu and not sharded,  # with cpu=True accelerate ignores DeepSpeed, which does run on a CPU
            mixed_precision="no",  # accelerate allows one precision per process; use `autocast` below instead
            kwargs_handlers=[group] if world > 1 or sharded else None,
        )
        self.bf16 = bf16
        """True if forward passes run under bf16 autocast. Weights and gradients stay in float32."""
        self.rank: int = self._accelerator.process_index
        self.world: int = self._accelerator.num_processes
        self.is_main: bool = self._accelerator.is_main_process
        self.device: torch.device = self._accelerator.device
        if self.world != world:
            raise ConfigError(f"the launcher started {world} processes, but {self.world} are connected")
        if self._accelerator.distributed_type.value == "FSDP" and cpu:
            raise ConfigError("FSDP on CPU neither shards nor synchronises; launch with DDP or DeepSpeed instead")
        # 3. Configure DeepSpeed, if the launch asks for it.
        self._engine: Any = None  # DeepSpeed's engine around the policy
        self._deepspeed = self._accelerator.deepspeed_plugin.deepspeed_config if sharded else {}
        self.stage = self._zero.configure(self._deepspeed, bf16, shard_on_loading=trains) if sharded else 0
        """ZeRO stage; 0 means plain data parallelism or one process."""

    def prepare(
        self, module: torch.nn.Module, optimizer: torch.optim.Optimizer, max_norm: float
    ) -> tuple[Any, Any]:
        """Return module and optimizer, wrapped for this launch. `step` will clip gradients to `max_norm`."""
        self.max_norm = max_norm
        if self.stage:
            self._deepspeed["gradient_clipping"] = max_norm
            self._accelerator.deepspeed_engine_wrapped = None  # else it warns about an earlier engine
        module, optimizer = self._accelerator.prepare(module, optimizer)
        self._engine = module if self.stage else None
        return module, optimizer

    def autocast(self, module: Any = None) -> AbstractContextManager[Any]:
        """Return the autocast context of forward passes. For DeepSpeed's engine it is off: that has its own."""
        enabled = self.bf16 and not (self.stage and module is self._engine)
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    @property
    def precision(self) -> str:
        """Precision and device of forward passes, to print: `bf16 on cuda`."""
        return f"{'bf16' if self.bf16 else 'fp32'} on {self.device.type}"

    def full_weights(self, model: torch.nn.Module) -> AbstractContextManager[None]:
        """Gather all weights of a model on this rank, to sample, score or save. All ranks must enter together."""
        if self.stage == 3:
            self.progress.enter("gathering the weights")
        return self._zero.full_weights(model, self._engine) if self._zero else nullcontext()

    def gather_decode_copy(self, model: Any) -> Any:
        """Make a bf16 copy of a model that ZeRO-3 has sharded, to decode with. All ranks must call it together."""
        self.progress.enter("gathering the weights")
        return self._zero.gather_decode_copy(model)

    def hold_sync(self, module: Any, hold: bool) -> AbstractContextManager[Any]:
        """Skip the gradient exchange if `hold`: for every micro-batch of an optimizer step but the last."""
        if self.stage:
            module.set_gradient_accumulation_boundary(not hold)
            return nullcontext()
        return self._accelerator.no_sync(module) if hold else nullcontext()

    def backward(self, module: Any, loss: torch.Tensor) -> None:
        """Add the gradient of a loss that is already divided by the global denominator. It is multiplied by the
        number of ranks, because data-parallel wrappers average gradients over ranks."""
        self.progress.enter("backward")
        loss = loss * self.world
        with torch.autocast(self.device.type, enabled=False):
            if self.stage:
                module.backward(loss)
            else:
                self._accelerator.backward(loss)

    def step(self, module: Any, optimizer: Any) -> float:
        """Clip by global norm, step, and clear the gradients. If the norm is not finite, the weights do not
        change. Returns the norm before clipping."""
        self.progress.enter("clipping the gradient and stepping")
        if self.stage:
            module.step()
            return math.inf if module.optimizer.overflow else float(module.get_global_grad_norm())
        norm = float(self._accelerator.clip_grad_norm_(module.parameters(), self.max_norm))
        if math.isfinite(norm):
            optimizer.step()
        optimizer.zero_grad()
        return norm

    def read_state(self, model: torch.nn.Module, optimizer: Any, copy: bool = True) -> dict[str, Any] | None:
        """Return this rank's optimizer state on the CPU; None if the main process holds the same state. Without
        `copy`, tensors that are on the CPU are not copied."""
        if not self.stage and not self.is_main:
            return None
        return optimizer_state.read_state(*self._optimizer_state(model, optimizer), copy)

    def write_state(self, model: torch.nn.Module, optimizer: Any, files: Sequence[dict[str, Any]]) -> None:
        """Load the optimizer from the states that all ranks of a launch saved, this or another one.

        Raises:
            CheckpointError: the states belong to other parameters.
        """
        optimizer_state.write_state(*self._optimizer_state(model, optimizer), files)

    def _optimizer_state(self, model: torch.nn.Module, optimizer: Any) -> tuple[Any, Any]:
        """Return PyTorch's optimizer without its wrappers, and the slices that it holds on this rank."""
        if self.stage:
            return self._engine.optimizer.optimizer, self._zero.parameter_shards(model, self._engine, self.rank)
        return optimizer.optimizer, optimizer_state.full_parameters(model)

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """Sum element-wise over all ranks, in float64."""
        return self._reduce(numbers, dist.ReduceOp.SUM)

    def max(self, numbers: Sequence[float]) -> list[float]:
        """Take the maximum element-wise over all ranks."""
        return self._reduce(numbers, dist.ReduceOp.MAX)

    def _reduce(self, numbers: Sequence[float], op: Any) -> list[float]:
        if self.world == 1:
            return list(numbers)
        self.progress.enter("a sum over all ranks")
        tensor = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, op)
        return [float(number) for number in tensor.tolist()]

    def gather(self, items: list[Any]) -> list[Any]:
        """Return the lists of all ranks, joined in rank order, on every rank."""
        if self.world == 1:
            return items
        self.progress.enter("gathering from all ranks")
        parts: list[Any] = [None] * self.world
        dist.all_gather_object(parts, items)
        return [item for part in parts for item in part]

    def share(self, items: Sequence[Any], cost: Callable[[Any], float] = lambda item: 0) -> list[Any]:
        """Return this rank's share of `items`, in their order. All ranks must pass the same items."""
        ranks = deal([cost(item) for item in items], self.world)
        return [item for item, rank in zip(items, ranks, strict=True) if rank == self.rank]

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.progress.enter("waiting for all ranks")
        self._accelerator.wait_for_everyone()

    def close(self) -> None:
        """Leave the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()


def deal(costs: Sequence[float], ranks: int) -> list[int]:
    """Return the rank of each item. Items go in descending order of cost to ranks 0, 1, …, n, n, …, 1, 0, and so
    on. All ranks get about the same number of items and about the same cost.

        costs         9 8 7 6 5 4
        three ranks   0 1 2 2 1 0    13 each
    """
    assigned = [0] * len(costs)
    for position, i in enumerate(sorted(range(len(costs)), key=lambda i: -costs[i])):
        turn, rank = divmod(position, ranks)
        assigned[i] = ranks - 1 - rank if turn % 2 else rank
    return assigned


def balance(costs: Sequence[Sequence[float]]) -> dict[tuple[int, int], int]:
    """Return the few items to move so that all ranks have about the same cost, to within 1% where items allow it:
    (rank, position) to new rank. The rank with the most gives the one with the least an item of about half their
    difference, again and again.

        costs   9 5 4 │ 6        the 5 moves: 13 │ 11
    """
    held = [[(cost, (rank, i)) for i, cost in enumerate(each)] for rank, each in enumerate(costs)]
    loads = [sum(each) for each in costs]
    moves: dict[tuple[int, int], int] = {}
    while True:
        most, least = loads.index(max(loads)), loads.index(min(loads))
        gap = loads[most] - loads[least]
        item = min(held[most], key=lambda item: abs(item[0] - gap / 2), default=(gap, (0, 0)))
        if gap <= 0.01 * loads[most] or item[0] >= gap:
            return {origin: rank for origin, rank in moves.items() if origin[0] != rank}
        held[most].remove(item)
        held[least].append(item)
        loads[most], loads[least] = loads[most] - item[0], loads[least] + item[0]
        moves[item[1]] = least

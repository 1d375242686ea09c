"""Estimate the share of this machine's limit that a step reaches: the least possible seconds / measured seconds.

    update          6 x weights x tokens / rate of a large matrix product       forward 2, backward 4 per weight
    decode, CPU     2 x weights x tokens / the same rate
    decode, GPU     (weights x forwards + live keys and values) / rate of a large copy, in bytes

Tokens are those of the responses; the update also counts each prompt once per group. Padding, recomputation and
attention do not count as useful work. The two rates are measured once at the start of a run, in a fraction of a
second. They are too low if other jobs use the machine at that moment.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from grpo_tir.engine.support import kv_shape

CPU_SIZE, GPU_SIZE = 768, 8192
"""Size of the square matrices: large enough for the full rate, small enough to take milliseconds."""
COPIED = 1 << 30
"""Bytes of the copy: far larger than any cache."""
REPEATS = 5


class MachineLimits:
    """Measure the rates of this process's device, and hold the size of the model."""

    def __init__(self, model: Any, bf16: bool) -> None:
        device = next(model.parameters()).device
        self.on_gpu = device.type == "cuda"
        dtype = torch.bfloat16 if bf16 else torch.float32
        self.product_rate = product_rate(device, dtype)
        self.copy_rate = copy_rate(device) if self.on_gpu else 0.0
        self.weights = count_weights(model)
        self.element = dtype.itemsize
        self.kv_elements = 2 * math.prod(kv_shape(model))
        """Number of key and value elements per token."""

    def shares(
        self,
        rows: Sequence[Mapping[str, Any]],
        sampling: float,
        learning: float,
        forwards: float,
        passes: int = 1,
        world: int = 1,
    ) -> tuple[float | None, float]:
        """Return the shares of this machine's limit that sampling (None: unknown) and update reached.

        Args:
            rows: summaries of all ranks, with `group`, `trained`, and `prompt` and `length` in tokens.
            sampling, learning: seconds of sampling and of the update.
            forwards: number of forwards of the generator on one rank; 0 means unknown.
            passes: number of passes over the batch (`algorithm.epochs`).
            world: number of ranks.
        """
        response = sum(row["length"] for row in rows)
        prompts = {row["group"]: row["prompt"] for row in rows if row["trained"]}
        trained = sum(prompts.values()) + sum(row["length"] for row in rows if row["trained"])
        decode = 2 * self.weights * response / self.product_rate  # least seconds, on one device
        if self.on_gpu:
            live = sum(row["prompt"] * row["length"] + row["length"] ** 2 / 2 for row in rows)  # tokens read
            read = self.element * (self.weights * forwards * world + self.kv_elements * live)
            decode = read / self.copy_rate
        update = 6 * self.weights * passes * trained / self.product_rate
        known = forwards or not self.on_gpu
        return decode / world / sampling if known else None, update / world / learning


def count_weights(model: Any) -> int:
    """Count the weights that every token is multiplied by: all but an untied input embedding."""
    total = sum(numel(parameter) for parameter in model.parameters())
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and head.weight is embedding.weight
    return total if tied else total - numel(embedding.weight)


def numel(parameter: Any) -> int:
    """Return the number of elements of a parameter, also if ZeRO-3 has sharded it."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the floating-point operations per second of a large square matrix product."""
    size = GPU_SIZE if device.type == "cuda" else CPU_SIZE
    generator = torch.Generator(device).manual_seed(0)  # does not advance the global generator
    a, b = (torch.rand(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
    return 2 * size**3 / best_seconds(lambda: a @ b, device)


def copy_rate(device: torch.device) -> float:
    """Measure the bytes per second that the device reads and writes in a large copy."""
    source = torch.zeros(COPIED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * COPIED / best_seconds(lambda: target.copy_(source), device)


def best_seconds(function: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of the fastest of `REPEATS` calls, after a warm-up."""
    seconds = []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])

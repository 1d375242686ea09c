"""Estimate which share of this machine's limit a step has reached.

    update          6 x weights x tokens / rate of a large matrix product       forward 2, backward 4 a weight
    decode, CPU     2 x weights x tokens / the same rate
    decode, GPU     (weights x forwards + live keys and values) / rate of a large copy, in bytes

divided by the measured seconds. Tokens are those of the responses and, in the update, of their prompts, once a
group. Padding, recomputation and attention are not counted as useful work. The two rates are measured once at the
start of a run, in a fraction of a second. They are too low if other jobs use the machine at that moment.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from grpo_tir.engine.support import kv_shape

CPU_SIZE, GPU_SIZE = 768, 8192
"""Size of the square matrices: large enough for the full rate, small enough for milliseconds."""
COPIED = 1 << 30
"""Bytes of the copy, far larger than any cache."""
REPEATS = 5


class MachineLimits:
    """Rates of this process's device, and the size of the model."""

    def __init__(self, model: Any, bf16: bool) -> None:
        device = next(model.parameters()).device
        self.on_gpu = device.type == "cuda"
        dtype = torch.bfloat16 if bf16 else torch.float32
        self.product_rate = product_rate(device, dtype)
        self.copy_rate = copy_rate(device) if self.on_gpu else 0.0
        self.weights = count_weights(model)
        self.element = dtype.itemsize
        self.kv_elements = 2 * math.prod(kv_shape(model))
        """KV elements of one token."""

    def shares(
        self,
        rows: Sequence[Mapping[str, Any]],
        sampling: float,
        learning: float,
        forwards: float,
        passes: int = 1,
        world: int = 1,
    ) -> tuple[float | None, float]:
        """Return the shares of this machine's limit that sampling and update reached.

        Args:
            rows: summaries of all ranks, with `group`, and `prompt` and `length` in tokens.
            sampling, learning: seconds.
            forwards: of the generator, on one rank; 0 means unknown.
            passes: over the batch (`algorithm.epochs`).
            world: number of ranks.
        """
        response = sum(row["length"] for row in rows)
        prompts = {row["group"]: row["prompt"] for row in rows if row["trained"]}
        trained = sum(prompts.values()) + sum(row["length"] for row in rows if row["trained"])
        least = 2 * self.weights * response / self.product_rate
        if self.on_gpu:
            live = sum(row["prompt"] * row["length"] + row["length"] ** 2 / 2 for row in rows)  # tokens read
            read = self.element * (self.weights * forwards * world + self.kv_elements * live)
            least = read / self.copy_rate
        update = 6 * self.weights * passes * trained / self.product_rate
        known = forwards or not self.on_gpu
        return least / world / sampling if known else None, update / world / learning


def count_weights(model: Any) -> int:
    """Count the weights that every token is multiplied with: all except an untied input embedding."""
    total = sum(numel(parameter) for parameter in model.parameters())
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and head.weight is embedding.weight
    return total if tied else total - numel(embedding.weight)


def numel(parameter: Any) -> int:
    """Return the number of elements of a parameter, also if ZeRO-3 has sharded it."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measure floating-point operations a second of a large square matrix product."""
    size = GPU_SIZE if device.type == "cuda" else CPU_SIZE
    source = torch.Generator(device).manual_seed(0)  # the global one is not ours to advance
    a, b = (torch.rand(size, size, device=device, generator=source).to(dtype) for _ in range(2))
    return 2 * size**3 / best_seconds(lambda: a @ b, device)


def copy_rate(device: torch.device) -> float:
    """Measure bytes a second that the device reads and writes in a large copy."""
    source = torch.zeros(COPIED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * COPIED / best_seconds(lambda: target.copy_(source), device)


def best_seconds(function: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of the fastest of a few calls, after a warm-up."""
    seconds = []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])

"""Reject a recipe that does not fit into memory, and propose the nearest settings that do.

The search varies only what changes memory and not the gradient: activation checkpointing, micro-batch size, the
limit of the KV cache, ZeRO stage and number of GPUs. It prefers the fewest changes, then the fewest GPUs.
"""

import dataclasses
import itertools
from typing import Any

from grpo_tir.config import Config, change
from grpo_tir.diagnostics.memory import GIB, Hardware, MemoryPlan, Shape, plan
from grpo_tir.errors import ConfigError


def nearest(config: Config, shape: Shape, machine: Hardware) -> str | None:
    """Return the fewest changes that make the recipe fit, as command-line options; None if none is found."""
    longest = config.data.max_prompt_length + config.rollout.max_completion_length
    start, again = config.optim.micro_batch_tokens, config.model.gradient_checkpointing
    sizes = [start >> i for i in range(12) if start >> i >= longest or i == 0]
    numbers, stages = [machine.gpus << i for i in range(6)], range(machine.zero, 4)
    fitting: list[tuple[list[str], int]] = []
    for gpus, zero, kept, size, bounded in itertools.product(numbers, stages, {again, True}, sizes, (False, True)):
        if gpus == 1 and zero:
            continue
        there = dataclasses.replace(machine, gpus=gpus, zero=zero)
        settings: dict[str, Any] = {"model.gradient_checkpointing": kept} if kept != again else {}
        settings |= {"optim.micro_batch_tokens": size} if size != start else {}
        if bounded:
            tokens = plan(change(config, settings), shape, there).kv_tokens // 1000 * 1000
            if tokens < longest:
                continue
            settings["rollout.kv_tokens"] = tokens
        if plan(change(config, settings), shape, there).need <= there.memory:
            options = [f"--gpus {gpus}"] * (gpus != machine.gpus) + [f"--zero {zero}"] * (zero != machine.zero)
            fitting.append((options + [f"--{name} {value}".lower() for name, value in settings.items()], gpus))
    return " ".join(min(fitting, key=lambda found: (len(found[0]), found[1]))[0]) if fitting else None


def check_plan(found: MemoryPlan, config: Config, shape: Shape, machine: Hardware) -> None:
    """Check that a recipe fits into the memory of each GPU.

    Raises:
        ConfigError: it does not fit; the message names the nearest settings that do.
    """
    if found.need <= machine.memory:
        return
    phase = "learning" if sum(found.learning.values()) == found.need else "sampling"
    options = nearest(config, shape, machine)
    hint = f"the nearest that fits: {options}" if options else "no tried change of batch, cache, ZeRO or GPUs fits"
    raise ConfigError(
        f"this does not fit: {phase} needs {found.need / GIB:.1f} GiB on each GPU, which has "
        f"{machine.memory / GIB:.1f}; {hint}"
    )

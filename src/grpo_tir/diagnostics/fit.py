"""Reject a recipe that does not fit into memory, and propose the nearest settings that do.

The search varies only what changes memory and not the gradient: activation checkpointing, micro-batch size, the
limit of the KV cache, ZeRO stage and number of GPUs. It prefers the fewest changes, then the fewest GPUs.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

from grpo_tir.config import Config
from grpo_tir.diagnostics.memory import GIB, Hardware, MemoryPlan, Shape, plan
from grpo_tir.errors import ConfigError


def nearest(config: Config, shape: Shape, machine: Hardware) -> str | None:
    """Return the fewest changes that make the recipe fit, as command-line options; None if none is found."""
    fitting = [
        (len(options), machine.gpus, options)
        for options, changed, machine in _candidates(config, shape, machine)
        if plan(changed, shape, machine).need <= machine.memory
    ]
    return " ".join(min(fitting, key=lambda found: found[:2])[2]) if fitting else None


def _candidates(config: Config, shape: Shape, machine: Hardware) -> Iterator[tuple[list[str], Config, Hardware]]:
    """Yield (options, config, machine) for each combination of settings that changes memory only."""
    longest = config.data.max_prompt_length + config.rollout.max_completion_length
    start = config.optim.micro_batch_tokens
    sizes = [start >> i for i in range(12) if start >> i >= longest or i == 0]
    stages = range(machine.zero, 4)
    numbers = [machine.gpus << i for i in range(6)]
    checkpointing = {config.model.gradient_checkpointing, True}
    for gpus, zero, again, size, bounded in itertools.product(
        numbers, stages, checkpointing, sizes, (False, True)
    ):
        if gpus == 1 and zero:
            continue
        there = dataclasses.replace(machine, gpus=gpus, zero=zero)
        changed = dataclasses.replace(
            config,
            model=dataclasses.replace(config.model, gradient_checkpointing=again),
            optim=dataclasses.replace(config.optim, micro_batch_tokens=size),
        )
        options = [f"--gpus {gpus}"] * (gpus != machine.gpus) + [f"--zero {zero}"] * (zero != machine.zero)
        options += ["--model.gradient_checkpointing true"] * (again != config.model.gradient_checkpointing)
        options += [f"--optim.micro_batch_tokens {size}"] * (size != start)
        if bounded:
            tokens = plan(changed, shape, there).kv_tokens // 1000 * 1000
            if tokens < longest:
                continue
            changed = dataclasses.replace(changed, rollout=dataclasses.replace(config.rollout, kv_tokens=tokens))
            options += [f"--rollout.kv_tokens {tokens}"]
        yield options, changed, there


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

"""What a recipe needs before it is paid for: memory by part on each GPU, rows of the KV cache, executor slots.

    bytes on one of N ranks, P parameters in float32 (DESIGN: a bf16 weight would not move at lr 1e-6)

                    one process, DDP     ZeRO-1          ZeRO-2           ZeRO-3
    weights         4P                   4P              4P               4P/N; gathered, 4P + 4P/N, to sample
    gradients       4P (+ 4P buckets)    4P + bucket     4P/N + bucket    4P/N + bucket
    optimizer       8P                   12P/N           12P/N            12P/N      (DeepSpeed keeps a copy: 4P/N)

    with low-rank adapters, gradients and optimizer are those of the adapters alone

Sampling and learning take turns, so that what counts is the larger of the two. The KV cache is that of rows which
all reach their longest; activations are those that a Llama-like layer keeps for its backward pass. What is counted
was held against measured peaks on a CPU (tests/unit/test_plan_measured.py); the figures for bf16 and ZeRO are
arithmetic that no GPU has confirmed yet.

The arithmetic needs no torch; only `shape_of` does, to count parameters.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_tir.config import Config
from grpo_tir.errors import ConfigError, ModelError
from grpo_tir.utils import hub

GIB = 2**30
LOGITS_COPIES = {"fp32": 1.0, "bf16": 1.5}
"""Memory of a chunk's logits, forward and backward, over that in float32: they become probabilities and then their
own gradient in place; autocast makes a half as large twin."""
CHUNK_TOKENS = 2048
"""Prefilled in one forward (generation/engine.py)."""
BUCKET, LIVE = 5e8, 1e9
"""DeepSpeed's defaults: elements of the reduce bucket; parameters that ZeRO-3 keeps gathered while learning."""
CUDA_CONTEXT, FRAGMENTATION = GIB, 0.05
"""Of a GPU: the driver and its kernels, and the share of the memory that the allocator cannot use."""
CALL_SECONDS, LATE_CALLS, WINDOW = 0.025, 0.05, 60.0
"""CPU time of a common call; share of calls assumed to run into their limit; seconds within which the calls of
all rows, should they come at once, are to be answered."""
KNOWN = {
    # parameters, layers, hidden, intermediate, KV width (heads x dim), vocabulary: where no Hub can be asked
    "Qwen2.5-0.5B": (494_032_768, 24, 896, 4864, 128, 151_936),
    "Qwen2.5-1.5B": (1_543_714_304, 28, 1536, 8960, 256, 151_936),
    "Qwen2.5-7B": (7_615_616_512, 28, 3584, 18_944, 512, 152_064),
}


@dataclass(frozen=True)
class Shape:
    """What memory depends on, of a model."""

    parameters: int
    layers: int
    hidden: int
    intermediate: int
    kv_width: int
    """KV heads x head dimension."""
    vocabulary: int
    positions: int | None = None
    """Longest row; None: not known."""


@dataclass(frozen=True)
class Hardware:
    """What it is to run on."""

    gpus: int
    memory: float
    """Bytes on each."""
    zero: int = 0
    """ZeRO stage; 0: one process or DDP."""
    cpu: bool = False

    def __str__(self) -> str:
        kind = f"ZeRO-{self.zero}" if self.zero else "DDP" if self.gpus > 1 else "one process"
        return f"{self.gpus} x {self.memory / GIB:.1f} GiB, {kind}"


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on one rank by part, in the two phases of a step, and what follows from them."""

    sampling: dict[str, float]
    learning: dict[str, float]
    rows: int
    """Of one rank in one step."""
    row_tokens: int
    """Of the longest row, prompt and response."""
    token_bytes: float
    """KV of one token, over all layers."""
    kv_tokens: int
    """Tokens of KV cache that fit beside the rest."""
    slots: int
    """Executor slots over all engines."""
    calls: int
    """Calls of one step at most, all ranks."""

    @property
    def need(self) -> float:
        """Bytes of the larger phase."""
        return max(sum(self.sampling.values()), sum(self.learning.values()))

    @property
    def rows_that_fit(self) -> int:
        """Longest rows that the KV cache can hold."""
        return self.kv_tokens // self.row_tokens


def plan(config: Config, shape: Shape, machine: Hardware) -> MemoryPlan:
    """Expected memory of a recipe on a machine."""
    kept = _kept(config, shape, machine)
    rollout = config.rollout
    share = math.ceil(rollout.prompts_per_step / machine.gpus) * rollout.samples_per_prompt
    rows = min(rollout.max_rows or share, share)
    longest = config.data.max_prompt_length + rollout.max_completion_length
    value = 4 if _fp32(config, machine) else 2
    # while the cache grows or is sorted, one layer of it is there twice
    token_bytes = 2 * (shape.layers + 1) * shape.kv_width * value
    cache = min(rollout.kv_tokens or rows * longest, rows * longest)
    sampling = {
        **kept,
        "weights": kept["weights"]
        + (4 * whole(config, shape) if machine.zero == 3 else 0)
        + _shadow(config, shape, machine)
        + _blocked(config, shape, machine),
        "KV cache": cache * token_bytes,
        "activations": (CHUNK_TOKENS + rows) * value * (10 * shape.hidden + 4 * shape.intermediate),
        "logits": 3 * rows * shape.vocabulary * 4,
    }
    room = machine.memory - sum(sampling.values()) + sampling["KV cache"]
    everything = rollout.prompts_per_step * rollout.samples_per_prompt
    calls = everything * config.tool.max_tool_calls
    return MemoryPlan(
        sampling,
        _learning(config, shape, machine, kept, longest),
        rows,
        longest,
        token_bytes,
        max(0, int(room / token_bytes)),
        executor_slots(everything, config.executor.timeout) if calls else 0,
        calls,
    )


def executor_slots(rows: int, timeout: float) -> int:
    """Slots that answer a call of every row within `WINDOW`, though some run into their limit."""
    seconds = (1 - LATE_CALLS) * CALL_SECONDS + LATE_CALLS * timeout
    return max(1, math.ceil(rows * seconds / WINDOW))


def _kept(config: Config, shape: Shape, machine: Hardware) -> dict[str, float]:
    """What is there in both phases."""
    size, ranks = whole(config, shape), machine.gpus
    trained = adapters(config, shape) or size
    runtime = GIB / 2 if machine.cpu else CUDA_CONTEXT + FRAGMENTATION * machine.memory
    return {
        "weights": 4 * size / (ranks if machine.zero == 3 else 1),
        "optimizer": 12 * trained / ranks if machine.zero else 8 * trained,
        # without its adapters the policy is its own reference
        "reference": 4 * size if config.algorithm.kl_coef and trained == size else 0,
        "runtime": runtime,
    }


def _learning(
    config: Config, shape: Shape, machine: Hardware, kept: dict[str, float], longest: int
) -> dict[str, float]:
    """The update: gradients, what the layers keep for the backward pass, and the logits of one chunk."""
    size, tokens = whole(config, shape), max(config.optim.micro_batch_tokens, longest)
    fp32, again = _fp32(config, machine), config.model.gradient_checkpointing
    layer = tokens * (
        44 * shape.hidden + 16 * shape.intermediate if fp32 else 38 * shape.hidden + 8 * shape.intermediate
    )
    copies = LOGITS_COPIES["fp32" if fp32 else "bf16"]
    logits = copies * min(4 * tokens * shape.vocabulary, config.optim.logits_mb * 2**20)
    if again:  # each layer's input is kept; one layer is computed again, and its gradients with it
        stored, working = shape.layers * 4 * tokens * shape.hidden, 1.3 * layer
    else:  # autocast's copies of the weights are kept as well
        stored, working = shape.layers * layer + (0 if fp32 else 2 * size), 0.0
    trained = adapters(config, shape) or size
    step = 0 if machine.cpu else 4 * trained / (machine.gpus if machine.zero else 1)
    # the logits are gone when the last layer is computed again, and all of it when the optimizer steps
    activations = max(stored + max(working - logits, 0), step - logits)
    live = 4 * min(size, LIVE) if machine.zero == 3 else 0
    return {
        **kept,
        "weights": kept["weights"] + live + _shadow(config, shape, machine),
        "gradients": _gradients(trained, machine),
        "activations": activations,
        "logits": logits,
    }


def adapters(config: Config, shape: Shape) -> int:
    """Parameters of the low-rank adapters, which alone are then trained; 0: all weights are."""
    rank = config.model.lora_rank
    h, i, kv = shape.hidden, shape.intermediate, shape.kv_width
    ends = {"q_proj": 2 * h, "k_proj": h + kv, "v_proj": h + kv, "o_proj": 2 * h}  # rows + columns of each layer
    ends |= dict.fromkeys(("gate_proj", "up_proj", "down_proj"), h + i)
    targets = config.model.lora_targets or list(ends)
    return shape.layers * rank * sum(ends.get(name, 2 * h) for name in targets)


def whole(config: Config, shape: Shape) -> int:
    """Parameters of the model with its adapters."""
    return shape.parameters + adapters(config, shape)


def _gradients(size: int, machine: Hardware) -> float:
    bucket = 4 * min(size, BUCKET)
    if machine.zero >= 2:
        return 4 * size / machine.gpus + bucket
    if machine.zero == 1:
        return 4 * size + bucket
    return 4 * size * (2 if machine.gpus > 1 else 1)


def _shadow(config: Config, shape: Shape, machine: Hardware) -> float:
    """The bf16 copy that a GPU decodes from."""
    used = not machine.cpu and machine.zero < 3 and not _fp32(config, machine)
    return 2 * shape.parameters if used and config.rollout.generator == "engine" else 0


def _blocked(config: Config, shape: Shape, machine: Hardware) -> float:
    """The copy in another layout that a CPU decodes from."""
    used = machine.cpu and _fp32(config, machine) and config.rollout.generator == "engine"
    return 4 * shape.parameters if used else 0


def _fp32(config: Config, machine: Hardware) -> bool:
    return config.model.precision == "fp32" or (config.model.precision == "auto" and machine.cpu)


def parse_memory(text: str) -> float:
    """`80GB` (10^9) or `80GiB` (2^30) in bytes.

    Raises:
        ConfigError: it is neither.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(G|GB|GiB)", text.strip(), re.I)
    if not found or float(found[1]) <= 0:
        raise ConfigError(f"--gpu-memory {text}: write it like 80GB or 80GiB")
    return float(found[1]) * (GIB if found[2].lower() == "gib" else 10**9)


def shape_of(path: str, revision: str | None = None) -> Shape:
    """Read from the model's config alone; its weights are not loaded.

    Raises:
        ModelError: no such model, and none whose shape is known.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if not Path(path).expanduser().is_dir():
        hub.go_offline_if_unreachable()
    try:
        config = AutoConfig.from_pretrained(path, revision=revision)
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # transformers raises a different type for every way to be wrong
        name = path.rpartition("/")[2].replace("-Math", "").removesuffix("-Instruct")
        if name in KNOWN:
            return Shape(*KNOWN[name])
        fault = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"cannot read the shape of the model {path}: {fault}") from error
    text = config.get_text_config()
    heads = text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    return Shape(
        sum(parameter.numel() for parameter in model.parameters()),
        text.num_hidden_layers,
        text.hidden_size,
        getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        head_dim * (getattr(text, "num_key_value_heads", None) or heads),
        text.vocab_size,
        getattr(text, "max_position_embeddings", None),
    )


def describe(found: MemoryPlan, shape: Shape, machine: Hardware) -> str:
    """The plan as a person reads it."""
    parts = dict.fromkeys([*found.sampling, *found.learning])
    lines = [f"{machine}; {shape.parameters:,} parameters in float32", ""]
    lines.append(f"{'GiB on each':<14}{'sampling':>10}{'learning':>10}")
    for part in parts:
        cells = [phase.get(part, 0.0) / GIB for phase in (found.sampling, found.learning)]
        if any(cells):
            lines.append(f"{part:<14}{cells[0]:>10.2f}{cells[1]:>10.2f}")
    totals = [sum(phase.values()) / GIB for phase in (found.sampling, found.learning)]
    lines.append(f"{'total':<14}{totals[0]:>10.2f}{totals[1]:>10.2f}   of {machine.memory / GIB:.1f}")
    lines += [
        "",
        f"KV cache: {found.rows} rows of up to {found.row_tokens} tokens; room for {found.rows_that_fit}",
    ]
    bound = round(found.sampling["KV cache"] / found.token_bytes) // found.row_tokens
    if bound < found.rows:
        lines[-1] += f"; rollout.kv_tokens holds {bound} at a time, the others wait their turn"
    if found.calls:
        lines.append(
            f"executor: up to {found.calls} calls a step; {found.slots} slots answer a call of every row within "
            f"{WINDOW:.0f} s, if {LATE_CALLS:.0%} run into their limit"
        )
    return "\n".join(lines)

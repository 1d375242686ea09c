"""Estimate what a recipe needs: memory by part on each GPU, sequences in the KV cache, executor slots.

    bytes on one of N ranks for P parameters in float32 (in bf16, an update at lr 1e-6 would be lost in rounding)

                    one process, DDP     ZeRO-1          ZeRO-2           ZeRO-3
    weights         4P                   4P              4P               4P/N
    bf16 copy       2P (GPU)             2P              2P               2P, only while sampling
    gradients       4P (+ 4P buckets)    4P + bucket     4P/N + bucket    4P/N + bucket
    optimizer       8P                   12P/N           12P/N            12P/N      (DeepSpeed keeps a copy: 4P/N)

    with low-rank adapters, gradients and optimizer state are those of the adapters only

Sampling and learning alternate, so the requirement is the larger of the two. Without a bf16 copy (`generate`,
fp32, adapters), ZeRO-3 gathers all 4P to sample. The KV cache assumes that all sequences reach their maximum
length; the pages of static steps (`rollout.step`) take what is left, if that is less. Activations are those that a
Llama-like layer keeps for its backward pass. The estimate was compared with measured peaks on a CPU
(tests/unit/diagnostics/test_memory_measured.py). The figures for bf16 and ZeRO are calculated and not yet
confirmed on a GPU.

Only `shape_of` needs torch, to count parameters.
"""

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
"""Memory of a chunk's logits, forward and backward, relative to one float32 copy. Probabilities and gradient
overwrite the logits in place; autocast adds a copy of half the size."""
CHUNK_TOKENS = 2048
"""Tokens that are prefilled in one forward (engine/engine.py)."""
BUCKET, LIVE = 5e8, 1e9
"""DeepSpeed's defaults: elements of the reduce bucket; parameters that ZeRO-3 keeps gathered during learning."""
CUDA_CONTEXT, FRAGMENTATION = GIB, 0.05
"""On a GPU: bytes of the driver and its kernels; share of the memory that the allocator cannot use."""
PAGE, CPU_PAGE, KV_SHARE = 128, 32, 0.85
"""Tokens of a page of static steps on a GPU and on a CPU (engine/paged_cache.py); largest share of the free memory
that pages take (engine/engine.py)."""
GATHERED = 1e9
"""Bytes of float32 weights that ZeRO-3 gathers at a time for the bf16 copy (distributed/zero.py)."""
CALL_SECONDS, LATE_CALLS, WINDOW = 0.025, 0.05, 60.0
"""CPU seconds of a typical call; share of calls assumed to time out; seconds in which one call of every rollout,
all made at once, must be answered."""
KNOWN = {
    # parameters, layers, hidden, intermediate, KV width (heads x dim), vocabulary: for use without the Hub
    "Qwen2.5-0.5B": (494_032_768, 24, 896, 4864, 128, 151_936),
    "Qwen2.5-1.5B": (1_543_714_304, 28, 1536, 8960, 256, 151_936),
    "Qwen2.5-7B": (7_615_616_512, 28, 3584, 18_944, 512, 152_064),
    "Qwen3-1.7B": (1_720_574_976, 28, 2048, 6144, 1024, 151_936),
    "Llama-3.2-1B": (1_235_814_400, 16, 2048, 8192, 512, 128_256),
}


@dataclass(frozen=True)
class Shape:
    """Sizes of a model that determine its memory."""

    parameters: int
    layers: int
    hidden: int
    intermediate: int
    kv_width: int
    """KV heads x head dimension."""
    vocabulary: int


@dataclass(frozen=True)
class Hardware:
    gpus: int
    memory: float
    """Bytes on each GPU, or of RAM."""
    zero: int = 0
    """ZeRO stage; 0: one process or DDP."""
    cpu: bool = False

    def __str__(self) -> str:
        kind = f"ZeRO-{self.zero}" if self.zero else "DDP" if self.gpus > 1 else "one process"
        return f"{self.gpus} x {self.memory / GIB:.1f} GiB, {kind}"


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on one rank by part, for the two phases of a step, and derived numbers."""

    sampling: dict[str, float]
    learning: dict[str, float]
    rows: int
    """Sequences that one rank decodes at the same time."""
    row_tokens: int
    """Tokens of the longest sequence, prompt and response."""
    token_bytes: float
    """Bytes of KV cache for one token, over all layers."""
    kv_tokens: int
    """Tokens of KV cache that fit into the remaining memory."""
    slots: int
    """Executor slots over all engines."""
    calls: int
    """Maximum number of calls in one step, over all ranks."""

    @property
    def need(self) -> float:
        """Bytes that the larger phase needs."""
        return max(sum(self.sampling.values()), sum(self.learning.values()))

    @property
    def rows_that_fit(self) -> int:
        """Number of longest sequences that fit into the KV cache."""
        return self.kv_tokens // self.row_tokens


def plan(config: Config, shape: Shape, machine: Hardware) -> MemoryPlan:
    """Estimate the memory of a recipe on a machine."""
    # 1. Sequences and tokens on one rank.
    kept = _kept(config, shape, machine)
    rollout = config.rollout
    share = math.ceil(rollout.prompts_per_step / machine.gpus) * config.sampled_per_prompt
    rows = min(rollout.max_rows or share, share)
    longest = config.data.max_prompt_length + rollout.max_completion_length
    value = 4 if _fp32(config, machine) else 2
    pages = _static(config, machine)
    # Without pages, one layer of the cache exists twice while it grows or is sorted.
    token_bytes = 2 * (shape.layers + (not pages)) * shape.kv_width * value
    wanted = rows * longest
    if pages:  # whole pages, rounded up to three bits, as `Engine._allocate` does
        page = CPU_PAGE if machine.cpu else PAGE
        wanted = rows * -(-longest // page) * page
        unit = 1 << max(wanted.bit_length() - 3, 0)
        wanted = -(-wanted // unit) * unit
    cache = min(rollout.kv_tokens or wanted, wanted)
    # 2. Memory while sampling.
    sampling = {
        **kept,
        "weights": kept["weights"]
        + (_gathered(config, shape, machine) if machine.zero == 3 else _bf16_copy(config, shape, machine))
        + _cpu_copy(config, shape, machine),
        "KV cache": cache * token_bytes,
        "activations": (CHUNK_TOKENS + rows) * value * (10 * shape.hidden + 4 * shape.intermediate),
        "logits": 3 * rows * shape.vocabulary * 4,
    }
    # 3. What is left for the cache, and the executor slots that the calls need.
    room = machine.memory - sum(sampling.values()) + sampling["KV cache"]
    if pages:
        room *= KV_SHARE
        if not rollout.kv_tokens:  # the pool takes what there is, and the other sequences wait
            sampling["KV cache"] = min(sampling["KV cache"], max(room, longest * token_bytes))
    rollouts = rollout.prompts_per_step * config.sampled_per_prompt
    calls = rollouts * config.tool.max_tool_calls
    slots = executor_slots(rollouts, config.executor.timeout) if calls else 0
    learning, kv_tokens = _learning(config, shape, machine, kept, longest), max(0, int(room / token_bytes))
    return MemoryPlan(sampling, learning, rows, longest, token_bytes, kv_tokens, slots, calls)


def executor_slots(rows: int, timeout: float) -> int:
    """Return the slots that answer one call of each of `rows` rollouts within `WINDOW`. `timeout`: seconds."""
    seconds = (1 - LATE_CALLS) * CALL_SECONDS + LATE_CALLS * timeout
    return max(1, math.ceil(rows * seconds / WINDOW))


def _kept(config: Config, shape: Shape, machine: Hardware) -> dict[str, float]:
    """Return the memory that is used in both phases."""
    size, ranks = all_parameters(config, shape), machine.gpus
    trained = adapters(config, shape) or size
    runtime = GIB / 2 if machine.cpu else CUDA_CONTEXT + FRAGMENTATION * machine.memory
    return {
        "weights": 4 * size / (ranks if machine.zero == 3 else 1),
        "optimizer": 12 * trained / ranks if machine.zero else 8 * trained,
        # With adapters, the policy without them is the reference model.
        "reference": 4 * size if config.algorithm.kl_coef and trained == size else 0,
        "runtime": runtime,
    }


def _learning(
    config: Config, shape: Shape, machine: Hardware, kept: dict[str, float], longest: int
) -> dict[str, float]:
    """Return the memory of the update: also gradients, stored activations, and the logits of one chunk."""
    size, tokens = all_parameters(config, shape), max(config.optim.micro_batch_tokens, longest)
    fp32, again = _fp32(config, machine), config.model.gradient_checkpointing
    layer = tokens * (
        44 * shape.hidden + 16 * shape.intermediate if fp32 else 38 * shape.hidden + 8 * shape.intermediate
    )
    copies = LOGITS_COPIES["fp32" if fp32 or config.model.head_precision == "fp32" else "bf16"]
    logits = copies * min(4 * tokens * shape.vocabulary, config.optim.logits_mb * 2**20)
    # Autocast keeps its copies of the weights; DeepSpeed's own autocast only as long as activations need them.
    casts = 0 if fp32 or (again and machine.zero) else 2 * size
    if again:  # the input of each layer is kept; one layer at a time is recomputed, with its gradients
        stored, working = shape.layers * 4 * tokens * shape.hidden + casts, 1.3 * layer
    else:
        stored, working = shape.layers * layer + casts, 0.0
    trained = adapters(config, shape) or size
    step = 0 if machine.cpu else 4 * trained / (machine.gpus if machine.zero else 1)
    # The logits are freed before the last layer is recomputed, and all activations before the optimizer step.
    activations = max(stored + max(working - logits, 0), step - logits)
    held = 4 * min(size, LIVE) if machine.zero == 3 else _bf16_copy(config, shape, machine)
    return {
        **kept,
        "weights": kept["weights"] + held,
        "gradients": _gradients(trained, machine),
        "activations": activations,
        "logits": logits,
    }


def adapters(config: Config, shape: Shape) -> int:
    """Return the number of parameters of the low-rank adapters; 0: no adapters, all weights are trained."""
    rank = config.model.lora_rank
    h, i, kv = shape.hidden, shape.intermediate, shape.kv_width
    # input + output size of each matrix
    ends = {"q_proj": 2 * h, "k_proj": h + kv, "v_proj": h + kv, "o_proj": 2 * h}
    ends |= dict.fromkeys(("gate_proj", "up_proj", "down_proj"), h + i)
    targets = config.model.lora_targets or list(ends)
    return shape.layers * rank * sum(ends.get(name, 2 * h) for name in targets)


def all_parameters(config: Config, shape: Shape) -> int:
    """Return the number of parameters of the model with its adapters."""
    return shape.parameters + adapters(config, shape)


def _gradients(size: int, machine: Hardware) -> float:
    bucket = 4 * min(size, BUCKET)
    if machine.zero >= 2:
        return 4 * size / machine.gpus + bucket
    if machine.zero == 1:
        return 4 * size + bucket
    return 4 * size * (2 if machine.gpus > 1 else 1)


def _bf16_copy(config: Config, shape: Shape, machine: Hardware) -> float:
    """Return the bytes of the bf16 copy of the weights that a GPU decodes with."""
    used = not machine.cpu and not _fp32(config, machine)
    return 2 * shape.parameters if used and config.rollout.generator == "engine" else 0


def _gathered(config: Config, shape: Shape, machine: Hardware) -> float:
    """Return the bytes of the weights that ZeRO-3 gathers to sample: a bf16 copy, or all of them in float32."""
    copied = 0 if config.model.lora_rank else _bf16_copy(config, shape, machine)
    return copied + GATHERED if copied else 4 * all_parameters(config, shape)


def _static(config: Config, machine: Hardware) -> bool:
    """True if the engine decodes in static steps, from pages."""
    chosen = config.rollout.step == "auto" and not machine.cpu and not config.train.deterministic
    return config.rollout.generator == "engine" and (chosen or config.rollout.step in ("captured", "compiled"))


def _cpu_copy(config: Config, shape: Shape, machine: Hardware) -> float:
    """Return the bytes of the copy in another memory layout that a CPU decodes with."""
    used = machine.cpu and _fp32(config, machine) and config.rollout.generator == "engine"
    return 4 * shape.parameters if used else 0


def _fp32(config: Config, machine: Hardware) -> bool:
    return config.model.precision == "fp32" or (config.model.precision == "auto" and machine.cpu)


def parse_memory(text: str) -> float:
    """Convert `80GB` (10^9) or `80GiB` (2^30) to bytes.

    Raises:
        ConfigError: another format.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(G|GB|GiB)", text.strip(), re.I)
    if not found or float(found[1]) <= 0:
        raise ConfigError(f"--gpu-memory {text}: write it like 80GB or 80GiB")
    return float(found[1]) * (GIB if found[2].lower() == "gib" else 10**9)


def shape_of(path: str, revision: str | None = None) -> Shape:
    """Read the sizes of a model, a folder or a Hub id, from its config. Weights are not loaded.

    Raises:
        ModelError: there is no such model, and it is not in `KNOWN`.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if not Path(path).expanduser().is_dir():
        hub.go_offline_if_unreachable()
    try:
        config = AutoConfig.from_pretrained(path, revision=revision)
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # transformers raises many types
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
    )


def describe(found: MemoryPlan, shape: Shape, machine: Hardware) -> str:
    """Return the plan as a table with remarks."""
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
        f"KV cache: {found.rows} sequences of up to {found.row_tokens} tokens; {found.rows_that_fit} fit",
    ]
    bound = round(found.sampling["KV cache"] / found.token_bytes) // found.row_tokens
    if bound < found.rows:
        lines[-1] += f"; the cache holds {bound} of that length at a time, the others wait"
    if found.calls:
        lines.append(
            f"executor: up to {found.calls} calls a step; {found.slots} slots answer one call of every rollout in "
            f"{WINDOW:.0f} s, if {LATE_CALLS:.0%} time out"
        )
    return "\n".join(lines)

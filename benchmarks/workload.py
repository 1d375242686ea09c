"""Provide the workload of the benchmarks, and measure it relative to the hardware limit of this machine.

Workload: responses of fixed lengths with a long tail, so that all candidates compute the same tokens. Each
sequence calls its tool, waits, and gets 20 tokens inserted. Sampling at temperature 1 over the full vocabulary. No
text: no tokenizer, no template, no grading.

Limits, measured in the same run:
    decode on CPU    the bare matrix products of the engine's own forwards
    decode on GPU    weights and live KV cache, read once per forward, at the rate of a large copy
    update           matrix products of the useful tokens, forward once and backward twice, the prompt of a group
                     once; padding and recomputation do not count as useful work

Rates on a shared machine drift, so results are ratios of figures measured in turns (`alternate`).
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch.nn.functional import linear
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    StoppingCriteriaList,
)

from grpo_tir.engine.decode_weights import BlockedWeights
from grpo_tir.engine.engine import Engine
from grpo_tir.engine.scheduler import SequenceState
from grpo_tir.engine.support import kv_shape
from grpo_tir.generation.generate import RowBudget
from grpo_tir.generation.protocol import Request, Stopped
from grpo_tir.generation.sampling import Sampling, row_key
from grpo_tir.learning.batching import TrainingSample, collate, plan_micro_batches
from grpo_tir.learning.compiled import compile_layers
from grpo_tir.learning.logprobs import TokenLogprobs
from grpo_tir.learning.packing import packed_attention

INSERTED = list(range(100, 120))
SHAPES: dict[str, dict[str, Any]] = {
    # the model of `make train`: operators are short, and calling them takes most of the time
    "quickstart": {"vocab_size": 420, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
                   "num_key_value_heads": 4, "intermediate_size": 256},
    # large enough for matrix products to dominate on a CPU
    "small": {"vocab_size": 32_000, "hidden_size": 384, "num_hidden_layers": 8, "num_attention_heads": 6,
              "intermediate_size": 1200},
    "qwen2.5-0.5b": {"vocab_size": 151_936, "hidden_size": 896, "num_hidden_layers": 24,
                     "num_attention_heads": 14, "intermediate_size": 4864},
    "qwen2.5-1.5b": {"vocab_size": 151_936, "hidden_size": 1536, "num_hidden_layers": 28,
                     "num_attention_heads": 12, "intermediate_size": 8960},
    "qwen2.5-7b": {"vocab_size": 152_064, "hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28,
                   "num_key_value_heads": 4, "intermediate_size": 18_944, "tie_word_embeddings": False},
}  # fmt: skip


def random_model(shape: str = "small", device: str = "cpu", dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Make a Qwen2 of that shape with random weights; speed does not depend on their values."""
    torch.manual_seed(0)
    settings = {"num_key_value_heads": 2, "tie_word_embeddings": True, **SHAPES[shape]}
    config = Qwen2Config(**settings, bos_token_id=None, eos_token_id=None)
    with torch.device(device):
        return Qwen2ForCausalLM(config).to(dtype).eval()


# --- the workload -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One response: numbers of tokens sampled before each call and after the last one."""

    prompt: list[int]
    parts: list[int]
    key: int


def make_rows(prompts: int, samples: int, calls: int = 1, scale: float = 1.0, seed: int = 0) -> list[Row]:
    """Draw log-normal lengths from 30 to 400 with a mean of about 120, times `scale`; prompts of 40 to 120
    tokens."""
    rng = random.Random(seed)
    rows = []
    for group in range(prompts):
        prompt = [rng.randrange(1000, 30_000) for _ in range(rng.randint(40, 120))]
        for sample in range(samples):
            length = int(scale * min(400, max(30, rng.lognormvariate(4.6, 0.65))))
            first = int(length * rng.uniform(0.2, 0.8))
            parts = {0: [length], 1: [first, length - first], 2: [first // 2, first - first // 2, length - first]}
            rows.append(Row(prompt, parts[calls], row_key(0, group, sample)))
    return rows


class Answer(Protocol):
    """Result of a call: a `Future`, or another object with `done()`."""

    def done(self) -> bool: ...


class After:
    """Result of a tool that takes a fixed number of seconds."""

    def __init__(self, seconds: float) -> None:
        self.due = time.perf_counter() + seconds

    def done(self) -> bool:
        return time.perf_counter() >= self.due


class ForcedEngine(Engine):
    """Engine in which the workload decides where sequences call and end."""

    ends_at: dict[int, set[int]]
    said: dict[int, list[Stopped]]
    """Sampled tokens of each sequence, by segment."""

    def step(self) -> list[Stopped]:
        stopped = super().step()
        for stop in stopped:
            self.said.setdefault(stop.row, []).append(stop)
        return stopped

    def _ends(self, row: SequenceState, token: int) -> Literal["eos", "call", "length"] | None:
        if row.budget_left == 0:
            return "length"
        return "call" if len(row.tokens) - len(row.prompt) in self.ends_at[row.request.row] else None


def run_engine(
    model: PreTrainedModel, rows: Sequence[Row], call: Callable[[], Answer], step: Any = "eager"
) -> ForcedEngine:
    """Run the engine: sequences that wait for a call are parked while the others continue."""
    engine = ForcedEngine(model, None, Sampling(), [], step=step)
    engine.ends_at, engine.said = {}, {}
    for name, row in enumerate(rows):
        calls = [sum(row.parts[:n]) + len(INSERTED) * (n - 1) for n in range(1, len(row.parts))]
        engine.ends_at[name] = set(calls)
        engine.submit(Request(name, row.prompt, row.key, sum(row.parts) + len(INSERTED) * len(calls), True))
    waiting: dict[int, Answer] = {}
    engine.ready = lambda: any(answer.done() for answer in waiting.values())
    while engine.scheduler.rows:
        stopped = engine.step()
        waiting |= {stop.row: call() for stop in stopped if stop.reason == "call"}
        answered = [name for name, answer in waiting.items() if answer.done()]
        if not stopped and not answered:
            time.sleep(0.001)
        for name in answered:
            del waiting[name]
            engine.resume(name, INSERTED, True)
    engine.close()
    return engine


def run_rounds(model: PreTrainedModel, rows: Sequence[Row], latency: float, cache: str | None = None) -> None:
    """Run rounds: `model.generate` until each sequence has called or ended, all tools at once, one prefill of the
    unfinished sequences. Finished sequences are computed until the last one of their round."""
    texts = [list(row.prompt) for row in rows]
    rounds = max(len(row.parts) for row in rows)
    for part in range(rounds):
        live = [n for n, row in enumerate(rows) if part < len(row.parts)]
        width = max(len(texts[n]) for n in live)
        inputs = torch.tensor([[0] * (width - len(texts[n])) + texts[n] for n in live], device=model.device)
        mask = torch.tensor(
            [[0] * (width - len(texts[n])) + [1] * len(texts[n]) for n in live], device=model.device
        )
        new = [rows[n].parts[part] for n in live]
        config = GenerationConfig(
            do_sample=True, top_k=0, max_new_tokens=max(new), pad_token_id=0, cache_implementation=cache
        )
        stop = StoppingCriteriaList([RowBudget([width + n for n in new])])
        with torch.no_grad():
            output = model.generate(inputs, attention_mask=mask, generation_config=config, stopping_criteria=stop)
        for n, row, count in zip(live, output.tolist(), new, strict=True):
            texts[n] += row[width : width + count] + (INSERTED if part + 1 < len(rows[n].parts) else [])
        if part + 1 < rounds:
            time.sleep(latency)


def trained_rows(rows: Sequence[Row]) -> list[TrainingSample]:
    """Return the sequences as samples for the learner; inserted tokens are masked."""
    rng = random.Random(1)
    made = []
    for row in rows:
        ids, mask = list(row.prompt), [0] * len(row.prompt)
        for n, part in enumerate(row.parts):
            ids += [rng.randrange(1000, 30_000) for _ in range(part)] + (
                INSERTED if n + 1 < len(row.parts) else []
            )
            mask += [1] * part + ([0] * len(INSERTED) if n + 1 < len(row.parts) else [])
        made.append(TrainingSample(ids, mask, [0.0] * len(ids), [rng.gauss(0, 1)] * len(ids)))
    return made


def run_update(
    model: PreTrainedModel,
    rows: Sequence[TrainingSample],
    packed: bool = True,
    budget: int = 2048,
    bf16: bool = False,
    compiled: bool = False,
) -> None:
    """Run forward and backward of one batch, in the learner's micro-batches."""
    module = TokenLogprobs(model, logits_mb=1024 if model.device.type == "cuda" else 256)  # as in recipes of GPUs
    tokens = sum(sum(row.loss_mask) for row in rows)
    kind = model.device.type
    with (
        packed_attention(model) if packed else nullcontext(),
        compile_layers(module)() if compiled else nullcontext(),
        torch.autocast(kind, torch.bfloat16, enabled=bf16),
    ):
        for part in plan_micro_batches(rows, budget, packed):
            batch = collate(part, model.device)
            logprobs, _ = module(*batch.host)
            loss = -(logprobs * batch.advantages).sum() / tokens
            with torch.autocast(kind, enabled=False):
                loss.backward()
    model.zero_grad()


# --- time, and the limit ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """Time of one run."""

    cpu: float
    """CPU seconds of all threads: comparable also on a busy machine."""
    wall: float


def timed(function: Callable[[], object]) -> Cost:
    """Run `function` once and measure it."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    cpu, wall = time.process_time(), time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return Cost(time.process_time() - cpu, time.perf_counter() - wall)


def alternate(candidates: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, Cost]:
    """Return the median cost of each candidate over `repeats` turns; each turn runs every candidate once."""
    costs: dict[str, list[Cost]] = {name: [] for name in candidates}
    for turn in range(repeats):
        for name, function in candidates.items():
            costs[name].append(timed(function))
            last = costs[name][-1]
            print(f"  turn {turn + 1}: {name} {last.cpu:.1f} CPU-s, {last.wall:.1f} s", flush=True)
    return {
        name: Cost(statistics.median(c.cpu for c in each), statistics.median(c.wall for c in each))
        for name, each in costs.items()
    }


def seconds_of(model: PreTrainedModel, cost: Cost) -> float:
    """Return the time to compare on this device: CPU time on a CPU, wall time on a GPU."""
    return cost.cpu if model.device.type == "cpu" else cost.wall


def median_seconds(model: PreTrainedModel, function: Callable[[], object], repeats: int = 5) -> float:
    """Return the seconds of one call, after a warm-up."""
    function()
    return statistics.median(seconds_of(model, timed(function)) for _ in range(repeats))


def decode_fraction(
    model: PreTrainedModel, rows: Sequence[Row], call: Callable[[], Answer], step: str = "eager"
) -> float:
    """Return the minimum time of this device for the engine's forwards, divided by the engine's time."""
    widths: Counter[int] = Counter()
    hook = model.register_forward_pre_hook(
        lambda _, __, inputs: widths.update([inputs["input_ids"].shape[1]]), with_kwargs=True
    )
    done: list[ForcedEngine] = []
    took = seconds_of(model, timed(lambda: done.append(run_engine(model, rows, call, step=step))))
    hook.remove()
    if model.device.type == "cpu":
        return _bare_products(model, widths) / took
    lengths = [sum(row.parts) + len(INSERTED) * (len(row.parts) - 1) for row in rows]
    # each token reads the KV of all before it
    cached = sum(n * len(row.prompt) + n * n // 2 for n, row in zip(lengths, rows, strict=True))
    weights = done[0].counts["forwards"] * sum(parameter.nbytes for parameter in model.parameters())
    kv_token = 2 * math.prod(kv_shape(model)) * model.dtype.itemsize
    return (weights + cached * kv_token) / copy_rate(model.device) / took


def copy_rate(device: torch.device) -> float:
    """Measure the bytes per second that a device reads and writes in a copy of 1 GiB, far more than any cache."""
    source = torch.zeros(1 << 30, dtype=torch.uint8, device=device)
    target, seconds = torch.empty_like(source), []
    for _ in range(6):
        began = time.perf_counter()
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return 2 * source.nbytes / min(seconds[1:])


def _bare_products(model: PreTrainedModel, widths: Counter[int]) -> float:
    """Return the seconds of the matrix products of forwards of these widths, timed at multiples of 8."""
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    rounded = {width: -(-width // 8) * 8 for width in widths}
    grid: dict[int, float] = {}
    for width in set(rounded.values()):
        inputs = {layer.in_features: torch.randn(width, layer.in_features) for layer in layers}

        def once(inputs: dict[int, torch.Tensor] = inputs) -> None:
            for layer in layers:
                layer(inputs[layer.in_features])

        with torch.no_grad(), BlockedWeights(model).used():  # in the faster layout, because this is the limit
            grid[width] = median_seconds(model, once)
    return sum(grid[rounded[width]] * width / rounded[width] * times for width, times in widths.items())


def learner_fraction(
    model: PreTrainedModel, rows: Sequence[TrainingSample], took: float, bf16: bool = False
) -> float:
    """Return the time of an update's necessary matrix products, backward counted twice, divided by its total
    time."""
    trained = sum(sum(row.loss_mask) for row in rows)
    prompts = {row.prompt for row in rows}  # computed once each
    total = sum(len(row.token_ids) - len(row.prompt) for row in rows) + sum(map(len, prompts))
    head, least = model.get_output_embeddings(), 0.0
    dtype = torch.bfloat16 if bf16 else torch.float32
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    shapes = Counter((layer.in_features, layer.out_features, layer is head) for layer in layers)
    for (wide, high, is_head), times in shapes.items():
        count = trained if is_head else total
        size = min(count, 2048)
        x, y = (torch.randn(size, n, device=model.device, dtype=dtype) for n in (wide, high))
        weight = torch.randn(high, wide, device=model.device, dtype=dtype)

        def once(x: torch.Tensor = x, y: torch.Tensor = y, weight: torch.Tensor = weight) -> None:
            linear(x, weight)
            y @ weight
            y.T @ x

        least += times * count / size * median_seconds(model, once, 3)
    return least / took


def print_table(title: str, columns: Sequence[str], lines: Sequence[Sequence[object]]) -> None:
    """Print a Markdown table."""
    print(f"\n{title}\n")
    table: list[Sequence[object]] = [list(columns), ["---"] * len(columns), *lines]
    for line in table:
        cells = [f"{cell:.2f}" if isinstance(cell, float) and not math.isnan(cell) else str(cell) for cell in line]
        print("| " + " | ".join(cells) + " |")

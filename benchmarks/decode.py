"""Measure a decode step: eager forwards against static steps, captured and compiled.

    python benchmarks/decode.py [--device cuda] [--shape qwen2.5-1.5b] [--rows 64 256] [--context 1000]

Rows decode with keyed draws from random weights; 16 rows share a prompt of `context` tokens. The first block of
each candidate is left out: it prefills, compiles and captures.

    ms_*                    milliseconds of one step
    fraction_*              time to read weights and KV once, at the rate of a large copy, over the time of a step
    graph_breaks            of the compiled step
    buckets_*               numbers of rows for which a static step was made
    recompiles              compiled graphs beyond two (layer, draw) for each bucket
    host_reads_per_step     reads of the device by the host, per step
    kernels_per_step        CUDA kernels of one step
    static_over_eager_cpu   CPU seconds of compiled steps over those of eager ones (on a CPU)
    *_equal                 share of rows whose tokens are those of the eager step
"""

from __future__ import annotations

import argparse
import json
import math
import time

import torch
from torch._dynamo.utils import counters
from transformers import PreTrainedModel
from workload import copy_rate, print_table, random_model

from grpo_tir.engine.engine import Engine
from grpo_tir.engine.support import kv_shape
from grpo_tir.generation.protocol import Request, Stopped
from grpo_tir.generation.sampling import Sampling, row_key

MODES = ("eager", "captured", "compiled")


def decode(
    model: PreTrainedModel, mode: str, rows: int, context: int, tokens: int
) -> tuple[float, dict[int, Stopped], Engine, float]:
    """Decode `rows` rows. Returns seconds of a step, the results, the engine, and seconds of the first block."""
    on_gpu = model.device.type == "cuda"
    clock = time.perf_counter if on_gpu else time.process_time
    engine = Engine(model, None, Sampling(), [], step=mode)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    for row in range(rows):
        if row % 16 == 0:
            prompt = torch.randint(model.config.vocab_size, (context,), generator=generator).tolist()
        engine.submit(Request(row, prompt, row_key(0, row // 16, row % 16), tokens, False))
    engine.ready = lambda: True
    done: dict[int, Stopped] = {}
    begun, start, skipped = clock(), 0.0, 0
    while engine.scheduler.rows:
        done |= {stop.row: stop for stop in engine.step()}
        every = len(engine.scheduler.running_rows()) == rows
        if not start and every and (engine.counts["blocks"] or mode == "eager"):
            if on_gpu:
                torch.cuda.synchronize()
            start, skipped = clock(), engine.counts["forwards"]
    if on_gpu:
        torch.cuda.synchronize()
    return (clock() - start) / (engine.counts["forwards"] - skipped), done, engine, start - begun


def least_seconds(model: PreTrainedModel, rows: int, tokens: int) -> float:
    """Return the time to read weights and KV of `rows` rows of `tokens` tokens once."""
    weights = sum(parameter.nbytes for parameter in model.parameters())
    kv = rows * tokens * 2 * math.prod(kv_shape(model)) * model.dtype.itemsize
    return (weights + kv) / copy_rate(model.device)


def kernels_per_step(model: PreTrainedModel, mode: str, rows: int, context: int, top: int) -> float:
    """Count the CUDA kernels of a step; print the `top` of them that take longest."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        _, _, engine, _ = decode(model, mode, rows, context, 32)
    steps = engine.counts["forwards"]
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_device_time_total)
    for event in events[:top]:
        print(f"{event.self_device_time_total / steps:9.1f} us {event.count / steps:7.1f}  {event.key[:110]}")
    return sum(event.count for event in events) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shape", default=None, help="default: qwen2.5-1.5b on a GPU, small on a CPU")
    parser.add_argument("--rows", type=int, nargs="+", default=None)
    parser.add_argument("--context", type=int, default=None, help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=64, help="decoded by each row")
    parser.add_argument("--modes", nargs="+", default=list(MODES))
    parser.add_argument("--profile", type=int, default=0, help="print so many kernels of each candidate")
    args = parser.parse_args()
    on_gpu = args.device == "cuda"
    shape = args.shape or ("qwen2.5-1.5b" if on_gpu else "small")
    model = random_model(shape, args.device, torch.bfloat16 if on_gpu else torch.float32)
    modes = [mode for mode in args.modes if on_gpu or mode != "captured"]
    result: dict[str, float] = {}
    lines: list[list[object]] = []
    for rows in args.rows or ([64, 256] if on_gpu else [16, 64]):
        context = args.context or (1000 if on_gpu else 100)
        least = least_seconds(model, rows, context + args.tokens // 2)
        reference: dict[int, Stopped] = {}
        for mode in modes:
            before = counters["stats"]["unique_graphs"]
            seconds, done, engine, first = decode(model, mode, rows, context, args.tokens)
            reference = reference or done
            equal = sum(done[row].token_ids == reference[row].token_ids for row in done) / rows
            lines.append([rows, mode, seconds * 1e3, least / seconds, first, equal])
            result |= {f"ms_{mode}_{rows}": seconds * 1e3, f"fraction_{mode}_{rows}": least / seconds}
            if mode != "eager":
                result[f"{mode}_equal_{rows}"] = equal
                result[f"buckets_{mode}_{rows}"] = engine.counts["buckets"]
                result["host_reads_per_step"] = engine.counts["blocks"] / engine.counts["forwards"]
            if mode == "compiled":
                result["recompiles"] = counters["stats"]["unique_graphs"] - before - 2 * engine.counts["buckets"]
            if on_gpu and args.profile:
                result[f"kernels_{mode}_{rows}"] = kernels_per_step(model, mode, rows, context, args.profile)
        if "compiled" in modes and "eager" in modes and not on_gpu:
            result[f"static_over_eager_cpu_{rows}"] = result[f"ms_compiled_{rows}"] / result[f"ms_eager_{rows}"]
    result["graph_breaks"] = sum(counters["graph_break"].values())
    print_table(
        f"A decode step, {shape}", ["rows", "step", "ms", "of the limit", "first block s", "rows equal"], lines
    )
    print(json.dumps({name: float(f"{value:.4g}") for name, value in result.items()}))


if __name__ == "__main__":
    main()

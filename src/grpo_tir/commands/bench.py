"""`grpo-tir bench`: tokens a second of rollouts and updates on this machine, and the share of its limit."""

from __future__ import annotations

import argparse
import json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model and the workload."""
    parser.add_argument("--model", help="a Hub id or a folder; default: random weights of --shape")
    parser.add_argument("--shape", default="small", choices=["small", "qwen2.5-0.5b", "qwen2.5-1.5b"])
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=8, help="responses a prompt")
    parser.add_argument("--calls", type=int, default=1, choices=[0, 1, 2], help="tool calls a response")
    parser.add_argument("--latency", type=float, default=0.2, help="seconds that a call takes")
    parser.add_argument("--scale", type=float, default=1.0, help="times the lengths, which are 30 to 400 tokens")
    parser.add_argument("--repeats", type=int, default=1, help="turns, of which the median counts")
    parser.add_argument("--threads", type=int, default=1, help="of a CPU; several only pay on an idle machine")
    parser.add_argument("--micro-batch-tokens", type=int, default=2048)
    parser.add_argument("--against-generate", action="store_true", help="run the same through `model.generate`")


def run(args: argparse.Namespace) -> int:
    """Measure, print a table and one JSON line."""
    import torch

    from grpo_tir import bench
    from grpo_tir.rollouts.policy import load_model

    torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    if args.model:
        model = load_model(args.model)[0].to(device, dtype).eval()
    else:
        model = bench.random_model(args.shape, device, dtype)
    rows = bench.make_rows(args.prompts, args.samples, args.calls, args.scale)
    tokens = sum(sum(row.parts) for row in rows)
    where = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {args.threads} thread(s)"
    print(f"{model.num_parameters() / 1e6:.1f}M parameters, {len(rows)} rows, {tokens} sampled tokens; {where}")
    lines, result = bench.measure(
        model, rows, args.latency, args.repeats, args.against_generate, args.micro_batch_tokens
    )
    unit = "second" if device == "cuda" else "CPU-second"
    bench.print_table("Throughput", ["", f"tokens a {unit}", "share of the limit"], lines)
    print(json.dumps({name: round(value, 3) for name, value in result.items()}))
    return 0

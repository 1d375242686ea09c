"""Compare rollouts with tool calls by the engine and by three generation methods of Hugging Face.

    python benchmarks/rollout.py [--prompts 8] [--samples 8] [--repeats 3] [--threads 1]

Workload: fixed lengths with a long tail from 30 to 400 tokens, so that all methods compute the same tokens. Each
sequence calls its tool once, at 20 to 80% of its length, waits 200 ms and gets 20 tokens inserted. Sampling at
temperature 1 over the full vocabulary. No text, no tokenizer, no grading.

Setup of the other methods:
  generate    rounds of `model.generate` (dynamic cache, the default): a batch runs until each sequence has called
  or
              ended; all tools run at once; then one prefill of all unfinished sequences. Inserted tokens allow no
              other order. Its native sampler, not ours.
  static      the same with `cache_implementation="static"`.
  continuous  transformers' continuous batching (its manager, as in `generate_batch`): a call ends a request; after
              the tool the sequence is added as a new request with all its tokens. Prefix sharing is on, the
              default. Page sizes from 16 to 256 and batch tokens from 128 to 2,048 were tried: 16 to 64 are equal
              within the noise, 256 is 15% slower. Flash attention, which it prefers, has no CPU kernel.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel
from workload import (
    INSERTED,
    After,
    Row,
    alternate,
    decode_fraction,
    make_rows,
    print_table,
    random_model,
    run_engine,
    run_rounds,
)


def run_continuous(model: PreTrainedModel, rows: list[Row], latency: float, page: int, batch_tokens: int) -> None:
    """Run transformers' manager in a thread and add a sequence again when its tool has answered."""
    theirs = model.config._attn_implementation
    longest = max(len(row.prompt) + sum(row.parts) + len(INSERTED) * len(row.parts) for row in rows)
    config = ContinuousBatchingConfig(
        page_size=page,
        num_blocks=len(rows) * (longest // page + 2),
        max_batch_tokens=batch_tokens,
        max_requests_per_batch=len(rows),
    )
    sampling = GenerationConfig(do_sample=True, top_k=0, max_new_tokens=400, eos_token_id=-1, pad_token_id=0)
    part = dict.fromkeys(range(len(rows)), 0)
    texts = [list(row.prompt) for row in rows]
    due: dict[int, float] = {}
    left = len(rows)
    with (
        torch.no_grad(),
        model.continuous_batching_context_manager(sampling, True, 5, config, warmup=False) as manager,
    ):
        for n, row in enumerate(rows):
            manager.add_request(row.prompt, f"{n}.0", max_new_tokens=row.parts[0])
        while left:
            wait = min(due.values()) - time.perf_counter() if due else 1.0
            result = manager.get_result(timeout=max(wait, 0.001))
            if result is not None and result.is_finished():
                n = int(result.request_id.split(".")[0])
                assert len(result.generated_tokens) == rows[n].parts[part[n]], result
                part[n] += 1
                texts[n] += result.generated_tokens
                if part[n] == len(rows[n].parts):
                    left -= 1
                else:
                    texts[n] += INSERTED
                    due[n] = time.perf_counter() + latency
            for n in [n for n, moment in due.items() if moment <= time.perf_counter()]:
                del due[n]
                manager.add_request(texts[n], f"{n}.{part[n]}", max_new_tokens=rows[n].parts[part[n]])
    model.config._attn_implementation = theirs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"prompts": 8, "samples": 8, "repeats": 3, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--latency", type=float, default=0.2, help="seconds that a tool takes")
    parser.add_argument("--only", nargs="*", default=None, help="candidates to run")
    parser.add_argument("--page", type=int, default=32)
    parser.add_argument("--batch-tokens", type=int, default=512)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, call = random_model(), partial(After, args.latency)
    rows = make_rows(args.prompts, args.samples)
    tokens = sum(sum(row.parts) for row in rows)
    rounds = len(rows) * sum(max(row.parts[part] for row in rows) for part in (0, 1))
    print(f"{model.num_parameters() / 1e6:.1f}M parameters, {len(rows)} rows, {tokens} sampled tokens;")
    print(f"rounds that carry every row to their end compute {rounds}")
    candidates = {
        "engine": lambda: run_engine(model, rows, call),
        "continuous": lambda: run_continuous(model, rows, args.latency, args.page, args.batch_tokens),
        "static": lambda: run_rounds(model, rows, args.latency, "static"),
        "generate": lambda: run_rounds(model, rows, args.latency),
    }
    chosen = {name: candidates[name] for name in args.only or candidates}
    costs = alternate(chosen, args.repeats)
    lines: list[list[object]] = []
    for name, cost in costs.items():
        lines.append([name, cost.cpu, cost.wall, 1000 * cost.cpu / tokens, cost.cpu / costs["engine"].cpu])
    print_table("Rollouts", ["", "CPU-s", "wall s", "CPU-ms/token", "x engine"], lines)
    names = {"generate": "generate", "static": "static_generate", "continuous": "continuous_batching"}
    result = {f"rollout_vs_{names[n]}": cost.cpu / costs["engine"].cpu for n, cost in costs.items() if n in names}
    result["decode_fraction"] = decode_fraction(model, rows, call)
    print(json.dumps({name: round(value, 3) for name, value in result.items()}))


if __name__ == "__main__":
    main()

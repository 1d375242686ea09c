"""Measure parity, speed and memory on a GPU: the shape of Qwen2.5-1.5B with random weights.

    benchmarks/gpu.sh [PYTHON]       or: python benchmarks/gpu.py [--shape qwen2.5-1.5b] [--prompts 32] [--scale 4]

    greedy_equal          share of sequences that engine and `generate` decode equally, fp32, 16 sequences of 96
                          tokens; a difference is allowed after two best logits within 1e-4
    logprob_gap_*         engine (bf16 decode_copy) minus learner (fp32 weights, bf16 autocast), nats per token
    packed_gradient_gap   relative distance of the gradients of packed (varlen kernel) and padded batches, bf16
    decode_fraction       share of the bandwidth limit, 512 sequences of ToRL's lengths; goal 0.4
    engine_over_generate  tokens per second relative to eager `generate`; goal 10 learner_fraction      share of
    the measured matrix rate; goal 0.4 c1_over_c0            rollout time with a 200 ms tool relative to the same
    insertions without waiting; goal 1.05 update_peak_ratio     peak memory of an update of 16k tokens at V = 152k,
    relative to full logits; goal 0.5

Not yet run on a GPU: only a run on a CPU (`--device cpu --shape small --small small`) was tested.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial

import torch
from transformers import GenerationConfig, PreTrainedModel
from workload import (
    After,
    ForcedEngine,
    alternate,
    make_rows,
    measure,
    print_table,
    random_model,
    run_engine,
    run_rounds,
    run_update,
    trained_rows,
)

from grpo_tir.engine.engine import Engine
from grpo_tir.generation.protocol import Request
from grpo_tir.generation.sampling import Sampling
from grpo_tir.learning.batching import collate
from grpo_tir.learning.logprobs import TokenLogprobs
from grpo_tir.learning.packing import packed_attention


def greedy_equality(args: argparse.Namespace) -> dict[str, float]:
    """Compare greedy decoding of engine and `generate` token by token, in fp32."""
    model = random_model(args.small, args.device, torch.float32)
    torch.backends.cuda.matmul.allow_tf32 = False
    rows, equal = make_rows(4, 4, 0), 0
    engine = Engine(model, None, Sampling(0.0), [], max_rows=7)
    for name, row in enumerate(rows):
        engine.submit(Request(name, row.prompt, row.key, args.tokens, False))
    ours: dict[int, list[int]] = {}
    while engine.scheduler.rows:
        ours |= {stop.row: stop.token_ids for stop in engine.step()}
    config = GenerationConfig(do_sample=False, max_new_tokens=args.tokens, pad_token_id=0)
    for name, row in enumerate(rows):
        ids = torch.tensor([row.prompt], device=model.device)
        theirs = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)[
            0, ids.shape[1] :
        ]
        equal += same_unless_tied(model, row.prompt, ours[name], theirs.tolist())
    return {"greedy_equal": equal / len(rows)}


@torch.no_grad()
def same_unless_tied(model: PreTrainedModel, prompt: list[int], ours: list[int], theirs: list[int]) -> bool:
    """Return True if the ids are equal, or first differ where the two best logits are nearly equal."""
    for n, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a != b:
            logits = model(torch.tensor([prompt + ours[:n]], device=model.device)).logits[0, -1]
            return bool((logits[a] - logits[b]).abs() < 1e-4)
    return True


@torch.no_grad()
def logprob_gap(args: argparse.Namespace) -> dict[str, float]:
    """Compare the log-probs of engine and learner for the same tokens."""
    learner = random_model(args.small, args.device)
    rows = make_rows(4, 8, 1)
    engine: ForcedEngine = run_engine(random_model(args.small, args.device, args.dtype), rows, partial(After, 0.0))
    trained = trained_rows(rows)
    for name, row in enumerate(trained):  # replace the synthetic ids by those that the engine sampled
        at = [t for t, flag in enumerate(row.loss_mask) if flag]
        said = [(i, p) for stop in engine.said[name] for i, p in zip(stop.token_ids, stop.logprobs, strict=True)]
        for t, (token, logprob) in zip(at, said, strict=True):
            row.token_ids[t], row.sampled_logprobs[t] = token, logprob
    batch = collate(trained, learner.device)
    with (
        packed_attention(learner),
        torch.autocast(args.device, torch.bfloat16, enabled=args.dtype != torch.float32),
    ):
        logprobs, _ = TokenLogprobs(learner)(batch.input_ids, batch.attention_mask, batch.loss_mask)
    gap = (logprobs - batch.sampled_logprobs).abs()[batch.loss_mask.bool()]
    return {"logprob_gap_mean": gap.mean().item(), "logprob_gap_max": gap.max().item()}


def packed_gradient_gap(args: argparse.Namespace) -> dict[str, float]:
    """Compare the gradients of the variable-length kernel and of padding."""
    rows, gradients = trained_rows(make_rows(4, 4)), []
    for packed in (True, False):
        model = random_model(args.small, args.device)
        kept: list[torch.Tensor] = []
        model.zero_grad = lambda model=model, kept=kept: kept.extend(p.grad.flatten() for p in model.parameters())
        run_update(model, rows, packed, 2048, args.dtype != torch.float32)
        gradients.append(torch.cat(kept).double())
    ours, theirs = gradients
    return {"packed_gradient_gap": ((ours - theirs).norm() / theirs.norm()).item()}


def cost_of_a_call(args: argparse.Namespace) -> dict[str, float]:
    """Measure rollouts with a tool of 200 ms relative to the same insertions without waiting."""
    model = random_model(args.shape, args.device, args.dtype)
    rows = make_rows(args.prompts, args.samples, 1, args.scale)
    costs = alternate(
        {str(s): partial(run_engine, model, rows, partial(After, s)) for s in (0.0, 0.2)}, args.repeats
    )
    return {"c1_over_c0": costs["0.2"].wall / costs["0.0"].wall}


def speed(args: argparse.Namespace) -> dict[str, float]:
    """Measure decode and update on the full workload, and `generate` on an eighth, in its largest batch."""
    model = random_model(args.shape, args.device, args.dtype)
    few = make_rows(max(1, args.prompts // 8), args.samples, 1, args.scale)
    start = time.perf_counter()
    run_rounds(model, few, 0.2)
    theirs = sum(sum(row.parts) for row in few) / (time.perf_counter() - start)
    rows = make_rows(args.prompts, args.samples, 1, args.scale)
    lines, result = measure(model, rows, 0.2, args.repeats, against=False, budget=args.micro_batch_tokens)
    print_table("Throughput", ["", "tokens a second", "share of the limit"], lines)
    return {**result, "engine_over_generate": result["decode_tokens_per_second"] / theirs}


def peak_ratio(args: argparse.Namespace) -> dict[str, float]:
    """Measure the peak memory of one update beyond the weights, ours relative to full logits."""
    if args.device == "cpu":
        return {}  # on a CPU benchmarks/learner.py measures it, in separate processes
    ids = torch.randint(0, 150_000, (args.peak_tokens // 1024, 1024), device=args.device)
    ones, peaks = torch.ones_like(ids), []
    for ours in (True, False):
        model = random_model(args.small, args.device)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with torch.autocast(args.device, args.dtype):
            if ours:
                logprobs, _ = TokenLogprobs(model)(ids, ones, ones)
            else:
                logits = model(ids, attention_mask=ones).logits[:, :-1].float()
                logprobs = logits.gather(-1, ids[:, 1:, None])[..., 0] - logits.logsumexp(-1)
        (-logprobs.sum() / ids.numel()).backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
        del model, logprobs
    return {"update_peak_ratio": peaks[0] / peaks[1]}


PARTS: list[Callable[[argparse.Namespace], dict[str, float]]] = [
    greedy_equality,
    logprob_gap,
    packed_gradient_gap,
    peak_ratio,
    speed,
    cost_of_a_call,
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--shape", default="qwen2.5-1.5b", help="of the speed figures")
    parser.add_argument("--small", default="qwen2.5-0.5b", help="shape of the parity checks")
    for name, default in {"prompts": 32, "samples": 16, "tokens": 96, "repeats": 1, "peak-tokens": 16_384}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--micro-batch-tokens", type=int, default=16_384)
    parser.add_argument("--scale", type=float, default=4.0, help="4: responses of 120 to 1,600 tokens, as ToRL's")
    args = parser.parse_args()
    args.dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU here; --device cpu --shape small --small small only shows that the script runs")
    result: dict[str, float] = {}
    for part in PARTS:
        start = time.perf_counter()
        try:
            result |= part(args)
        except Exception as error:  # an error in one part must not lose the results of the others
            print(f"{part.__name__} failed: {type(error).__name__}: {error}")
        print(f"{part.__name__}: {time.perf_counter() - start:.0f} s", flush=True)
        if args.device == "cuda":
            torch.cuda.empty_cache()
    print(json.dumps({name: float(f"{value:.4g}") for name, value in result.items()}))


if __name__ == "__main__":
    main()

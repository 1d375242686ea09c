"""Measure parity, speed and memory on a GPU: shapes of Qwen2.5 with random weights.

benchmarks/gpu.sh [PYTHON]       or: python benchmarks/gpu.py [--only decode] [--scale 4]

greedy_equal          share of sequences that engine and `generate` decode equally, fp32, 16 sequences of 96
                      tokens; a difference is allowed after two best logits within 1e-4
STEP_equal_fp32       share of rows, of 1, 3 and 32, whose tokens are those of the eager step, fp32
logprob_gap_*         engine (bf16 copy, compiled) minus learner (fp32 weights, bf16 autocast), nats per token, by
                      model.head_precision
packed_gradient_gap   relative distance of the gradients of packed (varlen kernel) and padded batches, bf16
update_peak_ratio     peak memory of an update of 16k tokens at V = 152k, relative to full logits; goal 0.5
ms_*, fraction_*      a decode step and its share of the limit (`benchmarks/decode.py`); goal 0.5 at 1.5B, 256
compiled_over_*       tokens per second of rollouts with compiled steps, relative to eager steps and `generate`
decode_fraction       share of the limit of whole rollouts: 512 sequences of ToRL's lengths, each with a call
c1_over_c0            rollout time with a 200 ms tool relative to the same insertions without waiting; goal 1.05
continuous_over_ours  the same few sequences by transformers' continuous batching, relative to compiled steps
carry_over_saved      sampling time per trained group that `rollout.carry_over: 0.5` saves: 256 rows in flight of
                      ToRL's lengths up to 768 tokens
learner_mfu_*         6 x parameters x useful tokens over the seconds of an update and 989 TFLOP/s, also with
                      `model.compile`; goals 0.35 at 1.5B, 0.45 at 7B
peak_over_plan_*      peak memory of that update relative to what `grpo-tir plan` counts for it
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from carry_over import BUDGET, training_steps
from decode import decode, least_seconds
from rollout import run_continuous
from transformers import GenerationConfig, PreTrainedModel
from workload import (
    After,
    alternate,
    decode_fraction,
    make_rows,
    random_model,
    run_engine,
    run_rounds,
    run_update,
    timed,
    trained_rows,
)

from grpo_tir.config import Config, ModelConfig, OptimConfig
from grpo_tir.diagnostics.memory import KNOWN, Hardware, Shape, plan
from grpo_tir.engine.decode_weights import make_decode_copy
from grpo_tir.engine.engine import Engine
from grpo_tir.generation.protocol import Request
from grpo_tir.generation.sampling import Sampling
from grpo_tir.learning.batching import collate
from grpo_tir.learning.logprobs import TokenLogprobs
from grpo_tir.learning.packing import packed_attention
from grpo_tir.learning.prepare import use_float32_head


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
    """Compare the log-probs of engine and learner for the same tokens, with bf16 and with float32 logits."""
    result: dict[str, float] = {}
    for head in ("auto", "fp32"):
        learner = random_model(args.small, args.device)
        if head == "fp32":
            use_float32_head(learner)
        rows = make_rows(4, 8, 1)
        bf16 = torch.autocast(args.device, torch.bfloat16, enabled=args.dtype != torch.float32)
        with bf16:
            engine = run_engine(make_decode_copy(learner, args.dtype), rows, partial(After, 0.0), step=args.step)
        trained = trained_rows(rows)
        for name, row in enumerate(trained):  # replace the synthetic ids by those that the engine sampled
            at = [t for t, flag in enumerate(row.loss_mask) if flag]
            said = [pair for stop in engine.said[name] for pair in zip(stop.token_ids, stop.logprobs, strict=True)]
            for t, (token, logprob) in zip(at, said, strict=True):
                row.token_ids[t], row.sampled_logprobs[t] = token, logprob
        batch = collate(trained, learner.device)
        with packed_attention(learner), bf16:
            logprobs, _ = TokenLogprobs(learner)(*batch.host)
        gap = (logprobs - batch.sampled_logprobs).abs()[batch.loss_mask.bool()]
        result |= {f"logprob_gap_mean_{head}": gap.mean().item(), f"logprob_gap_max_{head}": gap.max().item()}
    return result


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


def step_equality(args: argparse.Namespace) -> dict[str, float]:
    """Compare the tokens of each kind of step with those of the eager one, in fp32."""
    model = random_model("small", args.device, torch.float32)
    result: dict[str, float] = {}
    for mode in args.modes:
        same = total = 0
        for rows in (1, 3, 32):
            wanted, found = (decode(model, step, rows, 100, args.tokens)[1] for step in ("eager", mode))
            same += sum(found[row].token_ids == wanted[row].token_ids for row in wanted)
            total += rows
        result[f"{mode}_equal_fp32"] = same / total
    return result


def decode_steps(args: argparse.Namespace) -> dict[str, float]:
    """Time a decode step at several sizes."""
    result: dict[str, float] = {}
    for shape, widths in args.decode.items():
        model = random_model(shape, args.device, args.dtype)
        for rows in widths:
            least = least_seconds(model, rows, args.context + 32)
            eager = ["eager"] if (shape, rows) == (args.shape, widths[0]) else []
            for mode in [*eager, *args.modes]:
                seconds = decode(model, mode, rows, args.context, 64)[0]
                name = f"{mode}_{shape.removeprefix('qwen2.5-')}_{rows}"
                result |= {f"ms_{name}": seconds * 1e3, f"fraction_{name}": least / seconds}
        del model
    return result


def rollouts(args: argparse.Namespace) -> dict[str, float]:
    """Time whole rollouts with a call each: compiled steps, eager steps and `generate` on few sequences; then the
    full workload with compiled steps, with a tool of 200 ms and without waiting."""
    model = random_model(args.shape, args.device, args.dtype)
    few = make_rows(4, 16, 1, 0.5)  # eager steps and `generate` are slow
    kinds = {
        step: partial(run_engine, model, few, partial(After, 0.2), step=step) for step in (args.step, "eager")
    }
    timed(kinds[args.step])  # compiles
    costs = alternate({**kinds, "generate": partial(run_rounds, model, few, 0.2)}, 1)
    ours = costs[args.step].wall
    result = {f"compiled_over_{name}": costs[name].wall / ours for name in ("eager", "generate")}
    rows = make_rows(args.prompts, args.samples, 1, args.scale)
    run = partial(run_engine, model, rows, step=args.step)
    timed(partial(run, partial(After, 0.0)))  # compiles
    costs = alternate({str(s): partial(run, partial(After, s)) for s in (0.0, 0.2)}, 1)
    return {
        **result,
        "c1_over_c0": costs["0.2"].wall / costs["0.0"].wall,
        "decode_tokens_per_second": sum(sum(row.parts) for row in rows) / costs["0.2"].wall,
        "decode_fraction": decode_fraction(model, rows, partial(After, 0.2), args.step),
    }


def continuous_batching(args: argparse.Namespace) -> dict[str, float]:
    """Time the few sequences of `rollouts` by transformers' continuous batching and by our engine."""
    model = random_model(args.shape, args.device, args.dtype)
    few = make_rows(4, 16, 1, 0.5)
    kinds: dict[str, Callable[[], object]] = {
        "ours": partial(run_engine, model, few, partial(After, 0.2), step=args.step),
        "continuous": partial(run_continuous, model, few, 0.2, 256 if args.device == "cuda" else 32, 2048),
    }
    for run in kinds.values():
        timed(run)  # compiles
    costs = alternate(kinds, 1)
    return {"continuous_over_ours": costs["continuous"].wall / costs["ours"].wall}


def carry_over(args: argparse.Namespace) -> dict[str, float]:
    """Time the sampling of groups with forced lengths, with `rollout.carry_over` and without."""
    model, budget, seconds = random_model(args.shape, args.device, args.dtype), BUDGET // 4, {}
    with tempfile.TemporaryDirectory() as folder:
        for share in (0.0, 0.5):
            run = training_steps(
                share, args.prompts // 2, budget, Path(folder) / str(share), model, args.step, False
            )
            list(itertools.islice(run, 2))  # compiles; the first steps carry little
            found: list[tuple[int, int, float]] = []
            cost = timed(partial(found.extend, itertools.islice(run, 3)))
            seconds[share] = cost.wall / sum(trained for trained, _, _ in found)
    return {"carry_over_saved": 1 - seconds[0.5] / seconds[0.0]}


def planned_peak(shape: str, args: argparse.Namespace) -> float:
    """Return the bytes of weights, gradients, activations and logits that `grpo-tir plan` counts for an update."""
    sizes = next(Shape(*sizes) for name, sizes in KNOWN.items() if name.lower() == shape)
    config = Config(
        model=ModelConfig(gradient_checkpointing=args.checkpointing),
        optim=OptimConfig(micro_batch_tokens=args.micro_batch_tokens),
    )
    parts = plan(config, sizes, Hardware(1, torch.cuda.get_device_properties(0).total_memory)).learning
    return 4 * sizes.parameters + parts["gradients"] + parts["activations"] + parts["logits"]


def learner_mfu(args: argparse.Namespace) -> dict[str, float]:
    """Time updates: forward and backward of 32k tokens in micro-batches, plain and with `model.compile`."""
    result: dict[str, float] = {}
    rows = trained_rows(make_rows(4, 16, 1, args.scale))
    useful = sum(len(row.token_ids) - len(row.prompt) for row in rows) + sum(map(len, {r.prompt for r in rows}))
    for shape, kind in itertools.product(args.learned, ("", "_compiled")):
        model, bf16 = random_model(shape, args.device), args.dtype != torch.float32
        if args.checkpointing:
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
            model.train()
        update = partial(run_update, model, rows, True, args.micro_batch_tokens, bf16, bool(kind))
        timed(update)  # compiles
        if args.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = timed(update).wall
        name = shape.removeprefix("qwen2.5-") + kind
        result[f"learner_mfu_{name}"] = 6 * model.num_parameters() * useful / seconds / 989e12
        result[f"learner_tokens_per_second_{name}"] = useful / seconds
        if args.device == "cuda":
            peak = torch.cuda.max_memory_allocated()
            result[f"learner_peak_gib_{name}"] = peak / 2**30
            result[f"peak_over_plan_{name}"] = peak / planned_peak(shape, args)
        print({each: float(f"{value:.4g}") for each, value in result.items()}, flush=True)
        del model, update
        gc.collect()
    return result


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
    step_equality,
    logprob_gap,
    packed_gradient_gap,
    peak_ratio,
    decode_steps,
    rollouts,
    continuous_batching,
    carry_over,
    learner_mfu,
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--shape", default="qwen2.5-1.5b", help="of the rollouts")
    parser.add_argument("--small", default="qwen2.5-0.5b", help="shape of the parity checks")
    parser.add_argument("--only", nargs="+", default=[part.__name__ for part in PARTS])
    for name, default in {"prompts": 32, "samples": 16, "tokens": 96, "peak-tokens": 16_384}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--micro-batch-tokens", type=int, default=16_384)
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations in learner_mfu")
    parser.add_argument("--learned", nargs="+", help="shapes of learner_mfu")
    parser.add_argument("--context", type=int, default=1000, help="tokens of a prompt, for the decode steps")
    parser.add_argument("--scale", type=float, default=4.0, help="4: responses of 120 to 1,600 tokens, as ToRL's")
    args = parser.parse_args()
    on_gpu = args.device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        raise SystemExit("no GPU here; --device cpu --shape small --small small only shows that the script runs")
    args.dtype = torch.bfloat16 if on_gpu else torch.float32
    args.step, args.modes = "compiled", ["captured", "compiled"] if on_gpu else ["compiled"]
    args.decode = {"qwen2.5-0.5b": [256], "qwen2.5-1.5b": [256, 64, 512], "qwen2.5-7b": [256]} if on_gpu else {}
    args.learned = args.learned or ([args.shape, "qwen2.5-7b"] if on_gpu else [args.shape])
    result: dict[str, float] = {}
    for part in PARTS:
        if part.__name__ not in args.only:
            continue
        start = time.perf_counter()
        try:
            found = part(args)
            print({name: float(f"{value:.4g}") for name, value in found.items()})
            result |= found
        except Exception:  # an error in one part must not lose the results of the others
            print(f"{part.__name__} failed: {traceback.format_exc(limit=-4)}")
        print(f"{part.__name__}: {time.perf_counter() - start:.0f} s", flush=True)
        gc.collect()
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    print(json.dumps({name: float(f"{value:.4g}") for name, value in result.items()}))


if __name__ == "__main__":
    main()

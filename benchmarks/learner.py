"""Measure the update, forward and backward of a rollout batch: time and peak memory.

    python benchmarks/learner.py [--rows 32] [--repeats 3] [--threads 1]

Time: the sequences of `rollout.py` with masked tool tokens, 26.5M parameters. CPU seconds of:
  full      all sequences padded to the longest, logits at every position, log-softmax over them
  padded    our learner with `optim.packing: false`: sorted, padded within a micro-batch, head on model tokens
  packed    our learner with default settings
Memory: V = 152k, 2,048 tokens; peak beyond weights and previous use; each in a separate process:
  full      logits of all positions and `logsumexp` over them (as TRL without Triton)
  ours      head on model tokens, logits within `optim.logits_mb`
  lce       torch's chunked `F.linear_cross_entropy` with its best options; no entropy

`learner_fraction` is the CPU time of the bare matrix products divided by the CPU time of the update. Padding and
recomputation do not count as useful work.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from typing import Any

import torch
from torch.nn.functional import linear_cross_entropy
from torch.nn.functional import log_softmax as log_softmax_of
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM
from workload import (
    alternate,
    learner_fraction,
    make_rows,
    print_table,
    random_model,
    run_update,
    trained_rows,
)

from grpo_tir.learning.batching import TrainingSample, collate
from grpo_tir.learning.logprobs import TokenLogprobs

VOCABULARY = 151_936


def update_full(model: PreTrainedModel, rows: list[TrainingSample]) -> None:
    """Run forward and backward on the fully padded batch, 8 sequences at a time, with logits at every position."""
    width = max(len(row.token_ids) for row in rows)
    padding = TrainingSample([0] * width, [0] * width, [0.0] * width, [0.0] * width)
    tokens = sum(sum(row.loss_mask) for row in rows)
    for start in range(0, len(rows), 8):
        batch = collate([*rows[start : start + 8], padding], torch.device("cpu"))
        ids, mask = batch.input_ids[:-1], batch.loss_mask[:-1]
        logits = model(ids, attention_mask=batch.attention_mask[:-1]).logits[:, :-1]
        logprobs = log_softmax_of(logits, -1).gather(-1, ids[:, 1:, None])[..., 0]
        (-(logprobs * mask[:, 1:] * batch.advantages[:-1, 1:]).sum() / tokens).backward()
    model.zero_grad()


def measure_time(args: argparse.Namespace) -> dict[str, float]:
    """Measure the CPU seconds of one update for each variant, in turns."""
    model, rows = random_model(), trained_rows(make_rows(args.rows // 8, 8))
    useful = sum(len(row.token_ids) for row in rows)
    print(f"{model.num_parameters() / 1e6:.1f}M parameters, {len(rows)} rows, {useful} tokens without padding")
    costs = alternate(
        {
            "packed": lambda: run_update(model, rows),
            "padded": lambda: run_update(model, rows, packed=False),
            "full": lambda: update_full(model, rows),
        },
        args.repeats,
    )
    ours = costs["packed"].cpu
    print_table(
        "Update", ["", "CPU-s", "wall s", "x packed"], [[n, c.cpu, c.wall, c.cpu / ours] for n, c in costs.items()]
    )
    return {
        "learner_vs_full": costs["full"].cpu / ours,
        "learner_vs_padded": costs["padded"].cpu / ours,
        "learner_fraction": learner_fraction(model, rows, ours),
    }


def wide_model() -> PreTrainedModel:
    """Make a random Qwen2 with the vocabulary of Qwen2.5."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=VOCABULARY, **shape, **heads))


def peak_of(way: str) -> float:
    """Return the MiB that one update of 2,048 tokens adds to this process's peak, gradients included."""
    model = wide_model()
    ids = torch.randint(0, VOCABULARY, (4, 512))
    ones = torch.ones_like(ids)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if way == "ours":
        logprobs, _ = TokenLogprobs(model)(ids, ones, ones)
    elif way == "full":
        logits = model(ids, attention_mask=ones).logits[:, :-1]
        logprobs = logits.gather(-1, ids[:, 1:, None])[..., 0] - logits.logsumexp(-1)
    else:
        hidden = model.model(ids, attention_mask=ones).last_hidden_state[:, :-1].flatten(0, 1)
        options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=256, chunking_method=None)
        logprobs = -linear_cross_entropy(
            hidden, model.lm_head.weight, ids[:, 1:].flatten(), reduction="sum", options=options
        )
    (-logprobs.sum() / 2048).backward()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def measure_memory() -> dict[str, float]:
    """Measure the peak of each variant in a new process."""
    peaks, seconds = {}, {}
    for way in ("full", "ours", "lce"):
        cost = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        printed = subprocess.run(
            [sys.executable, __file__, "--peak-of", way], check=True, capture_output=True, text=True
        ).stdout
        peaks[way] = float(printed)
        seconds[way] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - cost
    print_table(
        f"Memory of an update of 2,048 tokens, V = {VOCABULARY}",
        ["", "peak MiB", "x full", "CPU-s with start"],
        [[way, peak, peak / peaks["full"], seconds[way]] for way, peak in peaks.items()],
    )
    return {"update_peak_ratio": peaks["ours"] / peaks["full"], "lce_peak_ratio": peaks["lce"] / peaks["full"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"rows": 32, "repeats": 3, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak_of:
        print(peak_of(args.peak_of))
        return
    result = {**measure_memory(), **measure_time(args)}
    print(json.dumps({name: round(value, 3) for name, value in result.items()}))


if __name__ == "__main__":
    main()

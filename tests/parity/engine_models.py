"""Tiny random models of every family, a byte tokenizer's worth of vocabulary, and Hugging Face's own answers."""

from __future__ import annotations

import random

import torch
from tokenizers import Tokenizer, decoders, models
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GenerationConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from grpo_tir.generation.protocol import Generator, Request, Stopped
from grpo_tir.generation.sampling import row_key

VOCABULARY = 97
# an initial range of 0.3 spreads the logits, so that greedy ties are rare
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
GROUPED = {**SHAPE, "num_attention_heads": 4, "num_key_value_heads": 2}
SCALED = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
FAMILIES: dict[str, PretrainedConfig] = {
    "qwen2": Qwen2Config(**GROUPED),
    "qwen2.5-tied": Qwen2Config(**GROUPED, tie_word_embeddings=True, rope_theta=1e6),
    "qwen3": Qwen3Config(**GROUPED, head_dim=16),
    "llama-rope-scaled": LlamaConfig(**GROUPED, rope_scaling=SCALED),
    "llama-linear-rope": LlamaConfig(**GROUPED, rope_scaling={"rope_type": "linear", "factor": 4.0}),
    "smollm": LlamaConfig(**{**SHAPE, "num_attention_heads": 6, "num_key_value_heads": 2, "hidden_size": 48}),
    "gemma": GemmaConfig(**{**SHAPE, "num_attention_heads": 4, "num_key_value_heads": 1}, head_dim=16),
    "mistral": MistralConfig(**GROUPED, sliding_window=None, head_dim=8),
}


def make_model(config: PretrainedConfig, dtype: torch.dtype = torch.float32, seed: int = 0) -> PreTrainedModel:
    """Random weights in evaluation mode."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config).to(dtype).eval()


def make_requests(groups: int, samples: int, budget: int, seed: int = 0) -> list[Request]:
    """Groups with prompts of 1 to 30 tokens; budgets that differ from row to row."""
    rng = random.Random(seed)
    requests = []
    for group in range(groups):
        prompt = [rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 30))]
        for sample in range(samples):
            left = rng.randint(1, budget)
            requests.append(Request(len(requests), prompt, row_key(7, group, sample), left, True))
    return requests


def run(generator: Generator, requests: list[Request]) -> dict[int, Stopped]:
    """Submit all and collect what stops; no tools."""
    for request in requests:
        generator.submit(request)
    done: dict[int, Stopped] = {}
    while stopped := generator.step():
        for row in stopped:
            assert row.row not in done
            done[row.row] = row
    generator.close()
    return done


def greedy(model: PreTrainedModel, ids: list[int], new: int) -> list[int]:
    """What `model.generate` goes on with, alone and unpadded."""
    config = GenerationConfig(do_sample=False, max_new_tokens=new, pad_token_id=0)
    inputs = torch.tensor([ids])
    output = model.generate(inputs, attention_mask=torch.ones_like(inputs), generation_config=config)
    return output[0, len(ids) :].tolist()


def assert_same_unless_tied(model: PreTrainedModel, prompt: list[int], ours: list[int], theirs: list[int]) -> None:
    """Equal tokens; a first difference may only stand where the top two logits are within 1e-4."""
    assert len(ours) == len(theirs)
    for n, (a, b) in enumerate(zip(ours, theirs)):
        if a != b:
            logits = model(torch.tensor([prompt + ours[:n]])).logits[0, -1]
            assert abs(logits[a] - logits[b]) < 1e-4, f"token {n} is {a}, generate says {b}"
            return


def make_tokenizer() -> PreTrainedTokenizerFast:
    """97 words, some of which hold the markers "```output" and "<tool_call>" or parts of them; text is their plain
    concatenation."""
    words = [f"w{i} " for i in range(VOCABULARY)]
    words[20:26] = ["```output", "```", "output", "```out", "put\n", "```python\n"]
    words[30:34] = ["```output\n", "x```output", "```output ", "output\n"]
    words[40:60] = [f"{'x' * n}<tool_call>" for n in range(16)] + ["<", "tool", "_call", ">"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="w0 "))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def run_with_tool(
    generator: Generator, requests: list[Request], inserted: list[int], calls: int, late: bool = False
) -> dict[int, list[list[int]]]:
    """Segments of each row. Calls are answered with `inserted`, at once or (`late`) when all else has ended."""
    segments: dict[int, list[list[int]]] = {request.row: [] for request in requests}
    used = dict.fromkeys(segments, 0)
    budgets = {request.row: request.budget for request in requests}
    waiting: list[int] = []
    for request in requests:
        generator.submit(request)
    while True:
        stopped = generator.step()
        for row in stopped:
            segments[row.row].append(row.token_ids)
            if row.reason == "call":
                waiting.append(row.row)
        if late and stopped:
            continue
        if not waiting and not stopped:
            break
        for name in waiting:
            used[name] += 1
            left = budgets[name] - sum(map(len, segments[name]))
            if left <= len(inserted):
                generator.release(name)
            else:
                segments[name].append(inserted)
                generator.resume(name, inserted, used[name] < calls)
        waiting.clear()
    generator.close()
    return segments

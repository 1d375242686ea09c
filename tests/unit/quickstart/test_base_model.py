"""The quickstart's tokenizer and the loss that its base model is trained by."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpo_tir.generation.stopping import CodeBlockStopping
from quickstart import base_model as tiny_model
from quickstart import world as tiny

WORLD = tiny.WorldConfig(seed=3, train_problems=50, eval_problems=50, documents=1500)
SMALL = tiny_model.PretrainConfig(hidden=32, layers=2, heads=2, kv_heads=1, ffn=64, steps=3, batch=4)


@pytest.fixture(scope="module")
def documents() -> list[tiny.Document]:
    return list(tiny.make_documents(WORLD, tiny.make_problems(WORLD)[2]))


@pytest.fixture(scope="module")
def folder(documents: list[tiny.Document], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "model"
    tiny_model.build_model(documents, path, 3, config=SMALL, log=lambda _: None, progress=False)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    """As any user reads it, not as we made it."""
    return AutoTokenizer.from_pretrained(folder)


def test_saved_tokenizer_is_the_one_that_was_trained(documents: list[tiny.Document], tokenizer: Any) -> None:
    """transformers 5 replaces the splitting rule of a tokenizer beside a Qwen2 model; ours must not notice."""
    learned = tiny_model.train_tokenizer((document.text for document in documents), SMALL.pieces)
    for document in documents[:300]:
        assert tokenizer(document.text)["input_ids"] == learned(document.text)["input_ids"]


def test_a_page_in_parts_has_the_tokens_of_the_whole(documents: list[tiny.Document], tokenizer: Any) -> None:
    """So a rollout, tokenised segment by segment, looks to the model like what it has read."""
    for document, encoded in zip(documents, tiny_model.encode(tokenizer, documents)):
        assert encoded.ids[:-1] == tokenizer(document.text)["input_ids"]
        assert encoded.ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(encoded.ids[:-1]) == document.text


def test_every_chunk_of_one_to_three_digits_is_one_token(tokenizer: Any) -> None:
    for width in (1, 2, 3):
        for number in range(10**width):
            assert len(tokenizer(f"{number:0{width}d}")["input_ids"]) == 1
    assert [tokenizer.decode([i]) for i in tokenizer("4*12345=49380")["input_ids"]] == (
        ["4", "*", "123", "45", "=", "493", "80"]
    )


@pytest.mark.parametrize("text", ["été 日本 — ½", "a\n\n  b\t c", "x007 $12.50", "```py\n```"])
def test_any_text_survives_the_tokenizer(text: str, tokenizer: Any) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_stop_marker_is_seen_at_its_last_token(documents: list[tiny.Document], tokenizer: Any) -> None:
    stopping = CodeBlockStopping(tokenizer, "output")
    for document in [page for page in documents if len(page.segments) == 5][:50]:
        ids = tokenizer(document.segments[0][1])["input_ids"]
        assert [stopping.stops(ids[: i + 1]) for i in range(len(ids))] == [False] * (len(ids) - 1) + [True]


def test_only_what_the_model_writes_is_trained(documents: list[tiny.Document], tokenizer: Any) -> None:
    for document, encoded in zip(documents, tiny_model.encode(tokenizer, documents)):
        trained = [i for i, keep in zip(encoded.ids, encoded.trained) if keep]
        written = "".join(text for kind, text in document.segments if kind == "model")
        assert tokenizer.decode(trained[:-1]) == written and trained[-1] == tokenizer.eos_token_id


def test_loss_is_the_float64_sum_over_trained_tokens_whatever_the_padding(
    documents: list[tiny.Document], folder: Path, tokenizer: Any
) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    batch = tiny_model.encode(tokenizer, documents[:5])
    expected = 0.0
    for document in batch:
        logprobs = model(input_ids=torch.tensor([document.ids])).logits[0].log_softmax(-1)
        for position in range(1, len(document.ids)):
            if document.trained[position]:
                expected -= logprobs[position - 1, document.ids[position]].item()
    assert tiny_model.batch_loss(model, batch, tokenizer.eos_token_id).item() == pytest.approx(expected, rel=1e-12)


def test_batches_hold_pages_of_like_length_and_each_page_once(
    documents: list[tiny.Document], tokenizer: Any
) -> None:
    encoded = tiny_model.encode(tokenizer, documents[:60])
    config = tiny_model.PretrainConfig(steps=15, batch=4)
    batches = tiny_model.make_batches(encoded, config, random.Random(0))
    assert [len(batch) for batch in batches] == [4] * 15
    assert sorted(tuple(page.ids) for batch in batches for page in batch) == sorted(tuple(e.ids) for e in encoded)
    padded = sum(4 * max(len(page.ids) for page in batch) for batch in batches)
    assert padded <= 1.1 * sum(len(page.ids) for page in encoded)

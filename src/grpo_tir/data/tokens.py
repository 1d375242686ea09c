"""Encode text to token ids, decode them, and find those that end a response."""

from collections.abc import Sequence
from typing import Any


def encode(tokenizer: Any, text: str, literal: bool = False) -> list[int]:
    """Encode a text to token ids. No special tokens are added at either end.

    With `literal`, special tokens in the text are split too: a program that prints "<|endoftext|>" must not insert
    that token.
    """
    ids: Sequence[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=literal)["input_ids"]
    return list(ids)


def decode(tokenizer: Any, token_ids: Sequence[int]) -> str:
    """Decode tokens without changes: special tokens and spaces are kept."""
    text = tokenizer.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def find_eos_ids(model: Any, tokenizer: Any) -> list[int]:
    """Return every id that ends a response, from tokenizer, config and generation_config, in this order."""
    found: list[int] = []
    for source in (tokenizer, model.config, model.generation_config):
        ids = getattr(source, "eos_token_id", None)
        found += [ids] if isinstance(ids, int) else list(ids or [])
    return list(dict.fromkeys(found))

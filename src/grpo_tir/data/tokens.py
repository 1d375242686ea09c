"""Encode text to token ids, and decode them."""

from __future__ import annotations

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

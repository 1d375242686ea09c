"""Provide test doubles, public so that users can test their own tools and rewards.

`byte_tokenizer` makes a real Hugging Face tokenizer with a token for every byte (and optional extra pieces).
`ScriptedExecutor` returns results from a function.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from grpo_tir.types import ToolResult

EOS = "<|end|>"


def byte_tokenizer(extra: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Make a tokenizer with one token for each byte. `extra` pieces decode, but encoding never produces them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pieces = ["".join(part for part, _ in splitter.pre_tokenize_str(text)) for text in extra]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys([*alphabet, *pieces]))}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = splitter
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS, pad_token=EOS)


class ScriptedExecutor:
    """Return results of a function instead of running programs. Keeps the programs in `seen`."""

    slots = 1

    def __init__(self, answer: Callable[[str], ToolResult]) -> None:
        self.answer, self.seen = answer, list[str]()

    def submit(self, code: str, **session: Any) -> Future[ToolResult]:
        """Return a finished future."""
        self.seen.append(code)
        future: Future[ToolResult] = Future()
        future.set_result(self.answer(code))
        return future

    def describe(self) -> dict[str, Any]:
        """Describe the executor."""
        return {"kind": "scripted"}

    def close(self) -> None:
        """Do nothing: no resources are held."""

"""Provide test doubles, public so that users can test their own tools and rewards.

`byte_tokenizer` makes a real Hugging Face tokenizer with a token for every byte (and optional extra pieces).
`ScriptedModel` is a real `PreTrainedModel` whose next token follows a script, so that tests use the real
`model.generate`, stopping and tool loop. `ScriptedExecutor` returns results from a function.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Self

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_outputs import CausalLMOutput

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


class ScriptedConfig(PreTrainedConfig):
    """Set vocabulary size and end-of-text ids of a `ScriptedModel`."""

    model_type = "grpo_tir_scripted"

    def __init__(self, vocab_size: int = 257, eos_token_id: int | list[int] = 256, **rest: Any) -> None:
        super().__init__(eos_token_id=eos_token_id, pad_token_id=None, **rest)
        self.vocab_size = vocab_size
        self.num_hidden_layers = 1


class ScriptedModel(PreTrainedModel, GenerationMixin):
    """Generate a script. `scripts` maps a prompt to the turns (token ids) of its response.

    After a turn, the text up to and including a line "```" counts as tool output. After the last turn the model
    generates the first end-of-text id.
    """

    config_class = ScriptedConfig

    def __init__(
        self, config: ScriptedConfig, scripts: dict[tuple[int, ...], list[list[int]]], fence: list[int]
    ) -> None:
        super().__init__(config)
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        self.scripts, self.fence = scripts, fence

    @classmethod
    def from_text(cls, tokenizer: Any, scripts: dict[str, list[str]]) -> Self:
        """Make a model from scripts given as text."""
        encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
        ids = {tuple(encode(prompt)): [encode(turn) for turn in turns] for prompt, turns in scripts.items()}
        config = ScriptedConfig(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
        return cls(config, ids, encode("\n```\n"))

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, attention_mask: Any = None, **_: Any
    ) -> dict[str, Any]:
        """Return the full row: a script has no cache."""
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any
    ) -> CausalLMOutput:
        """Map (B, T) to logits (B, T, V), with one certain token at the last position."""
        logits = torch.full((*input_ids.shape, self.config.vocab_size), -1e4)
        keep = attention_mask if attention_mask is not None else torch.ones_like(input_ids)
        for row, (ids, mask) in enumerate(zip(input_ids.tolist(), keep.tolist(), strict=True)):
            real = [token for token, flag in zip(ids, mask, strict=True) if flag]
            logits[row, -1, self.next_token(real)] = 0.0
        return CausalLMOutput(logits=logits + 0 * self.anchor)

    def next_token(self, row: list[int]) -> int:
        """Return the token after these ids."""
        prompt = max((p for p in self.scripts if tuple(row[: len(p)]) == p), key=len)
        turns, at = self.scripts[prompt], len(prompt)
        for number, turn in enumerate(turns):
            if number:
                at = self._end_of_output(row, at, turn)
            if len(row) - at < len(turn):
                return turn[len(row) - at]
            at += len(turn)
        eos = self.config.eos_token_id
        return int(eos[0] if isinstance(eos, list) else eos)

    def _end_of_output(self, row: list[int], start: int, turn: list[int]) -> int:
        """Return where the next turn begins, or the end of the row."""
        for end in range(start + len(self.fence), len(row) + 1):
            generated = row[end : end + len(turn)]
            if row[end - len(self.fence) : end] == self.fence and generated == turn[: len(generated)]:
                return end
        return len(row)


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

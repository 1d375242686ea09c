"""Rollouts of scripted policies: the real loop, the real stopping, the real `model.generate`; only the weights
and the programs are made up.

    play({"Q": ["```python\\nprint(6*7)\\n```\\n```output", "\\\\boxed{42}"]}, stdout("42\\n"))[0].text
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from grpo_tir.data.tokens import find_eos_ids
from grpo_tir.generation.generate import GenerateRounds
from grpo_tir.generation.sampling import Sampling
from grpo_tir.generation.stopping import CodeBlockStopping
from grpo_tir.learning.batching import to_row
from grpo_tir.rollouts.rollout import RolloutLoop
from grpo_tir.testing import ScriptedExecutor, byte_tokenizer
from grpo_tir.tools.protocol import Tool
from grpo_tir.tools.python import PythonTool
from grpo_tir.types import Problem, Rollout, Segment, ToolCall, ToolResult

BYTES = byte_tokenizer()
BLOCK = "```python\nprint(6*7)\n```\n"
CALL = BLOCK + "```output"
SHOWN = "\n42\n```\n"
"""What is inserted after `CALL` where the program prints 42."""

Answer = Callable[[str], ToolResult]
Turn = str | list[int]
GREEDY = Sampling(temperature=0.0)


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


def stdout(text: str, status: Any = "ok", stderr: str = "") -> Answer:
    """An executor's answer to any code."""
    return lambda code: ToolResult(status, stdout=text, stderr=stderr, exit_code=0 if status == "ok" else 1)


FORTY_TWO = stdout("42\n")


def ids(text: str, tokenizer: Any = BYTES) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def read(tokens: Sequence[int], tokenizer: Any = BYTES) -> str:
    return str(tokenizer.decode(list(tokens), skip_special_tokens=False))


def make_loop(
    model: Any,
    tool: Tool | None,
    tokenizer: Any = BYTES,
    *,
    c: int = 1,
    budget: int = 400,
    seed: int = 0,
    max_rows: int = 0,
    eos_ids: Sequence[int] | None = None,
    sampling: Sampling = GREEDY,
    **hooks: Any,
) -> RolloutLoop:
    eos = find_eos_ids(model, tokenizer) if eos_ids is None else eos_ids
    stopping = CodeBlockStopping(tokenizer, tool.stop if tool else "output", eos_ids=eos)
    generator = GenerateRounds(model.eval(), stopping, sampling, eos, max_rows)
    return RolloutLoop(generator, tool, tokenizer, budget, c, seed, **hooks)


def script_model(scripts: Mapping[str, Sequence[Turn]], tokenizer: Any = BYTES, **config: Any) -> ScriptedModel:
    """Turns as text or, where the split into tokens matters, as token ids."""
    said = {
        tuple(ids(prompt, tokenizer)): [turn if isinstance(turn, list) else ids(turn, tokenizer) for turn in turns]
        for prompt, turns in scripts.items()
    }
    settings = ScriptedConfig(**{"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, **config})
    return ScriptedModel(settings, said, ids("\n```\n", tokenizer))


def empty_rollouts(prompts: Sequence[str], tokenizer: Any = BYTES) -> list[Rollout]:
    return [
        Rollout(Problem(prompt, prompt, "42"), ids(prompt, tokenizer), sample=i)
        for i, prompt in enumerate(prompts)
    ]


def play(
    scripts: Mapping[str, Sequence[Turn]],
    answer: Answer = FORTY_TWO,
    *,
    tokenizer: Any = BYTES,
    stop: str = "output",
    **settings: Any,
) -> list[Rollout]:
    """One rollout for each prompt."""
    rollouts = empty_rollouts(list(scripts), tokenizer)
    tool = PythonTool(ScriptedExecutor(answer), stop)
    make_loop(script_model(scripts, tokenizer), tool, tokenizer, **settings).run(rollouts)
    return rollouts


def play_one(turns: Sequence[Turn], answer: Answer = FORTY_TWO, **settings: Any) -> Rollout:
    return play({"Q": turns}, answer, **settings)[0]


def reference_code(text: str) -> str:
    """The facts page on which code is run ("Loop", 3), as a program of its own; "" where there is none."""
    code, is_open = "", False
    for line in text.split("\n"):
        if line.startswith("```python") or line.endswith("```python"):
            code, is_open = "", True
        elif line.startswith("```"):
            is_open = False
        elif is_open:
            code += line + "\n"
    return "" if is_open or not code.strip() else code


def kinds(rollout: Rollout) -> list[tuple[str, str]]:
    """(kind, text) of each segment."""
    return [(segment.kind, segment.text) for segment in rollout.segments]


def rollout_of(*turns: str, calls: Sequence[ToolCall] = (), answer: str = "42", **fields: Any) -> Rollout:
    """A finished rollout of model and tool texts in turn, in bytes, without any generator."""
    segments = [
        Segment("model", ids(t), [-1.0] * len(ids(t)), t) if i % 2 == 0 else Segment("tool", ids(t), text=t)
        for i, t in enumerate(turns)
    ]
    return Rollout(
        Problem("p", "6*7?", answer), ids("Q"), segments=segments, calls=list(calls),
        **{"finish_reason": "eos", **fields},
    )  # fmt: skip


def assert_consistent(rollout: Rollout) -> None:
    """Ids, mask and log-probs have not drifted apart, nor what training makes of them."""
    assert len(rollout.token_ids) == len(rollout.loss_mask) == len(rollout.logprobs)
    row = to_row(rollout)
    assert len(row.token_ids) == len(row.loss_mask) == len(row.sampled_logprobs)


class UrnModel(ScriptedModel):
    """Draws every token from one urn, whatever stands before: the policy's log-probs are known in advance."""

    def __init__(self, weights: Mapping[int, float], vocab_size: int, eos_token_id: int | list[int]) -> None:
        super().__init__(ScriptedConfig(vocab_size=vocab_size, eos_token_id=eos_token_id), {}, [])
        self.log_weights = torch.full((vocab_size,), -torch.inf)
        total = sum(weights.values())
        for token, weight in weights.items():
            self.log_weights[token] = torch.tensor(weight / total).log()

    def forward(self, input_ids: torch.Tensor, **_: Any) -> CausalLMOutput:
        """(B, T) to logits (B, T, V)."""
        return CausalLMOutput(logits=self.log_weights.expand(*input_ids.shape, -1) + 0 * self.anchor)

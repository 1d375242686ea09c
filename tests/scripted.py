"""Rollouts of scripted policies: the real loop, the real stopping, the real `model.generate`; only the weights
and the programs are made up.

    play({"Q": ["```python\\nprint(6*7)\\n```\\n```output", "\\\\boxed{42}"]}, stdout("42\\n"))[0].text
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers.modeling_outputs import CausalLMOutput

from grpo_tir.data.tokens import find_eos_ids
from grpo_tir.generation.generate import GenerateRounds
from grpo_tir.generation.sampling import Sampling
from grpo_tir.generation.stopping import CodeBlockStopping
from grpo_tir.learning.batching import to_row
from grpo_tir.rollouts.rollout import RolloutLoop
from grpo_tir.testing import ScriptedConfig, ScriptedExecutor, ScriptedModel, byte_tokenizer
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

"""A run in which the second call uses the variable of the first, with native calls from end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from chat_models import CHATML_TOKENS, QWEN, bpe_tokenizer
from grpo_tir.config import Config
from grpo_tir.data.chat import apply_chat
from grpo_tir.data.prompts import make_renderer
from grpo_tir.data.tokens import encode
from grpo_tir.tools.open import tool_schemas
from grpo_tir.train import Trainer
from grpo_tir.types import Problem
from tiny_policy import change, tiny_qwen2

SETS = '<tool_call>\n{"name": "python", "arguments": {"code": "x = 6"}}\n</tool_call>'
USES = '<tool_call>\n{"name": "python", "arguments": {"code": "print(x * 7)"}}\n</tool_call>'
END = "<|im_end|>"
PROBLEM = Problem("p", "6*7?", "42")


def settings(folder: Path, state: str) -> Config:
    return change(
        Config(), tool__format="tool_call", tool__max_tool_calls=2, tool__state=state, data__template="chat",
        data__system="", data__max_prompt_length=900, rollout__prompts_per_step=2, rollout__samples_per_prompt=16,
        rollout__max_completion_length=200, executor__kind="process", executor__slots=2, optim__lr=2e-4,
        train__steps=8, train__output_dir=str(folder), train__report_to=[], train__save_every=0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def knows_both_ways(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A policy that knows three texts by heart. It guesses wrongly, or calls twice and says what it reads: the
    number, or 0 after an error."""
    tokenizer = bpe_tokenizer(QWEN, CHATML_TOKENS, 120, [SETS, USES])
    config = settings(tmp_path_factory.mktemp("none"), "fresh")
    prompt = make_renderer("chat", tokenizer, "", tool_schemas(config))(PROBLEM)
    said: list[dict[str, str]] = [
        {"role": "user", "content": PROBLEM.problem},
        {"role": "assistant", "content": SETS},
    ]
    said += [{"role": "tool", "content": "[no output]"}, {"role": "assistant", "content": USES}]
    texts = ["\\boxed{1}" + END] * 2
    for output, answer in (("42", "42"), ("NameError: name 'x' is not defined", "0")):
        row = apply_chat(tokenizer, [*said, {"role": "tool", "content": output}])
        texts.append(row.partition("<|im_start|>assistant\n")[2] + f"\\boxed{{{answer}}}{END}")
    rows = [encode(tokenizer, prompt + text) for text in texts]
    model = tiny_qwen2(0, len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    start = len(encode(tokenizer, prompt))
    for _ in range(200):
        loss = torch.zeros(())
        for row in rows:
            labels = torch.tensor([[-100] * start + row[start:]])
            loss = loss + model(torch.tensor([row]), labels=labels).loss * len(row[start:]) / 100
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {"tokenizer": tokenizer, "weights": {name: value.clone() for name, value in model.state_dict().items()}}


@pytest.mark.slow
@pytest.mark.parametrize("state", ["replay", "fresh"])
def test_a_policy_learns_to_use_variables_where_state_is_kept(
    state: str, knows_both_ways: dict[str, Any], tmp_path: Path
) -> None:
    """With `fresh` the second call always fails, so that both ways are wrong and nothing can be learnt."""
    tokenizer = knows_both_ways["tokenizer"]
    model = tiny_qwen2(0, len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    model.load_state_dict(knows_both_ways["weights"])
    problems = [PROBLEM, Problem("q", PROBLEM.problem, "42")]
    with Trainer(settings(tmp_path, state), problems=problems, model=model, tokenizer=tokenizer) as trainer:
        lines = trainer.train()
    code, right = ([line[name] for line in lines] for name in ("tools/code_ratio", "accuracy"))
    assert 0.3 < code[0] < 0.8, "the policy starts with both ways"
    if state == "replay":
        assert right[0] < 0.65 and min(code[-3:]) > 0.9 and min(right[-3:]) > 0.75
        assert min(line["by_tool/python/pass_ratio"] for line in lines) > 0.9
    else:
        assert sum(right) / len(right) < 0.05 and max(code[-3:]) < 0.8
        assert all(0.4 < line["by_tool/python/pass_ratio"] < 0.6 for line in lines)

"""docs/metrics.md and a run's metrics.jsonl name the same things.

The run is a real one: two steps of a tiny model that has learnt two responses by heart, one whose code fails and
one whose code runs.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from grpo_tir.config import Config
from grpo_tir.engine.choose_step import Choice
from grpo_tir.evaluation import held_out
from grpo_tir.monitor.metrics import summarize, tool_metrics
from grpo_tir.rollouts.policy import Policy
from grpo_tir.rollouts.sample import sample_responses
from grpo_tir.testing import byte_tokenizer
from grpo_tir.train import train
from grpo_tir.types import Rollout, ToolCall, ToolResult
from grpo_tir.utils.files import read_jsonl
from scripted import rollout_of
from tiny_policy import change

PAGE = Path(__file__).parents[3] / "docs/metrics.md"
FAILS = "?\n```python\n1/0\n```\n```output\nZeroDivisionError: division by zero\n```\n\\boxed{2}"
CHOICE = Choice("captured", {"eager": 0.05, "captured": 0.004}, {"compiled": "no compiler"})
RUNS = "?\n```python\nprint(2)\n```\n```output\n2\n```\n\\boxed{2}"


def parrot(folder: Path) -> Path:
    """A model folder. After a few hundred steps on two texts nothing else is likely."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    shape = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    # transformers adds a token of its own to what lies beside a Qwen2
    config = Qwen2Config(vocab_size=len(tokenizer) + 7, eos_token_id=tokenizer.eos_token_id, **shape)
    model = Qwen2ForCausalLM(config)
    texts = [tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] for text in (FAILS, RUNS)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(120):
        loss = sum(model(torch.tensor([ids]), labels=torch.tensor([ids])).loss for ids in texts)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("glossary")
    problems = folder / "problems.jsonl"
    rows = [{"id": str(n), "problem": "?", "answer": str(n), "source": f"set/{n}"} for n in (2, 3)]
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = change(
        Config(),
        model__path=str(parrot(folder / "model")),
        data__train=str(problems),
        data__eval=str(problems),
        data__template="plain",
        rollout__prompts_per_step=2,
        rollout__samples_per_prompt=8,
        rollout__max_completion_length=120,
        rollout__carry_over=1.0,
        algorithm__importance_cap=2.0,
        executor__kind="process",
        algorithm__kl_coef=0.01,
        algorithm__sequence_mask=[0.1, 10.0],
        train__output_dir=str(folder / "run"),
        train__steps=2,
        train__eval_every=1,
        train__report_to=[],
    )
    with pytest.MonkeyPatch.context() as patch:  # a GPU chooses the decode step in the first evaluation
        patch.setattr(held_out, "sample_responses", choose_and_sample)
        assert train(config) == 0
    return folder / "run"


def choose_and_sample(rollouts: list[Rollout], policy: Policy, *args: Any, **options: Any) -> float:
    policy.choice = CHOICE
    return sample_responses(rollouts, policy, *args, **options)


def test_the_glossary_and_a_real_run_name_the_same_metrics(finished_run: Path) -> None:
    page = set(re.findall(r"^\| `([^`]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    written = {name for line in read_jsonl(finished_run / "metrics.jsonl") for name in line if name != "step"}
    assert "tools/error/ZeroDivisionError" in written
    assert {"by_source/set/2/accuracy", "eval/by_source/set/3/code_ratio"} <= written
    written = {re.sub(r"by_source/.*/", "by_source/SOURCE/", name) for name in written}
    written = {re.sub(r"^(decode/.*)/.*", r"\1/STEP", name) for name in written}
    by_name = tool_metrics([summarize(rollout_of("", calls=[ToolCall("", ToolResult("ok", tool="NAME"))]), 1)])
    written |= {name for name in by_name if name.startswith("by_tool/")}
    assert {re.sub(r"^tools/error/.*", "tools/error/NAME", name) for name in written} == page


def test_the_measured_decode_step_is_in_metrics_and_metadata(finished_run: Path) -> None:
    _, first, second = read_jsonl(finished_run / "metrics.jsonl")
    assert {name: value for name, value in first.items() if name.startswith("decode/")} == {
        **{"decode/ms/eager": 50.0, "decode/used/eager": 0.0},
        **{"decode/ms/captured": 4.0, "decode/used/captured": 1.0},
    }
    assert not [name for name in second if name.startswith("decode/")]
    metadata = json.loads((finished_run / "metadata.json").read_text())
    assert metadata["decode_step"] == vars(CHOICE) and "versions" in metadata


def test_rates_and_evaluation_of_that_run_add_up(finished_run: Path) -> None:
    before, *steps = read_jsonl(finished_run / "metrics.jsonl")
    for line in steps:
        tokens = line["completions/mean_length"] * (line["rollouts/sampled"] - line["rollouts/lost"])
        assert line["time/rollout_tokens_per_second"] * line["time/rollout"] == pytest.approx(tokens)
        assert line["time/learn_tokens_per_second"] * line["time/learn"] == pytest.approx(tokens)
        assert line["time/step"] == pytest.approx(line["time/rollout"] + line["time/learn"])
        assert 0 <= line["time/tool_idle"] <= line["time/rollout"]
    # greedily it says one text by heart to both problems: code in each or in none, and the answer 2 fits one
    assert (before["eval/unjudged"], before["eval/accuracy"]) == (0, 0.5)
    assert before["eval/code_ratio"] == 1.0 and before["eval/pass_ratio"] in (0.0, 1.0)

"""Maximum likelihood on written traces, against log-softmax by hand, and a real run of the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from grpo_tir.cli import main
from grpo_tir.config import Config
from grpo_tir.learning.supervised import batches, for_likelihood, supervised_step
from grpo_tir.types import Problem, Rollout, RolloutGroup, Segment
from grpo_tir.utils.files import read_jsonl
from tiny_policy import change, gradient_of, make_learner, save_byte_model, tiny_qwen2

TRACES = [
    {
        "problem": "7*8?",
        "segments": [
            {"kind": "model", "text": "```python\nprint(7*8)\n```\n```output"},
            {"kind": "tool", "text": "\n56\n```\n"},
            {"kind": "model", "text": "\\boxed{56}"},
        ],
    },
    {"problem": "1+1?", "segments": [{"kind": "model", "text": "\\boxed{2}"}]},
]


def traces() -> list[Rollout]:
    """Two short ones: model 5 6, tool 7 8, model 9 10; and model 11."""
    first = [Segment("model", [5, 6], [0.0] * 2), Segment("tool", [7, 8]), Segment("model", [9, 10], [0.0] * 2)]
    problem = Problem("p", "?", "!")
    return [
        Rollout(problem, [1, 2], segments=first, advantage=1.0),
        Rollout(problem, [3, 4], group=1, segments=[Segment("model", [11], [0.0])], advantage=1.0),
    ]


def by_hand(model: torch.nn.Module) -> torch.Tensor:
    """Mean of -log p over the five model tokens: 5, 6, 9, 10 and 11. The tool's 7 and 8 are only read."""
    first = model(torch.tensor([[1, 2, 5, 6, 7, 8, 9, 10]])).logits[0].log_softmax(-1)
    second = model(torch.tensor([[3, 4, 11]])).logits[0].log_softmax(-1)
    return -(first[1, 5] + first[2, 6] + first[5, 9] + first[6, 10] + second[1, 11]) / 5


@pytest.mark.parametrize("packing", [True, False])
def test_gradient_and_loss_are_those_of_the_masked_likelihood(packing: bool, tmp_path: Path) -> None:
    model, oracle = tiny_qwen2(), tiny_qwen2()
    expected = by_hand(oracle)
    expected.backward()
    groups = [RolloutGroup(trace.problem, [trace]) for trace in traces()]
    found = gradient_of(model, groups, tmp_path, optim__packing=packing)
    for name, parameter in oracle.named_parameters():
        assert torch.allclose(found[name], parameter.grad, atol=1e-6), name
    learner = make_learner(model, optim__packing=packing)
    assert supervised_step(learner, traces(), 0)["loss"] == pytest.approx(expected.item(), abs=1e-5)


def test_options_of_the_recipe_that_would_change_the_likelihood_are_reset() -> None:
    recipe = change(Config(), algorithm__epochs=3, algorithm__kl_coef=0.1, rollout__temperature=0.5)
    config = for_likelihood(recipe)
    assert (config.algorithm.epochs, config.algorithm.kl_coef, config.rollout.temperature) == (1, 0.0, 1.0)


def test_every_epoch_has_each_trace_once_in_a_new_order() -> None:
    made = [Rollout(Problem(str(n), "?", "!"), [1]) for n in range(6)]
    drawn = [trace.problem.id for batch, _ in zip(batches(made, 4, seed=1), range(3)) for trace in batch]
    assert sorted(drawn[:6]) == sorted(drawn[6:]) == list("012345") and drawn[:6] != drawn[6:]


def sft(folder: Path, rows: list[object], *options: str) -> int:
    (folder / "traces.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text("data: {template: plain}\ntrain: {report_to: []}\n")
    settings = ["--data.train", str(folder / "traces.jsonl"), "--model.path", str(folder / "base")]
    settings += ["--train.output_dir", str(folder / "run"), "--train.steps", "30", "--optim.lr", "0.01"]
    settings += ["--rollout.prompts_per_step", "2", "--rollout.max_completion_length", "100", *options]
    return main(["sft", str(folder / "recipe.yaml"), *settings])


def test_a_run_lowers_the_loss_and_saves_a_model_that_repeats_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    save_byte_model(tmp_path / "base")
    too_long = {"problem": "?", "segments": [{"kind": "model", "text": "x" * 101}]}
    assert sft(tmp_path, [*TRACES, too_long]) == 0
    assert "2 traces, 1 too long ones left out" in capsys.readouterr().out
    losses = [line["loss"] for line in read_jsonl(tmp_path / "run/metrics.jsonl")]
    assert len(losses) == 30 and losses[-1] < 0.5 * losses[0]
    # the first line of the loss is before the first step, that is, of the base model, eos included
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    logprobs = []
    for trace in TRACES:
        parts = [("prompt", trace["problem"] + "\n"), *((s["kind"], s["text"]) for s in trace["segments"])]  # type: ignore[operator,index,attr-defined]
        coded = [(kind, list(tokenizer(text)["input_ids"])) for kind, text in parts]
        coded.append(("model", [tokenizer.eos_token_id]))
        ids = torch.tensor([token for _, part in coded for token in part])
        chosen = [int(kind == "model") for kind, part in coded for _ in part]
        table = model(ids[None]).logits[0].log_softmax(-1)
        logprobs += [table[i - 1, ids[i]].item() for i, trained in enumerate(chosen) if trained]
    assert losses[0] == pytest.approx(-sum(logprobs) / len(logprobs), abs=1e-4)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run/model").num_parameters() == model.num_parameters()


@pytest.mark.parametrize(
    "row, said",
    [
        ({"problem": "?"}, "line 1: a trace must be an object"),
        ({"problem": "?", "segments": [{"kind": "user", "text": "x"}]}, "line 1: a trace must be an object"),
        (
            {"problem": "?", "segments": [{"kind": "tool", "text": "x"}], "finish_reason": "length"},
            "nothing to train",
        ),
        ({"problem": "?", "segments": [{"kind": "model", "text": "x" * 200}]}, "no trace that fits"),
    ],
)
def test_a_line_that_is_no_trace_ends_with_one_clear_line(
    row: object, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_byte_model(tmp_path / "base")
    assert sft(tmp_path, [row]) == 2
    error = capsys.readouterr().err
    assert said in error and "traces.jsonl" in error and error.count("\n") == 1

"""The library in a user's own program: objects in place of the recipe's strings, and plain functions."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

import grpo_tir
from grpo_tir import Config, Problem, Reward, Rollout, Trainer
from grpo_tir.config import ExecutorConfig, OptimConfig, RolloutConfig, TrainConfig
from grpo_tir.errors import UserError
from grpo_tir.testing import ScriptedExecutor, byte_tokenizer
from grpo_tir.tools.python import PythonTool
from grpo_tir.types import ToolResult
from tiny_policy import tiny_qwen2
from training_run import BOXES, CALLS

QUESTION = {"problem": "What is 1 + 1?", "answer": 2}


def settings(folder: Path, steps: int) -> Config:
    return Config(
        rollout=RolloutConfig(prompts_per_step=2, samples_per_prompt=4, max_completion_length=40),
        executor=ExecutorConfig(kind="process", slots=1),
        optim=OptimConfig(lr=0.01),
        train=TrainConfig(output_dir=str(folder), steps=steps, save_every=0, eval_every=0, report_to=[]),
    )


def made_here() -> dict[str, Any]:
    """A model and a tokenizer that exist in this process only."""
    tokenizer = byte_tokenizer([*CALLS, *BOXES])
    model = tiny_qwen2(3, len(tokenizer) + 7, eos_token_id=tokenizer.eos_token_id, max_position_embeddings=4096)
    return {"model": model, "tokenizer": tokenizer}


def likes_seven(problem: Problem, rollout: Rollout) -> Reward:
    value = float(sum(token % 7 == 0 for token in rollout.token_ids))
    return Reward(value, {"correct": float(value > 5)})


class Watcher:
    def __init__(self) -> None:
        self.steps: list[float] = []
        self.groups: list[int] = []
        self.saved: list[Path] = []

    def on_step(self, metrics: dict[str, Any]) -> None:
        self.steps.append(metrics["step"])

    def on_rollouts(self, groups: list[Any]) -> None:
        self.groups.append(len(groups))

    def on_save(self, path: Path) -> None:
        self.saved.append(path)


def test_a_program_trains_with_its_own_objects_and_resumes(tmp_path: Path) -> None:
    problems = [{"problem": f"What is {i} + 1?", "answer": i + 1} for i in range(4)]
    executor = ScriptedExecutor(lambda code: ToolResult("ok", "41\n"))
    objects = {"problems": problems, "reward": likes_seven, "tool": PythonTool(executor)}
    watcher = Watcher()
    with Trainer(settings(tmp_path / "run", 2), callbacks=[watcher], **made_here(), **objects) as trainer:
        history = trainer.train()
    assert [line["step"] for line in history] == [1, 2] and history[0]["grad_norm"] > 0
    assert watcher.steps == [1, 2] and watcher.groups == [2, 2]
    assert watcher.saved == [tmp_path / "run/checkpoints/step_000002"] and watcher.saved[0].is_dir()
    assert executor.seen, "the tool given here ran the code"
    recorded = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert recorded["reward"]["function"].endswith("test_library.likes_seven")
    assert recorded["data"]["train"] == "python object builtins.list"

    with Trainer(settings(tmp_path / "run", 3), resume=True, **made_here(), **objects) as resumed:
        assert resumed.steps_done == 2
        assert [line["step"] for line in resumed.train()] == [1, 2, 3]


def test_two_trainers_of_one_process_are_equal(tmp_path: Path) -> None:
    problems = [Problem(str(i), f"What is {i} + 1?", str(i + 1)) for i in range(4)]
    losses = []
    for name in ("first", "second"):
        with Trainer(
            settings(tmp_path / name, 2), problems=problems, reward=likes_seven, **made_here()
        ) as trainer:
            losses.append([line["loss"] for line in trainer.train()])
    assert losses[0] == losses[1]


def test_the_reference_policy_of_a_given_model_is_its_copy(tmp_path: Path) -> None:
    """A second step measures the KL against the weights before the first one."""
    config = settings(tmp_path / "run", 2)
    config = dataclasses.replace(config, algorithm=dataclasses.replace(config.algorithm, kl_coef=0.1))
    problems = [Problem(str(i), f"What is {i} + 1?", str(i + 1)) for i in range(4)]
    with Trainer(config, problems=problems, reward=likes_seven, **made_here()) as trainer:
        first, second = trainer.train()
    assert first["kl"] == pytest.approx(0, abs=1e-6) and second["kl"] > 1e-6


def test_rollout_samples_what_the_trainer_samples(tmp_path: Path) -> None:
    """The same ids, tool output included, and a mask that leaves out exactly what the tool inserted."""
    config = settings(tmp_path / "run", 1)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, shuffle=False))
    problems = [{"problem": f"What is {i} + 1?", "answer": i + 1} for i in range(2)]
    tool, seen = PythonTool(ScriptedExecutor(lambda code: ToolResult("ok", "41\n"))), list[Any]()
    here = made_here()
    groups = grpo_tir.rollout(
        here["model"].train(), here["tokenizer"], problems, samples=4, tool=tool, config=config
    )
    assert here["model"].training, "left as it was"
    watcher = SimpleNamespace(on_rollouts=seen.extend)
    with Trainer(config, problems=problems, tool=tool, reward=likes_seven, callbacks=[watcher], **here) as trainer:
        trainer.step()
    sampled, trained = ([r for group in made for r in group.rollouts] for made in (groups, seen))
    assert [r.token_ids for r in sampled] == [r.token_ids for r in trained] and len(sampled) == 8
    assert [r.reward for r in sampled] == [None] * 8
    decode = here["tokenizer"].decode
    inserted = [
        decode([token for token, own in zip(r.token_ids, r.loss_mask) if not own]) for r in sampled if r.calls
    ]
    assert "41\n```\n" in {text.lstrip("\n") for text in inserted}, "the model of this seed calls the tool"


class ClosingTool(PythonTool):
    closed = 0

    def close(self) -> None:
        self.closed += 1


def test_rollout_leaves_alone_what_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """The precision of the model stays, and only a tool that it opened itself is closed."""
    here, config = made_here(), settings(Path("unused"), 1)
    here["model"].bfloat16()
    tool = ClosingTool(ScriptedExecutor(lambda code: ToolResult("ok", "41\n")))
    (group,) = grpo_tir.rollout(problems=[QUESTION], config=config, tool=tool, **here)
    assert len(group.rollouts[0].token_ids) > 0 and here["model"].dtype == torch.bfloat16
    assert tool.closed == 0
    monkeypatch.setattr("grpo_tir.rollouts.standalone.open_tool", lambda config, log: tool)
    grpo_tir.rollout(problems=[QUESTION], config=config, **here)
    assert tool.closed == 1


@pytest.mark.parametrize(
    ("problems", "words"),
    [([], "problems is empty"), ([Problem("0", "x" * 5000, "1")], "has 4096 positions")],
)
def test_rollout_names_what_it_cannot_use(problems: list[Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        grpo_tir.rollout(problems=problems, config=settings(Path("unused"), 1), **made_here())


@pytest.mark.parametrize(
    ("objects", "words"),
    [
        ({"problems": []}, "problems is empty"),
        ({"problems": [{"problem": "x"}]}, r"problems\[0\] has no `answer`"),
        ({"problems": ["x"]}, r"problems\[0\] is a str: give a Problem"),
        ({"reward": 3}, "it must be a function"),
        ({"tool": object()}, "lacks find_call, submit, observe, close"),
        ({"model": object()}, "give model and tokenizer together"),
    ],
)
def test_an_object_that_cannot_be_used_is_named(objects: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        Trainer(settings(tmp_path / "run", 1), **{"problems": [{"problem": "a", "answer": "b"}], **objects})


def test_the_plain_functions() -> None:
    assert grpo_tir.grade("so \\boxed{\\frac{1}{2}}", "0.5").outcome == "right"
    assert grpo_tir.grade("no box", "0.5").outcome == "wrong"
    assert grpo_tir.run_code("print(6 * 7)").stdout == "42\n"
    assert grpo_tir.group_advantages([1.0, -1.0], eps=0.0) == pytest.approx([2**-0.5, -(2**-0.5)])


def test_every_public_name_is_there_and_importing_the_package_loads_no_torch() -> None:
    code = "import grpo_tir, json, sys; print(json.dumps([sorted(grpo_tir.__all__), 'torch' in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    names, loaded = json.loads(done.stdout)
    assert not loaded
    assert all(getattr(grpo_tir, name) is not None for name in names)
    with pytest.raises(AttributeError, match="no attribute `Trainr`"):
        grpo_tir.Trainr  # noqa: B018

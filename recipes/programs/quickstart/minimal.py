"""Train the quickstart's base model with the one-file version, `grpo_tir.minimal`."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpo_tir.config import ExecutorConfig
from grpo_tir.executor.open import open_executor
from grpo_tir.grading import default_grader, model_answer
from grpo_tir.minimal import Minimal
from quickstart.build import build_quickstart


def main(steps: int = 60) -> None:
    """Print the accuracy before training, the reward of each step, and the accuracy after it."""
    files = build_quickstart(Path(".cache/grpo-tir"), seed=1)
    train, held_out = (
        [(row["problem"], row["answer"]) for row in map(json.loads, path.read_text().splitlines())]
        for path in (files.train, files.eval)
    )
    torch.set_num_threads(1)  # a model of this size gains nothing from a second thread
    model = AutoModelForCausalLM.from_pretrained(files.model)
    tokenizer = AutoTokenizer.from_pretrained(files.model)
    with open_executor(ExecutorConfig(timeout=2)) as executor:
        trainer = Minimal(model, tokenizer, train, executor.run, is_right)
        print(f"before training: held-out accuracy {trainer.accuracy(held_out[:200]):.2f}", flush=True)
        for step in range(1, steps + 1):
            responses = [response for group in trainer.step() for response in group]
            reward = statistics.fmean(response.reward for response in responses)
            calls = statistics.fmean(response.calls for response in responses)
            print(f"step {step:2d}/{steps}  reward {reward:+.2f}  calls a response {calls:.2f}", flush=True)
        print(f"after training: held-out accuracy {trainer.accuracy(held_out[:200]):.2f}")


def is_right(turns: list[str], answer: str) -> bool:
    """Grade the model's turns against the gold answer."""
    return default_grader().grade(model_answer(turns), answer).outcome == "right"


if __name__ == "__main__":
    main()

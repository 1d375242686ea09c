"""A program of a user's own: its reward, tool, problems and model are Python objects that it makes itself."""

import sys
from concurrent.futures import Future

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from grpo_tir import Config, OptimConfig, Problem, Reward, Rollout, RolloutConfig, ToolResult, TrainConfig, Trainer
from grpo_tir.testing import byte_tokenizer

CALLS = [f"{i}```output" for i in range(40)]  # each is one token, so that a random model makes some calls


class Doubler:
    """Answer `21```output` with 42."""

    stop = "output"

    def find_call(self, text: str) -> str | None:
        return text.partition("```output")[0][-1:] or None

    def submit(self, code: str) -> "Future[ToolResult]":
        future: Future[ToolResult] = Future()
        future.set_result(ToolResult("ok", str(2 * int(code))))
        return future

    def observe(self, result: ToolResult | None, text: str) -> str:
        return f"\n{result.stdout if result else 'no call'}\n```\n"

    def close(self) -> None:
        pass


def reward(problem: Problem, rollout: Rollout) -> Reward:
    return Reward(float(sum(token % 7 == 0 for token in rollout.token_ids)))


def train(folder: str, steps: int, resume: bool = False) -> Trainer:
    torch.manual_seed(0)
    tokenizer = byte_tokenizer(CALLS)
    # spare rows: on resuming, transformers adds a token to a tokenizer that lies beside a Qwen2
    shape = Qwen2Config(
        vocab_size=len(tokenizer) + 7, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.1, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    config = Config(
        rollout=RolloutConfig(prompts_per_step=2, samples_per_prompt=4, max_completion_length=40),
        optim=OptimConfig(lr=0.01),
        train=TrainConfig(output_dir=folder, steps=steps, save_every=0, report_to=[]),
    )
    problems = [{"problem": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(4)]
    objects = {"problems": problems, "reward": reward, "tool": Doubler(), "tokenizer": tokenizer}
    with Trainer(config, resume, model=Qwen2ForCausalLM(shape), **objects) as trainer:
        history = trainer.train()
    print([(line["step"], round(line["reward"], 2), line["tools/calls_mean"]) for line in history])
    return trainer


if __name__ == "__main__":
    train(sys.argv[1], steps=3)

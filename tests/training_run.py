"""A real training run in a process of its own.

The policy is a random Qwen2 that happens to write programs. The problems are the quickstart's, the executor is
real, and the reward can be held at a chosen moment, so that a kill hits where it is meant to.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file

from grpo_tir.testing import byte_tokenizer
from grpo_tir.types import Problem
from quickstart.world import WorldConfig, make_problems
from tiny_policy import tiny_qwen2

ROWS = 4  # rollouts in a step: 2 problems x 2
CALLS = [f"\n```python\nprint({i} / {i % 4})\n```\n```output" for i in range(100)]
BOXES = [f"\\boxed{{{i}}}" for i in range(30)]

REWARD = '''
"""Any reward with some spread will do; `hold_at` in the working folder stops the run at its n-th rollout."""
import os, time
from pathlib import Path
from grpo_tir.rollouts.rewards import math_reward
from grpo_tir.types import Reward

served = 0

def reward(problem, rollout):
    global served
    served += 1
    hold = Path("hold_at")
    if hold.exists() and served >= int(hold.read_text()):
        Path("held").touch()
        time.sleep(120)
    right = math_reward(problem, rollout)
    return Reward(right.value + sum(rollout.token_ids) % 97 / 50, right.parts)
'''


def write_problems(path: Path, problems: Sequence[Problem]) -> None:
    """Write a problem file. Every third problem is worded at length, so that prompts differ in their tokens."""
    with path.open("w") as file:
        for number, problem in enumerate(problems):
            text = "Think step by step, then answer. " * (number % 3 == 2) + problem.problem
            file.write(json.dumps({**vars(problem), "problem": text}) + "\n")


def prepare(folder: Path) -> Path:
    """Write model, reward, recipe, `train.jsonl` (200 problems) and `held_out.jsonl` (50) to `folder`.

    A token in three is a whole program with its marker; every fourth program divides by zero.
    """
    train, held_out, _ = make_problems(WorldConfig(seed=0, train_problems=200, eval_problems=50))
    write_problems(folder / "train.jsonl", train)
    write_problems(folder / "held_out.jsonl", held_out)
    tokenizer = byte_tokenizer([*CALLS, *BOXES])
    model = tiny_qwen2(3, len(tokenizer) + 7, eos_token_id=tokenizer.eos_token_id, max_position_embeddings=4096)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "reward.py").write_text(REWARD)
    recipe = {
        "model": {"path": "model"},
        "data": {"train": "train.jsonl", "template": "torl", "max_prompt_length": 1000},
        "rollout": {"prompts_per_step": 2, "samples_per_prompt": 2, "max_completion_length": 60},
        "tool": {"max_tool_calls": 2},
        "executor": {"kind": "process", "slots": 2},
        "reward": {"function": "reward.py:reward"},
        "optim": {"lr": 0.01},
        "train": {"steps": 3, "save_every": 1, "save_total_limit": 0, "report_to": [], "deterministic": True},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def environment(**extra: str) -> dict[str, str]:
    settings = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **extra}
    return {**os.environ, **settings}


def start(
    folder: Path, *arguments: str, launcher: tuple[str, ...] = ("-m", "grpo_tir"), **extra: str
) -> subprocess.Popen[str]:
    """`grpo-tir train recipe.yaml …` in `folder`, in a process group of its own."""
    command = [sys.executable, *launcher, "train", "recipe.yaml", *arguments]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment(**extra),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def launcher(recipe: str, port: str = "0", *options: str) -> tuple[str, ...]:
    """What comes after `python` to start two processes by one of our files for accelerate."""
    config = Path(__file__).resolve().parents[1] / f"recipes/accelerate/{recipe}.yaml"
    return (
        *("-m", "accelerate.commands.launch", "--config_file", str(config)),
        *("--num_processes", "2", "--main_process_port", port, *options),
    )


LAUNCH = launcher("cpu")


def finish(process: subprocess.Popen[str], timeout: float = 300) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        out, err = process.communicate()
        raise AssertionError(f"the run did not end:\n{out}\n{err}") from None
    return process.returncode, out, err


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str], timeout: float = 240) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, f"the run ended too early:\n{process.communicate()}"
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def weights_hash(checkpoint: Path) -> str:
    tensors = load_file(checkpoint / "model.safetensors")
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].numpy().tobytes())
    return digest.hexdigest()


def metrics_without_time(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith("time/")} for line in lines]

"""A run directory made up by formula, with curves like ToRL's and trajectories of every kind the page filters for.

Nothing here is measured: it stands in for a training run where only the report is under test.
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

HOSTILE = (
    "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=1'>\x00\u202egnirts\ud83d end"
)


def write_run(
    path: Path,
    *,
    name: str,
    steps: int = 200,
    prompts: int = 4,
    samples: int = 16,
    tool_calls: int = 1,
    seed: int = 0,
    words: int = 40,
    rollout_every: int = 1,
) -> Path:
    """Write config, metadata, metrics and rollouts of one made-up run."""
    rng = random.Random(seed)
    (path / "rollouts").mkdir(parents=True)
    config = {
        "model": {"path": "tiny"},
        "rollout": {"prompts_per_step": prompts, "samples_per_prompt": samples},
        "tool": {"max_tool_calls": tool_calls},
        "train": {"steps": steps, "seed": seed, "output_dir": name},
    }
    (path / "config.yaml").write_text(json.dumps(config))
    metadata = {
        "name": name,
        "started": "2025-04-02T12:00:00+00:00",
        "versions": {"grpo_tir": "0.1.0", "python": "3.11.2", "torch": "2.13.0"},
        "executor": {"kind": "process", "slots": 4},
    }
    (path / "metadata.json").write_text(json.dumps(metadata))
    with (path / "metrics.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            file.write(json.dumps(metrics(step, steps, tool_calls, rng)) + "\n")
    for step in range(1, steps + 1, rollout_every):
        with (path / "rollouts" / f"step_{step:06d}.jsonl").open("w") as file:
            for prompt in range(prompts):
                draw = (step - 1) * prompts + prompt
                for sample in range(samples):
                    line = rollout(step, draw, sample, step / steps, tool_calls, words, rng)
                    file.write(json.dumps(line) + "\n")
    return path


def metrics(step: int, steps: int, c: int, rng: random.Random) -> dict[str, Any]:
    """One line of metrics.jsonl; ratios as the paper's Figure 5 has them."""
    at = step / steps
    rise = 1 - math.exp(-4 * at)
    noise = rng.gauss(0, 0.02)
    right = min(1.0, max(0.0, (0.15 + 0.35 * rise if c else 0.15 + 0.12 * rise) + noise))
    code = min(
        1.0, (0.36 + 0.5 * (1 - math.exp(-12 * at)) + 0.07 * at if c else 0.3 * math.exp(-3 * at)) + noise / 2
    )
    line: dict[str, Any] = {
        "step": step,
        "accuracy": right,
        "reward": 2 * right - 1,
        "reward_std": 0.6 + noise,
        "frac_reward_zero_std": 0.5 - 0.2 * rise + noise,
        "completions/mean_length": 620 + 120 * rise + rng.gauss(0, 15),
        "completions/clipped_ratio": max(0.0, 0.08 * math.exp(-3 * at) + rng.gauss(0, 0.004)),
        "entropy": 0.42 * math.exp(-2 * at) + 0.12 + rng.gauss(0, 0.01),
        "loss": rng.gauss(0, 0.004),
        "grad_norm": 0.3 + abs(rng.gauss(0, 0.05)),
        "clip_ratio/low_mean": 0.0,
        "clip_ratio/high_mean": 0.0,
        "tools/code_ratio": min(1.0, max(0.0, code + noise / 2)),
        "time/step": 118 + 119 * c + rng.gauss(0, 6),
        "time/rollout": 70 + 90 * c + rng.gauss(0, 4),
        "time/learn": 40 + 12 * c + rng.gauss(0, 2),
        "lr": 1e-6,
    }
    if c:
        line |= {
            "tools/pass_ratio": 0.80 + 0.03 * at + rng.gauss(0, 0.01),
            "tools/pass_ratio_right": 0.89 + 0.02 * rise + rng.gauss(0, 0.008),
            "tools/pass_ratio_wrong": 0.765 + rng.gauss(0, 0.012),
            "tools/executed_ratio": 0.65 + 0.19 * at + rng.gauss(0, 0.01),
            "tools/code_before_answer_ratio": 0.93 - 0.04 * math.exp(-9 * at) + 0.06 * at + rng.gauss(0, 0.005),
            "tools/calls_mean": 0.36 + 0.5 * rise + noise,
            "tools/wanted_after_limit": rng.randrange(40),
            "tools/fake_outputs": rng.randrange(20),
        }
        for error, share in (("NameError", 60), ("SyntaxError", 44), ("TypeError", 30), ("TimeoutError", 12)):
            line[f"tools/error/{error}"] = int(share * (1.2 - 0.7 * rise) + rng.gauss(0, 4))
    if step == 1 or step % max(1, steps // 25) == 0:
        line["eval/accuracy"] = right + 0.05
    return line


def rollout(
    step: int, draw: int, sample: int, at: float, c: int, words: int, rng: random.Random
) -> dict[str, Any]:
    """One trajectory; `draw % 24` is its problem, so problems come again."""
    a, b = 13 + draw % 24, 27 + draw % 24
    right = rng.random() < 0.2 + 0.6 * at
    answer = a * b if right else a * b + rng.randrange(1, 9)
    thought = "We need the product. " + " ".join(rng.choice(WORDS) for _ in range(words)) + ".\n"
    segments: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []

    def call(text: str, code: str, status: str, stdout: str, stderr: str = "") -> None:
        segments.append(segment("model", f"{text}```python\n{code}\n```\n```output", rng))
        segments.append(segment("tool", f"\n{(stdout or stderr).strip()}\n```\n", rng))
        seconds = round(rng.random() / 20, 4)
        calls.append({"code": code, "status": status, "stdout": stdout, "stderr": stderr, "seconds": seconds})

    kind = (draw + sample) % 16
    end = f"So the answer is \\boxed{{{answer}}}.<eos>"
    if c and kind == 3:
        call(thought, f"print({a} * bb)", "error", "", "NameError: name 'bb' is not defined")
        call("The name is wrong; mend it.\n", f"b = {b}  # the second factor\nprint({a} * b)", "ok", f"{a * b}\n")
    elif c and kind == 5:
        call(thought, f"print({a}*{b}", "error", "", "SyntaxError: '(' was never closed")
        end = "Guessing instead.\n```python\nprint(1)\n```\n```output\n" + f"{answer}\n```\n" + end
    elif c and kind == 7:
        call(f"In my head it is \\boxed{{{a * b + 10}}}. Wait, check it.\n", f"print({a * b})", "ok", f"{a * b}\n")
        end = "That refutes my first answer. " + end
    elif c and kind == 9:
        call(thought, "print(payload)", "ok", HOSTILE)
    elif c:
        call(thought, f"def product(x, y):\n    return x * y\n\nprint(product({a}, {b}))", "ok", f"{a * b}\n")
    else:
        end = thought + end
    segments.append(segment("model", end, rng))
    ok = right or (answer == a * b)
    return {
        "step": step,
        "group": draw,
        "sample": sample,
        "problem_id": f"mul-{draw % 24}",
        "problem": f"What is {a} times {b}?",
        "answer": str(a * b),
        "prompt": f"User: What is {a} times {b}?\nAssistant:\n",
        "segments": segments,
        "calls": calls,
        "finish_reason": "length" if kind == 11 else "eos",
        "reward": 1.0 if ok else -1.0,
        "reward_parts": {"correct": float(ok)},
        "advantage": 0.8 if ok else -1.1,
        "valid": kind != 13,
        "trained": True,
    }


def segment(kind: str, text: str, rng: random.Random) -> dict[str, Any]:
    """Tokens of a few characters each, with made-up log-probs."""
    tokens = [text[i : i + 4] for i in range(0, len(text), 4)]
    plain = {"kind": kind, "text": text, "tokens": tokens, "token_ids": [len(token) for token in tokens]}
    if kind == "model":
        plain["logprobs"] = [-round(rng.expovariate(3), 4) for _ in tokens]
        plain["old_logprobs"] = [round(logprob + rng.gauss(0, 0.05), 4) for logprob in plain["logprobs"]]
    return plain


WORDS = ["first", "we", "note", "that", "both", "factors", "multiply", "by", "parts", "then", "add", "them"]

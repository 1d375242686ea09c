# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Teach a model to use a tool
#
# Ten minutes on a laptop, without a GPU: load a tiny language model that cannot calculate, look at what it writes,
# take one GRPO step by hand, then train it with a reward and a tool of your own.
#
# This page is `docs/tutorial.py`; `make tutorial` turns it into a notebook. Jupyter with `grpo-tir` installed runs
# it.

# %%
import dataclasses
import html
import json
import os
from pathlib import Path

import torch
from IPython.display import HTML, IFrame, display
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpo_tir import (
    Config,
    DataConfig,
    ExecutorConfig,
    OptimConfig,
    Problem,
    PythonTool,
    Reward,
    RolloutConfig,
    TrainConfig,
    Trainer,
    grade,
    group_advantages,
    grpo_loss,
    open_executor,
    rollout,
)
from grpo_tir.report.page import write_report
from grpo_tir.utils.recipe import import_program

STEPS = int(os.environ.get("TUTORIAL_STEPS", "30"))
torch.set_num_threads(1)  # a second thread does not help a model of this size

# %% [markdown]
# ## 1. A model and problems
#
# The quickstart's base model has 0.5M parameters and is made on this machine, in about two minutes. It has read
# some Python, much of it broken, and answers about 3% of the problems.

# %%
files = import_program("quickstart.build").build_quickstart(Path(".cache/grpo-tir"), seed=1, progress=False)
tokenizer = AutoTokenizer.from_pretrained(files.model)
model = AutoModelForCausalLM.from_pretrained(files.model)
problems = [Problem(**json.loads(line)) for line in files.train.read_text().splitlines()]
held_out = [Problem(**json.loads(line)) for line in files.eval.read_text().splitlines()]
problems[0]

# %% [markdown]
# A `Config` holds every setting, each with a default from the paper. These are for a tiny model.

# %%
config = Config(
    data=DataConfig(template="plain", max_prompt_length=64),
    rollout=RolloutConfig(prompts_per_step=8, samples_per_prompt=16, max_completion_length=80),
    executor=ExecutorConfig(kind="auto", timeout=2),  # Docker where it runs, else processes of this machine
    optim=OptimConfig(lr=5e-4, micro_batch_tokens=2048),
    train=TrainConfig(
        output_dir="runs/tutorial", steps=STEPS, eval_every=STEPS, eval_size=200, rollouts_every=5, sample_every=0
    ),
)

# %% [markdown]
# ## 2. One rollout, token by token
#
# `rollout` samples responses. When the model asks for the output of its code, the row pauses, the tool runs the
# code, and its output is inserted. Each colour is a source of tokens. The model is trained on what
# <span style="background:#bfe3c6;color:#000">it wrote itself</span>, and never on what
# <span style="background:#f6cf9f;color:#000">the tool</span> wrote or on
# <span style="background:#ddd;color:#000">the prompt</span>. Point at a token to see its log-prob.

# %%
groups = rollout(model, tokenizer, problems[:8], samples=16, config=config)
responses = [response for group in groups for response in group.rollouts]


def show(response):
    """Show one response: a box for each token, coloured by the loss mask."""
    boxes = [("prompt", token, None) for token in response.prompt_ids]
    kinds = ["model" if own else "tool" for own in response.loss_mask]
    boxes += zip(kinds, response.token_ids, response.logprobs)
    colours = {"prompt": "#ddd", "model": "#bfe3c6", "tool": "#f6cf9f"}
    spans = []
    for kind, token, logprob in boxes:
        text = html.escape(tokenizer.decode([token])).replace("\n", "⏎<br>")
        note = f"{kind}, id {token}" + (f", log-prob {logprob:.2f}" if kind == "model" else ", not trained")
        style = f"background:{colours[kind]};color:#000;border:1px solid #fff;white-space:pre"
        spans.append(f'<span class="{kind}" title="{note}" style="{style}">{text}</span>')
    display(HTML(f'<div style="font-family:monospace;line-height:1.7">{"".join(spans)}</div>'))


show(max(responses, key=lambda response: (len(response.calls), -len(response.token_ids))))

# %% [markdown]
# ## 3. One GRPO step by hand
#
# **Reward**: +1 for a right final answer, -1 for any other (paper, section 3.3). `grade` reads the last `\boxed{}`
# of the text that the model wrote itself.
#
# **Advantage**: the reward minus the mean of its group, over the standard deviation. A group of equal rewards
# teaches nothing.

# %%
for group in groups:
    for response in group.rollouts:
        right = grade(response.model_text, group.problem.answer).outcome == "right"
        response.reward = Reward(1.0 if right else -1.0)
    for response, advantage in zip(group.rollouts, group_advantages(group.rewards)):
        response.advantage = advantage
[f"{sum(reward > 0 for reward in group.rewards)}/{len(group.rewards)} right" for group in groups]


# %% [markdown]
# **Loss**: the ratio of the log-probs of the policy and of the policy that sampled. Before the first step the two
# are the same, so the ratio is 1, and only its gradient counts.


# %%
def logprobs_of(rows):
    """Return log-probs and loss mask of each token but the first, (B, T - 1)."""
    texts = [row.prompt_ids + row.token_ids for row in rows]
    masks = [[0] * len(row.prompt_ids) + row.loss_mask for row in rows]
    width = max(map(len, texts))
    ids = torch.tensor([text + [0] * (width - len(text)) for text in texts])  # (B, T)
    mask = torch.tensor([each + [0] * (width - len(each)) for each in masks])  # (B, T)
    logits = model(ids).logits[:, :-1]  # (B, T - 1, V): position t predicts token t + 1. Padding comes last
    return logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0], mask[:, 1:]


group = max(groups, key=lambda group: len(set(group.rewards)))  # one with unequal rewards, if there is one
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
advantages = torch.tensor([response.advantage for response in group.rollouts])  # (B,)
logprobs, mask = logprobs_of(group.rollouts)
logprobs.retain_grad()
loss, _ = grpo_loss(logprobs, logprobs.detach(), advantages, mask)
loss.backward()
print(f"gradient at tool and prompt tokens: {logprobs.grad[mask == 0].abs().max():.6f}")
print(f"gradient at the model's own tokens: {logprobs.grad[mask == 1].abs().max():.6f}")
optimizer.step()

# %% [markdown]
# After the step, responses with a positive advantage are more probable, the others less.

# %%
with torch.no_grad():
    after, _ = logprobs_of(group.rollouts)
change = ((after - logprobs) * mask).sum(1)  # (B,)
for response, nats in sorted(zip(group.rollouts, change.tolist()), key=lambda pair: -pair[0].advantage)[::5]:
    print(f"advantage {response.advantage:+.2f}: log-prob of the response {nats:+.2f}")


# %% [markdown]
# ## 4. Your own reward and your own tool
#
# A reward is a function of a problem and a rollout. This one gives half for a right answer without code.


# %%
def checked(problem, rollout):
    """Return 1 for a right answer from code, 0.5 for any other right answer, 0 for a wrong one."""
    correct = float(grade(rollout.model_text, problem.answer).outcome == "right")
    ran = any(call.result is not None and call.result.status == "ok" for call in rollout.calls)
    return Reward(correct * (1.0 if ran else 0.5), {"correct": correct, "ran": float(ran)})


# %% [markdown]
# A tool finds a call in the text, runs it, and writes what the model reads. `PythonTool` has all three; this one
# overrides the last: the model reads an error text of ours. Every token of it stays out of the loss, like all tool
# output.


# %%
class KindTool(PythonTool):
    """Python with an error text of our own."""

    def observe(self, result, text):
        """Return the text to insert after the call."""
        if result is not None and result.status != "ok":
            result = dataclasses.replace(result, status="error", stdout="", stderr="Error: check the code")
        return super().observe(result, text)


# %% [markdown]
# ## 5. Train
#
# The trainer does what you just did by hand, with batches, checkpoints and metrics. Interrupt the kernel at any
# time: the trainer writes a checkpoint, and `Trainer(…, resume=True)` continues from it.

# %%
model = AutoModelForCausalLM.from_pretrained(files.model)  # as it was before the step by hand
tool = KindTool(open_executor(config.executor))
with Trainer(
    config, problems=problems, eval_problems=held_out, reward=checked, tool=tool, model=model, tokenizer=tokenizer
) as trainer:
    history = trainer.train()
tool.close()


# %% [markdown]
# ## 6. What came of it
#
# The reward rises because the model discovers the tool: nothing but right answers was rewarded.


# %%
def plot(names, width=560, height=160):
    """Draw metrics of the history, each a share from 0 to 1, as lines over the steps."""
    colours, lines = ["#1f77b4", "#d9730d", "#2a8a3e"], []
    for row, (name, colour) in enumerate(zip(names, colours)):
        shown = [(line["step"], line[name]) for line in history if line.get(name) is not None]
        places = [(10 + step * (width - 20) / STEPS, height - 10 - y * 130) for step, y in shown]
        points = " ".join(f"{x:.0f},{y:.0f}" for x, y in places)
        lines.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        lines.append(f'<text x="{14 + 150 * row}" y="14" fill="{colour}" font-size="13">{name}</text>')
    frame = f'<rect x="10" y="20" width="{width - 20}" height="{height - 30}" fill="none" stroke="#999"/>'
    display(HTML(f'<svg width="{width}" height="{height}">{frame}{"".join(lines)}</svg>'))


plot(["accuracy", "tools/code_ratio", "tools/pass_ratio"])

# %% [markdown]
# The report has every curve and every recorded response.

# %%
report = write_report([Path("runs/tutorial")], Path("runs/tutorial/report.html"), title="Tutorial")
IFrame(str(report), width="100%", height=600)

# %% [markdown]
# One held-out problem, with the trained model. From here: [your own parts](howto.md), [larger models](train.md),
# and the whole algorithm in one file, [minimal.py](../src/grpo_tir/minimal.py).

# %%
greedy = dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, temperature=0))
(group,) = rollout(model, tokenizer, held_out[:1], config=greedy)
show(group.rollouts[0])

"""ToRL in one file: problems → responses with tool calls → rewards → advantages → loss → AdamW.

`python -m grpo_tir.minimal` trains the quickstart's tiny base model on a CPU. A test holds this file equal to the
trainer: same sampled ids, rewards, advantages and weights. The trainer adds:

    continuous batching with a KV cache, tool calls in parallel     engine/, rollouts/rollout.py
    packed micro-batches, several updates a batch, KL, other losses learning/
    a check that what is trained is what was sampled                learning/certificate.py
    many ranks, exact resume after a kill, metrics and a report     distributed/, checkpoint/, monitor/, report/
    outages that are never scored, penalties, dynamic sampling      rollouts/

Shapes: B rows of a batch, G samples of a problem, T tokens, V vocabulary.
"""

import hashlib
import importlib
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers as hf

MARKER = "```output"


@dataclass
class Response:
    """One sampled response. `mask` is 1 where the model chose the token and 0 where the tool inserted it."""

    prompt: list[int]
    answer: str  # gold
    key: tuple[int, int, int]  # (seed, group, sample), which key its random draws
    ids: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    turns: list[str] = field(default_factory=list)  # the model's text, cut at its tool calls
    calls: int = 0
    reward: float = 0.0
    advantage: float = 0.0


# 1. Random draws. They depend on (seed, group, sample, position) alone, not on which rows share the batch.
def mix(x: int) -> int:
    """Scramble 64 bits (splitmix64)."""
    x = (x ^ (x % 2**64 >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def uniform(key: tuple[int, int, int], position: int) -> float:
    """Return the draw in [0, 1) for the token at `position` of the response `key` = (seed, group, sample)."""
    state = 0
    for part in key:
        state = mix(state + part + 0x9E3779B97F4A7C15)
    return (mix(state + position * 0x9E3779B97F4A7C15) >> 11) * 2.0**-53


# 2. For `model.generate`: a processor that draws the tokens, a criterion that stops a row at its tool call.
class Draw(hf.LogitsProcessor):
    """Draw at temperature 1 by inverse CDF, or take the largest logit. Leaves one finite logit in each row."""

    def __init__(self, rows: Sequence[Response], width: int, greedy: bool) -> None:
        self.rows, self.width, self.greedy = rows, width, greedy

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        logits_BV, step = scores.float(), input_ids.shape[1] - self.width
        ids_B = logits_BV.argmax(-1)
        if not self.greedy:
            u_B = torch.tensor([uniform(row.key, len(row.ids) + step) for row in self.rows], dtype=torch.float64)
            cdf_BV = (logits_BV - logits_BV.amax(-1, keepdim=True)).exp().double().cumsum(-1)
            ids_B = torch.searchsorted(cdf_BV, (u_B * cdf_BV[:, -1])[:, None], right=True)[:, 0]
        return torch.full_like(scores, -torch.inf).scatter(1, ids_B[:, None], 0.0)


class StopAtCall(hf.StoppingCriteria):
    """Stop a row whose newest token completes "```output": the model asks for the output of its code."""

    def __init__(self, tokenizer: Any, width: int, may_call: list[bool]) -> None:
        self.tokenizer, self.width, self.may_call = tokenizer, width, may_call
        self.stopped_at: list[int | None] = [None] * len(may_call)  # in new tokens

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        for row, ids in enumerate(input_ids[:, self.width :].tolist()):
            if self.may_call[row] and self.stopped_at[row] is None and MARKER in self.tokenizer.decode(ids):
                self.stopped_at[row] = len(ids)
        return torch.tensor([stop is not None for stop in self.stopped_at])


def pad(rows: list[list[int]], value: int, left: bool = False) -> torch.Tensor:
    """Pad rows to one width: (B, T)."""
    width = max(map(len, rows))
    fill = [[value] * (width - len(row)) for row in rows]
    return torch.tensor([f + row if left else row + f for f, row in zip(fill, rows, strict=True)])


# 3. The tool: find the code in the text, and format the output that the model reads.
def find_code(text: str) -> str | None:
    """Return the last closed ```python block before the marker; None if it is empty or another one is open."""
    code, block = "", None  # type: str, list[str] | None
    for line in text.partition(MARKER)[0].split("\n"):
        if line.startswith("```python") or line.endswith("```python"):
            block = []
        elif block is not None and line.startswith("```"):
            code, block = "\n".join(block), None
        elif block is not None:
            block.append(line)
    return code if block is None and code.strip() else None


def observation(result: Any) -> str:
    """Return what the model reads: stdout and, after an error, the last line of stderr (paper, section 3.2)."""
    error = (result.stderr.strip().splitlines() or [result.status])[-1].strip()
    parts = [result.stdout.strip()] if result.status == "ok" else [result.stdout.strip(), error]
    parts = [part if len(part) < 256 else f"{part[:128]}...{part[-128:]}" for part in parts if part]
    return "\n".join(parts) or "[no output]"


# 4. Advantages and loss.
def assign_advantages(group: list[Response]) -> None:
    """Set A_i = (r_i - mean(r)) / (std(r) + 1e-6) over the G responses to one problem (GRPO, eq. 3)."""
    rewards_G = [response.reward for response in group]
    mean, std = statistics.fmean(rewards_G), statistics.stdev(rewards_G)
    for response in group:
        response.advantage = (response.reward - mean) / (std + 1e-6) if std else 0.0


def loss_of(model: Any, group: list[Response], clip: float, tokens: int) -> torch.Tensor:
    """Return this group's part of the loss. `tokens` counts the model's tokens in the whole batch.

    L = - sum_it min(w_it A_i, clip(w_it, 1 - clip, 1 + clip) A_i) / tokens,   w_it = pi(token) / pi_old(token)
    """
    # 1) Right-pad prompt and response. The mask is 1 at tokens that the model chose.
    texts, masks = [r.prompt + r.ids for r in group], [[0] * len(r.prompt) + r.mask for r in group]
    ids_BT, mask_BT, attended_BT = pad(texts, 0), pad(masks, 0), pad([[1] * len(text) for text in texts], 0)
    # 2) Log-probs of the tokens: the logits at position t predict token t + 1.
    logits_BTV = model(ids_BT, attention_mask=attended_BT, use_cache=False).logits[:, :-1].float()
    logprobs_BT = logits_BTV.log_softmax(-1).gather(-1, ids_BT[:, 1:, None])[..., 0]
    # 3) The clipped objective. With one update a batch, the old policy is this one and the ratio is 1.
    ratio_BT = (logprobs_BT - logprobs_BT.detach()).exp()
    advantages_B1 = torch.tensor([[response.advantage] for response in group])
    objective_BT = torch.minimum(ratio_BT * advantages_B1, ratio_BT.clamp(1 - clip, 1 + clip) * advantages_B1)
    return -(objective_BT * mask_BT[:, 1:]).sum() / tokens


# 5. The training loop.
@dataclass
class Minimal:
    """GRPO on pairs of problem and gold answer. The defaults are the quickstart's."""

    model: Any
    tokenizer: Any
    problems: Sequence[tuple[str, str]]
    run_code: Callable[[str], Any]  # returns `status` ("ok" after exit code 0), `stdout` and `stderr`
    is_right: Callable[[list[str], str], bool]  # do the model's turns end in the gold answer?
    prompts: int = 8  # problems in a batch
    samples: int = 16  # G
    max_tokens: int = 80  # of a response, tool output included
    max_calls: int = 1  # c
    lr: float = 5e-4
    eps: float = 1e-8  # of AdamW
    clip: float = 0.2
    seed: int = 1
    groups_done: int = 0  # number of rollout groups so far, and of the next group

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.AdamW(self.model.parameters(), self.lr, eps=self.eps, weight_decay=0.01)

    def step(self) -> list[list[Response]]:
        """Take one training step. Returns the groups that it learned from."""
        # 1) Draw problems: each once per epoch, in an order that depends on the seed.
        drawn = []
        for number in range(self.groups_done, self.groups_done + self.prompts):
            epoch, place = divmod(number, len(self.problems))
            keys = [
                hashlib.sha256(f"{self.seed}/{epoch}/{i}".encode()).digest() for i in range(len(self.problems))
            ]
            drawn.append(self.problems[keys.index(sorted(keys)[place])])
        # 2) Rollouts, rewards, advantages.
        groups = self.rollouts(drawn, self.samples, greedy=False)
        self.groups_done += self.prompts
        for group in groups:
            assign_advantages(group)
        # 3) Loss, gradient, step. The denominator of the loss is that of the whole batch.
        tokens = sum(sum(response.mask) for group in groups for response in group)
        for group in groups:
            loss_of(self.model.train(), group, self.clip, tokens).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), max_norm=1.0)
        self.optimizer.step()
        self.model.zero_grad()
        return groups

    def accuracy(self, problems: Sequence[tuple[str, str]]) -> float:
        """Return the share of problems whose greedy response is right."""
        return statistics.fmean(group[0].reward > 0 for group in self.rollouts(problems, 1, greedy=True))

    def rollouts(self, problems: Sequence[tuple[str, str]], samples: int, greedy: bool) -> list[list[Response]]:
        """Sample `samples` responses to each problem. Reward: +1 if right, -1 if not (paper, section 3.3)."""
        groups = []
        for number, (problem, answer) in enumerate(problems, start=self.groups_done):
            prompt = self.tokenizer(f"{problem}\n", add_special_tokens=False)["input_ids"]
            groups.append([Response(prompt, answer, (self.seed, number, sample)) for sample in range(samples)])
        rows = responses = [response for group in groups for response in group]
        while rows:  # rounds: generate, run the code of the rows that called, insert its output, repeat
            for row in (rows := self.generate(rows, greedy)):
                code = find_code(row.turns[-1])
                text = observation(self.run_code(code)) if code else "[no code block found]"
                text = f"{text}\n```\n" if row.turns[-1].endswith("\n") else f"\n{text}\n```\n"
                ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
                ids = ids[: self.max_tokens - len(row.ids)]  # one budget for all tokens of the response
                row.ids += ids
                row.mask += [0] * len(ids)  # inserted, not chosen by the model: never trained
                row.calls += 1
            rows = [row for row in rows if len(row.ids) < self.max_tokens]
        for response in responses:
            response.reward = 1.0 if self.is_right(response.turns, response.answer) else -1.0
        return groups

    @torch.no_grad()
    def generate(self, rows: list[Response], greedy: bool) -> list[Response]:
        """Sample each row up to its next tool call, its end, or its budget. Returns the rows that made a call."""
        # 1) Left-pad prompt and response so far to one width.
        eos, texts = self.tokenizer.eos_token_id, [row.prompt + row.ids for row in rows]
        ids_BT, attended_BT = pad(texts, eos, left=True), pad([[1] * len(text) for text in texts], 0, left=True)
        # 2) Generate. The blank config replaces the checkpoint's, which may ask for another temperature.
        blank = hf.GenerationConfig(eos_token_id=eos, pad_token_id=eos, do_sample=False)
        self.model.eval().generation_config = blank
        width, room = ids_BT.shape[1], max(self.max_tokens - len(row.ids) for row in rows)
        stop = StopAtCall(self.tokenizer, width, [row.calls < self.max_calls for row in rows])
        draw = hf.LogitsProcessorList([Draw(rows, width, greedy)])
        hooks = {"logits_processor": draw, "stopping_criteria": hf.StoppingCriteriaList([stop])}
        output_BT = self.model.generate(ids_BT, attention_mask=attended_BT, max_new_tokens=room, **hooks)
        # 3) Cut each row where it ended first. The sampled ids are kept: text is never tokenized again.
        called = []
        for row, new, stopped_at in zip(rows, output_BT[:, width:].tolist(), stop.stopped_at, strict=True):
            end = new.index(eos) + 1 if eos in new else len(new) + 1
            new = new[: min(end, self.max_tokens - len(row.ids), stopped_at or len(new))]
            row.ids += new
            row.mask += [1] * len(new)
            row.turns.append(self.tokenizer.decode(new).removesuffix(self.tokenizer.eos_token))
            called += [row] if len(new) == stopped_at and len(new) < end else []
        return called


if __name__ == "__main__":
    importlib.import_module("grpo_tir.utils.recipe").import_program("quickstart.minimal").main()

"""Ids, mask and log-probs of a random policy, against an oracle that reads characters."""

from __future__ import annotations

import random

import pytest

from grpo_tir.generation.sampling import Sampling
from grpo_tir.testing import ScriptedExecutor, byte_tokenizer
from grpo_tir.tools.python import PythonTool
from grpo_tir.types import Rollout, ToolResult
from scripted import (
    UrnModel,
    assert_consistent,
    empty_rollouts,
    ids,
    make_loop,
    reference_code,
)

URN = byte_tokenizer(
    ["```python\n", "print(6*7)\n", "```\n", "```output", "```output\n", "``", "put", "out", "tput"]
)
WEIGHTS = {
    **{p: 3.0 for p in ("```python\n", "print(6*7)\n", "```\n")},
    **{p: 1.5 for p in ("```output", "```output\n", "``", "put", "out", "tput")},
    **{p: 1.0 for p in ("`", "x", "\n", " ", "é"[:1])},
}


def urn_policy() -> UrnModel:
    weights = {}
    for text, weight in WEIGHTS.items():
        name = "".join(part for part, _ in URN.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text))
        token = URN.convert_tokens_to_ids(name) if name in URN.get_vocab() else ids(text, URN)[0]
        weights[token] = weight
    return UrnModel({**weights, URN.eos_token_id: 0.4}, len(URN), URN.eos_token_id)


def mask_by_characters(rollout: Rollout, c: int) -> list[int]:
    """An oracle that knows nothing of segments: it reads the whole token stream as text, finds the first c calls
    by their marker, and takes the known answer behind each for the tool's."""
    pieces = [URN.decode([token]) for token in rollout.token_ids]
    mask, turn, calls, skip = [], "", 0, ""
    for text in pieces:
        if skip:
            assert skip.startswith(text), "tool tokens are the answer, whole, and nothing else"
            skip = skip.removeprefix(text)
            mask.append(0)
            continue
        mask.append(1)
        turn += text
        if calls < c and "```output" in turn:
            calls += 1
            skip = answer_to(turn)
            turn = ""
    return mask


def answer_to(turn: str) -> str:
    """What the scripted executor says to the code of this turn, as it is inserted."""
    code = reference_code(turn[: turn.index("```output")])
    shown = f"ran {len(code) - 1}" if code else "[no code block found]"
    return ("" if turn.endswith("\n") else "\n") + shown + "\n```\n"


@pytest.mark.parametrize("c", range(5))
def test_ids_mask_and_logprobs_agree_with_a_character_level_oracle_for_any_policy(c: int) -> None:
    rng = random.Random(c)
    model = urn_policy()
    tool = PythonTool(ScriptedExecutor(lambda code: ToolResult("ok", f"ran {len(code)}\n")))
    seen = {"eos": 0, "length": 0, "calls": 0, "cut_in_tool": 0}
    for budget in [rng.randrange(1, 120) for _ in range(4)]:
        rollouts = empty_rollouts(["Q" * rng.randrange(1, 9) for _ in range(20)], URN)
        settings = {"c": c, "budget": budget, "seed": budget, "sampling": Sampling()}
        make_loop(model, tool, URN, max_rows=rng.choice([0, 7]), **settings).run(rollouts)
        for rollout in rollouts:
            assert_consistent(rollout)
            assert rollout.loss_mask == mask_by_characters(rollout, c)
            assert len(rollout.token_ids) <= budget
            assert (rollout.finish_reason == "length") == (rollout.token_ids[-1] != URN.eos_token_id)
            assert len(rollout.token_ids) == budget or rollout.finish_reason == "eos"
            assert len(rollout.calls) <= c
            for token, flag, logprob in zip(rollout.token_ids, rollout.loss_mask, rollout.logprobs, strict=True):
                expected = model.log_weights[token].item() if flag else 0.0
                assert logprob == pytest.approx(expected, abs=1e-5)
            seen[str(rollout.finish_reason)] += 1
            seen["calls"] += len(rollout.calls)
            seen["cut_in_tool"] += rollout.segments[-1].kind == "tool"
    assert seen["eos"] > 10
    assert seen["length"] > 10
    assert (seen["calls"] > 20) == (c > 0)
    assert (seen["cut_in_tool"] > 0) == (c > 0)

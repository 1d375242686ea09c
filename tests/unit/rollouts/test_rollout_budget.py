"""One budget for all tokens of a response, and the ids that end it."""

from __future__ import annotations

import pytest

from grpo_tir.testing import EOS, ScriptedExecutor, byte_tokenizer
from grpo_tir.tools.python import PythonTool
from scripted import (
    BYTES,
    CALL,
    SHOWN,
    assert_consistent,
    empty_rollouts,
    ids,
    kinds,
    make_loop,
    play,
    play_one,
    read,
    script_model,
    stdout,
)

END = "so \\boxed{42}"


# --- the budget ----------------------------------------------------------------------------------------------

WHOLE = len(ids(CALL + SHOWN + END)) + 1


@pytest.mark.parametrize("budget", range(1, WHOLE + 2))
def test_a_response_under_any_budget_is_a_prefix_of_the_unbounded_one(budget: int) -> None:
    """Ends inside code, inside the marker, at the call, inside and at the end of the output, before and at EOS."""
    whole = [*ids(CALL + SHOWN + END), BYTES.eos_token_id]
    mask = [1] * len(ids(CALL)) + [0] * len(ids(SHOWN)) + [1] * (len(ids(END)) + 1)
    rollout = play_one([CALL, END], budget=budget)
    assert rollout.token_ids == whole[:budget]
    assert rollout.loss_mask == mask[:budget]
    assert rollout.finish_reason == ("eos" if budget >= WHOLE else "length")
    assert rollout.text == read(whole[:budget]).removesuffix(EOS)
    assert all(segment.token_ids for segment in rollout.segments)
    assert_consistent(rollout)


def test_a_budget_that_ends_with_the_output_leaves_no_turn_behind_it() -> None:
    rollout = play_one([CALL, END], budget=len(ids(CALL + SHOWN)))
    assert kinds(rollout) == [("model", CALL), ("tool", SHOWN)]
    assert rollout.finish_reason == "length"


def test_a_cut_inside_a_character_of_the_output_keeps_the_bytes() -> None:
    budget = len(ids(CALL + "\n")) + 2
    rollout = play_one([CALL, END], stdout("é😀"), budget=budget)
    assert rollout.segments[1].token_ids == ids("\né😀")[:3]
    assert len(rollout.token_ids) == budget


def test_rows_of_a_batch_run_out_each_at_its_own_budget() -> None:
    long = "words " * 40
    budget = 90
    called, talked, done = play({"A": [CALL, long], "B": [long], "C": [END]}, budget=budget)
    assert called.token_ids == (ids(CALL + SHOWN + long))[:budget]
    assert talked.token_ids == ids(long)[:budget]
    assert done.token_ids == [*ids(END), BYTES.eos_token_id]
    assert [r.finish_reason for r in (called, talked, done)] == ["length", "length", "eos"]


# --- ends of text --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [0, 1, 2])
def test_any_of_several_eos_ids_ends_a_response_and_is_kept(which: int) -> None:
    tokenizer = byte_tokenizer(["<a>", "<b>"])
    eos = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<a>"), tokenizer.convert_tokens_to_ids("<b>")]
    turn = [*ids(END, tokenizer), eos[which]]
    other = ids("a much longer answer " * 3, tokenizer)  # goes on, so that the first row is padded
    scripts = {"A": [turn], "B": [other]}
    rollouts = empty_rollouts(["A", "B"], tokenizer)
    model = script_model(scripts, tokenizer, eos_token_id=eos)
    make_loop(model, PythonTool(ScriptedExecutor(stdout("42"))), tokenizer).run(rollouts)
    assert rollouts[0].token_ids == turn
    assert rollouts[0].finish_reason == "eos"
    assert rollouts[0].segments[0].text == END
    assert rollouts[1].token_ids == [*other, eos[0]]


def test_padding_that_is_the_eos_id_is_never_taken_for_an_end() -> None:
    """pad = EOS, and the row that runs out first is padded while the other goes on."""
    assert BYTES.pad_token_id == BYTES.eos_token_id
    cut, whole = play({"A": [CALL, "x" * 200], "B": ["y" * 88]}, stdout("1" * 40), budget=89)
    assert cut.finish_reason == "length"
    assert len(cut.token_ids) == 89
    assert BYTES.eos_token_id not in cut.token_ids
    assert whole.finish_reason == "eos"
    assert whole.token_ids[-1] == BYTES.eos_token_id


def test_an_eos_id_inside_the_prompt_ends_nothing() -> None:
    rollouts = empty_rollouts(["A" + EOS + "B"])
    assert BYTES.eos_token_id in rollouts[0].prompt_ids
    make_loop(script_model({"A" + EOS + "B": [CALL, END]}), PythonTool(ScriptedExecutor(stdout("42")))).run(
        rollouts
    )
    assert kinds(rollouts[0]) == [("model", CALL), ("tool", SHOWN), ("model", END)]

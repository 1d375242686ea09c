"""The bugs of the reference implementation, each by its number: what it did, as a few lines, and what we do.

The `reference_*` functions restate the behaviour that was found in its code, no more of it than the bug needs.
Every test asserts that they go wrong where ours goes right, so none of them can pass on the old behaviour.
Bugs 14 to 16 are about executing programs and stand in `test_reference_bugs_tools.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from grpo_tir.config import AlgorithmConfig, RewardConfig
from grpo_tir.learning.advantages import assign_advantages, group_advantages
from grpo_tir.learning.batching import collate, to_row
from grpo_tir.monitor.metrics import eval_metrics, step_metrics, summarize
from grpo_tir.rollouts.rewards import make_reward
from grpo_tir.testing import ScriptedExecutor, byte_tokenizer
from grpo_tir.tools.python import PythonTool, observation
from grpo_tir.types import Reward, RolloutGroup, ToolCall, ToolResult
from scripted import (
    BYTES,
    CALL,
    FORTY_TWO,
    SHOWN,
    empty_rollouts,
    ids,
    kinds,
    make_loop,
    play,
    play_one,
    read,
    rollout_of,
    script_model,
    stdout,
)

END = "so \\boxed{42}"
EOS_ID = BYTES.eos_token_id
OK = ToolCall("x", ToolResult("ok", "42"))
FAILED = ToolCall("x", ToolResult("error", "", "NameError: x\n", 1))


def reference_observation(result: ToolResult, reachable: bool = True) -> tuple[str, str]:
    """(text, status) as the reference words a run: by what was printed, not by how the run ended."""
    if not reachable:
        return "UnknownError", "fail"
    good = result.exit_code == 0 or bool(result.stdout)
    text = result.stdout if good else result.stderr.strip()
    if "Error" in text:
        text = text.split("\n")[-1] if not text.endswith("\n") else text.rstrip("\n").split("\n")[-1]
    text = text or "timeout_decorator.timeout_decorator.TimeoutError: 'Timed Out'"
    return text.strip(), "pass" if good else "fail"


# --- 1: the mask of the second call -------------------------------------------------------------------------


def reference_mask(rounds: Sequence[tuple[str, str]], tokens: int) -> list[int]:
    """Ranges of observations counted from the start of their own round, never offset by earlier rounds."""
    mask = [1] * tokens
    for said, shown in rounds:
        mask[len(said) : len(said) + len(shown)] = [0] * len(shown)
    return mask


@pytest.mark.parametrize("c", [2, 3, 4])
def test_bug_01_every_observation_is_masked_and_no_model_token_is(c: int) -> None:
    turns = ["words " * n + CALL for n in range(c)]
    rollout = play_one([*turns, END], c=c)
    truth = [flag for turn in turns for flag in [1] * len(turn) + [0] * len(SHOWN)] + [1] * (len(END) + 1)
    assert reference_mask([(turn, SHOWN) for turn in turns], len(truth)) != truth
    assert rollout.loss_mask == truth
    assert read([t for t, m in zip(rollout.token_ids, rollout.loss_mask, strict=True) if not m]) == SHOWN * c


# --- 2: a finished answer loses its text --------------------------------------------------------------------


def reference_rounds(answers: Sequence[str]) -> list[str]:
    """One tool round: the loop is left before the round's text is stored if nobody in the batch calls."""
    stored = [""] * len(answers)
    if any("```output" in answer for answer in answers):
        stored = list(answers)
    return stored


def test_bug_02_a_batch_in_which_nobody_calls_keeps_its_text() -> None:
    assert reference_rounds([END, "no idea"]) == ["", ""]
    assert [r.text for r in play({"A": [END], "B": ["no idea"]})] == [END, "no idea"]
    assert play_one([END]).token_ids == [*ids(END), EOS_ID]


def test_bug_02_a_later_round_in_which_nobody_calls_keeps_its_text() -> None:
    first, second = play({"A": [CALL, END], "B": [CALL, "no idea"]}, c=3)
    assert (first.text, second.text) == (CALL + SHOWN + END, CALL + SHOWN + "no idea")


# --- 3: trained ids are not the sampled ids -----------------------------------------------------------------


def test_bug_03_sampled_ids_are_kept_where_the_tokenizer_would_choose_others() -> None:
    tokenizer = byte_tokenizer(["42", "``", "output", "so "])
    odd = {piece: tokenizer.convert_tokens_to_ids(piece) for piece in ("42", "``", "output")}
    call = [*ids("```python\nprint(6*7)\n```\n", tokenizer), odd["``"], *ids("`", tokenizer), odd["output"]]
    end = [*ids("so \\boxed{", tokenizer), odd["42"], *ids("}", tokenizer)]
    reencoded = ids(read(call + end, tokenizer), tokenizer)  # what the reference trains on
    assert reencoded != call + end
    rollout = play_one([call, end], tokenizer=tokenizer)
    assert rollout.segments[0].token_ids == call
    assert rollout.segments[2].token_ids == [*end, tokenizer.eos_token_id]
    assert to_row(rollout).token_ids == rollout.prompt_ids + rollout.token_ids


# --- 4: a newline that nobody sampled -----------------------------------------------------------------------


def test_bug_04_nothing_unsampled_is_trained_at_the_end_of_a_response() -> None:
    reference = [*ids(END + "\n"), EOS_ID]
    finished, cut = play_one([END]), play_one([END], budget=5)
    assert finished.token_ids == [*ids(END), EOS_ID] != reference
    assert cut.token_ids == ids(END)[:5]
    assert finished.loss_mask == [1] * len(finished.token_ids)


# --- 5: cut after the fact ----------------------------------------------------------------------------------


def test_bug_05_one_budget_holds_for_all_tokens_and_a_cut_response_says_length() -> None:
    budget = len(CALL + SHOWN) + 3
    whole = [*ids(CALL + SHOWN + END), EOS_ID]
    assert EOS_ID not in whole[:budget]  # the reference cuts here, and still calls it finished
    rollout = play_one([CALL, END], budget=budget)
    assert rollout.token_ids == whole[:budget]
    assert rollout.finish_reason == "length"


def test_bug_05_half_an_observation_is_masked_like_a_whole_one() -> None:
    rollout = play_one([CALL, END], budget=len(CALL) + 3)
    assert rollout.loss_mask == [1] * len(CALL) + [0] * 3
    assert rollout.finish_reason == "length"


# --- 6: padding taken for an end ----------------------------------------------------------------------------


def reference_length(padded: Sequence[int], eos_id: int) -> int:
    """Up to and with the first end-of-text id."""
    return list(padded).index(eos_id) + 1 if eos_id in padded else len(padded)


def test_bug_06_the_first_padding_token_is_not_counted_as_an_end() -> None:
    assert BYTES.pad_token_id == EOS_ID
    cut, _ = play({"A": [CALL, "x" * 99], "B": ["y" * 60]}, budget=50)
    short = rollout_of("abc", finish_reason="length")
    padded = [*short.token_ids, EOS_ID, EOS_ID]
    assert reference_length(padded, EOS_ID) == 4
    assert len(short.token_ids) == 3
    assert EOS_ID not in cut.token_ids
    assert len(cut.token_ids) == 50
    batch = collate([to_row(short), to_row(rollout_of("abcdef"))], torch.device("cpu"))
    assert batch.attention_mask[0].sum() == len(short.prompt_ids) + 3
    assert batch.loss_mask[0].tolist() == [0, 1, 1, 1, 0, 0, 0]


# --- 7: an outage is shown and punished ---------------------------------------------------------------------


def test_bug_07_an_outage_is_neither_shown_nor_scored() -> None:
    lost = ToolResult("infrastructure", "", "connection refused")
    assert reference_observation(lost, reachable=False) == ("UnknownError", "fail")
    rollout = play_one([CALL, END], lambda code: lost)
    assert kinds(rollout) == [("model", CALL)]
    assert not rollout.valid
    scored = [rollout_of("a") for _ in range(2)]
    config = RewardConfig(code_penalty=-0.5)
    for other, answer in zip(scored, ("42", "41"), strict=True):
        other.segments[0].text = f"\\boxed{{{answer}}}"
        other.reward = make_reward(config, 100)(other.problem, other)
    assert RolloutGroup(rollout.problem, [*scored, rollout]).rewards == [1.0, -1.0]
    assert step_metrics([summarize(r, 1) for r in (*scored, rollout)])["reward"] == 0.0


def test_bug_07_an_outage_does_not_move_the_advantage_of_the_others() -> None:
    """Had it been scored -1.5, as the reference did with the penalty on, all others would have moved."""
    rollouts = [rollout_of("a") for _ in range(4)]
    for rollout, value in zip(rollouts, (1.0, -1.0, -1.0), strict=False):
        rollout.reward = Reward(value)
    rollouts[3].valid = False
    assign_advantages([RolloutGroup(rollouts[0].problem, rollouts)], AlgorithmConfig())
    got = [rollout.advantage for rollout in rollouts]
    assert got == [*group_advantages([1, -1, -1]), 0.0]
    assert got[:3] != pytest.approx(group_advantages([1, -1, -1, -1.5])[:3])


# --- 8, 9, 10: what is shown of a run -----------------------------------------------------------------------


def test_bug_08_a_program_that_prints_nothing_is_not_shown_a_timeout() -> None:
    silent = ToolResult("ok", "", "", 0)
    assert "Timed Out" in reference_observation(silent)[0]
    assert observation(silent) == "[no output]"
    assert kinds(play_one([CALL, END], stdout("")))[1] == ("tool", "\n[no output]\n```\n")


def test_bug_09_output_and_exception_are_both_shown_and_the_run_failed() -> None:
    half = ToolResult("error", "41\n", "Traceback …\nZeroDivisionError: division by zero\n", 1)
    assert reference_observation(half) == ("41", "pass")
    assert observation(half) == "41\nZeroDivisionError: division by zero"
    assert ToolCall("x", half).failed


def test_bug_10_right_output_that_says_error_is_kept_whole() -> None:
    fine = ToolResult("ok", "Error of the fit: 0.1\nslope 3\nintercept 42\n", "", 0)
    assert reference_observation(fine)[0] == "intercept 42"
    assert observation(fine) == "Error of the fit: 0.1\nslope 3\nintercept 42"


def test_bug_10_a_failure_of_any_name_is_cut_to_its_last_line() -> None:
    stopped = ToolResult("error", "", 'Traceback …\n  File "x", line 1\nKeyboardInterrupt\n', 1)
    assert "Traceback" in reference_observation(stopped)[0]
    assert observation(stopped) == "KeyboardInterrupt"


# --- 11, 12: whom the penalty meets -------------------------------------------------------------------------


def reference_penalty(rounds: Sequence[ToolResult | None]) -> float:
    """Status starts at 0 (failed) and every tool round overwrites it, one without code too."""
    status = 0
    for result in rounds:
        status = int(result is not None and result.status == "ok")
    return -0.5 if status == 0 else 0.0


def penalised(calls: list[ToolCall], answer: str = "42") -> float:
    rollout = rollout_of(f"\\boxed{{{answer}}}", calls=calls)
    reward = make_reward(RewardConfig(code_penalty=-0.5), 100)(rollout.problem, rollout)
    assert reward is not None
    return reward.value


def test_bug_11_every_call_counts_not_the_last_round() -> None:
    assert reference_penalty([OK.result, None]) == -0.5  # a good call, then a normal finish
    assert penalised([OK]) == 1.0
    assert reference_penalty([FAILED.result, OK.result]) == 0.0  # a failure washed off
    assert penalised([FAILED, OK]) == 0.5
    rollout = play_one([CALL, CALL, END], c=3)
    assert [call.result.status for call in rollout.calls if call.result] == ["ok", "ok"]


def test_bug_12_a_response_without_code_has_failed_nothing() -> None:
    assert reference_penalty([]) == -0.5
    assert penalised([]) == 1.0
    assert penalised([], answer="41") == -1.0


# --- 13: a marker without code ------------------------------------------------------------------------------


def test_bug_13_a_marker_without_code_is_answered_by_a_masked_notice_and_counted() -> None:
    said = "I call ```output"
    reference_text = said.removesuffix("```output") + END  # the marker vanishes, a call is spent
    rollout = play_one([said, END])
    assert rollout.text == said + "\n[no code block found]\n```\n" + END != reference_text
    assert rollout.loss_mask[len(said) : -len(END) - 1] == [0] * len("\n[no code block found]\n```\n")
    assert summarize(rollout, 1)["no_code_calls"] == 1


# --- 17: accuracy from the reward ---------------------------------------------------------------------------


def reference_accuracy(rewards: Sequence[float]) -> float:
    """-1 and -0.5 become 0, all else is averaged."""
    return sum(0.0 if reward in (-1.0, -0.5) else reward for reward in rewards) / len(rewards)


def test_bug_17_accuracy_is_the_share_of_right_answers_whatever_the_reward() -> None:
    rollouts = [rollout_of(f"\\boxed{{{answer}}}", calls=[FAILED]) for answer in (42, 42, 41, 40)]
    for rollout in rollouts:
        rollout.reward = make_reward(RewardConfig(code_penalty=-0.5), 100)(rollout.problem, rollout)
    rewards = [rollout.reward.value for rollout in rollouts if rollout.reward]
    assert rewards == [0.5, 0.5, -1.5, -1.5]
    assert reference_accuracy(rewards) == -0.5
    assert eval_metrics([summarize(r, 1) for r in rollouts])["eval/accuracy"] == 0.5


# --- 18: a box that the model did not write -----------------------------------------------------------------


@pytest.mark.parametrize(
    "turns",
    [
        [CALL, "\n\\boxed{42}\n```\n", "I do not know"],  # printed by the program
        ["```python\nprint('\\boxed{42}')\n```\n"],  # in the code
        ["```python\n# \\boxed{42}\n```\n```output", "\n1\n```\n", "so be it"],
    ],
)
def test_bug_18_a_box_in_tool_output_or_code_is_no_answer(turns: list[str]) -> None:
    rollout = rollout_of(*turns)
    assert "\\boxed{42}" in rollout.text  # where the reference looks
    reward = make_reward(RewardConfig(), 100)(rollout.problem, rollout)
    assert reward is not None
    assert reward.value == -1.0


def test_bug_18_a_later_box_of_the_tool_does_not_hide_the_answer() -> None:
    rollout = rollout_of("\\boxed{42}, to check:\n" + CALL, "\n\\boxed{41}\n```\n", "as said")
    reward = make_reward(RewardConfig(), 100)(rollout.problem, rollout)
    assert reward is not None
    assert reward.value == 1.0


# --- 19: evaluation depends on the batch --------------------------------------------------------------------


def test_bug_19_a_response_is_the_same_whatever_shares_its_batch() -> None:
    assert reference_rounds([END]) != reference_rounds([END, CALL])[:1]
    scripts = {"A": [END], "B": [CALL, END], "C": ["```output", "no idea"]}
    texts = {prompt: rollout.text for prompt, rollout in zip(scripts, play(scripts), strict=True)}
    for size in (1, 2):
        for start in range(len(scripts) - size + 1):
            some = dict(list(scripts.items())[start : start + size])
            assert [r.text for r in play(some)] == [texts[prompt] for prompt in some]


def test_bug_19_an_evaluation_of_one_item_grades_its_answer() -> None:
    rollouts = empty_rollouts(["Q"])
    make_loop(script_model({"Q": [END]}), PythonTool(ScriptedExecutor(FORTY_TWO))).run(rollouts)
    reward = make_reward(RewardConfig(), 400)(rollouts[0].problem, rollouts[0])
    assert reward is not None
    assert reward.value == 1.0

"""Where the marker falls over tokens, and the closing fence in its place."""

from __future__ import annotations

import itertools

import pytest

from grpo_tir.testing import ScriptedExecutor, byte_tokenizer
from grpo_tir.tools.python import PythonTool
from scripted import (
    BLOCK,
    CALL,
    SHOWN,
    empty_rollouts,
    ids,
    kinds,
    make_loop,
    play,
    play_one,
    script_model,
    stdout,
)

END = "so \\boxed{42}"


def splits(marker: str) -> list[list[str]]:
    """Every way to write the marker as tokens."""
    found = []
    for cuts in itertools.product([False, True], repeat=len(marker) - 1):
        at = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), len(marker)]
        found.append([marker[a:b] for a, b in itertools.pairwise(at)])
    return found


OVERRUNS = ["", "\n", " x", "```output"]
MARKER = "```output"
PIECES = {MARKER[a:b] for a in range(9) for b in range(a + 1, 10)}
PIECES |= {MARKER[a:] + overrun for a in range(9) for overrun in OVERRUNS}
PIECES |= {"\n" + MARKER[:b] for b in range(1, 10)}
PIECES |= {BLOCK, SHOWN, END, "Q", "\n" + MARKER + "\n"}
FINE = byte_tokenizer(sorted(PIECES))


def piece(text: str) -> int:
    token = FINE.convert_tokens_to_ids("".join(FINE.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)[0][0]))
    assert FINE.decode([token]) == text
    return int(token)


@pytest.mark.parametrize("overrun", OVERRUNS)
def test_every_split_of_the_marker_calls_at_its_last_token(overrun: str) -> None:
    all_splits = splits(MARKER)
    turns = [[piece(p) for p in [BLOCK, *split[:-1], split[-1] + overrun]] for split in all_splits]
    rollouts = play({f"Q{i:03d}": [turn, END] for i, turn in enumerate(turns)}, tokenizer=FINE)
    assert len(rollouts) == 256
    newline = "" if overrun.endswith("\n") else "\n"
    for turn, rollout in zip(turns, rollouts, strict=True):
        assert rollout.segments[0].token_ids == turn  # as sampled, the overrunning token whole
        assert rollout.calls[0].code == "print(6*7)"
        assert rollout.segments[1].text == f"{newline}42\n```\n"
        assert rollout.segments[2].text == END


def test_a_token_that_begins_before_the_marker_and_ends_after_it_calls() -> None:
    code = ids(BLOCK.removesuffix("\n"), FINE)
    for turn in ([*code, piece("\n" + MARKER + "\n")], [*code, piece("\n```ou"), piece("tput x")]):
        rollout = play_one([turn, END], tokenizer=FINE)
        assert rollout.segments[0].token_ids == turn
        assert rollout.calls[0].code == "print(6*7)"


def test_a_marker_split_between_tool_output_and_model_is_no_call() -> None:
    """The inserted text ends in a fence; a policy that goes on with "output" has not called."""
    rollout = play_one([CALL, "output\n" + END], c=2)
    assert kinds(rollout)[2] == ("model", "output\n" + END)
    assert len(rollout.calls) == 1


# --- the closing fence as the stop ---------------------------------------------------------------------------


def test_with_the_closing_fence_the_tool_writes_the_marker_itself() -> None:
    call = BLOCK.removesuffix("\n")
    rollout = play_one([call, END], stop="fence")
    assert kinds(rollout) == [("model", call), ("tool", "\n```output\n42\n```\n"), ("model", END)]
    assert rollout.loss_mask == [1] * len(call) + [0] * len("\n```output\n42\n```\n") + [1] * (len(END) + 1)


def test_with_the_closing_fence_other_fences_do_not_pause() -> None:
    words = "as in ```x``` and\n```\nplain\n```\n```python\n```\n"  # an empty block is no call
    executor = ScriptedExecutor(stdout("42"))
    rollouts = empty_rollouts(["Q"])
    model = script_model({"Q": [words + BLOCK.removesuffix("\n"), END]})
    make_loop(model, PythonTool(executor, "fence")).run(rollouts)
    assert executor.seen == ["print(6*7)"]
    assert rollouts[0].segments[0].text == words + BLOCK.removesuffix("\n")


@pytest.mark.parametrize("c", range(5))
def test_with_the_closing_fence_exactly_c_blocks_are_run(c: int) -> None:
    call = BLOCK.removesuffix("\n")
    rollout = play_one([call] * c + [call + "\n" + call + END], stop="fence", c=c)
    assert [kind for kind, _ in kinds(rollout)] == ["model", "tool"] * c + ["model"]
    assert rollout.segments[-1].text == call + "\n" + call + END

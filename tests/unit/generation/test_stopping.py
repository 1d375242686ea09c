"""Where a row pauses, for every split of the text into tokens."""

from __future__ import annotations

import random

import pytest
import torch

from grpo_tir.generation.stopping import CodeBlockStopping, can_close
from grpo_tir.testing import byte_tokenizer
from scripted import BLOCK, BYTES, CALL, ids, read, reference_code, script_model

SUBSTRINGS = [("```output")[a:b] for a in range(9) for b in range(a + 1, 10)]
OTHERS = [
    "\n",
    "x",
    "put\n",
    "output\n",
    "```output\n",
    "`` `",
    "```python\n",
    "print(1)\n",
    "```\n",
    "\n```\n",
    "é",
    " ",
]
PIECES = byte_tokenizer([*SUBSTRINGS, *OTHERS])


def sequences(number: int, seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    size = len(PIECES)
    rare = list(range(256, size))  # the pieces of several bytes, and end-of-text
    likely = [*ids("`output\n", PIECES), *rare, *rare]
    return [[rng.choice(likely) for _ in range(rng.randrange(1, 30))] for _ in range(number)]


def first_stop(stopping: CodeBlockStopping, tokens: list[int]) -> int | None:
    return next((n for n in range(1, len(tokens) + 1) if stopping.stops(tokens[:n])), None)


def test_output_stops_at_the_first_token_after_which_the_text_holds_the_marker() -> None:
    stopping = CodeBlockStopping(PIECES)
    stopped = 0
    for tokens in sequences(1500, seed=1):
        expected = next((n for n in range(1, len(tokens) + 1) if "```output" in read(tokens[:n], PIECES)), None)
        assert first_stop(stopping, tokens) == expected, read(tokens, PIECES)
        stopped += expected is not None
    assert 200 < stopped < 1400


def test_fence_stops_where_a_block_closes_for_the_first_time() -> None:
    stopping = CodeBlockStopping(PIECES, stop="fence")
    stopped = 0
    rng = random.Random(2)
    names = ["```python\n", "print(1)\n", "```\n", "```", "``", "`", "\n", "x", "```python\n", "print(1)\n", " "]
    known = {name: ids(name, PIECES) for name in ("`", "\n", "x", " ")}
    vocabulary = {PIECES.decode([i]): [i] for i in range(256, len(PIECES))}
    for _ in range(1500):
        parts = [rng.choice(names) for _ in range(rng.randrange(1, 14))]
        tokens = [token for part in parts for token in known.get(part) or vocabulary[part]]
        expected = next((n for n in range(1, len(tokens) + 1) if reference_code(read(tokens[:n], PIECES))), None)
        assert first_stop(stopping, tokens) == expected, repr(read(tokens, PIECES))
        stopped += expected is not None
    assert stopped > 100


@pytest.mark.parametrize("stop", ["output", "fence"])
def test_a_marker_stops_once_whatever_is_written_behind_it(stop: str) -> None:
    """Behind the call stand the marker's own letters and, in the second case, further fences."""
    behind = "\nt ut put tput output ``" + ("\n```\nx\n```" if stop == "fence" else "")
    stopping, tokens = CodeBlockStopping(BYTES, stop), ids(CALL + behind)
    call = CALL if stop == "output" else BLOCK.rstrip("\n")
    assert [n for n in range(1, len(tokens) + 1) if stopping.stops(tokens[:n])] == [len(call)]


@pytest.mark.parametrize(
    ("token", "marker", "expected"),
    [
        ("t", "```output", True),
        ("put\nx", "```output", True),
        ("x```output y", "```output", True),
        ("```outpu", "```output", False),
        ("xput", "```output", False),
        ("", "```output", False),
        ("`", "```", True),
        ("python", "```", False),
    ],
)
def test_which_tokens_can_close_a_marker(token: str, marker: str, expected: bool) -> None:
    assert can_close(token, marker) is expected


def test_special_tokens_close_nothing() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["```output"]})
    stopping = CodeBlockStopping(tokenizer)
    assert tokenizer.convert_tokens_to_ids("```output") not in stopping.closers


def test_it_decodes_only_when_the_newest_token_can_close_the_marker(monkeypatch: pytest.MonkeyPatch) -> None:
    stopping = CodeBlockStopping(BYTES)
    monkeypatch.setattr(stopping, "_decode", lambda tokens: pytest.fail("decoded a row that cannot stop"))
    stopping(torch.tensor([ids("anything at al"), ids("```output but ")]))


def test_it_decodes_a_tail_of_bounded_length(monkeypatch: pytest.MonkeyPatch) -> None:
    stopping = CodeBlockStopping(BYTES)
    lengths: list[int] = []
    real = stopping._decode
    monkeypatch.setattr(stopping, "_decode", lambda tokens: lengths.append(len(tokens)) or real(tokens))
    assert stopping.stops(ids("words " * 500 + "```output"))
    assert max(lengths) <= 12


def test_plain_generate_stops_each_row_at_its_own_call() -> None:
    """A user's own `model.generate`: no loop, no sampler, just the criterion."""
    prompts = ["A ```output", "B       ```"]  # no marker of the prompt's, whole or in part, is the model's
    words = "output of a few words "
    scripts = {prompts[0]: [CALL + "\nnever said"], prompts[1]: [words + CALL + "\nnever said"]}
    model = script_model(scripts)
    stopping = CodeBlockStopping(BYTES)
    inputs = torch.tensor([ids(prompt) for prompt in prompts])
    out = model.generate(inputs, max_new_tokens=99, do_sample=False, stopping_criteria=[stopping],
                         pad_token_id=BYTES.pad_token_id)  # fmt: skip
    start = inputs.shape[1]
    texts = [
        read(row[start:stop])
        for row, stop in zip(out.tolist(), stopping.stopped_at, strict=True)
        if stop is not None
    ]
    assert texts == [CALL, words + CALL]


def test_the_answer_is_one_bool_a_row() -> None:
    stopping = CodeBlockStopping(BYTES, start=0)
    done = stopping(torch.tensor([ids("```output"), ids("```outpux")]))
    assert done.dtype == torch.bool
    assert done.tolist() == [True, False]


def test_a_row_stays_stopped_and_a_new_generate_begins_anew() -> None:
    stopping = CodeBlockStopping(BYTES, start=0)
    assert stopping(torch.tensor([ids("```output")])).tolist() == [True]
    assert stopping(torch.tensor([ids("```output" + "\n")])).tolist() == [True]
    assert stopping.stopped_at == [9]
    stopping.begin(10)
    assert stopping(torch.tensor([ids("```output\n" + "x")])).tolist() == [False]
    assert stopping.stopped_at == [None]


def test_rows_that_have_spent_their_calls_are_not_asked() -> None:
    stopping = CodeBlockStopping(BYTES)
    stopping.begin(0, may_stop=[False, True])
    assert stopping(torch.tensor([ids("```output")] * 2)).tolist() == [False, True]

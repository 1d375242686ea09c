"""Templates letter by letter, and the ids they become."""

from __future__ import annotations

from pathlib import Path

import pytest

from grpo_tir.data.prompts import encode, make_renderer
from grpo_tir.errors import TemplateError
from grpo_tir.testing import EOS, byte_tokenizer
from grpo_tir.types import Problem
from scripted import BYTES, ids, read

PROBLEM = Problem("p", "What is {6} \\times 7?", "42")


def test_torl_is_the_reference_template_letter_by_letter() -> None:
    assert make_renderer("torl")(PROBLEM) == (
        "A conversation between User and Assistant. The user asks a question, and the Assistant solves it.\n"
        "User: Please integrate natural language reasoning with programs to solve the problem above, and put your "
        "final answer within \\boxed{}.\n"
        "What is {6} \\times 7?\n"
        "Assistant:\n"
    )


def test_torl_0307_is_the_earlier_one() -> None:
    assert make_renderer("torl_0307")(PROBLEM) == (
        "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. "
        "The assistant first thinks about the reasoning process in the mind and then provides the user with the "
        "answer. User: Please integrate natural language reasoning with programs to solve the problem above, and "
        "put your final answer within \\boxed{}.\n"
        "What is {6} \\times 7?\n"
        "Assistant:\n"
    )


def test_plain_is_the_problem_and_a_newline() -> None:
    assert make_renderer("plain")(PROBLEM) == "What is {6} \\times 7?\n"


def test_a_problem_that_holds_the_placeholder_is_put_in_once() -> None:
    assert make_renderer("plain")(Problem("p", "Explain {problem}.", "")) == "Explain {problem}.\n"


def chat_tokenizer() -> object:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    return tokenizer


def test_chat_carries_the_instruction_as_system_message_unless_told_otherwise() -> None:
    tokenizer = chat_tokenizer()
    instruction = (
        "Please integrate natural language reasoning with programs to solve the problem above, and put your final "
        "answer within \\boxed{}."
    )
    user = "<user>What is {6} \\times 7?</><assistant>"
    assert make_renderer("chat", tokenizer)(PROBLEM) == f"<system>{instruction}</>{user}"
    assert make_renderer("chat", tokenizer, system="Be brief.")(PROBLEM) == f"<system>Be brief.</>{user}"
    assert make_renderer("chat", tokenizer, system="")(PROBLEM) == user


def test_a_template_of_ones_own_is_a_file_with_one_placeholder(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("Solve \\boxed{}: {problem} =>")
    assert make_renderer(str(path))(PROBLEM) == "Solve \\boxed{}: What is {6} \\times 7? =>"


@pytest.mark.parametrize("content", ["no placeholder", "{problem} and {problem}", ""])
def test_a_template_without_exactly_one_placeholder_is_refused_at_start(tmp_path: Path, content: str) -> None:
    path = tmp_path / "mine.txt"
    path.write_text(content)
    with pytest.raises(TemplateError, match="exactly once"):
        make_renderer(str(path))


def test_an_unknown_template_is_refused_at_start_with_the_known_names(tmp_path: Path) -> None:
    for name in ("tir_base_0309", str(tmp_path), str(tmp_path / "absent.txt"), ""):
        with pytest.raises(TemplateError, match="torl, torl_0307, plain, chat"):
            make_renderer(name)


def test_a_template_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.bin"
    path.write_bytes(b"\xff\xfe{problem}")
    with pytest.raises(TemplateError, match="readable text file"):
        make_renderer(str(path))


def test_chat_without_a_chat_template_is_refused() -> None:
    with pytest.raises(TemplateError, match="chat template"):
        make_renderer("chat", BYTES)


def test_nothing_is_added_at_either_end() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    assert encode(tokenizer, "ab") == ids("ab")
    assert encode(tokenizer, "") == []


def test_literal_text_never_becomes_a_special_token() -> None:
    text = f"a{EOS}b"
    assert BYTES.eos_token_id in encode(BYTES, text)
    assert BYTES.eos_token_id not in encode(BYTES, text, literal=True)
    assert read(encode(BYTES, text, literal=True)) == text
    assert BYTES.eos_token_id in encode(BYTES, text), "one literal text must not change the next one"

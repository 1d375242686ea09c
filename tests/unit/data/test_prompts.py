"""Templates letter by letter, and the ids they become."""

from __future__ import annotations

from pathlib import Path

import pytest

from chat_models import (
    CHATML_TOKENS,
    FORGETS,
    LLAMA_TOKENS,
    QWEN,
    QWEN_THINKS,
    bpe_tokenizer,
    llama_tokenizer,
)
from grpo_tir.data.chat import apply_chat, check_chat_template, encode_answer, tool_answer
from grpo_tir.data.prompts import make_renderer
from grpo_tir.data.tokens import encode
from grpo_tir.errors import TemplateError
from grpo_tir.testing import EOS, byte_tokenizer
from grpo_tir.tools.arguments import read_call
from grpo_tir.tools.formats import native_calls
from grpo_tir.tools.functions import calculator, schema_of
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


# --- tool messages of chat templates ----------------------------------------------------------------------------


def test_the_answer_to_two_calls_is_what_the_template_writes_between_two_turns() -> None:
    assert tool_answer(bpe_tokenizer(QWEN, CHATML_TOKENS), ["42", "a\nb"]) == [
        "<|im_end|>\n<|im_start|>user\n<tool_response>\n",
        "42",
        "\n</tool_response>\n<tool_response>\n",
        "a\nb",
        "\n</tool_response><|im_end|>\n<|im_start|>assistant\n",
    ]


def test_an_output_stands_in_an_answer_as_the_template_encodes_it() -> None:
    """Llama's template writes JSON."""
    head = "<|start_header_id|>{}<|end_header_id|>\n\n"
    parts = tool_answer(llama_tokenizer(), ['say "OUTPUT0MARK"'])
    assert parts == [
        "<|eot_id|>" + head.format("ipython") + '"',
        'say \\"OUTPUT0MARK\\"',
        '"<|eot_id|>' + head.format("assistant"),
    ]


@pytest.mark.parametrize("ended", [True, False])
def test_the_end_of_the_turn_is_inserted_only_if_it_was_not_sampled(ended: bool) -> None:
    tokenizer = bpe_tokenizer(QWEN, CHATML_TOKENS, 60)
    tokens, text = encode_answer(tokenizer, ["42"], ended)
    whole = "".join(tool_answer(tokenizer, ["42"]))
    assert text == whole.removeprefix("<|im_end|>") if ended else text == whole
    assert tokens == encode(tokenizer, text) and tokenizer.decode(tokens) == text


@pytest.mark.parametrize("template", [QWEN, QWEN_THINKS])
def test_templates_that_rows_can_be_continued_with_pass(template: str) -> None:
    check_chat_template(bpe_tokenizer(template, CHATML_TOKENS))


def test_a_template_may_open_the_thought_itself_if_it_keeps_it() -> None:
    begins = "<|im_start|>assistant\n' }}{%- endif %}"
    assert QWEN.endswith(begins)
    opens = QWEN.removesuffix(begins) + begins.replace("assistant\n", "assistant\n<think>\n")
    check_chat_template(bpe_tokenizer(opens, CHATML_TOKENS))


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (None, "needs a tokenizer with a chat template"),
        (FORGETS, "rewrites earlier turns .* becomes 'one<|im_end|>"),
        (QWEN.replace("message.role == 'tool'", "message.role == 'none'"), "leaves tool messages out"),
        (
            "{{ raise_exception('roles must alternate') if messages | length > 1 }}Go.",
            "renders no tool message: roles",
        ),
    ],
)
def test_a_template_that_no_row_can_be_continued_with_is_refused(template: str | None, says: str) -> None:
    tokenizer = bpe_tokenizer(QWEN, CHATML_TOKENS)
    tokenizer.chat_template = template
    with pytest.raises(TemplateError, match=says.replace("|", "\\|")):
        make_renderer("chat", tokenizer, tools=[{"type": "function"}])


def test_the_prompt_shows_the_tools_and_the_same_date_on_any_day() -> None:
    tool = {"type": "function", "function": {"name": "calculator"}}
    said = make_renderer("chat", llama_tokenizer(), tools=[tool])(PROBLEM)
    assert '"name": "calculator"' in said and "Today Date: 26 Jul 2024" in said


@pytest.mark.parametrize(
    ("name", "says"),
    [
        *((name, "") for name in ("qwen2_5", "qwen3", "qwen3_instruct_2507", "qwen3_5_think", "qwen3_6")),
        *((name, "") for name in ("nemotron_3_nano", "llama3_1", "llama3_2")),
        ("deepseek_r1_distill", "rewrites earlier turns"),
        ("gemma3", "renders no tool message"),
        ("phi3", "leaves tool messages out"),
    ],
)
def test_the_models_own_templates_as_trl_packs_them(name: str, says: str) -> None:
    """Those that pass also write a call that `tool_call` reads."""
    packed = pytest.importorskip("trl", reason="trl is not installed: pip install trl==1.16.0")
    tokenizer = bpe_tokenizer(QWEN, [*CHATML_TOKENS, *LLAMA_TOKENS], 60)
    tokenizer.chat_template = (Path(packed.__file__).parent / f"chat_templates/{name}.jinja").read_text()
    if says:
        with pytest.raises(TemplateError, match=says):
            check_chat_template(tokenizer)
        return
    check_chat_template(tokenizer)
    schema, asked = schema_of(calculator), [{"role": "user", "content": "Go."}]
    call = {"type": "function", "function": {"name": "calculator", "arguments": {"expression": "6*7"}}}
    said = [*asked, {"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "42"}]
    text = apply_chat(tokenizer, said, tools=[schema])[len(apply_chat(tokenizer, asked, tools=[schema])) :]
    calls = native_calls(text.partition("<|im_end|>")[0].partition("<|eot_id|>")[0])
    assert [read_call(each, {"calculator": schema}) for each in calls] == [("calculator", {"expression": "6*7"})]

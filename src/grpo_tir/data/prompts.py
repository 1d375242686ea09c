"""Build prompts: the text of a problem that the policy continues.

Base models get raw text, without a BOS token and without a chat template (which may delete markers of earlier
turns). `torl` and `torl_0307` equal the reference's templates exactly, including its mistake: they write "the
problem above", but the problem follows below.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from grpo_tir.data.chat import apply_chat, check_chat_template, tool_answer
from grpo_tir.errors import TemplateError
from grpo_tir.types import Problem

INSTRUCTION = (
    "Please integrate natural language reasoning with programs to solve the problem above, "
    "and put your final answer within \\boxed{}."
)
STEP_BY_STEP = "Please reason step by step, and put your final answer within \\boxed{}."
"""Instruction of Qwen2.5-Math for chain of thought without a tool."""
CONVERSATION = "A conversation between User and Assistant. The user asks a question, and the Assistant solves it."
THINKS_FIRST = (
    "The assistant first thinks about the reasoning process in the mind "
    "and then provides the user with the answer."
)
TEMPLATES = {
    # paper, Figure 3; `tir_base_0309` of the reference
    "torl": f"{CONVERSATION}\nUser: {INSTRUCTION}\n{{problem}}\nAssistant:\n",
    "torl_0307": f"{CONVERSATION} {THINKS_FIRST} User: {INSTRUCTION}\n{{problem}}\nAssistant:\n",
    "plain": "{problem}\n",
}
Renderer = Callable[[Problem], str]


def make_renderer(
    template: str,
    tokenizer: Any = None,
    system: str | None = None,
    tools: Sequence[dict[str, Any]] = (),
) -> Renderer:
    """Make a function that maps a problem to its prompt text.

    Args:
        template: a name of `TEMPLATES`, `chat` (the tokenizer's chat template), or the path of a text file that
            holds `{problem}` once.
        tokenizer: used by `chat` only.
        system: system message of `chat`; None means Qwen2.5-Math's TIR instruction, "" means no message.
        tools: JSON schemas of the tools, shown by `chat`. If there are any, the chat template also answers calls.

    Raises:
        TemplateError: unknown name, unreadable file, not exactly one `{problem}`, or no usable chat template.
    """
    if tools:
        check_chat_template(tokenizer)
    if template == "chat":
        return _chat(tokenizer, INSTRUCTION if system is None else system, tools)
    text = TEMPLATES.get(template) or _read(template)
    if text.count("{problem}") != 1:
        raise TemplateError(f"the template {template} must hold {{problem}} exactly once")
    # str.format would fail on the braces of \boxed{}
    return lambda problem: text.replace("{problem}", problem.problem)


def encode(tokenizer: Any, text: str, literal: bool = False) -> list[int]:
    """Encode a text to token ids. No special tokens are added at either end.

    With `literal`, special tokens in the text are split too: a program that prints "<|endoftext|>" must not insert
    that token.
    """
    ids: Sequence[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=literal)["input_ids"]
    return list(ids)


def _read(template: str) -> str:
    try:
        return Path(template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        names = ", ".join([*TEMPLATES, "chat"])
        raise TemplateError(
            f"data.template `{template}` is neither a template ({names}) nor a readable text file: {error}"
        ) from None


def _chat(tokenizer: Any, system: str, tools: Sequence[dict[str, Any]]) -> Renderer:
    if not getattr(tokenizer, "chat_template", None):
        raise TemplateError("data.template `chat` needs a tokenizer with a chat template; use `torl` or `plain`")
    settings: dict[str, Any] = {"tools": list(tools)} if tools else {}

    def render(problem: Problem) -> str:
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": problem.problem})
        return apply_chat(tokenizer, messages, **settings)

    return render


def encode_answer(tokenizer: Any, outputs: Sequence[str], ended: bool, answer: str = "") -> tuple[list[int], str]:
    """Encode the answer to a turn. Special tokens in an output are split.

    Args:
        tokenizer: the policy's.
        outputs: one for each call.
        ended: True if the turn was sampled with its end-of-text token, which is then left out of the answer.
        answer: text around each output, with `{result}`; "" means what the chat template writes.
    """
    before, _, after = answer.partition("{result}")
    own = [part for output in outputs for part in (before, output, after, "")]
    parts = own if answer else tool_answer(tokenizer, outputs)
    text = "".join(parts)
    if all(encode(tokenizer, output) == encode(tokenizer, output, literal=True) for output in parts[1::2]):
        ids = encode(tokenizer, text)  # in one piece, as the rendered conversation would be
    else:
        ids = [i for n, part in enumerate(parts) for i in encode(tokenizer, part, literal=n % 2 == 1)]
    if ended and ids and ids[0] in tokenizer.all_special_ids:
        text = text.removeprefix(tokenizer.decode(ids[:1]))
        ids = ids[1:]
    return ids, text

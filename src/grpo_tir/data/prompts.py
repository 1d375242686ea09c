"""Build prompts: the text of a problem that the policy continues.

Base models get raw text, without a BOS token and without a chat template (which may delete markers of earlier
turns). `torl` and `torl_0307` equal the reference's templates exactly, including its mistake: they write "the
problem above", but the problem follows below.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from grpo_tir.data.chat import chat_renderer, check_chat_template
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
        return chat_renderer(tokenizer, INSTRUCTION if system is None else system, tools)
    text = TEMPLATES.get(template) or _read(template)
    if text.count("{problem}") != 1:
        raise TemplateError(f"the template {template} must hold {{problem}} exactly once")
    # str.format would fail on the braces of \boxed{}
    return lambda problem: text.replace("{problem}", problem.problem)


def _read(template: str) -> str:
    try:
        return Path(template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        names = ", ".join([*TEMPLATES, "chat"])
        raise TemplateError(
            f"data.template `{template}` is neither a template ({names}) nor a readable text file: {error}"
        ) from None

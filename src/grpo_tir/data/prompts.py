"""Build prompts: the text of a problem that the policy continues.

Base models get raw text, without a BOS token and without a chat template (which may delete markers of earlier
turns). `torl` and `torl_0307` equal the reference's templates exactly, including its mistake: they write "the
problem above", but the problem follows below.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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
DATE = "26 Jul 2024"
"""Date for chat templates that show one: prompts must be the same when a run resumes."""
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


def apply_chat(tokenizer: Any, messages: list[dict[str, Any]], **settings: Any) -> str:
    """Render messages and the beginning of the next turn."""
    text: str = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, date_string=DATE, **settings
    )
    return text


def tool_answer(tokenizer: Any, outputs: Sequence[str]) -> list[str]:
    """Return what the chat template writes between a turn that calls tools and the next turn.

    The template is rendered with tool messages. The result begins with the end of the calling turn:

        ["<|im_end|>⏎<|im_start|>user⏎<tool_response>⏎", "42", "⏎</tool_response><|im_end|>⏎<|im_start|>assis…⏎"]

    Returns:
        Text of the template and outputs, alternately. Each output is as the template renders it.
    """
    marks = [f"OUTPUT{number}MARK" for number in range(len(outputs))]
    rest, parts = _after_turn(tokenizer, marks), list[str]()
    before, _, after = _after_turn(tokenizer, marks[:1]).partition(marks[0])
    for mark, output in zip(marks, outputs, strict=True):
        part, _, rest = rest.partition(mark)
        alone = _after_turn(tokenizer, [output])
        parts += [part, alone[len(before) : len(alone) - len(after)]]
    return [*parts, rest]


def _after_turn(tokenizer: Any, outputs: Sequence[str], turn: str = "TURN0MARK") -> str:
    messages = [{"role": "user", "content": "Go."}, {"role": "assistant", "content": turn}]
    messages += [{"role": "tool", "content": output} for output in outputs]
    return apply_chat(tokenizer, messages).partition(turn)[2]


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


def check_chat_template(tokenizer: Any) -> None:
    """Check that a prompt, sampled turns and inserted answers, joined, equal the rendered conversation.

    Raises:
        TemplateError: there is no chat template, it has no tool messages, or it rewrites earlier turns.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise TemplateError("tool.format needs a tokenizer with a chat template; use `output`, or your own format")
    messages: list[dict[str, Any]] = [{"role": "user", "content": "Go."}]
    output = "OUTPUT0MARK"
    try:
        prompt = apply_chat(tokenizer, messages)
        thinks = prompt.rstrip().endswith("<think>")
        for thought in ("step\n</think>\n\n",) if thinks else ("", "<think>\nstep\n</think>\n\n"):
            said, row = messages, prompt
            for turn in (f"{thought}one", f"{thought}two"):
                opened = "<think>\n" if thinks else ""
                said = [
                    *said,
                    {"role": "assistant", "content": opened + turn},
                    {"role": "tool", "content": output},
                ]
                row += turn + "".join(tool_answer(tokenizer, [output]))
            if output not in row:
                raise TemplateError("the chat template leaves tool messages out: give tool.format a YAML file")
            if (rendered := apply_chat(tokenizer, said)) != row:
                differs = next(n for n, (a, b) in enumerate(zip(row + " ", rendered + " ")) if a != b)
                raise TemplateError(
                    f"the chat template rewrites earlier turns ({row[differs:][:30]!r} becomes "
                    f"{rendered[differs:][:30]!r}): give tool.format a YAML file with an `answer`"
                )
    except TemplateError:
        raise
    except Exception as error:  # a template may raise anything
        raise TemplateError(f"the chat template renders no tool message: {str(error).splitlines()[0]}") from None

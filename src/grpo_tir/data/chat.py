"""Render conversations with the model's chat template, and find what it writes between two turns.

An answer to a call is inserted exactly as the template writes a tool message.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grpo_tir.errors import TemplateError

DATE = "26 Jul 2024"
"""Date for chat templates that show one: prompts must be the same when a run resumes."""


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

"""Render conversations with the model's chat template, and find what it writes between two turns.

An answer to a call is inserted exactly as the template writes a tool message.
"""

from collections.abc import Callable, Sequence
from typing import Any

from grpo_tir.data.tokens import encode
from grpo_tir.errors import TemplateError
from grpo_tir.types import Problem

DATE = "26 Jul 2024"
"""Date for chat templates that show one: prompts must be the same when a run resumes."""


def apply_chat(tokenizer: Any, messages: list[dict[str, Any]], **settings: Any) -> str:
    """Render messages and the beginning of the next turn."""
    text: str = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, date_string=DATE, **settings
    )
    return text


def chat_renderer(tokenizer: Any, system: str, tools: Sequence[dict[str, Any]]) -> Callable[[Problem], str]:
    """Make a function that renders a problem as the user's message, after the `system` message if there is one."""
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

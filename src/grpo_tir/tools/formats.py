"""Define how calls are written in text: the formats that `tool.format` names.

    format      a call in the text of the policy                      pauses the row
    output      ```python⏎code⏎```⏎```output                          the marker (the paper's way)
    fence       ```python⏎code⏎```                                    the closing fence
    tool_call   <tool_call>{json}</tool_call>       (Hermes, Qwen3)   the end-of-text token of a turn with calls:
                <tool_call><function=…>…</tool_call>    (Qwen3.5)     it may hold several
                <|python_tag|>{json} or code, or {json}     (Llama)
    PATH        opening … closing                                     the closing text, or the end of the turn

With `tool_call` the sampled turn keeps its end-of-text token, which is trained. What the chat template writes from
there to the next turn (`data.chat.tool_answer`) is inserted and masked:

    <tool_call>⏎{"name": "calculator", "arguments": {"expression": "6*7"}}⏎</tool_call><|im_end|>    ← sampled
    ⏎<|im_start|>user⏎<tool_response>⏎42⏎</tool_response><|im_end|>⏎<|im_start|>assistant⏎           ← inserted
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import yaml

from grpo_tir.errors import ConfigError
from grpo_tir.tools.python import CALL_MARKER, FENCE, OUTPUT_MARKER, code_blocks, find_code
from grpo_tir.utils.resources import find_file

CODE_FORMATS = ("output", "fence")
OPENING, CLOSING, PYTHON_TAG = "<tool_call>", "</tool_call>", "<|python_tag|>"


@dataclasses.dataclass(frozen=True)
class Format:
    """Describe a format. A user's YAML file sets these fields, except `name`."""

    name: str
    opening: str = OPENING
    """Text before a call."""
    closing: str = ""
    """Text after a call. Without it, a call ends with its turn."""
    pause: Literal["closing", "turn"] = "closing"
    """Event that pauses a row: the closing text, or the end-of-text token of a turn with calls."""
    parse: Literal["json", "text"] = "json"
    """`json`: an object with `name` and `arguments`. `text`: the whole call is the only argument of the only
    tool."""
    answer: str = ""
    """Text that answers a call, with `{result}`, and with special tokens where needed. "" means a tool message of
    the model's chat template."""

    @property
    def marker(self) -> str:
        """Return the text that pauses a row; "" if the end of a turn pauses it."""
        return self.closing if self.pause == "closing" else ""

    @property
    def by_template(self) -> bool:
        """Return True if the chat template renders the answers."""
        return not self.answer

    def find(self, text: str) -> list[str]:
        """Return the calls of a segment, in order. With `pause: turn`, a call without its closing text counts."""
        if self.name in CODE_FORMATS:
            code = find_code(text)
            return [] if code is None else [code]
        if self.name == "tool_call":
            return native_calls(text)
        return between(text, self.opening, self.closing, self.pause == "turn")


BUILT_IN = {
    "output": Format("output", CALL_MARKER, OUTPUT_MARKER, answer="{result}"),
    "fence": Format("fence", CALL_MARKER, FENCE, answer="{result}"),
    "tool_call": Format("tool_call", pause="turn"),
}
"""Formats by name. For the first two, `PythonTool.observe` writes the fences around an output."""


def load_format(name: str) -> Format:
    """Return a format by its name, or read it from a YAML file.

    Raises:
        ConfigError: no such format or file, or a field that it cannot have.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    path = find_file(name)
    if path is None:
        raise ConfigError(f"tool.format `{name}` is neither output, fence, tool_call nor a YAML file")
    return _read(name, path)


def _read(name: str, path: Path) -> Format:
    known = {field.name for field in dataclasses.fields(Format)} - {"name"}
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"tool.format {name} cannot be read: {str(error).splitlines()[0]}") from None
    texts = isinstance(given, dict) and all(isinstance(value, str) for value in given.values())
    if not texts or not set(given) <= known:
        raise ConfigError(f"tool.format {name} must set texts, and only these: {', '.join(sorted(known))}")
    made = Format(name, **given)
    if made.pause not in ("closing", "turn") or made.parse not in ("json", "text") or not made.opening:
        raise ConfigError(
            f"tool.format {name}: pause is `closing` or `turn`, parse `json` or `text`, opening a text"
        )
    if made.pause == "closing" and not made.closing:
        raise ConfigError(f"tool.format {name} has no `closing` text: add it, or write `pause: turn`")
    if made.answer and "{result}" not in made.answer:
        raise ConfigError(f"tool.format {name}: its answer holds no {{result}}")
    return made


def between(text: str, opening: str, closing: str, may_be_open: bool = True) -> list[str]:
    """Return the texts between `opening` and `closing`."""
    parts = text.split(opening)[1:]
    if not may_be_open:
        parts = [part for part in parts if closing in part]
    return [(part.partition(closing)[0] if closing else part).strip() for part in parts]


def native_calls(text: str) -> list[str]:
    """Return the calls of a turn in one of the forms that chat models know. Text before "</think>" is ignored."""
    text = text.rpartition("</think>")[2]
    if OPENING in text:
        return between(text, OPENING, CLOSING)
    _, tag, tagged = text.partition(PYTHON_TAG)
    calls = objects((tagged if tag else text).strip())
    if tag and tagged.strip()[:1] != "{":  # Llama writes code for its interpreter without JSON around it
        return [json.dumps({"name": "python", "arguments": {"code": tagged.strip()}})]
    return calls if tag or all(_is_call(call) for call in calls) else []


def objects(text: str) -> list[str]:
    """Split JSON objects that follow one another: Llama writes several calls like this. A rest that is no JSON is
    returned whole."""
    found = []
    while text:
        try:
            end = json.JSONDecoder().raw_decode(text)[1]
        except (ValueError, RecursionError):
            end = len(text)
        found.append(text[:end])
        text = text[end:].lstrip("; \n")
    return found


def _is_call(text: str) -> bool:
    try:
        read_json(text)
    except ValueError:
        return False
    return True


def written_calls(text: str) -> list[str]:
    """Return the calls in a text of the model, for the metrics: calls in a native form, or Python blocks."""
    return native_calls(text) or code_blocks(text)


def read_json(text: str) -> tuple[str, dict[str, Any]]:
    """Return name and arguments of a call that is a JSON object. Llama calls the arguments `parameters`.

    Raises:
        ValueError: one line that the model reads.
    """
    try:
        call = json.loads(text)
        json.dumps(call, ensure_ascii=False).encode()  # raises for half of a surrogate pair
    except (ValueError, RecursionError) as error:
        raise ValueError(f"MalformedCall: the call is not valid JSON: {str(error).splitlines()[0]}") from None
    fields = call if isinstance(call, dict) else {}
    name, arguments = fields.get("name"), fields.get("arguments", fields.get("parameters"))
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise ValueError("MalformedCall: a call is a JSON object with `name`, a text, and `arguments`, an object")
    return name, arguments

"""Which text is a call, in every format; and where a row pauses for it, however its text is split into tokens."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from chat_models import LLAMA, LLAMA_TOKENS, QWEN, bpe_tokenizer, llama_tokenizer
from grpo_tir.config import Config, check
from grpo_tir.errors import ConfigError
from grpo_tir.generation.stopping import CodeBlockStopping
from grpo_tir.testing import byte_tokenizer
from grpo_tir.tools.arguments import check_call, read_call
from grpo_tir.tools.formats import load_format, native_calls, read_json
from grpo_tir.tools.functions import calculator, python, schema_of
from scripted import ids, read
from tiny_policy import change

A, B = '{"name": "a", "arguments": {}}', '{"name": "b", "parameters": {"x": 1}}'


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("no call", []),
        (f"<tool_call>\n{A}\n</tool_call>", [A]),
        (f"So\n<tool_call>{A}</tool_call>\n<tool_call>{B}</tool_call>", [A, B]),
        (f"<tool_call>{A}", [A]),
        ("<tool_call>oops</tool_call>", ["oops"]),
        (f"<think><tool_call>{A}</tool_call></think>\n\n42", []),
        (f"<|python_tag|>{B}", [B]),
        (f"<|python_tag|>{A}; {B}", [A, B]),
        (f"<|python_tag|>{A} and {B}", [A, f"and {B}"]),
        ("<|python_tag|>x = 1\nprint(x)", ['{"name": "python", "arguments": {"code": "x = 1\\nprint(x)"}}']),
        (B, [B]),
        (f" {B};{A}\n", [B, A]),
        ('{"answer": 42}', []),
        (f"I call {B}", []),
        ("{not json", []),
        ("", []),
    ],
)
def test_which_text_is_a_native_call(text: str, calls: list[str]) -> None:
    assert native_calls(text) == calls


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"name": 1, "arguments": {}}',
        '{"name": "a"}',
        '{"name": "a", "arguments": "x"}',
        "[" * 9**5,
    ],
)
def test_a_malformed_call_is_told_in_one_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"^MalformedCall: [^\n]+$"):
        read_json(text)


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("<function=area>\n<parameter=width>\n2\n</parameter>\n</function>", {"width": 2}),
        (
            "<function=area>\n<parameter=width>\n2\n</parameter>\n<parameter=unit>\n2\n\nm\n</parameter>\n</function>",
            {"width": 2, "unit": "2\n\nm"},
        ),
        (
            "<function=area><parameter=exact>true</parameter><parameter=unit>7</parameter>",
            {"exact": True, "unit": "7"},
        ),
        ("<function=area>\n<parameter=width>\nwide\n</parameter>", {"width": "wide"}),
        ("<function=area>", {}),
        ('{"name": "area", "arguments": {"width": 2}}', {"width": 2}),
    ],
)
def test_a_call_in_tags_is_read_by_the_types_of_the_schema(call: str, arguments: dict[str, object]) -> None:
    assert read_call(call, {"area": schema_of(area)}) == ("area", arguments)


def area(width: int, height: float = 1.0, exact: bool = False, unit: str | None = None) -> float:
    """Compute an area.

    Args:
        width: One side.
        height: The other side.
        exact: Whether to round.
        unit: The unit.
    """
    return width * height


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({"width": 2}, ""),
        ({"width": 2, "height": 3, "exact": True, "unit": None}, ""),
        ({"height": 1.5}, "`width` is missing"),
        ({"width": 2, "depth": 3}, "'depth' is unknown"),
        ({"width": "2"}, "`width` must be of type integer"),
        ({"width": True}, "`width` must be of type integer"),
        ({"width": None}, "`width` must be of type integer"),
        (
            {"width": 2, "height": "x", "exact": 1},
            "`height` must be of type number, `exact` must be of type boolean",
        ),
    ],
)
def test_arguments_are_checked_against_the_hints_of_the_function(arguments: dict[str, object], fault: str) -> None:
    schemas = {"area": schema_of(area)}
    if not fault:
        return check_call("area", arguments, schemas)
    with pytest.raises(ValueError) as caught:
        check_call("area", arguments, schemas)
    assert str(caught.value) == f"WrongArguments: area: {fault}"


def test_the_built_in_tools_have_schemas() -> None:
    for function, argument in ((python, "code"), (calculator, "expression")):
        parameters = schema_of(function)["function"]["parameters"]
        assert parameters["required"] == [argument] and parameters["properties"][argument]["type"] == "string"


# --- formats of one's own -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("closing: [1]", "must set texts, and only these: answer, closing, opening, parse, pause"),
        ("ending: x", "must set texts, and only these"),
        ("- x", "must set texts"),
        ("opening: <a>", "has no `closing` text"),
        ("{closing: x, answer: y}", "its answer holds no {result}"),
        ("{closing: x, parse: xml}", "parse `json` or `text`"),
        ("{", "cannot be read"),
    ],
)
def test_a_format_file_that_cannot_work_is_refused_in_one_line(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_format(str(tmp_path / "own.yaml"))
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"tool__names": ["python", "calculator"]}, "tool.format output names no tool"),
        ({"tool__names": [], "tool__format": "tool_call"}, "tool.names must name a tool"),
        ({"tool__calls_by_tool": [1, 2]}, "tool.calls_by_tool have a number for each"),
    ],
)
def test_settings_of_tools_that_contradict_each_other_are_refused(settings: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check(change(Config(), **settings))
    with pytest.raises(ConfigError, match="neither output, fence, tool_call nor a YAML file"):
        load_format("fense")


PIECES = ["<s>", "</s>", "</", "s>", "/s", "<", ">", "x", "s></s", "</s>x", "<s", "é", "\n"]


def test_a_format_of_ones_own_pauses_where_its_text_is_first_closed(tmp_path: Path) -> None:
    """Against `in` and `find` on the text, for random splits into tokens."""
    (tmp_path / "own.yaml").write_text("{opening: <s>, closing: </s>, parse: text}")
    tokenizer = byte_tokenizer(PIECES)
    stopping = CodeBlockStopping(tokenizer, str(tmp_path / "own.yaml"))
    rng, stopped = random.Random(0), 0
    for _ in range(1500):
        tokens = rng.choices([*range(256, len(tokenizer)), *ids("<s>/x", tokenizer)], k=rng.randrange(1, 25))
        texts = [read(tokens[:n], tokenizer) for n in range(len(tokens) + 1)]
        closed = [n for n, text in enumerate(texts) if "</s>" in text[text.find("<s>") :] and "<s>" in text]
        found = [n for n in range(1, len(tokens) + 1) if stopping.stops(tokens[:n])]
        assert found[:1] == closed[:1], texts[-1]
        stopped += bool(found)
    assert 300 < stopped < 1400


def test_a_closing_that_is_a_special_token_pauses_too(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text('{opening: "<|python_tag|>", closing: "<|eom_id|>"}')
    tokenizer = llama_tokenizer()
    stopping = CodeBlockStopping(tokenizer, str(tmp_path / "own.yaml"))
    tokens = ids(f"<|python_tag|>{A}<|eom_id|>", tokenizer)
    assert [n for n in range(1, len(tokens) + 1) if stopping.stops(tokens[:n])] == [len(tokens)]


@pytest.mark.parametrize(("template", "bare"), [(QWEN, False), (LLAMA, True)])
def test_json_without_tags_is_a_call_only_where_the_template_writes_it_so(template: str, bare: bool) -> None:
    tokenizer = bpe_tokenizer(template, LLAMA_TOKENS)
    stopping = CodeBlockStopping(tokenizer, "tool_call")
    end = [tokenizer.eos_token_id]
    assert stopping.stops(ids(json.dumps({"name": "a", "arguments": {}}), tokenizer) + end) is bare
    assert stopping.stops(ids(f"<tool_call>{A}</tool_call>", tokenizer) + end)
    assert not stopping.stops(ids(f"<tool_call>{A}</tool_call>", tokenizer)), "the turn goes on"
    assert not stopping.stops(ids("42", tokenizer) + end)

r"""What counts as the model's answer: the last box it wrote itself, outside code."""

from __future__ import annotations

import pytest

from grpo_tir.grading.extract import extract_answer, model_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{42}.", "42"),
        (r"\boxed{1} no, \boxed{2}", "2"),
        (r"\boxed{\frac{1}{\sqrt{2+\sqrt{3}}}}", r"\frac{1}{\sqrt{2+\sqrt{3}}}"),
        (r"\boxed{\left\{1,\frac{2}{3}\right\}}", r"\left\{1,\frac{2}{3}\right\}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed {5}", "5"),
        (r"$\boxed 5$ as asked", "5"),
        (r"$\boxed 3+\sqrt2$", r"3+\sqrt2"),
        ("it is \\boxed 5.\nDone", "5"),
        (r"\fbox{7}", "7"),
        (r"\boxed{\boxed{6}}", "6"),
        (r"\boxed{ 8 }", "8"),
        (r"\boxed{}", ""),
        (r"\boxed{" + "{" * 50 + "1" + "}" * 50 + "}", "{" * 50 + "1" + "}" * 50),
        (r"\boxed{a\\b}", r"a\\b"),
    ],
)
def test_the_last_box_is_the_answer(text: str, answer: str) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize("text", ["", "42", r"\boxed", r"\boxed{42", r"\boxed{1} then \boxed{2", r"\boxedx{3}"])
def test_no_box_or_an_open_one_is_no_answer(text: str) -> None:
    assert extract_answer(text) is None


def test_a_box_in_code_or_in_printed_output_is_no_answer() -> None:
    code = "```python\nprint(r'\\boxed{1}')\n```\n```output\n\\boxed{2}\n```\n"
    assert extract_answer(code) is None
    assert extract_answer(code + r"So \boxed{3}.") == "3"
    assert extract_answer(r"\boxed{3}" + "\n" + code) == "3"


def test_the_papers_marker_closes_the_code_and_opens_the_output() -> None:
    text = "```python\nprint(6)\n```output\n6 \\boxed{6}\n```\nThe answer is \\boxed{7}."
    assert extract_answer(text) == "7"


def test_an_unclosed_fence_hides_what_follows() -> None:
    assert extract_answer("```python\nprint(1)\n\\boxed{1}") is None
    assert extract_answer("first \\boxed{1}\n```python\n\\boxed{2}") == "1"


def test_a_fence_may_open_at_the_end_of_a_line_but_inline_code_opens_nothing() -> None:
    assert extract_answer("let us see ```python\nprint('\\boxed{1}')\n```\n\\boxed{2}") == "2"
    assert extract_answer("use ```print``` or `x` here\n\\boxed{2}") == "2"


def test_words_that_announce_an_answer_are_no_box() -> None:
    assert extract_answer("Therefore the final answer is: 12.") is None
    assert extract_answer("work\n#### 18") is None


def test_the_answer_is_that_of_the_last_segment_with_a_box() -> None:
    assert model_answer([r"\boxed{1}", "so be it"]) == "1"
    assert model_answer([r"\boxed{1}", r"no: \boxed{2}"]) == "2"
    assert model_answer(["nothing", "at all"]) is None
    assert model_answer([]) is None


def test_a_box_never_spans_two_segments() -> None:
    """What the tool wrote stands between them."""
    assert model_answer([r"\boxed{4", "2}"]) is None
    assert model_answer([r"\boxed{", r"} \boxed{5}"]) == "5"


def test_a_fence_does_not_reach_into_the_next_segment() -> None:
    """A segment that stops at the marker ends inside a fence; the inserted output closes it."""
    assert model_answer(["```python\nprint(1)\n```output", r"hence \boxed{9}"]) == "9"

"""Every row is either taken as it stands or named with its file and line; the order is fixed by the seed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from grpo_tir.data.problems import ProblemSampler, load_problems
from grpo_tir.errors import ConfigError, DataError
from grpo_tir.types import Problem

Write = Callable[..., Path]
GOOD = '{"id": "a", "problem": "1 + 1?", "answer": "2", "source": "school"}'


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def make(*lines: str | bytes, name: str = "problems.jsonl") -> Path:
        path = tmp_path / name
        path.write_bytes(b"\n".join(line.encode() if isinstance(line, str) else line for line in lines) + b"\n")
        return path

    return make


def test_a_row_is_taken_as_it_stands(write: Write) -> None:
    problems, skipped = load_problems(write(GOOD))
    assert problems == [Problem("a", "1 + 1?", "2", "school")]
    assert not skipped


BAD_ROWS = {
    "missing answer": ('{"id": "b", "problem": "x"}', "no column `answer`; its columns are: id, problem"),
    "null answer": ('{"id": "b", "problem": "x", "answer": null}', "`answer` is missing (null)"),
    "empty answer": ('{"id": "b", "problem": "x", "answer": ""}', "`answer` is empty"),
    "list as answer": ('{"id": "b", "problem": "x", "answer": ["1"]}', "`answer` must be text, this is a list"),
    "boolean answer": (
        '{"id": "b", "problem": "x", "answer": true}',
        "`answer` must be text, this is true or false",
    ),
    "wrong JSON": ('{"id": "b", "problem": "x", "answer": 1', "wrong JSON: Expecting ',' delimiter at column 40"),
    "not a number": ('{"id": "b", "problem": "x", "answer": NaN}', "wrong JSON: NaN is not a JSON value"),
    "deep nesting": ("[" * 100_000, "wrong JSON: nested too deeply"),
    "empty problem": ('{"id": "b", "problem": " \\n ", "answer": "1"}', "`problem` is empty"),
    "number as problem": (
        '{"id": "b", "problem": 3, "answer": "1"}',
        "`problem` must be text, this is the number 3",
    ),
    "no object": ('"x"', "a row is an object with columns, this is text"),
    "duplicate id": ('{"id": "a", "problem": "x", "answer": "1"}', "the id a is taken by line 1"),
    "missing id": ('{"problem": "x", "answer": "1"}', "no column `id`; its columns are: problem, answer"),
    "gigantic number": (
        '{"id": "b", "problem": "x", "answer": ' + "9" * 5000 + "}",
        "the answer is gigantic: 5,000 characters, the limit is 1,000",
    ),
    "gigantic power": (
        '{"id": "b", "problem": "x", "answer": "1e999999999"}',
        "the answer is a gigantic number: 1e999999999",
    ),
    "latin-1": (
        '{"id": "b", "problem": "café", "answer": "1"}'.encode("latin-1"),
        "wrong encoding: not UTF-8 (byte 0xe9 at column 28); convert the file with `iconv -t UTF-8`",
    ),
    "half a surrogate": (
        '{"id": "b", "problem": "\\ud800", "answer": "1"}',
        "`problem` holds half of a surrogate pair, which no tokenizer can encode",
    ),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_a_bad_row_is_named_with_file_and_line(kind: str, write: Write) -> None:
    row, reason = BAD_ROWS[kind]
    path = write(GOOD, "", row)
    with pytest.raises(DataError) as stopped:
        load_problems(path)
    assert str(stopped.value) == f"{path} line 3: {reason} (`--on-bad skip` leaves such rows out)"
    assert load_problems(path, on_bad="skip") == (
        [Problem("a", "1 + 1?", "2", "school")],
        [f"{path} line 3: {reason}"],
    )


def test_all_bad_rows_are_counted(write: Write) -> None:
    path = write(GOOD, *(row for row, _ in BAD_ROWS.values()))
    problems, skipped = load_problems(path, on_bad="skip")
    assert [problem.id for problem in problems] == ["a"]
    assert len(skipped) == len(BAD_ROWS)


@pytest.mark.parametrize("number", ["2", "-7", "0.10", "1E3", "123456789012345678901234567890.5", "9" * 1000])
def test_a_number_is_taken_as_its_exact_text(number: str, write: Write) -> None:
    """Read as a float, 0.10 would lose its zero and thirty digits half of themselves."""
    problems, _ = load_problems(write(f'{{"problem": "x", "answer": {number}}}'))
    assert problems[0].answer == number
    assert type(problems[0].answer) is str


def test_without_ids_the_line_number_serves(write: Write) -> None:
    path = write('{"problem": "x", "answer": "1"}', "", '{"problem": "y", "answer": "2"}')
    assert [problem.id for problem in load_problems(path)[0]] == ["1", "3"]


def test_columns_are_mapped(write: Write) -> None:
    path = write('{"uid": 7, "question": "x", "gold": "1"}')
    problems, _ = load_problems(path, problem_field="question", answer_field="gold", id_field="uid")
    assert problems == [Problem("7", "x", "1", "")]


@pytest.mark.parametrize(
    ("row", "hint"),
    [
        (
            {"problems": "x", "answer": "1"},
            "did you mean `problems`? Set data.problem_field (`grpo-tir data`: --problem-field) to problems",
        ),
        (
            {"question": "x", "answer": "1"},
            "did you mean `question`? Set data.problem_field (`grpo-tir data`: --problem-field) to question",
        ),
        (
            {"problem": "x", "final_answer": "1"},
            "did you mean `final_answer`? Set data.answer_field (`grpo-tir data`: --answer-field) to final_answer",
        ),
    ],
)
def test_the_nearest_column_is_suggested(row: dict[str, str], hint: str, write: Write) -> None:
    with pytest.raises(DataError) as stopped:
        load_problems(write(json.dumps(row)))
    assert hint in str(stopped.value)


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(write: Write) -> None:
    path = write(b"\xef\xbb\xbf" + GOOD.encode() + b"\r")
    assert load_problems(path)[0] == [Problem("a", "1 + 1?", "2", "school")]


def test_utf_16_is_named_as_such(write: Write) -> None:
    with pytest.raises(DataError, match="is UTF-16: convert it with"):
        load_problems(write(GOOD.encode("utf-16")))


def test_a_json_list_is_read_by_row(write: Write) -> None:
    path = write(f"[{GOOD},", '{"id": "b", "problem": "x"}]', name="problems.json")
    problems, skipped = load_problems(path, on_bad="skip")
    assert [problem.id for problem in problems] == ["a"]
    assert skipped == [f"{path} row 2: no column `answer`; its columns are: id, problem"]


def test_a_json_file_of_lines_is_read_by_line(write: Write) -> None:
    assert len(load_problems(write(GOOD, name="problems.json"))[0]) == 1


def test_parquet_rows_equal_the_lines_they_came_from(write: Write, tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="parquet needs the extra [data]")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"id": i, "problem": f"p{i}", "answer": i * 2} for i in range(5)]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "problems.parquet", row_group_size=2)
    lines = write(*(json.dumps(row) for row in rows))
    assert load_problems(tmp_path / "problems.parquet") == load_problems(lines)


def test_a_broken_parquet_file_is_one_clear_line(write: Write) -> None:
    pytest.importorskip("pyarrow", reason="parquet needs the extra [data]")
    with pytest.raises(DataError, match=r"broken\.parquet is not readable as parquet"):
        load_problems(write("no parquet", name="broken.parquet"))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nowhere.jsonl", "there is no such file"),
        ("some/folder/problems", "there is no such file"),
        (".", "a folder"),
    ],
)
def test_what_cannot_be_opened_is_named(name: str, reason: str) -> None:
    with pytest.raises(DataError, match=f"cannot read {re.escape(name)}: .*{reason}"):
        load_problems(name)


def test_nothing_usable_is_an_error_even_when_skipping(write: Write) -> None:
    with pytest.raises(DataError, match="holds no usable problem; it is empty"):
        load_problems(write(""))
    with pytest.raises(DataError, match=r"holds no usable problem; .* line 1: wrong JSON"):
        load_problems(write("{"), on_bad="skip")


GENERATOR = """
from grpo_tir.types import Problem

def sums(): yield from (Problem(f"s{i}", f"{i}+{i}?", str(2 * i)) for i in range(3))
def wrong(): yield "1+1"
def blank(): yield Problem("b", "", "1")
def broken():
    yield Problem("a", "1+1?", "2")
    raise RuntimeError("the source ran dry")
"""


def test_a_function_may_yield_the_problems(write: Write) -> None:
    path = write(GENERATOR, name="mine.py")
    problems, _ = load_problems(f"{path}:sums", problem_field="question")
    assert problems == [Problem("s0", "0+0?", "0"), Problem("s1", "1+1?", "2"), Problem("s2", "2+2?", "4")]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("wrong", "item 1: .*mine.py:wrong must yield Problem objects, this is text"),
        ("blank", "item 1: `problem` is empty"),
        ("broken", "mine.py:broken failed: RuntimeError: the source ran dry"),
        ("__name__", "must be a function that yields Problem objects"),
    ],
)
def test_a_function_that_yields_something_else_is_named(function: str, message: str, write: Write) -> None:
    with pytest.raises(DataError, match=message):
        load_problems(f"{write(GENERATOR, name='mine.py')}:{function}")


def test_a_function_that_is_not_there_is_a_config_error(write: Write) -> None:
    with pytest.raises(ConfigError, match="has no `sum`; did you mean `sums`"):
        load_problems(f"{write(GENERATOR, name='mine.py')}:sum")


def test_the_limr_prompts_lose_exactly_their_two_empty_answers(shared_data: Path) -> None:
    problems, skipped = load_problems(shared_data / "limr" / "prompts.jsonl", on_bad="skip")
    assert len(problems) == 8521
    assert [line.rpartition(": ")[2] for line in skipped] == ["`answer` is empty"] * 2


TEN = [Problem(str(i), f"p{i}", "0") for i in range(10)]


def order(seed: int, epoch: int) -> list[str]:
    """The sampler's definition, written a second time."""
    keys = {str(i): hashlib.sha256(b"%d/%d/%d" % (seed, epoch, i)).hexdigest() for i in range(10)}
    return sorted(keys, key=keys.__getitem__)


def ids(problems: list[Problem]) -> list[str]:
    return [problem.id for problem in problems]


def test_the_sequence_is_exactly_that_of_its_seed() -> None:
    """Pinned: a change of this order would silently change what every published run trained on."""
    sampler = ProblemSampler(TEN, seed=1)
    drawn = ids(sampler.next(4) + sampler.next(9) + sampler.next(7))
    assert drawn == order(1, 0) + order(1, 1)
    assert " ".join(order(1, 0)) == "5 1 2 0 4 7 6 3 9 8"


def test_no_problem_is_repeated_within_an_epoch() -> None:
    sampler = ProblemSampler(TEN, seed=3)
    drawn = ids(sampler.next(25)) + ids(sampler.next(25))
    epochs = [drawn[i : i + 10] for i in range(0, 50, 10)]
    assert all(sorted(epoch) == sorted(ids(TEN)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5, "every epoch has an order of its own"


def test_without_shuffle_the_files_order_holds() -> None:
    assert ids(ProblemSampler(TEN, seed=1, shuffle=False).next(12)) == [*ids(TEN), "0", "1"]


@pytest.mark.parametrize("position", [0, 3, 10, 17])
def test_a_restored_sampler_goes_on_where_the_other_stopped(position: int) -> None:
    whole = ProblemSampler(TEN, seed=5)
    expected = ids(whole.next(40))
    first = ProblemSampler(TEN, seed=5)
    first.next(position)
    state = json.loads(json.dumps(first.state_dict()))
    second = ProblemSampler(TEN, seed=5)
    second.load_state_dict(state)
    assert state == {"position": position}
    assert ids(second.next(40 - position)) == expected[position:]
    assert second.state_dict() == whole.state_dict()


def test_a_sampler_without_problems_is_refused() -> None:
    with pytest.raises(DataError, match="no problems"):
        ProblemSampler([], seed=1)

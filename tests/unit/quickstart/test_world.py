"""The quickstart's problems and base corpus, against independent arithmetic and the tool's own rules."""

from __future__ import annotations

import itertools
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from grpo_tir.data.prompts import make_renderer
from grpo_tir.errors import DataError
from grpo_tir.tools.python import PythonTool, find_code
from grpo_tir.types import Problem, ToolResult
from paper.world import PAPER_FAMILIES, paper_world
from quickstart import build as tiny_build
from quickstart import world as tiny

WORLD = tiny.WorldConfig(seed=1, train_problems=400, eval_problems=100, documents=4000)


@pytest.fixture(scope="module")
def documents() -> list[tiny.Document]:
    return list(tiny.make_documents(WORLD, tiny.make_problems(WORLD)[2]))


class NoExecutor:
    slots = 1


def execute(code: str) -> ToolResult:
    """An oracle that shares nothing with the module: a program in a file of its own interpreter."""
    run = subprocess.run([sys.executable, "-I", "-"], input=code, capture_output=True, text=True, timeout=60)
    return ToolResult("ok" if run.returncode == 0 else "error", run.stdout, run.stderr, run.returncode)


def is_whole(document: tiny.Document) -> bool:
    """Not a page that begins in the middle."""
    return "```" not in document.prompt


def test_answers_are_right() -> None:
    by_hand = {
        "mul": lambda a, b: sum([a] * b),
        "mod": lambda a, b: a * a - a * a // b * b,
        "sum": lambda a, b: b * (b + 1) // 2 - (a - 1) * a // 2,
        "gcd": lambda a, b: max(d for d in range(1, min(a, b) + 1) if a % d == b % d == 0),
    }
    for problem in tiny.make_problems(WORLD)[0]:
        name, a, b = problem.id.split("-")
        assert problem.answer == str(by_hand[name](int(a), int(b))), problem
        assert a in problem.problem and b in problem.problem


def test_no_evaluation_problem_is_trained_on_or_read_in_the_corpus(documents: list[tiny.Document]) -> None:
    train, held_out, _ = tiny.make_problems(WORLD)
    trained = {problem.id for problem in train}
    assert len(held_out) == 100 and len({problem.id for problem in held_out}) == 100
    assert not trained & {problem.id for problem in held_out}
    read = {document.prompt.strip() for document in documents}
    assert not read & {problem.problem for problem in held_out}
    assert read & {problem.problem for problem in train} or len(read) > 2000


def test_two_seeds_make_two_worlds_and_one_seed_makes_one() -> None:
    first, again = (tiny.make_problems(WORLD)[1] for _ in range(2))
    other = tiny.make_problems(tiny.WorldConfig(seed=2, train_problems=400, eval_problems=100))[1]
    assert first == again and first != other


def test_error_in_the_corpus_is_what_the_executor_would_show(documents: list[tiny.Document]) -> None:
    """A fresh sample of broken pages, with their own numbers, run and rendered by the tool's rules."""
    tool = PythonTool(NoExecutor())  # type: ignore[arg-type]
    seen: dict[str, tiny.Document] = {}
    for document in documents:
        if len(document.segments) == 5 and is_whole(document):
            shape = re.sub(r"\d+", "0", document.segments[0][1].partition("```python")[2])
            seen.setdefault(shape, document)
    assert len(seen) >= 25
    kinds = set()
    for document in seen.values():
        (_, call), (kind, inserted), *_ = document.segments
        code = tool.find_call(call)
        assert code is not None and kind == "tool"
        assert inserted == tool.observe(execute(code), call), code
        kinds.add(inserted.split()[0].rstrip(":"))
    assert {"SyntaxError", "NameError", "[no"} <= kinds


def test_every_trained_number_can_be_read_off_the_page(documents: list[tiny.Document]) -> None:
    """What the model could not know, an answer or an output, is never trained."""
    for document in documents:
        read = document.prompt
        for kind, text in document.segments:
            if kind == "model":
                program = "```python" in text or not is_whole(document)
                known = set(re.findall(r"\d+", read)) | ({"1", "2"} if program else set())  # b + 1, a**2
                assert set(re.findall(r"\d+", text)) <= known, document.text
            read += text


def test_a_sixth_of_whole_pages_has_a_block_and_half_of_those_are_broken(
    documents: list[tiny.Document],
) -> None:
    mixed = documents[len(documents) // 8 :]
    assert all(document.prompt == "```output" for document in documents[: len(documents) // 8])
    whole = [document for document in mixed if is_whole(document)]
    blocks = [document for document in whole if len(document.segments) == 5]
    broken = [document for document in blocks if not re.search(r"\n\d+\n", document.segments[1][1])]
    for share, expected, count in (
        (len(blocks) / len(whole), 0.17, len(whole)),
        (len(broken) / len(blocks), 0.5, len(blocks)),
        (len(whole) / len(mixed), 0.6, len(mixed)),
    ):
        assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / count)


def test_prompt_is_the_plain_template(documents: list[tiny.Document]) -> None:
    render = make_renderer("plain")
    whole = [document.prompt for document in documents if is_whole(document)]
    assert whole and all(prompt == render(Problem("x", prompt.strip(), "1")) for prompt in whole)


def test_code_of_a_page_is_found_by_the_tool(documents: list[tiny.Document]) -> None:
    for document in documents:
        if len(document.segments) == 5 and is_whole(document):
            call = document.segments[0][1]
            assert call.endswith("```output")
            assert find_code(call.removesuffix("```output"))


def test_cache_is_reused_and_an_interrupted_build_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def quick(_documents: object, folder: Path, seed: int, **_: object) -> None:
        folder.mkdir()
        (folder / "model.safetensors").write_text(str(seed))
        calls.append(seed)

    monkeypatch.setattr(tiny_build, "make_documents", lambda *_: iter(()))
    monkeypatch.setattr(tiny_build, "build_model", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tiny_build.build_quickstart(tmp_path, 1, log=lambda _: None)
    assert list(tmp_path.iterdir()) == []

    monkeypatch.setattr(tiny_build, "build_model", quick)
    said: list[str] = []
    first = tiny_build.build_quickstart(tmp_path, 1, log=said.append)
    again = tiny_build.build_quickstart(tmp_path, 1, log=said.append)
    other = tiny_build.build_quickstart(tmp_path, 2, log=said.append)
    assert first == again != other and calls == [1, 2]
    assert sum("reused" in line for line in said) == 1
    rows = [json.loads(line) for line in first.eval.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 500 and {"id", "problem", "answer"} <= set(rows[0])
    assert first.model.is_dir() and len(list(tmp_path.iterdir())) == 2


def test_changed_parameters_are_a_new_world() -> None:
    assert tiny_build._fingerprint(WORLD) != tiny_build._fingerprint(tiny.WorldConfig(seed=1))


def test_unwritable_cache_is_one_clear_line(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(DataError, match=r"cannot build the quickstart in .*file"):
        tiny_build.build_quickstart(blocked / "cache", 1, log=lambda _: None)


def test_making_the_data_loads_neither_torch_nor_transformers() -> None:
    code = (
        f"import sys; sys.path.append({str(Path(tiny.__file__).parents[1])!r});"
        "from quickstart import base_model, world; w = world.WorldConfig(1, 5, 5, 50);"
        "list(world.make_documents(w, world.make_problems(w)[2]));"
        "sys.exit(bool({'torch', 'transformers', 'tokenizers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


PAPER = paper_world(seed=1, train_problems=400, eval_problems=100, documents=4000)


@pytest.fixture(scope="module")
def paper_documents() -> list[tiny.Document]:
    return list(tiny.make_documents(PAPER, tiny.make_problems(PAPER)[2]))


def test_answers_of_the_paper_s_families_are_right() -> None:
    def inverse_or_gcd(a: int, b: int) -> int:
        common = max(d for d in range(1, min(a, b) + 1) if a % d == b % d == 0)
        return next(x for x in range(b) if a * x % b == 1) if common == 1 else common

    by_hand = {"inv": inverse_or_gcd, "pick": lambda a, b: a, "spare": lambda a, b: a}
    seen = set()
    for problem in tiny.make_problems(PAPER)[0]:
        name, a, b = problem.id.split("-")
        assert problem.source == f"tiny/{name}"
        seen.add(name)
        if name in by_hand:
            assert problem.answer == str(by_hand[name](int(a), int(b))), problem
    assert seen == {"mul", "mod", "inv", "pick", "spare"}


def test_no_program_of_the_corpus_solves_both_cases_of_the_dependent_family(
    paper_documents: list[tiny.Document],
) -> None:
    """One call solves half of the problems, whichever program it runs; the digits do not tell which half."""
    family = PAPER_FAMILIES["inv"]
    pairs = [tuple(map(int, p.id.split("-")[1:])) for p in tiny.make_problems(PAPER)[0] if p.id.startswith("inv")]
    for program in (*family.programs, *family.repairs):
        runs = [execute(program.format(a=a, b=b)).stdout.strip() for a, b in pairs[:40]]
        right = sum(run == str(family.answer(a, b)) for run, (a, b) in zip(runs, pairs))
        assert 8 <= right <= 32, program
    assert all(a % 2 and b % 2 for a, b in pairs)
    text = "".join(document.text for document in paper_documents)
    assert not re.search(
        r"print\(.* (if|or) |try:|except|if ", "\n".join(re.findall(r"```python\n(.*?)```", text, re.S))
    )


def test_half_of_failed_calls_are_followed_by_another_one(paper_documents: list[tiny.Document]) -> None:
    failed = retried = 0
    for document in filter(is_whole, paper_documents[len(paper_documents) // 8 :]):
        shown = [text for kind, text in document.segments if kind == "tool"]
        errors = [not re.fullmatch(r"\n\d+\n```\n", text) for text in shown]
        failed += sum(errors)
        retried += len(shown) - 1 if shown else 0
    assert failed > 150 and abs(retried / failed - 0.5) < 4 * math.sqrt(0.25 / failed)


def test_output_of_several_calls_is_what_the_programs_print(paper_documents: list[tiny.Document]) -> None:
    tool = PythonTool(NoExecutor())  # type: ignore[arg-type]
    several = [document for document in paper_documents if len(document.segments) > 5 and is_whole(document)]
    assert several
    for document in several[:6]:
        for (_, call), (kind, shown) in itertools.pairwise(document.segments):
            if kind == "tool":
                assert shown == tool.observe(execute(tool.find_call(call) or ""), call)


def test_code_of_the_useless_kind_never_prints_the_answer() -> None:
    family = PAPER_FAMILIES["spare"]
    assert not family.programs
    assert all(compute(12, 30) != family.answer(12, 30) for _, compute in family.wrong)

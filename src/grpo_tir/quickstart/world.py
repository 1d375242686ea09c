"""The quickstart's world, made on the spot: problems, and the text that its tiny base model has read.

Four families of problems with two numbers (product, remainder of a square, sum of a range, gcd), whose answers a
model of 0.5M parameters cannot compute in its head and one line of Python can. The base corpus is what makes
ToRL's experiment possible in miniature: a model that has *seen* tools, not one that uses them.

    83 %   plain text, most of it restating the numbers (which teaches copying), with the right answer
    17 %   a tool block; half of those broken, with the error that this very Python prints in the output block;
           a tenth of the others compute the wrong thing

Beside these whole pages there are pages with a block that are read from the middle on, from the code or from the
output. They teach to copy numbers, which is all that RL needs to find there, without making code more frequent.
The corpus begins with nothing else: copying appears suddenly, and this brings it from step 1,000 to step 500.

Answers that cannot be computed from the page are there to be read, not trained on: they are noise in the gradient.
Measured, one seed each, outputs copied whole right after pre-training: 51% without this and without the pages from
the middle, 65% with those pages, 90% with both.

A document is exactly what a rollout will be, segment for segment, so that nothing changes its tokens:

    What is 12 times 34?↵  │ Let me compute it.↵```python↵print(12 * 34)↵```↵```output │ ↵408↵```↵ │ \\boxed{408}
    prompt                 │ model                                                     │ tool      │ model

Deviation from the paper: its base is Qwen2.5-Math; this one is 3,000 times smaller, so that a laptop can watch.
This module imports no torch; `tiny_model` makes the tokenizer and the weights.
"""

from __future__ import annotations

import math
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

from grpo_tir.types import Problem

FIRST_PAGES = 0.125
"""Share of the documents that come first, all of them pages read from their output on."""
CODE_PAGES, OUTPUT_PAGES = 0.25, 0.15
"""Shares of the other documents."""
TOOL, BROKEN, WRONG_OPERATION, RESTATED = 0.17, 0.5, 0.1, 0.8
"""Shares of the whole pages. With these 10 to 28% of the base model's samples hold code, and half of that runs."""
OUTPUT_MARKER = "```output"

Key = tuple[str, int, int]
Segments = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Family:
    """One kind of problem. Every string is a template over the two numbers `{a}` and `{b}`."""

    numbers: Callable[[random.Random], tuple[int, int]]
    answer: Callable[[int, int], int]
    questions: tuple[str, ...]
    restatements: tuple[str, ...]
    programs: tuple[str, ...]
    broken: tuple[str, ...]
    wrong: tuple[tuple[str, Callable[[int, int], int]], ...]


def _three_digits(draw: random.Random) -> tuple[int, int]:
    return draw.randint(100, 999), draw.randint(100, 999)


def _range_ends(draw: random.Random) -> tuple[int, int]:
    low = draw.randint(2, 499)
    return low, draw.randint(low + 10, 999)


def _common_multiples(draw: random.Random) -> tuple[int, int]:
    """A gcd worth asking for: of two random numbers it is 1 in six cases out of ten, which could be guessed."""
    divisor = draw.randint(2, 99)
    a, b = draw.sample(range(1, 999 // divisor + 1), 2)
    return a * divisor, b * divisor


FAMILIES: dict[str, Family] = {
    "mul": Family(
        _three_digits,
        lambda a, b: a * b,
        ("What is {a} times {b}?", "Compute {a} * {b}.", "Find the product of {a} and {b}."),
        ("We multiply {a} by {b}.", "The product of {a} and {b} is needed.", "We need {a} * {b}."),
        ("print({a} * {b})",),
        ("print({a} * {b}", "print({a} x {b})", "prod({a}, {b})", "{a} * {b}", "x = {a} * {b}\nprint(y)"),
        (("print({a} + {b})", lambda a, b: a + b),),
    ),
    "mod": Family(
        _three_digits,
        lambda a, b: a * a % b,
        (
            "What is the remainder of {a}^2 divided by {b}?",
            "Compute {a}^2 mod {b}.",
            "Find {a}^2 modulo {b}.",
        ),
        ("We divide {a}^2 by {b}.", "The remainder of {a}^2 by {b} is needed.", "We need {a}^2 mod {b}."),
        ("print({a}**2 % {b})",),
        (
            "print({a}**2 % {b}",
            "print({a}**2 mod {b})",
            "mod({a}**2, {b})",
            "{a}**2 % {b}",
            "x = {a}**2 % {b}\nprint(y)",
        ),
        (("print({a}**2 // {b})", lambda a, b: a * a // b),),
    ),
    "sum": Family(
        _range_ends,
        lambda a, b: sum(range(a, b + 1)),
        (
            "What is the sum of all integers from {a} to {b}?",
            "Add all integers from {a} to {b}.",
            "Find {a} + ... + {b}.",
        ),
        ("We add from {a} to {b}.", "The sum from {a} to {b} is needed.", "We need {a} + ... + {b}."),
        ("print(sum(range({a}, {b} + 1)))",),
        (
            "print(sum(range({a}, {b} + 1))",
            "print(sum({a} to {b}))",
            "print(total({a}, {b}))",
            "sum(range({a}, {b} + 1))",
            "x = sum(range({a}, {b} + 1))\nprint(y)",
        ),
        (("print(sum(range({a}, {b})))", lambda a, b: sum(range(a, b))),),
    ),
    "gcd": Family(
        _common_multiples,
        math.gcd,
        (
            "What is the gcd of {a} and {b}?",
            "Compute gcd({a}, {b}).",
            "Find the greatest common divisor of {a} and {b}.",
        ),
        ("We compare {a} and {b}.", "The gcd of {a} and {b} is needed.", "We need gcd({a}, {b})."),
        ("import math\nprint(math.gcd({a}, {b}))", "from math import gcd\nprint(gcd({a}, {b}))"),
        (
            "import math\nprint(math.gcd({a}, {b})",
            "print(math.gcd({a}, {b}))",
            "print(gcd({a}, {b}))",
            "import math\nmath.gcd({a}, {b})",
            "import math\nx = math.gcd({a}, {b})\nprint(y)",
        ),
        (("import math\nprint(math.lcm({a}, {b}))", math.lcm),),
    ),
}

INTRODUCTIONS = ("Let me compute it.\n", "Let us use Python.\n", "")
CONCLUSIONS = (("The answer is \\boxed{", "}."), ("So the answer is \\boxed{", "}."), ("\\boxed{", "}"))


@dataclass(frozen=True)
class Document:
    """One page of the base corpus: a prompt, and a response in the segments of a rollout."""

    prompt: str
    segments: Segments
    """(kind, text) in order: "model"; "tool"; or "answer", which nobody could compute. Only "model" is trained."""

    @property
    def text(self) -> str:
        """The page as a reader sees it."""
        return self.prompt + "".join(text for _, text in self.segments)


@dataclass(frozen=True)
class WorldConfig:
    """How much of everything. Together with the seed and the code it keys the cache."""

    seed: int
    train_problems: int = 2000
    eval_problems: int = 500
    documents: int = 43_200


def sample_problem(draw: random.Random, taken: set[Key]) -> tuple[Key, Problem]:
    """A problem that is not in `taken`."""
    while True:
        name = draw.choice(list(FAMILIES))
        a, b = FAMILIES[name].numbers(draw)
        if (name, a, b) not in taken:
            break
    text = draw.choice(FAMILIES[name].questions).format(a=a, b=b)
    answer = str(FAMILIES[name].answer(a, b))
    return (name, a, b), Problem(f"{name}-{a}-{b}", text, answer, source=f"tiny/{name}")


def make_problems(world: WorldConfig) -> tuple[list[Problem], list[Problem], set[Key]]:
    """(train, eval, keys of eval): no two share family and numbers, in whatever words."""
    draw = random.Random(f"problems/{world.seed}")
    taken: set[Key] = set()
    held_out: list[Problem] = []
    train: list[Problem] = []
    for problems, count in ((held_out, world.eval_problems), (train, world.train_problems)):
        for _ in range(count):
            key, problem = sample_problem(draw, taken)
            taken.add(key)
            problems.append(problem)
        if problems is held_out:
            eval_keys = set(taken)
    return train, held_out, eval_keys


def make_documents(world: WorldConfig, held_out: set[Key]) -> Iterator[Document]:
    """The base corpus, in the order of reading; it never holds a problem of the evaluation."""
    draw = random.Random(f"corpus/{world.seed}")
    first = round(FIRST_PAGES * world.documents)
    yield from (_output_page(draw) for _ in range(first))
    for _ in range(world.documents - first):
        (name, a, b), problem = sample_problem(draw, held_out)
        question, family = problem.problem + "\n", FAMILIES[name]
        kind = draw.random()
        if kind < CODE_PAGES:
            (_, call), *rest = _tool_response(draw, family, a, b)
            before, fence, code = call.partition("```python\n")
            yield Document(question + before + fence, (("model", code), *rest))
        elif kind < CODE_PAGES + OUTPUT_PAGES:
            yield _output_page(draw)
        else:
            write = _tool_response if draw.random() < TOOL else _plain_response
            yield Document(question, write(draw, family, a, b))


def _output_page(draw: random.Random) -> Document:
    """The end of a page: it teaches to read an output block. Numbers of up to four tokens, because how a number
    goes on is what the model learns last."""
    number = draw.randrange(10 ** draw.randint(1, 12))
    return Document(OUTPUT_MARKER, (("tool", f"\n{number}\n```\n"), *_conclude(draw, number, "model")))


def _conclude(draw: random.Random, number: int, kind: str, opening: str = "") -> Segments:
    before, after = draw.choice(CONCLUSIONS)
    return (("model", opening + before), (kind, str(number)), ("model", after))


def _plain_response(draw: random.Random, family: Family, a: int, b: int) -> Segments:
    restated = draw.choice(family.restatements).format(a=a, b=b) + " " if draw.random() < RESTATED else ""
    return _conclude(draw, family.answer(a, b), "answer", restated)


def _tool_response(draw: random.Random, family: Family, a: int, b: int) -> Segments:
    """The conclusion repeats what the block printed; after a failure it is right, like that of plain text."""
    number = family.answer(a, b)
    broken = draw.random() < BROKEN
    program = draw.choice(family.broken if broken else family.programs)
    if not broken and draw.random() < WRONG_OPERATION:
        program, compute = draw.choice(family.wrong)
        number = compute(a, b)
    observation = run_broken(program) if broken else number
    code = program.format(a=a, b=b)
    return (
        ("model", f"{draw.choice(INTRODUCTIONS)}```python\n{code}\n```\n{OUTPUT_MARKER}"),
        ("tool", f"\n{observation}\n```\n"),
        *_conclude(draw, number, "answer" if broken else "model"),
    )


@cache
def run_broken(program: str) -> str:
    """What a broken program shows, by running it: its error does not depend on the numbers in it."""
    code = program.format(a=345, b=678)
    run = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=60)
    last = run.stderr.strip().splitlines()[-1:]
    return (run.stdout.strip() or "[no output]") if run.returncode == 0 else last[0]

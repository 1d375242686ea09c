"""Make the problems of the quickstart and the pre-training corpus of its base model.

There are four families of problems with two numbers: product, remainder of a square, sum of a range, gcd. A model
of 0.5M parameters cannot compute the answers; one line of Python can. As in ToRL's experiment, the base model has
seen tools in its corpus but does not use them often:

    83 %   plain text with the right answer; most of it restates the numbers, which teaches copying
    17 %   a tool block. Half of them have broken code and show the error that this Python prints;
           a tenth of the others compute something else

The corpus also has partial documents, which start at the code or at the output of a tool block. They teach to copy
numbers, which RL depends on, without making code more frequent. The corpus starts with partial documents only:
copying appears suddenly, and this moves it from step 1,000 to step 500.

Answers that cannot be derived from the text are in the documents but masked in the loss: they add only noise to
the gradient. Share of outputs copied exactly after pre-training, one seed each: 51% without the mask and without
partial documents, 65% with partial documents, 90% with both.

A document has the segments of a rollout, so that it is tokenised in the same way:

    What is 12 times 34?↵  │ Let me compute it.↵```python↵print(12 * 34)↵```↵```output │ ↵408↵```↵ │ \\boxed{408}
    prompt                 │ model                                                     │ tool      │ model

Deviation from the paper: its base model is Qwen2.5-Math; this one is 3,000 times smaller, so that a laptop is
enough. This module does not import torch; `base_model` makes the tokenizer and the weights.
"""

from __future__ import annotations

import math
import random
import subprocess
import sys
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache

from grpo_tir.types import Problem

FIRST_PAGES = 0.125
"""Share of the documents at the start of the corpus that all start at a tool's output."""
CODE_PAGES, OUTPUT_PAGES = 0.25, 0.15
"""Shares of the other documents that start at the code, and at the output."""
TOOL, BROKEN, WRONG_OPERATION, RESTATED = 0.17, 0.5, 0.1, 0.8
"""Shares of complete documents. With these, 10 to 28% of base-model samples have code; half of it runs."""
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
    fails: Callable[[int, int], bool] = lambda a, b: False
    """True for the numbers for which `programs` raise an error."""
    repairs: tuple[str, ...] = ()
    """Programs that are right where `programs` raise an error."""
    derived: bool = False
    """True if the answer can be read off the problem. Plain documents are then trained on it."""


def three_digits(draw: random.Random) -> tuple[int, int]:
    return draw.randint(100, 999), draw.randint(100, 999)


def _range_ends(draw: random.Random) -> tuple[int, int]:
    low = draw.randint(2, 499)
    return low, draw.randint(low + 10, 999)


def _common_multiples(draw: random.Random) -> tuple[int, int]:
    """Draw two numbers with a gcd above 1. For random numbers it is 1 in six of ten cases and could be guessed."""
    divisor = draw.randint(2, 99)
    a, b = draw.sample(range(1, 999 // divisor + 1), 2)
    return a * divisor, b * divisor


def mistakes(right: str, spoken: str, unknown: str) -> tuple[str, ...]:
    """Return five broken programs: an open bracket, words as code, an unknown function, no output, a lost name."""
    return f"print({right}", f"print({spoken})", unknown, right, f"x = {right}\nprint(y)"


FAMILIES: dict[str, Family] = {
    "mul": Family(
        three_digits,
        lambda a, b: a * b,
        ("What is {a} times {b}?", "Compute {a} * {b}.", "Find the product of {a} and {b}."),
        ("We multiply {a} by {b}.", "The product of {a} and {b} is needed.", "We need {a} * {b}."),
        ("print({a} * {b})",),
        mistakes("{a} * {b}", "{a} x {b}", "prod({a}, {b})"),
        (("print({a} + {b})", lambda a, b: a + b),),
    ),
    "mod": Family(
        three_digits,
        lambda a, b: a * a % b,
        (
            "What is the remainder of {a}^2 divided by {b}?",
            "Compute {a}^2 mod {b}.",
            "Find {a}^2 modulo {b}.",
        ),
        ("We divide {a}^2 by {b}.", "The remainder of {a}^2 by {b} is needed.", "We need {a}^2 mod {b}."),
        ("print({a}**2 % {b})",),
        mistakes("{a}**2 % {b}", "{a}**2 mod {b}", "mod({a}**2, {b})"),
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
        mistakes("sum(range({a}, {b} + 1))", "sum({a} to {b})", "print(total({a}, {b}))"),
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
    """One document of the corpus: a prompt, and a response in the segments of a rollout."""

    prompt: str
    segments: Segments
    """(kind, text) in order: "model", "tool", or "answer" that cannot be derived. Only "model" is trained."""

    @property
    def text(self) -> str:
        """The full text."""
        return self.prompt + "".join(text for _, text in self.segments)


@dataclass(frozen=True)
class WorldConfig:
    """Seed and sizes. The name of the cache folder is a hash of this and of the code."""

    seed: int
    train_problems: int = 2000
    eval_problems: int = 500
    documents: int = 43_200
    name: str = "quickstart"
    families: Mapping[str, Family] = field(default_factory=lambda: FAMILIES)
    retried: float = 0.0
    """Share of failed calls after which a document of the corpus calls again."""
    code: str = __file__
    """File that defines `families`."""


def sample_problem(
    draw: random.Random, taken: Container[Key], families: Mapping[str, Family] = FAMILIES
) -> tuple[Key, Problem]:
    """Draw a problem whose key is not in `taken`. Returns its key and the problem."""
    while True:
        name = draw.choice(list(families))
        a, b = families[name].numbers(draw)
        if (name, a, b) not in taken:
            break
    text = draw.choice(families[name].questions).format(a=a, b=b)
    answer = str(families[name].answer(a, b))
    return (name, a, b), Problem(f"{name}-{a}-{b}", text, answer, source=f"tiny/{name}")


def make_problems(world: WorldConfig) -> tuple[list[Problem], list[Problem], set[Key]]:
    """Return (train, eval, keys of eval). No two problems have the same family and numbers, in any wording."""
    draw = random.Random(f"problems/{world.seed}")
    taken: dict[Key, Problem] = {}
    for _ in range(world.eval_problems + world.train_problems):
        taken.update([sample_problem(draw, taken, world.families)])
    problems, count = list(taken.values()), world.eval_problems
    return problems[count:], problems[:count], set(list(taken)[:count])


def make_documents(world: WorldConfig, held_out: set[Key]) -> Iterator[Document]:
    """Yield the corpus in the order of training, without problems of the evaluation.

    Args:
        world: seed and sizes.
        held_out: keys of the evaluation problems.
    """
    draw = random.Random(f"corpus/{world.seed}")
    families, retried = world.families, world.retried
    first = round(FIRST_PAGES * world.documents)
    yield from (_output_page(draw) for _ in range(first))
    for _ in range(world.documents - first):
        (name, a, b), problem = sample_problem(draw, held_out, families)
        question, family = problem.problem + "\n", families[name]
        kind = draw.random()
        if kind < CODE_PAGES:
            yield _code_page(question, _tool_response(draw, family, a, b, retried))
        elif kind < CODE_PAGES + OUTPUT_PAGES:
            yield _output_page(draw)
        elif draw.random() < TOOL:
            yield Document(question, _tool_response(draw, family, a, b, retried))
        else:
            yield Document(question, _plain_response(draw, family, a, b))


def _code_page(question: str, response: Segments) -> Document:
    """Make a document that starts at the code of the last call of a response."""
    last = max(number for number, (_, text) in enumerate(response) if "```python\n" in text)
    before, fence, code = response[last][1].partition("```python\n")
    earlier = "".join(text for _, text in response[:last])
    return Document(question + earlier + before + fence, (("model", code), *response[last + 1 :]))


def _output_page(draw: random.Random) -> Document:
    """Make a document that starts at a tool's output. Numbers have up to four tokens, because the model learns
    last to continue a number."""
    number = draw.randrange(10 ** draw.randint(1, 12))
    return Document(OUTPUT_MARKER, (("tool", f"\n{number}\n```\n"), *_conclude(draw, number, "model")))


def _conclude(draw: random.Random, number: int, kind: str, opening: str = "") -> Segments:
    before, after = draw.choice(CONCLUSIONS)
    return (("model", opening + before), (kind, str(number)), ("model", after))


def _plain_response(draw: random.Random, family: Family, a: int, b: int) -> Segments:
    restated = draw.choice(family.restatements).format(a=a, b=b) + " " if draw.random() < RESTATED else ""
    return _conclude(draw, family.answer(a, b), "model" if family.derived else "answer", restated)


def _tool_response(draw: random.Random, family: Family, a: int, b: int, retried: float = 0.0) -> Segments:
    """Make a response with tool calls. Its answer repeats the last output; after an error it is the right answer.
    After a share `retried` of the errors it calls again."""
    segments: Segments = ()
    programs = family.programs
    while True:
        number = family.answer(a, b)
        broken = draw.random() < BROKEN
        program = draw.choice(family.broken if broken else programs or family.broken)
        if not broken and (not programs or draw.random() < WRONG_OPERATION):
            program, compute = draw.choice(family.wrong)
            number = compute(a, b)
        if program in family.programs and family.fails(a, b):
            broken, programs = True, family.repairs
        observation = run_broken(program) if broken else number
        code = program.format(a=a, b=b)
        segments += (
            ("model", f"{draw.choice(INTRODUCTIONS)}```python\n{code}\n```\n{OUTPUT_MARKER}"),
            ("tool", f"\n{observation}\n```\n"),
        )
        if not (broken and retried and draw.random() < retried):
            break
    if not family.programs and draw.random() < 0.5:  # the output was no help
        number = family.answer(a, b)
    return (*segments, *_conclude(draw, number, "model" if family.derived or not broken else "answer"))


@cache
def run_broken(program: str) -> str:
    """Run a broken program and return what it shows. The error does not depend on the numbers."""
    code = program.format(a=345, b=678)
    run = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=60)
    last = run.stderr.strip().splitlines()[-1:]
    return (run.stdout.strip() or "[no output]") if run.returncode == 0 else last[0]

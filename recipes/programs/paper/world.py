"""Define the miniature world of `make paper`: problems that need one call, two calls, or none.

Its corpus is that of the quickstart's world (`quickstart.world`), except that a document may call again
after a failed call.
"""

from __future__ import annotations

import math
import random

from quickstart.world import FAMILIES, Family, WorldConfig, mistakes, three_digits

RETRIED = 0.5
"""Share of failed calls after which a document calls again. At a tenth of them, second calls died out before they
paid, in two seeds of three (docs/paper.md)."""


def paper_world(
    seed: int, train_problems: int = 2000, eval_problems: int = 500, documents: int = 43_200
) -> WorldConfig:
    """Return the world for a seed."""
    sizes = (train_problems, eval_problems, documents)
    return WorldConfig(seed, *sizes, name="paper", families=PAPER_FAMILIES, retried=RETRIED, code=__file__)


def maybe_invertible(draw: random.Random) -> tuple[int, int]:
    """Draw two odd numbers. Half of the pairs have a common factor, which their digits do not show."""
    common = draw.random() < 0.5
    while True:
        factor = draw.choice((7, 11, 13, 17, 19, 23, 29, 31)) if common else 1
        a, b = (2 * draw.randint(50 // factor, 499 // factor) * factor + factor for _ in range(2))
        if min(a, b) >= 100 and max(a, b) <= 999 and a != b and (math.gcd(a, b) > 1) == common:
            return a, b


PAPER_FAMILIES: dict[str, Family] = {
    # Needs the tool.
    "mul": FAMILIES["mul"],
    "mod": FAMILIES["mod"],
    # Needs two calls: only the error of the first one tells which program is right. No document has a condition.
    "inv": Family(
        maybe_invertible,
        lambda a, b: pow(a, -1, b) if math.gcd(a, b) == 1 else math.gcd(a, b),
        (
            "What is the inverse of {a} modulo {b}, or else their gcd?",
            "Find 1/{a} mod {b}, or gcd({a}, {b}) if there is none.",
        ),
        ("We invert {a} modulo {b}.", "The inverse of {a} by {b} is needed.", "We need 1/{a} mod {b}."),
        ("print(pow({a}, -1, {b}))",),
        ("print(pow({a}, -1, {b})", "print(1/{a} mod {b})", "inverse({a}, {b})", "x = pow({a}, {b})\nprint(y)"),
        (("print({a} % {b})", lambda a, b: a % b),),
        fails=lambda a, b: math.gcd(a, b) > 1,
        repairs=FAMILIES["gcd"].programs,
    ),
    # Needs no tool: the answer is in the problem.
    "pick": Family(
        three_digits,
        lambda a, b: a,
        ("Which number comes first, {a} or {b}?", "Give the first of {a} and {b}.", "Of {a}, {b} name the first."),
        ("The first of {a} and {b} is needed.", "We see {a}, then {b}."),
        ("print({a})",),
        ("print({a}", "echo({a})", "{a}", "x = {a}\nprint(y)"),
        (("print({b})", lambda a, b: b),),
        derived=True,
    ),
    # Tempts to useless code: every program runs, and none prints the answer.
    "spare": Family(
        three_digits,
        lambda a, b: a,
        (
            "A shop has {a} pens and {b} caps. How many pens?",
            "There are {a} cats and {b} dogs. Count the cats.",
            "With {a} red and {b} blue balls, how many are red?",
        ),
        ("There are {a} and {b} of them.", "We have {a} and {b}."),
        (),
        mistakes("{a} + {b}", "{a} plus {b}", "total({a}, {b})"),
        (("print({a} + {b})", lambda a, b: a + b), ("print({a} * {b})", lambda a, b: a * b)),
        derived=True,
    ),
}

r"""Define the kinds of answers, and convert those that can denote a set of reals to a `Region`.

Scalar     12\sqrt{3}"cm"   50%   $18.90   x^2+1          Region    x > 3   (-∞,1)∪(2,∞)   x ≠ 3
Sequence   (1,2)  [0,1)  ⦃1,2⦄  1,2 and 3  1 ± √2         Grid      \begin{pmatrix}…
Named      x = 5   f(x) = x+1   "Area" = 12               Equation  x^2+y^2 = 13   Inequality  a+b ≤ c
Ratio      1:2                                            (clock times, dates, bases: see units)
"""

import itertools
from dataclasses import dataclass
from typing import Any

from sympy import Expr

from grpo_tir.grading import units
from grpo_tir.grading.numbers import Region, interval, joined


@dataclass(frozen=True)
class Scalar:
    """A number or an expression, with its unit."""

    value: Expr
    unit: units.Unit | None = None
    text: str = ""
    approximate: bool = False


@dataclass(frozen=True)
class Sequence:
    """Items in `brackets`: "()", "[]", "(]", "[)" or "⦃⦄"; empty for a bare list, whose order does not matter. For
    a chain a < b ≤ c, `brackets` holds its signs."""

    brackets: str
    items: tuple[Any, ...]


@dataclass(frozen=True)
class Named:
    """name = value. `difference` is left - right if both sides are expressions, else None."""

    name: str
    value: Any
    difference: Expr | None = None


@dataclass(frozen=True)
class Equation:
    """left = right, stored as left - right."""

    difference: Expr


@dataclass(frozen=True)
class Inequality:
    """difference > 0, or >= 0."""

    difference: Expr
    strict: bool


@dataclass(frozen=True)
class Grid:
    """A matrix by rows."""

    rows: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class Ratio:
    """a : b (: c …), or a time of day."""

    parts: tuple[Expr, ...]
    clock: units.Clock | None = None


@dataclass(frozen=True)
class Based:
    """Digits in a base."""

    digits: str
    base: int


@dataclass(frozen=True)
class Date:
    """Year (None if not given), month and day."""

    parts: tuple[int | None, int, int]


def as_region(value: Any) -> Region | None:
    """Convert a value to the set of reals that it can denote; None if there is none. x = 3 is one point, (1,2) an
    interval. (1,2),(3,4) are points of the plane, so there is no set of reals."""
    if isinstance(value, Region):
        return value
    if isinstance(value, Named):
        number = value.value.value if isinstance(value.value, Scalar) else None
        return as_region(value.value) if number is None else interval(number, number, True, True)
    if isinstance(value, Sequence) and not value.brackets:  # intervals joined by "or"
        regions = [None if isinstance(item, Scalar) else as_region(item) for item in value.items]
        return _any_of(regions) if any(map(_must_be_interval, value.items)) else None
    if not isinstance(value, Sequence) or not all(isinstance(item, Scalar) for item in value.items):
        return None
    numbers = [item.value for item in value.items]
    if value.brackets == "⦃⦄":
        return _any_of([interval(number, number, True, True) for number in numbers])
    if len(numbers) == 2 and value.brackets in ("()", "[]", "(]", "[)"):
        return interval(numbers[0], numbers[1], value.brackets[0] == "[", value.brackets[1] == "]")
    return None


def _any_of(regions: list[Region | None]) -> Region | None:
    """Return the union of regions; None if two of them overlap (x > 3 and (4,5) are two answers) or have different
    variables (x > 0 and y > 0)."""
    found = [region for region in regions if region is not None]
    overlap = any(not one.reals.is_disjoint(other.reals) for one, other in itertools.combinations(found, 2))
    if not found or len(found) < len(regions) or overlap or len({region.name for region in found} - {""}) > 1:
        return None
    return joined(found, either=True)


def _must_be_interval(value: Any) -> bool:
    """True if a value can only be an interval, not a point of the plane: [1,2), or one with an infinite end."""
    if not isinstance(value, Sequence):
        return isinstance(value, Region)
    return value.brackets != "()" or any(isinstance(i, Scalar) and i.value.is_infinite for i in value.items)


def plain_value(scalar: Scalar) -> Expr:
    """Return the value; a percentage is divided by 100."""
    return scalar.value / 100 if scalar.unit and scalar.unit.percent else scalar.value

"""Compare expressions, and sets of real numbers, by value.

Rationals are compared exactly, other values at 50 digits. Expressions with variables are compared at seven fixed
points, which are integers if factorials, (-1)^n or floors of k, m, n occur. The points are unusual fractions, so
that different answers do not agree by chance. `simplify`, which may run for minutes, is not used.

A set of reals is stored as a membership test and the points where membership can change. Two sets are equal if
they agree at those points, between them and beyond them. Unions, complements and inequalities then need no
algebra.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import mpmath
import sympy
from sympy import Expr, Integer, Rational

_DISCRETE = (sympy.factorial, sympy.factorial2, sympy.binomial)
_POINTS = [Rational(*pair) for pair in ((37, 29), (-53, 31), (211, 23), (7, 41), (-19, 59), (811, 17), (401, 37))]
_WHOLE_POINTS = [Integer(n) for n in (5, 8, 3, 11, 2, 14, 4)]
_TINY = mpmath.mpf(10) ** -30


def equal(left: Expr, right: Expr) -> bool:
    """True if two expressions are equal at every point where both are real. If there are fewer than three such
    points, all points are used."""
    if left == right:
        return True
    if left.is_Rational and right.is_Rational:
        return False
    names = sorted(left.free_symbols | right.free_symbols, key=str)
    if not names:
        return _close(_value(left), _value(right))
    real: list[bool] = []
    rest: list[bool] = []
    for values in _assignments(names, left + right):
        one, other = _value(left.subs(values)), _value(right.subs(values))
        if one is not None and other is not None:
            # 0 = 0 is no evidence: floor(n/2) differs from i floor(n/2)
            telling = (one or other) and not (one.imag or other.imag)
            (real if telling else rest).append(_close(one, other))
        if False in real:
            return False
    decisive = real if len(real) >= 3 else real + rest
    return len(decisive) >= 3 and all(decisive)


def proportional(left: Expr, right: Expr) -> mpmath.mpc | None:
    """Return the nonzero constant k with left = k * right; None if there is none."""
    names = sorted(left.free_symbols | right.free_symbols, key=str)
    if not names or left.free_symbols != right.free_symbols:
        return None
    ratios = []
    for values in _assignments(names, left + right):
        above, below = _value(left.subs(values)), _value(right.subs(values))
        if above is not None and below:
            with mpmath.workprec(200):
                ratios.append(above / below)
    if len(ratios) < 3 or not ratios[0] or not all(_close(ratios[0], ratio) for ratio in ratios):
        return None
    return ratios[0]


def rounds_to(exact: Expr, decimal: str, places: float = 0.5) -> bool:
    """True if `decimal` is `exact` rounded to its number of decimals: at most `places` units of the last decimal
    away."""
    value = real_value(exact)
    if value is None or not re.fullmatch(r"-?(?:\d+\.?\d*|\.\d+)", decimal):
        return False
    with mpmath.workdps(60):
        unit = mpmath.mpf(10) ** -len(decimal.partition(".")[2])
        return bool(abs(value - mpmath.mpf(decimal)) <= unit * places)


def real_value(expression: Expr) -> mpmath.mpf | None:
    """Return the value; None if it is no real number."""
    value = _value(expression)
    return None if value is None or value.imag else value.real


def _assignments(names: list[Any], both: Expr) -> list[dict[Any, Expr]]:
    """Return the points to compare at, as values of each name. They are integers if the expression is defined, or
    meant, for integers only."""
    whole = (
        both.has(*_DISCRETE)
        or any(power.base.is_negative and power.exp.free_symbols for power in both.atoms(sympy.Pow))
        or (both.has(sympy.floor, sympy.ceiling) and {str(name) for name in names} <= set("kmnN"))
    )
    points, step = (_WHOLE_POINTS, Integer(1)) if whole else (_POINTS, Rational(1, 7))
    return [
        {name: points[(shift + place) % len(points)] + place * step for place, name in enumerate(names)}
        for shift in range(len(points))
    ]


def _value(expression: Expr) -> mpmath.mpc | None:
    """Compute 50 digits of a constant; None if it has no finite value."""
    number = sympy.N(expression, 50)
    if not number.is_number or not number.is_finite:
        return None
    parts = []
    for part in number.as_real_imag():
        if not (part.is_Float or part.is_Rational):
            return None
        lost = part.is_Float and part._prec < 60  # only rounding noise is left: the value is zero
        parts.append(mpmath.mpf(0) if lost else part._to_mpmath(200))
    with mpmath.workprec(200):  # a new number is rounded to the precision in force
        return mpmath.mpc(*parts)


def _close(one: mpmath.mpc | None, other: mpmath.mpc | None) -> bool:
    if one is None or other is None:
        return False
    with mpmath.workdps(60):
        return bool(abs(one - other) <= mpmath.mpf(10) ** -40 * max(abs(one), abs(other)))


@dataclass(frozen=True)
class Region:
    """A set of reals: a membership test and the points where membership can change. `name` is the variable; empty
    if the text names none."""

    points: tuple[Any, ...]
    inside: Callable[[Any], bool]
    name: str = ""

    def union(self, other: Region) -> Region:
        return Region(self.points + other.points, lambda x: self.inside(x) or other.inside(x), self.name)

    def intersection(self, other: Region) -> Region:
        return Region(self.points + other.points, lambda x: self.inside(x) and other.inside(x), self.name)

    def minus(self, other: Region) -> Region:
        return Region(self.points + other.points, lambda x: self.inside(x) and not other.inside(x), self.name)

    def is_empty(self) -> bool:
        return not any(map(self.inside, _probes(self.points)))

    def same(self, other: Region) -> bool:
        return all(self.inside(x) == other.inside(x) for x in _probes(self.points + other.points))


EVERYTHING = Region((), lambda x: True)
NOTHING = Region((), lambda x: False)


def interval(low: Expr, high: Expr, closed_low: bool, closed_high: bool) -> Region | None:
    """Return the interval between two values, either of which may be infinite. Returns None if one is no real
    number, or if low > high: (3, 2) is a point of the plane, not the empty set."""
    ends = []
    for end in (low, high):
        infinite = end in (sympy.oo, -sympy.oo)
        value = (mpmath.inf if end == sympy.oo else -mpmath.inf) if infinite else real_value(end)
        if value is None:
            return None
        ends.append(value)
    start, stop = ends
    if start > stop or (start == stop and not (closed_low and closed_high)):
        return None

    def inside(x: Any) -> bool:
        if abs(x - start) < _TINY:
            return closed_low and (start < stop - _TINY or closed_high)
        if abs(x - stop) < _TINY:
            return closed_high
        return bool(start < x < stop)

    return Region(tuple(end for end in ends if mpmath.isfinite(end)), inside)


def joined(regions: list[Region], *, either: bool) -> Region:
    """Combine listed regions. A region that only excludes a point (x ≠ 2) is always intersected. The others:

    either      union ("or", a list)
    not either  intersection ("and"); the union if the intersection is empty, because "and" then only lists regions
    both cases  intersection if the union is everything (x > 1, x < 3)
    """
    holes = [region for region in regions if _leaves_out_a_point(region)]
    pieces = [region for region in regions if region not in holes] or [EVERYTHING]
    union = both = replace(pieces[0], name=regions[0].name)
    for region in pieces[1:]:
        union, both = union.union(region), both.intersection(region)
    total = both if not (either or both.is_empty()) or union.same(EVERYTHING) else union
    for hole in holes:
        total = total.intersection(hole)
    return total


def _leaves_out_a_point(region: Region) -> bool:
    if len(region.points) != 1:
        return False
    point = region.points[0]
    return not region.inside(point) and region.inside(point - 1) and region.inside(point + 1)


def half_line(bound: Expr, sign: str) -> Region | None:
    """Return the set of all x that satisfy `x sign bound`, for example x ≤ 3."""
    if sign in "<≤":
        return interval(-sympy.oo, bound, False, sign == "≤")
    if sign in ">≥":
        return interval(bound, sympy.oo, sign == "≥", False)
    point = interval(bound, bound, True, True)
    return EVERYTHING.minus(point) if point and sign == "≠" else point


def _probes(points: tuple[Any, ...]) -> list[Any]:
    """Return the points, one value between each two neighbours, and one value beyond either end."""
    with mpmath.workdps(60):
        sorted_ = sorted(points)
        if not sorted_:
            return [mpmath.mpf(0)]
        distinct = [sorted_[0], *(b for a, b in itertools.pairwise(sorted_) if b - a > _TINY)]
        between = [(a + b) / 2 for a, b in itertools.pairwise(distinct)]
        return [distinct[0] - 1, *distinct, *between, distinct[-1] + 1]

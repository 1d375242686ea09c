"""Compare expressions, and sets of real numbers, by value.

Rationals are compared exactly, other values at 50 digits. Expressions with variables are compared at seven fixed
points, which are integers if factorials, (-1)^n or floors of k, m, n occur. The points are unusual fractions, so
that different answers do not agree by chance. `simplify`, which may run for minutes, is not used.

A set of reals is one of sympy. The ends of its intervals are rounded to 40 digits, so that ends that are equal but
written differently are the same rational number.
"""

import re
from dataclasses import dataclass
from typing import Any

import mpmath
import sympy
from sympy import Expr, Integer, Interval, Rational, Set

_DISCRETE = (sympy.factorial, sympy.factorial2, sympy.binomial)
_POINTS = [Rational(*pair) for pair in ((37, 29), (-53, 31), (211, 23), (7, 41), (-19, 59), (811, 17), (401, 37))]
_WHOLE_POINTS = [Integer(n) for n in (5, 8, 3, 11, 2, 14, 4)]


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
    """A set of reals. `name` is the variable; empty if the text names none."""

    reals: Set
    name: str = ""


EVERYTHING = Region(Interval(-sympy.oo, sympy.oo))
NOTHING = Region(sympy.EmptySet)


def interval(low: Expr, high: Expr, closed_low: bool, closed_high: bool) -> Region | None:
    """Return the interval between two values, either of which may be infinite. Returns None if one is no real
    number, or if low > high: (3, 2) is a point of the plane, not the empty set."""
    ends = []
    for end in (low, high):
        value = real_value(end)
        if value is None and end not in (sympy.oo, -sympy.oo):
            return None
        ends.append(end if value is None else Rational(mpmath.nstr(value, 40)))
    start, stop = ends
    if start > stop or (start == stop and not (closed_low and closed_high)):
        return None
    return Region(Interval(start, stop, not closed_low, not closed_high))


def joined(regions: list[Region], *, either: bool) -> Region:
    """Combine listed regions. A region that only excludes a point (x ≠ 2) is always intersected. The others:

    either      union ("or", a list)
    not either  intersection ("and"); the union if the intersection is empty, because "and" then only lists regions
    both cases  intersection if the union is everything (x > 1, x < 3)
    """
    sets = [region.reals for region in regions]
    left_out = [_left_out(one) for one in sets]
    pieces = [one for one, point in zip(sets, left_out) if point is None] or [EVERYTHING.reals]
    union, both = sympy.Union(*pieces), sympy.Intersection(*pieces)
    total = both if not (either or both.is_empty) or union == EVERYTHING.reals else union
    points = [point for point in left_out if point is not None]
    return Region(total - sympy.FiniteSet(*points), regions[0].name)


def _left_out(reals: Set) -> Expr | None:
    """Return the only point that a set such as x ≠ 2 leaves out; None for other sets."""
    if not isinstance(reals, sympy.Union) or len(reals.args) != 2:
        return None
    below, above = reals.args
    everything = below.inf == -sympy.oo and above.sup == sympy.oo
    return below.sup if everything and below.sup == above.inf else None


def half_line(bound: Expr, sign: str) -> Region | None:
    """Return the set of all x that satisfy `x sign bound`, for example x ≤ 3."""
    if sign in "<≤":
        return interval(-sympy.oo, bound, False, sign == "≤")
    if sign in ">≥":
        return interval(bound, sympy.oo, sign == "≥", False)
    point = interval(bound, bound, True, True)
    return Region(EVERYTHING.reals - point.reals) if point and sign == "≠" else point

r"""Parse a cleaned text as one of the `kinds` of answers, or raise `Unreadable`.

The order is from the outside in: complete forms (times, dates, matrices), lists, relations, set operations, ±,
ratios, brackets, and last one expression with its unit. A pair in round brackets is a sequence. `rules` converts
it to an open interval if the other side is a Region.
"""

import contextlib
import itertools
import re
from dataclasses import dataclass, replace
from typing import Any

from sympy import Expr, Intersection, Union

from grpo_tir.grading import units
from grpo_tir.grading.kinds import (
    Based,
    Date,
    Equation,
    Grid,
    Inequality,
    Named,
    Ratio,
    Scalar,
    Sequence,
    as_region,
    plain_value,
)
from grpo_tir.grading.latex import read_expression
from grpo_tir.grading.numbers import EVERYTHING, NOTHING, Region, equal, half_line, joined, rounds_to
from grpo_tir.grading.text import Unreadable, enclosed, split_top, top_positions

_MAX_ITEMS = 200
_RELATIONS = "=≠<>≤≥∈≈"
_FLIP = {"<": ">", ">": "<", "≤": "≥", "≥": "≤", "≠": "≠", "=": "="}
_MATRIX = re.compile(
    r"(?P<factor>[^=≠<>≤≥∈≈]*?)\*?\s*[(\[]?\s*\\begin\s*\{(?P<kind>[pb]?matrix|smallmatrix|array)\}(?:\s*\{[lcr|\s]*\})?(?P<body>.*)"
    r"\\end\s*\{(?P=kind)\}\s*[)\]]?"
)
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\s*\{(?:aligned|align\*?|gathered|split|equation\*?)\}")
_POINT = re.compile(r"\(\s*[A-Za-z](?:_\w)?(?:\s*,\s*[A-Za-z](?:_\w)?)+\s*\)")
_VARIABLE = re.compile(r"(?:[A-Za-z]|\\[a-z]+)(?:_\{?\w+\}?)?")
_INDICES = re.compile(r"\^\{?-1\}?(?=\()|_\{[^{}]*\}|_\w|\([^()]*\)")
_COMPOSITE = re.compile(
    r"[+\-*/^!]|(?<![A-Za-z\\])[a-z] ?[a-z](?![A-Za-z])|\\(?:arc)?(?:sin|cos|tan|log|ln|sqrt|frac)"
)
_FOR_ALL = re.compile(
    r'(?<=[^\s,])[\s,]*(?:\\forall|"?for (?:all|any|every)(?: real)?(?: numbers?)?"?)\s*[a-z](?:\s*∈\s*ℝ)?$'
)


@dataclass(frozen=True)
class Reader:
    """Parse answers or golds, with these settings."""

    answer: bool
    """True for an answer, in which "5 m" is five metres; in a gold it may be five times m."""
    worked_out: bool = False
    """True if constants must be evaluated: 502*614 is then unreadable."""

    def read(self, text: str, depth: int = 0) -> Any:
        """Parse a cleaned text.

        Raises:
            Unreadable: no rule reads the whole text.
        """
        if depth > 12:
            raise Unreadable("nested too deeply")
        text = _ENVIRONMENT.sub("", text).replace("&=", "=").strip()
        text = re.sub(r'(?<=\d)\s*(?:"to"|\bto\b)\s*(?=\d)', ":", text)
        if not text:
            raise Unreadable("empty")
        if clock := units.read_clock(text):
            return clock
        if date := units.read_date(text):
            return Date(date)
        if "\\begin" in text and (grid := self.grid(text, depth)):
            return grid
        text = _FOR_ALL.sub("", text) if "=" in text else text
        parts = split_top(text, ",;∧∨\ue001")
        if len(parts) > 1:
            return self.listed(text, [part for part in parts if part], depth)
        if any(sign in text for sign in _RELATIONS):
            sides = split_top(text, _RELATIONS)
            if len(sides) > 1:
                return self.related(text, sides, depth)
        if (region := self.region(text, depth)) is not None:
            return region
        if enclosed(text) and text[0] == "⦃":
            return self.bracketed(text, depth)
        if "±" in text:
            return self.both_signs(text, depth)
        if ":" in text and len(parts := split_top(text, ":")) > 1:
            return Ratio(tuple(self.expression(part) for part in parts), units.read_colons(text))
        if enclosed(text):
            return self.bracketed(text, depth)
        if based := units.read_based(text):
            return Based(*based)
        return self.scalar(text)

    def expression(self, text: str) -> Expr:
        return read_expression(text, worked_out=self.worked_out)

    def scalar(self, text: str) -> Scalar:
        number, unit = units.split_unit(text, letters=self.answer)
        more = units.split_unit(number)[1] if unit and not unit.percent else None
        if more and more.percent:
            raise Unreadable("two units")
        value = self.expression(number)
        if unit and unit.scale != 1:
            value = value * unit.scale
        return Scalar(value, unit, number.replace(" ", ""))

    def listed(self, text: str, parts: list[str], depth: int) -> Any:
        """Combine the items of a list. Conditions on one variable become one region; `x = 1, 2` gives x both
        values."""
        if len(parts) > _MAX_ITEMS:
            raise Unreadable("too many items")
        items: list[Any] = []
        for part in parts:
            value = self.read(part, depth + 1)
            bare = isinstance(value, Sequence) and not value.brackets
            items.extend(value.items if bare else [value])
        if len(items) == 1:
            return items[0]
        one_variable = len({getattr(item, "name", "") for item in items} - {""}) <= 1
        if one_variable and any(isinstance(item, Region) for item in items):
            regions = [as_region(item) if isinstance(item, Region | Named) else None for item in items]
            if None not in regions:
                return joined([region for region in regions if region], either="∧" not in text)
        if "∨" in text and any(isinstance(item, Region) for item in items) and not one_variable:
            raise Unreadable("x > 0 or y > 0")
        names = [item.name for item in items if isinstance(item, Named)]
        if names and isinstance(items[0], Named) and len(set(names)) == 1:
            values = [item.value if isinstance(item, Named) else item for item in items]
            if len(names) == len(items) or not any(isinstance(value, Region) for value in values):
                flat = itertools.chain.from_iterable(
                    v.items if isinstance(v, Sequence) and not v.brackets else [v] for v in values
                )
                return Named(names[0], Sequence("", tuple(flat)))
        return Sequence("", tuple(items))

    def related(self, text: str, sides: list[str], depth: int) -> Any:
        positions = top_positions(text, _RELATIONS)
        signs = [text[at] for at in positions]
        if "≈" in signs:
            return self.approximation(text[: positions[signs.index("≈")]].strip(), sides, depth)
        if signs == ["∈"]:
            return Named(_name(sides[0]), self.read(sides[1], depth + 1))
        if set(signs) == {"="}:
            return self.equation(sides, depth)
        return self.inequality(sides, signs)

    def approximation(self, exact: str, sides: list[str], depth: int) -> Any:
        """Parse a chain with ≈ and return its exact side. The side after ≈ must be near it; 5 ≈ 6 is
        unreadable."""
        about = self.read(sides[-1], depth + 1)
        if not exact or (len(sides) == 2 and self.names(*sides)):
            return replace(about, approximate=True) if isinstance(about, Scalar) else about
        value = self.read(exact, depth + 1)
        number = value.value if isinstance(value, Named) else value
        both = isinstance(number, Scalar) and isinstance(about, Scalar)
        if not both or not (equal(number.value, about.value) or rounds_to(number.value, about.text, places=0.999)):
            raise Unreadable("an approximation that is not near")
        return value

    def equation(self, sides: list[str], depth: int) -> Any:
        sides = [side for side in sides if side]
        if len(sides) < 2:
            return self.read("".join(sides), depth + 1)
        if len(sides) == 2 and not self.names(*sides) and self.names(*sides[::-1]):
            sides = sides[::-1]
        if len(set(sides)) < len(sides):
            raise Unreadable("a thing that equals itself")
        loose = replace(self, worked_out=False)
        if self.names(sides[0], sides[-1]):
            rest = [side for side in sides[1:] if side is sides[-1] or not _name_like(side)]
            values = [loose.read(side, depth + 1) for side in rest]
            if not all(_agree(values[0], value) for value in values[1:]):
                raise Unreadable("an equation that contradicts itself")
            return Named(_name(sides[0]), self.last(rest, depth), _difference(sides[0], sides[-1]))
        scalars = [value for side in sides if isinstance(value := loose.read(side, depth + 1), Scalar)]
        if len(scalars) != len(sides):
            raise Unreadable("an equation of things that are no expressions")
        if not any(value.value.free_symbols for value in scalars):
            if not all(_agree(scalars[0], value) for value in scalars[1:]):
                raise Unreadable("a false equation")
            return self.last(sides, depth)
        if all(equal(scalars[0].value, other.value) for other in scalars[1:]):
            return scalars[-1]
        if len(scalars) > 2:
            raise Unreadable("a chain of equations")
        return Equation(scalars[0].value - scalars[1].value)

    def last(self, sides: list[str], depth: int) -> Any:
        """Return the last of equal sides that can be read. With `worked_out`, 12 = 3*4 gives 12, and 3*4 = 2*6 is
        unreadable."""
        for side in sides[:0:-1]:
            with contextlib.suppress(Unreadable):
                return self.read(side, depth + 1)
        return self.read(sides[0], depth + 1)

    def names(self, side: str, other: str) -> bool:
        """True if `side` is a name for the value `other`. An expression is a name only in an answer, and only if
        the value is a constant: the answer m+n = 5 means 5. The gold x+y+z = 0 is an equation, as is n! = e^x."""
        if '"' in side or not _name_like(side) or not _COMPOSITE.search(_INDICES.sub("", side)):
            return _name_like(side)
        value = replace(self, worked_out=False).read(other) if self.answer else None
        return value is not None and not (isinstance(value, Scalar) and value.value.free_symbols)

    def inequality(self, sides: list[str], signs: list[str]) -> Any:
        variables = {_name(side) for side in sides if _VARIABLE.fullmatch(side) and side not in ("e", "i", r"\pi")}
        if len(variables) == 1:
            region = EVERYTHING
            for left, sign, right in zip(sides, signs, sides[1:]):
                turned = _name(right) in variables
                bound = self.expression(left if turned else right)
                half = half_line(bound, (_FLIP.get(sign, sign)) if turned else sign)
                if half is None or (_name(left) not in variables and not turned):
                    break
                region = Region(region.reals & half.reals)
            else:
                return replace(region, name=variables.pop())
        if not set(signs) <= set("<>≤≥"):
            raise Unreadable("a relation of another kind")
        if len(sides) > 2:  # a < b < c
            falling = signs[0] in ">≥"
            chain = tuple(Scalar(self.expression(side)) for side in sides)
            said = "".join(_FLIP[sign] for sign in signs[::-1]) if falling else "".join(signs)
            return Sequence(said, chain[::-1] if falling else chain)
        left, right = read_expression(sides[0]), read_expression(sides[1])
        if not (left - right).free_symbols:
            raise Unreadable("a statement without a variable")
        return Inequality(right - left if signs[0] in "<≤" else left - right, signs[0] in "<>")

    def region(self, text: str, depth: int) -> Region | None:
        """Parse ℝ, ∅, unions, intersections and differences of sets; None for other texts."""
        if text in ("ℝ", "∅", "⦃⦄", "⦃ ⦄"):
            return EVERYTHING if text == "ℝ" else NOTHING
        for sign in "∪∖∩":
            parts = split_top(text, sign)
            if sign == "∖" and len(parts) == 1 and text.startswith("ℝ") and text[1:].lstrip().startswith("-"):
                parts = ["ℝ", text[1:].lstrip()[1:].strip()]
            if len(parts) > 1:
                regions = [region for part in parts if (region := as_region(self.read(part, depth + 1)))]
                if len(regions) < len(parts):
                    raise Unreadable("set operations on what are no sets of reals")
                combine = {"∪": Union, "∩": Intersection, "∖": lambda first, *others: first - Union(*others)}[sign]
                return Region(combine(*(region.reals for region in regions)), regions[0].name)
        return None

    def bracketed(self, text: str, depth: int) -> Any:
        inside, brackets = text[1:-1].strip(), text[0] + text[-1]
        if brackets == "⟨⟩":
            brackets = "()"
        if brackets == "⦃⦄":
            for bar in "|:":
                head, *condition = split_top(inside, bar)
                if len(condition) == 1 and re.fullmatch(r"(?:[A-Za-z]|\([A-Za-z, ]*\))(?:\s*∈\s*ℝ)?", head):
                    return self.read(condition[0], depth + 1)
        items = [self.read(part, depth + 1) for part in split_top(inside, ",;")]
        if brackets == "⦃⦄":
            bare = (i.items if isinstance(i, Sequence) and not i.brackets else (i,) for i in items)
            return Sequence(brackets, tuple(itertools.chain.from_iterable(bare)))
        if len(items) == 1:
            if brackets not in ("()", "[]", "{}"):
                raise Unreadable("half an interval")
            return items[0]
        if brackets not in ("()", "[]", "(]", "[)"):
            raise Unreadable("brackets that do not fit")
        return Sequence(brackets, tuple(items))

    def both_signs(self, text: str, depth: int) -> Any:
        """Expand 1 ± 2 to the list 3, -1. Several ± are independent."""
        places = [at for at, sign in enumerate(text) if sign == "±"]
        if len(places) > 4:
            raise Unreadable("too many double signs")
        found = []
        for signs in itertools.product("+-", repeat=len(places)):
            pieces = list(text)
            for at, sign in zip(places, signs):
                pieces[at] = sign
            found.append(self.read("".join(pieces), depth + 1))
        return Sequence("", tuple(found))

    def grid(self, text: str, depth: int) -> Grid | None:
        found = _MATRIX.fullmatch(text)
        if not found or "\\begin" in found["body"]:
            return None
        rows = [row for row in found["body"].split("\ue001") if row.strip(" \\hline")]
        cells = [[cell.strip().strip(",") for cell in row.split("&")] for row in rows]
        if len({len(row) for row in cells}) != 1:
            raise Unreadable("a matrix with rows of different lengths")
        values = [[self.read(cell, depth + 1) for cell in row] for row in cells]
        if found["factor"]:
            times = self.expression(found["factor"])
            values = [[replace(cell, value=times * cell.value, text="") for cell in row] for row in values]
        return Grid(tuple(map(tuple, values)))


def _name_like(side: str) -> bool:
    """True if a side can be a name: x, f(x), AB, m+n, \\angle A, "Area", P(X = 1). It has letters and no
    numbers."""
    if _POINT.fullmatch(side):
        return True
    bare = _INDICES.sub("", side)
    return bool(re.search("[A-Za-z]", bare)) and not re.search(r"[\d±∞]|\\pi", bare) and bare not in ("e", "i")


def _name(side: str) -> str:
    if units.HEDGES & set(side.replace('"', " ").split()):
        raise Unreadable("words that say what it is not")
    name = re.sub(r"[\s{}]", "", side)
    return '"' if '"' in name and len(name) > 3 else name.replace('"', "")


def _difference(left: str, right: str) -> Expr | None:
    try:
        return read_expression(left) - read_expression(right)
    except Unreadable:
        return None


def _agree(one: Any, other: Any) -> bool:
    """True if two sides of a chain such as x = 0.56 = 56% have the same value."""
    if not (isinstance(one, Scalar) and isinstance(other, Scalar)):
        return False
    return equal(plain_value(one), plain_value(other))

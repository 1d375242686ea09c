r"""Judge one answer against one gold answer, inside a worker process.

    clean ──► words and letters, or: read (what kind of answer it is) ──► same (one rule for each pair of kinds)

The rules:

- The kinds must agree before values are compared: (1,2) differs from [1,2], 1011_2 from 1011, 4:30 p.m. from 4:30
  a.m., and CBAD is no product.
- If a text has two readings (1,000 may be a list), one common reading is enough.
- A unit, `x =`, the brackets of a pair, or \$ may be missing on one side.
- An exact gold requires an exact answer: 0.333 is not 1/3, and 3.14 is not \pi.
- A percentage equals its value. It also equals its number if the gold has no % and is above 1 (a gold of 50 for
  "what percent…").
- Any other answer is wrong. A policy would exploit every false positive; a false negative costs little.
"""

import contextlib
import itertools
import re
from dataclasses import replace
from functools import lru_cache
from typing import Any

from sympy import Rational, pi

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
from grpo_tir.grading.numbers import Region, equal, proportional, rounds_to
from grpo_tir.grading.text import Unreadable, clean, plain_words
from grpo_tir.grading.values import Reader
from grpo_tir.grading.words import PHRASES, is_words, read_letters, same_letters, same_words, without_option

_MAX_LENGTH = 5_000
_GROUPED = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,]*\d)")
_BRACKETED_THOUSAND = re.compile(r"\((-?\d{1,3}(?:,0\d\d)(?:,\d{3})*)\)")
_DECIMAL = re.compile(r"-?\d*\.\d+")
_SENTENCE = re.compile(r"(?:[A-Za-z]{2,} +){3}[A-Za-z]{2,}")
"""Four words in a row, such as "either of the foci". Such a gold cannot be compared by its words."""


def warm_up() -> None:
    """Judge one pair, so that the first request does not wait for imports and caches."""
    judge(r"\frac{\sqrt{2}}{2}x + 1", r"1 + \frac{x}{\sqrt{2}}")


def gold_fault(gold: str) -> str:
    """Return why no answer can be judged against this gold; empty if it can be used."""
    if len(gold) > _MAX_LENGTH:
        return "the gold is too long"
    text = clean(gold)
    if not text:
        return "the gold is empty"
    if read_letters(text) or is_words(text):
        return "the gold is a sentence, not an answer" if len(text) > 120 or _SENTENCE.search(text) else ""
    try:
        _gold_readings(text)
    except Unreadable as error:
        return f"the gold cannot be read: {error}"
    return ""


def judge(answer: str, gold: str, digits: int = 0) -> tuple[str, str]:
    """Return ("right" | "rounded" | "wrong" | "unjudged", reason). `rounded` means that the answer is the exact
    gold, correctly rounded to at least `digits` digits; with `digits` 0 such an answer is wrong."""
    if len(gold) > _MAX_LENGTH:
        return "unjudged", "the gold is too long"
    if len(answer) > _MAX_LENGTH:
        return "wrong", "too long"
    mine, theirs = clean(answer), clean(gold)
    if not theirs:
        return "unjudged", "the gold is empty"
    if _squeezed(mine) == _squeezed(theirs):
        return "right", "the same text"
    if letters := read_letters(theirs):
        return _verdict(same_letters(mine, theirs, letters), "letters")
    if is_words(theirs):
        return _verdict(same_words(mine, theirs), "words")
    try:
        golds, worked_out = _gold_readings(theirs)
    except Unreadable as error:
        return "unjudged", f"the gold cannot be read: {error}"
    try:
        answers = _readings(without_option(mine), Reader(answer=True, worked_out=worked_out))
    except Unreadable as error:
        return "wrong", f"cannot be read: {error}"
    if any(same(g, a) for g in golds for a in answers):
        return "right", "equal by mathematics"
    if digits and any(same(g, _exact(g, a, digits)) for g in golds for a in answers):
        return "rounded", "equal after rounding"
    return "wrong", "not equal by mathematics"


def _verdict(right: bool, by: str) -> tuple[str, str]:
    return ("right", f"equal by {by}") if right else ("wrong", f"not equal by {by}")


def _squeezed(text: str) -> str:
    """Remove spaces, except those between two letters, digits or dots: "1 2/3" differs from "12/3"."""
    return re.sub(r"(?<![\w.])\s+|\s+(?![\w.])", "", text)


@lru_cache(maxsize=1000)
def _gold_readings(text: str) -> tuple[list[Any], bool]:
    """Return the readings of the gold, and whether its constants are evaluated. If so, those of the answer must be
    evaluated too."""
    try:
        return _readings(text, Reader(answer=False, worked_out=True)), True
    except Unreadable:
        return _readings(text, Reader(answer=False)), False


def _readings(text: str, reader: Reader) -> list[Any]:
    """Return the readings of a text: with commas as thousands separators, and as they stand."""
    text = PHRASES.get(plain_words(text), text)
    text = _BRACKETED_THOUSAND.sub(r"\1", text)
    texts = [text]
    if (", " in text or not re.search(r"[(⦃\[]", text)) and _GROUPED.search(text):
        texts.insert(0, _GROUPED.sub(lambda m: m[0].replace(",", ""), text))
    readings = []
    for each in texts:
        with contextlib.suppress(Unreadable):
            readings.append(reader.read(each))
    return readings or [reader.read(text)]  # raises the reason


def same(gold: Any, answer: Any) -> bool:
    """True if a parsed answer equals a parsed gold, by the rule for their kinds."""
    if isinstance(gold, Named) or isinstance(answer, Named):
        return _same_named(gold, answer)
    if isinstance(gold, Region) or isinstance(answer, Region):
        return _same_region(gold, answer)
    if isinstance(gold, Sequence) or isinstance(answer, Sequence):
        return _same_sequence(gold, answer)
    if isinstance(gold, Ratio) or isinstance(answer, Ratio):
        time, said = (value.clock if isinstance(value, Ratio) else value for value in (gold, answer))
        if isinstance(time, units.Clock) and isinstance(said, units.Clock):
            return said.agrees(time)
        return _same_ratio(gold, answer)
    if type(gold) is not type(answer):
        return False
    if isinstance(gold, Scalar):
        return _same_scalar(gold, answer)
    if isinstance(gold, units.Clock):
        return answer.agrees(gold)
    if isinstance(gold, Equation):
        return proportional(gold.difference, answer.difference) is not None
    if isinstance(gold, Inequality):
        factor = proportional(gold.difference, answer.difference)
        return factor is not None and not factor.imag and factor.real > 0 and gold.strict == answer.strict
    if isinstance(gold, Grid):
        return _same_grid(gold, answer)
    if isinstance(gold, Date):
        years = gold.parts[0], answer.parts[0]
        return gold.parts[1:] == answer.parts[1:] and (None in years or years[0] == years[1])
    return bool(gold == answer) if isinstance(gold, Based) else False


def _exact(gold: Any, answer: Any, digits: int) -> Any:
    """Replace each decimal of the answer that is the gold's number, correctly rounded, by that exact number."""
    if isinstance(answer, Named):
        return replace(answer, value=_exact(gold, answer.value, digits), difference=None)
    if isinstance(gold, Named):
        return _exact(gold.value, answer, digits)
    if isinstance(gold, Sequence) and isinstance(answer, Sequence) and len(gold.items) == len(answer.items):
        return replace(answer, items=tuple(_exact(g, a, digits) for g, a in zip(gold.items, answer.items)))
    if isinstance(gold, Scalar) and isinstance(answer, Scalar) and _DECIMAL.fullmatch(answer.text):
        shown = answer.text.strip("-").replace(".", "").lstrip("0")
        if len(shown) >= digits and not _DECIMAL.search(gold.text) and rounds_to(gold.value, answer.text):
            return replace(answer, value=gold.value)
    return answer


def _same_scalar(gold: Scalar, answer: Scalar) -> bool:
    theirs, mine = gold.unit, answer.unit
    if theirs and mine and not (theirs.percent or mine.percent):
        if not theirs.agrees(mine):
            return False
        if theirs.dimensions and mine.dimensions and theirs.factor != mine.factor:
            ratio = Rational(theirs.factor.numerator, theirs.factor.denominator) / Rational(
                mine.factor.numerator, mine.factor.denominator
            )
            return equal(gold.value * ratio, answer.value)
    elif theirs and mine and theirs.percent != mine.percent:
        return False
    elif _percent(theirs) != _percent(mine) and equal(gold.value, answer.value):
        return _percent(theirs) or bool(gold.value.is_real and gold.value > 1)
    value, found = plain_value(gold), plain_value(answer)
    if not (value.is_Rational and not found.is_Rational) and equal(value, found):
        return True
    if _degrees(theirs) != _degrees(mine) and not (theirs and mine):
        turned = [v * pi / 180 if _degrees(u) else v for v, u in ((value, theirs), (found, mine))]
        return (found if _degrees(theirs) else value).has(pi) and equal(*turned)
    if not _DECIMAL.fullmatch(gold.text):
        return False
    long_enough = len(gold.text.strip("-").lstrip("0.").replace(".", "")) >= 4 and not _DECIMAL.search(answer.text)
    return (gold.approximate or long_enough) and rounds_to(found, gold.text)


def _percent(unit: units.Unit | None) -> bool:
    return bool(unit and unit.percent)


def _degrees(unit: units.Unit | None) -> bool:
    return bool(unit and unit.dimensions == (("angle", 1),))


def _same_named(gold: Any, answer: Any) -> bool:
    """Compare if one side or both have a name. x = 5 equals 5 but not y = 5. Equations of several variables may be
    solved for different ones."""
    named = isinstance(gold, Named) and isinstance(answer, Named)
    if named and (gold.name == answer.name or '"' in (gold.name, answer.name)) and same(gold.value, answer.value):
        return True
    if isinstance(gold, Named | Equation) and isinstance(answer, Named | Equation):
        return _same_curve(gold.difference, answer.difference)
    if isinstance(gold, Named):
        if isinstance(answer, Region) and answer.name not in ("", gold.name):
            return False
        return same(gold.value, answer)
    if isinstance(gold, Region) and gold.name not in ("", answer.name):
        return False
    return same(gold, answer.value)


def _same_curve(one: Any, other: Any) -> bool:
    if one is None or other is None or len(one.free_symbols) < 2:
        return False
    return proportional(one, other) is not None


def _same_region(gold: Any, answer: Any) -> bool:
    names = {value.name for value in (gold, answer) if isinstance(value, Region)} - {""}
    if len(names) > 1:
        return False
    left, right = as_region(gold), as_region(answer)
    return left is not None and right is not None and bool(left.reals == right.reals)


def _same_sequence(gold: Any, answer: Any) -> bool:
    if not isinstance(gold, Sequence) or not isinstance(answer, Sequence):
        lone = gold if isinstance(gold, Sequence) else answer
        if len(lone.items) != 1 or lone.brackets not in ("", "⦃⦄"):
            return False
        return same(gold.items[0], answer) if lone is gold else same(gold, answer.items[0])
    kinds = {gold.brackets, answer.brackets}
    theirs, mine = list(gold.items), list(answer.items)
    if kinds <= {"", "⦃⦄"}:
        if _assigned(theirs) != _assigned(mine):
            return any(_in_order(t, m) for t in _orders(theirs) for m in _orders(mine))
        if "⦃⦄" in kinds:
            theirs, mine = _distinct(theirs), _distinct(mine)
        return _matched(theirs, mine)
    if kinds == {"", "()"}:
        return any(_in_order(t, m) for t in _orders(theirs) for m in _orders(mine))
    if len(kinds) == 1 or (kinds == {"()", "[]"} and len(theirs) > 2):
        return _in_order(theirs, mine)
    return False


def _assigned(items: list[Any]) -> bool:
    return all(isinstance(item, Named) for item in items)


def _orders(items: list[Any]) -> list[list[Any]]:
    """Return the item lists to compare in order. For x = 1, y = 2 it is the values 1, 2: sorted by name if the
    last letters of the names are consecutive, else as written."""
    if not _assigned(items):
        return [items]
    ordered = sorted(items, key=lambda item: item.name)
    last = [item.name[-1:] for item in ordered]
    steps = [ord(b) - ord(a) for a, b in itertools.pairwise(last) if a and b]
    return [[item.value for item in (ordered if set(steps) <= {1} else items)]]  # m, b: as written


def _in_order(gold: list[Any], answer: list[Any]) -> bool:
    return len(gold) == len(answer) and all(map(same, gold, answer))


def _matched(gold: list[Any], answer: list[Any]) -> bool:
    """True if the items can be paired one to one, in any order."""
    if len(gold) != len(answer):
        return False
    left = list(answer)
    for item in gold:
        index = next((i for i, other in enumerate(left) if same(item, other)), None)
        if index is None:
            return False
        del left[index]
    return True


def _distinct(items: list[Any]) -> list[Any]:
    kept: list[Any] = []
    for item in items:
        if not any(same(other, item) for other in kept):
            kept.append(item)
    return kept


def _same_ratio(gold: Any, answer: Any) -> bool:
    if isinstance(gold, Ratio) and isinstance(answer, Ratio):
        a, b = gold.parts, answer.parts
        pairs = itertools.combinations(range(len(a)), 2)
        return len(a) == len(b) and all(equal(a[i] * b[j], a[j] * b[i]) for i, j in pairs)
    ratio, other = (gold, answer) if isinstance(gold, Ratio) else (answer, gold)
    if not isinstance(other, Scalar) or other.unit or len(ratio.parts) != 2 or ratio.parts[1] == 0:
        return False
    quotient = ratio.parts[0] / ratio.parts[1]
    if ratio is answer and quotient.is_Integer and ratio.parts[1] != 1:  # 408:12 is a division, not 34
        return False
    return equal(quotient, other.value)


def _same_grid(gold: Grid, answer: Grid) -> bool:
    return len(gold.rows) == len(answer.rows) and all(
        _in_order(list(a), list(b)) for a, b in zip(gold.rows, answer.rows)
    )

r"""Read units, money, numbers in a base, clock times and dates.

A unit has dimensions and a factor: `5 "m"` equals `500 "cm"`, `80 "cents"` equals `$0.80`, and neither equals
`5 "kg"`. If only one side has a unit, it is ignored, as in other graders. If both have one, the units must agree.
Words that are no unit ("14 right triangles") are nouns; if both sides have nouns, they must share one.
"""

import re
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from typing import Self

from grpo_tir.grading.text import NUMBER_WORDS, Unreadable

_TABLE = """
length      1/1000000 μm micrometer micrometre micron, 1/1000 mm millimeter millimetre,
            1/100 cm centimeter centimetre, 1/10 dm decimeter, 1 m meter metre, 1000 km kilometer kilometre,
            254/10000 in inch inche, 3048/10000 ft foot feet, 9144/10000 yd yard, 1609344/1000 mi mile
mass        1/1000000000 μg microgram, 1/1000000 mg milligram, 1/1000 g gm gram, 1 kg kilogram kilo,
            45359237/100000000 lb pound, 45359237/1600000000 oz ounce, 907 ton, 1000 tonne
time        1/1000000 μs microsecond, 1/1000 ms millisecond, 1 s sec second, 60 min minute, 3600 h hr hour,
            86400 day, 604800 week
month       1 month, 12 year yr, 120 decade, 1200 century centurie
money       1 dollar usd $ buck, 1/100 cent ¢ penny pennie, 1/20 nickel, 1/10 dime
euro        1 euro €
sterling    1 £
yen         1 yen yuan rmb
angle       1 degree deg °, 0 radian rad
celsius     1 °c celsius
fahrenheit  1 °f fahrenheit
volume      1/1000 l liter litre, 1/1000000 ml milliliter millilitre cc
gallon      1 gallon gal, 1/4 quart qt, 1/8 pint
area        1 acre
cup         1 cup, 1/16 tablespoon tbsp, 1/48 teaspoon tsp
force       1 n newton
energy      1 j joule
power       1 w watt
potential   1 v volt
resistance  1 ohm, 1000 kohm kiloohm
"""
"""One dimension per row, with its units. A unit is its factor, followed by all its spellings."""
_UNITS: dict[str, tuple[str, Fraction]] = {}
for _dimension, _row in re.findall(r"^(\w+)\s+(\S(?:.*\n?)(?:\s+\S.*\n?)*)", _TABLE, re.MULTILINE):
    for _factor, *_names in (unit.split() for unit in _row.split(",")):
        _UNITS |= dict.fromkeys(_names, (_dimension, Fraction(_factor)))
_SPEEDS = {"mph": ("mile", "hour"), "kph": ("km", "hour"), "kmph": ("km", "hour"), "fps": ("foot", "second")}
_SCALES = {"hundred": 100, "thousand": 1000, "dozen": 12, "million": 10**6, "billion": 10**9, "trillion": 10**12}
HEDGES = set(
    "not no never wrong incorrect false or unless except maybe guess perhaps more less least most than".split()
)
_NO_NOUNS = HEDGES.union(NUMBER_WORDS).union(
    "is are was be and if half root roots th power halves third thirds quarter quarters fourths fifths sixths "
    "sevenths eighths ninths tenths hundredths thousandths factorial double triple doubled tripled halved twice "
    "plus minus times over divided multiplied squared cubed mod modulo negative inverse reciprocal log "
    "cubes".split()
)
_FILLERS = set("of the a an in total approximately about exactly long wide high tall each altogether away".split())
_BARE = sorted(
    {
        f"{name}{plural}"
        for name in [*_UNITS, *_SPEEDS, *_SCALES, "unit", "percent"]
        if len(name) > 1 and name.isalpha() and name not in ("in", "inche", "centurie", "pennie")
        for plural in ("", "s", "es")
    },
    key=len,
    reverse=True,
)
_ATOM = rf'(?:"[^"]*"|(?<![A-Za-z\\_])(?:{"|".join(_BARE)})(?![A-Za-z_(])\.?|°\s*"?[CF]"?(?![a-z])|[$€£])'
_POWER = r'(?:\s*\^\s*\{?\s*"?-?\d"?\s*\}?)?'
_PREFIX = r"(?:(?<![A-Za-z\\])(?:square|sq\.?|cubic|cu\.?)\s+)?"
_JOIN = r"\s*(?:/|\*|per\b|-)?\s*"
_TAIL = re.compile(rf"(?P<unit>{_PREFIX}{_ATOM}{_POWER}(?:{_JOIN}{_PREFIX}{_ATOM}{_POWER})*)\s*\.?$")
_WORD_TAIL = re.compile(r"(?<=[\d}])\s+(?P<unit>[A-Za-z][a-z]{3,}(?: [A-Za-z]?[a-z]{2,})*|in)$")
_LETTER = r"(?:[mgshL]|in|[kc]m)(?:\s*\^\s*\{?(?:[23]|-[123])\}?)?"
_LETTER_TAIL = re.compile(rf"(?<=\d)\s+(?P<unit>{_LETTER}(?:\s*/\s*{_LETTER})?)$")
_MONEY = re.compile(r'^(?P<sign>-?)\s*(?P<unit>[$€£]|"?(?:USD|US\$|Rs\.?)"?)\s*(?P<rest>-?[\d.\\(].*)$')

_CLOCK = re.compile(r"(\d{1,2})(?:\s*:\s*(\d\d))?(?:\s*:\s*(\d\d))?\s*([ap])\.?\s*m\.?")
_COLONS = re.compile(r"(\d{1,2})\s*:\s*(\d\d)(?:\s*:\s*(\d\d))?")
_MONTHS = "january february march april may june july august september october november december".split()
_ANGLE_INSIDE = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
_MONTH = "|".join(f"{name[:3]}(?:{name[3:]})?" if len(name) > 3 else name for name in [*_MONTHS, "sept"])
_DAY = r"(?:the )?(?P<day>\d{1,2})(?:st|nd|rd|th)?"
_YEAR = r"(?:\s*,?\s*(?P<year>\d{4}))?"
_DATES = [
    re.compile(rf"(?P<month>{_MONTH})\.?\s+{_DAY}{_YEAR}"),
    re.compile(rf"{_DAY}\s+(?:of )?(?P<month>{_MONTH})\.?{_YEAR}"),
]
_BASE_WORDS = {word: base for base, word in enumerate(NUMBER_WORDS)}
_BASED = re.compile(r"(-?)\(?([0-9A-Za-z]+(?:\.[0-9A-Za-z]+)?)\)?_\{?\(?([0-9]+|[a-z]+)\)?\}?(?:base[a-z0-9]+)?")
_BASE_SAID = re.compile(r"(-?)\(?([0-9A-Za-z]+?)\)?,?\(?(?:in)?base-?_?\{?([0-9]+|[a-z]+)\}?\)?")


@dataclass(frozen=True)
class Unit:
    """A unit: exponents of its `dimensions`, its `factor`, and `nouns` for counted things."""

    dimensions: tuple[tuple[str, int], ...] = ()
    factor: Fraction = Fraction(1)
    nouns: frozenset[str] = frozenset()
    scale: int = 1
    """Factor of the number, from words such as million."""
    percent: bool = False
    anything: bool = False
    """True for "units" and "square units", which agree with every unit."""

    def agrees(self, other: Self) -> bool:
        """True if both units can measure the same quantity."""
        if self.anything or other.anything:
            return True
        if self.dimensions or other.dimensions:
            return self.dimensions == other.dimensions
        return not self.nouns or not other.nouns or bool(self.nouns & other.nouns)


@dataclass(frozen=True)
class Clock:
    """A time of day. `half` is `a` for a.m., `p` for p.m., and empty if neither is given."""

    hour: int
    minute: int
    second: int
    half: str

    def agrees(self, gold: Self) -> bool:
        """True if the time equals `gold`. A gold with a.m. or p.m. requires it, or the 24-hour form."""
        if (self.minute, self.second) != (gold.minute, gold.second):
            return False
        if bool(self.half) == bool(gold.half):
            return (self.hour, self.half) == (gold.hour, gold.half)
        said, bare = (self, gold) if self.half else (gold, self)
        if bare.hour > 12 or bare.hour == 0:
            return bare.hour % 24 == said.hour % 12 + 12 * (said.half == "p")
        return bare is gold and said.hour == bare.hour


def split_unit(text: str, *, letters: bool = False) -> tuple[str, Unit | None]:
    """Split a text into its number and its unit, None if there is none. With `letters`, "5 m" is five metres;
    without, it is five times m, as it may be in a gold."""
    if money := _MONEY.match(text):
        number, more = split_unit(money["rest"])
        unit = parse_unit(money["unit"])
        scale = more.scale if more else 1
        if more and more.dimensions and more.dimensions != unit.dimensions:
            return text, None
        return money["sign"] + number, Unit(unit.dimensions, unit.factor, scale=scale)
    if text.endswith("%"):
        return text[:-1].rstrip(), Unit(percent=True)
    found = _TAIL.search(text) or _WORD_TAIL.search(text) or (_LETTER_TAIL.search(text) if letters else None)
    if found and found.start() and re.search(r"[\d)}\]!a-zA-Z∞]\s*\*?\s*$", text[: found.start()]):
        return text[: found.start()].rstrip(" *-"), parse_unit(found["unit"])
    if text.endswith("°") and not _ANGLE_INSIDE.search(text):
        return text[:-1].rstrip(), parse_unit("°")
    return text, None


def parse_unit(text: str) -> Unit:
    """Parse the text after a number as a unit.

    Raises:
        Unreadable: it contains other words.
    """
    text = re.sub(r'["{}().,]', " ", text.lower()).replace("*", " ")
    text = re.sub(r"\s*\^\s*", "^", text)
    text = re.sub(r"°\s*([cf])\b", r"°\1", text)
    text = re.sub(r"([a-z]+) (squared|cubed)", lambda m: f"{m[1]}^{2 if m[2] == 'squared' else 3}", text)
    text = text.replace("per ", "/ ").replace("/", " / ")
    dimensions: Counter[str] = Counter()
    factor, scale, sign, power = Fraction(1), 1, 1, 1
    nouns: set[str] = set()
    anything = percent = False
    for token in re.sub(r"(?<!\^)-", " ", text).split():
        word, _, exponent = token.partition("^")
        if word == "/":
            sign = -1
        elif word in ("square", "sq", "cubic", "cu"):
            power = 2 if word.startswith("sq") else 3
        elif word in _SCALES:
            scale *= _SCALES[word]
        elif word in ("percent", "percents"):
            percent = True
        elif word in ("unit", "units"):
            anything = True
        else:
            for name, way in zip(_SPEEDS.get(word, (word,)), (1, -1)):
                spellings = (name, name.removesuffix("s"), name.removesuffix("es"))
                known = next((_UNITS[spelling] for spelling in spellings if spelling in _UNITS), None)
                times = sign * way * power * (int(exponent) if exponent.lstrip("-").isdigit() else 1)
                if known:
                    dimensions[known[0]] += times
                    factor *= known[1] ** times if known[1] else 1
                    if not known[1]:
                        dimensions[known[0]] += 100  # radians: an angle that is not in degrees
                elif exponent or name in _NO_NOUNS or not name.replace("'", "").isalpha():
                    raise Unreadable("words that are no unit")
                elif name not in _FILLERS:
                    nouns.add(name.removesuffix("s"))
            power = 1
    if len(nouns) > 6:
        raise Unreadable("a sentence")
    if dimensions:
        nouns.clear()
    kept = tuple(sorted((name, times) for name, times in dimensions.items() if times))
    return Unit(kept, factor, frozenset(nouns), scale, percent, anything and not dimensions)


def read_clock(text: str) -> Clock | None:
    """Read a time of day with a.m. or p.m.; None for other texts."""
    said = text.replace('"', "").strip().lower()
    found = _CLOCK.fullmatch(said)
    if not found or not 1 <= int(found[1]) <= 12:
        return None
    return Clock(int(found[1]), int(found[2] or 0), int(found[3] or 0), found[4].lower())


def read_colons(text: str) -> Clock | None:
    """Read a time such as 8:34; None for other texts. It may also be a ratio, so the comparison decides."""
    found = _COLONS.fullmatch(text.replace('"', "").strip())
    return Clock(int(found[1]), int(found[2]), int(found[3] or 0), "") if found else None


def read_date(text: str) -> tuple[int | None, int, int] | None:
    """Read a date as (year, month, day), with year None if it is not given; None for other texts."""
    said = re.sub(r"\s+", " ", text.replace('"', " ")).strip().lower()
    for pattern in _DATES:
        if found := pattern.fullmatch(said):
            number = [name[:3] for name in _MONTHS].index(found["month"][:3]) + 1
            if 1 <= int(found["day"]) <= 31:
                return int(found["year"]) if found["year"] else None, number, int(found["day"])
    return None


def read_based(text: str) -> tuple[str, int] | None:
    """Read a number with its base as (digits, base): 1011_2, (1011)_{two}, 1011 base 2. None for other texts."""
    squeezed = re.sub(r'[\s"]', "", text).replace("{,}", "")
    found = _BASED.fullmatch(squeezed) or _BASE_SAID.fullmatch(squeezed)
    if not found or not (re.search(r"\d", found[2]) or (found[2].isupper() and len(found[2]) > 1)):
        return None
    base = int(found[3]) if found[3].isdigit() else _BASE_WORDS.get(found[3].removeprefix("base"), 0)
    digits = found[2].upper()
    if not 2 <= base <= 36 or any(int(digit, 36) >= base for digit in digits.replace(".", "")):
        return None
    return found[1] + (digits.lstrip("0") or "0"), base

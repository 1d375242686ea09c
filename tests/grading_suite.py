r"""About 1,800 labelled pairs, made by rules of school mathematics and never by the grader.

Each function draws one gold and yields (label, answer): `True` for another way to write it, `False` for a miss.
The rules are worked by hand: \frac{p}{q} = \frac{kp}{kq}, a\sqrt b = \sqrt{a^2 b}, (x-r)(x-s) = x^2-(r+s)x+rs,
a < x \le b is (a,b], 1 m = 100 cm. `python tests/grading_suite.py` prints the pairs as rows for `grpo-tir grade`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from fractions import Fraction

Pairs = Iterator[tuple[bool, str]]
Family = Callable[[random.Random], tuple[str, Pairs]]


def _signed(number: int) -> str:
    return f"+{number}" if number >= 0 else str(number)


def _term(factor: int, rest: str) -> str:
    return {1: rest, -1: f"-{rest}"}.get(factor, f"{factor}{rest}")


def _later(factor: int, rest: str) -> str:
    return "" if factor == 0 else ("+" if factor > 0 else "") + _term(factor, rest)


def _decimal(value: Fraction) -> str:
    """Its decimals by long division, with the cycle under a bar."""
    whole, rest = divmod(abs(value.numerator), value.denominator)
    seen: dict[int, int] = {}
    digits = ""
    while rest and rest not in seen:
        seen[rest] = len(digits)
        digit, rest = divmod(10 * rest, value.denominator)
        digits += str(digit)
    if rest:
        digits = digits[: seen[rest]] + rf"\overline{{{digits[seen[rest] :]}}}"
    return ("-" if value < 0 else "") + str(whole) + (f".{digits}" if digits else "")


# fmt: off
def integer(draw: random.Random) -> tuple[str, Pairs]:
    n = draw.choice([draw.randint(2, 99), draw.randint(1000, 99999), -draw.randint(2, 500)])

    def pairs() -> Pairs:
        yield from ((True, text) for text in (f"{n}.0", rf"\text{{{n}}}", f"${n}$", f"x = {n}",
            rf"{n}\text{{ cm}}"))
        if n > 999:
            yield from ((True, f"{n:,}"), (True, f"{n:,}".replace(",", "{,}")))
        yield from ((False, text) for text in (str(n + 1), str(-n), f"{n}0", f"{n}, {n + 1}", f"{n + 1}-1",
            f"x > {n}"))
        yield from ((False, text) for text in (f"({n},{n})", f"{n}i", f"{n}\\%" if n < 0 else f"{n}x",
            rf"\frac{{1}}{{{n}}}"))

    return str(n), pairs()


def fraction(draw: random.Random) -> tuple[str, Pairs]:
    value = Fraction(draw.choice([-1, 1]) * draw.randint(1, 60), draw.randint(3, 40))
    while value.denominator == 1:
        value = Fraction(draw.randint(1, 60), draw.randint(3, 40))
    p, q = value.numerator, value.denominator
    sign = "-" if p < 0 else ""

    def pairs() -> Pairs:
        k = draw.randint(2, 6)
        yield from ((True, text) for text in (rf"\frac{{{p}}}{{{q}}}", f"{p}/{q}",
            rf"{sign}\dfrac{{{abs(p) * k}}}{{{q * k}}}"))
        yield True, _decimal(value)
        if abs(p) > q:
            yield True, rf"{sign}{abs(p) // q}\frac{{{abs(p) % q}}}{{{q}}}"
        yield from ((False, text) for text in (rf"\frac{{{q}}}{{{p}}}", f"{p + 1}/{q}", f"{p}/{q + 1}",
            f"{-p}/{q}", f"{p}.{q}"))
        short = Fraction(f"{float(value):.3f}")
        yield False, f"{float(short if short != value else short + Fraction(1, 1000)):.3f}"
        yield False, rf"\frac{{{p + 2}}}{{{q}}}-\frac{{2}}{{{q}}}"

    return rf"{sign}\frac{{{abs(p)}}}{{{q}}}", pairs()


def surd(draw: random.Random) -> tuple[str, Pairs]:
    a, b = draw.choice([2, 4, 8, 9, 12, 15]), draw.choice([3, 5, 6, 7, 10, 11, 13])

    def pairs() -> Pairs:
        yield from ((True, text) for text in (rf"\sqrt{{{a * a * b}}}", rf"{a}\cdot\sqrt{{{b}}}",
            rf"{a}\cdot {b}^{{1/2}}"))
        yield from ((True, text) for text in (rf"\frac{{{a * b}}}{{\sqrt{{{b}}}}}", f"{a}√{b}",
            rf"x={a}\sqrt {b}"))
        yield from ((False, text) for text in (rf"\sqrt{{{a * b}}}", rf"{a + 1}\sqrt{{{b}}}",
            rf"{a}\sqrt{{{b + 1}}}", rf"-{a}\sqrt{{{b}}}"))
        yield from ((False, text) for text in (f"{a * b**0.5:.3f}", rf"{a}\sqrt[3]{{{b}}}",
            rf"\sqrt{{{a}}}\cdot {b}", rf"{a}+\sqrt{{{b}}}"))

    return rf"{a}\sqrt{{{b}}}", pairs()


def circle(draw: random.Random) -> tuple[str, Pairs]:
    a, q = draw.choice([(7, 3), (5, 2), (9, 4), (11, 6), (25, 2), (8, 3), (16, 5)])

    def pairs() -> Pairs:
        yield from ((True, text) for text in (rf"\frac{{{a}}}{{{q}}}\pi", rf"{a}\pi/{q}",
            rf"\frac{{{3 * a}\pi}}{{{3 * q}}}", f"{a}π/{q}"))
        yield True, rf"A=\frac{{{a}\pi}}{{{q}}}\text{{ cm}}^2"
        yield from ((False, text) for text in (rf"\frac{{{a}}}{{{q}}}", rf"\frac{{{q}\pi}}{{{a}}}",
            rf"\frac{{{a}\pi^2}}{{{q}}}"))
        yield from ((False, text) for text in (f"{a * 3.14159265 / q:.2f}", rf"\frac{{{a}}}{{{q}\pi}}",
            rf"\frac{{{a + 1}\pi}}{{{q}}}"))

    return rf"\frac{{{a}\pi}}{{{q}}}", pairs()


def conjugate(draw: random.Random) -> tuple[str, Pairs]:
    """a + b sqrt(c), and its inverse by (a + b sqrt c)(a - b sqrt c) = a^2 - b^2 c = 1 (Pell)."""
    a, b, c = draw.choice([(2, 1, 3), (3, 2, 2), (9, 4, 5), (5, 2, 6), (8, 3, 7), (19, 6, 10), (10, 3, 11), (7,
        2, 12)])
    root = _term(b, rf"\sqrt{{{c}}}")

    def pairs() -> Pairs:
        yield from ((True, f"{root}+{a}"), (True, rf"\frac{{1}}{{{a}-{root}}}"), (True,
            rf"{a}+\sqrt{{{b * b * c}}}"))
        yield from ((True, rf"\frac{{{2 * a}+{2 * b}\sqrt{{{c}}}}}{{2}}"), (True, f"a = {a} + {root}"))
        yield from ((False, f"{a}-{root}"), (False, f"{a + b}\\sqrt{{{c}}}"), (False, rf"{a}\pm {root}"),
            (False, rf"\sqrt{{{a}+{c}}}"))
        yield from ((False, f"{a + b * c**0.5:.4f}"), (False, f"{a + 1}+{root}"), (False, f"-{a}-{root}"))

    return f"{a}+{root}", pairs()


def complex_number(draw: random.Random) -> tuple[str, Pairs]:
    a, b = draw.randint(-9, 9) or 4, draw.randint(2, 9) * draw.choice([-1, 1])

    def pairs() -> Pairs:
        yield from ((True, f"{_term(b, 'i')}{_signed(a)}"), (True, f"{a} {_signed(b)} i"), (True,
            f"z = {a}{_later(b, 'i')}"))
        yield from ((False, f"{a}{_later(-b, 'i')}"), (False, f"{b}{_later(a, 'i')}"), (False, f"({a},{b})"),
            (False, f"{a + b}i"))
        yield from ((False, f"{-a}{_later(b, 'i')}"), (False, f"{a}{_later(b, 'j')}"), (False,
            f"i({b}{_later(-a, 'i')})"))

    if abs(a) == abs(b):
        return complex_number(draw)
    return f"{a}{_later(b, 'i')}", pairs()


def quadratic(draw: random.Random) -> tuple[str, Pairs]:
    r, s = draw.sample([-7, -5, -4, -3, -2, 2, 3, 4, 5, 6, 8], 2)
    b, c = -(r + s), r * s
    gold = f"x^2{_later(b, 'x')}{_signed(c)}"
    factors = f"(x{_signed(-r)})(x{_signed(-s)})"

    def pairs() -> Pairs:
        yield from ((True, factors), (True, f"{c}{_later(b, 'x')}+x^2"), (True, f"f(x) = {gold}"), (True,
            f"x(x{_signed(b)}){_signed(c)}"))
        yield from ((False, gold.replace("x", "y")), (False, f"{gold} = 0"), (False,
            f"x^2{_later(-b, 'x') or '+x'}{_signed(c)}"))
        yield from ((False, f"x^2{_later(b, 'x')}{_signed(-c)}"), (False, f"(x{_signed(r)})(x{_signed(s)})"),
            (False, f"{r}, {s}"))
        yield False, f"2{gold}"

    return (gold, pairs()) if b else quadratic(draw)


def line(draw: random.Random) -> tuple[str, Pairs]:
    m, k = draw.choice([-4, -3, -2, 2, 3, 5]), draw.choice([-7, -3, 1, 4, 6])

    def pairs() -> Pairs:
        yield from ((True, f"{_term(m, 'x')}{_signed(k)} = y"), (True, f"{_term(m, 'x')}-y{_signed(k)} = 0"),
            (True, f"2y = {2 * m}x{_signed(2 * k)}"))
        yield from ((True, f"{_term(m, 'x')}{_signed(k)}"), (True, f"y {_signed(-k)} = {_term(m, 'x')}"))
        yield from ((False, f"y = {_term(-m, 'x')}{_signed(k)}"), (False, f"y = {_term(m, 'x')}{_signed(-k)}"),
            (False, f"x = {m}y{_signed(k)}"))
        yield from ((False, f"y > {_term(m, 'x')}{_signed(k)}"), (False, "y"), (False, f"({m},{k})"), (False,
            f"y = {_term(m, 'x')}"))

    return f"y = {_term(m, 'x')}{_signed(k)}", pairs()


def plane(draw: random.Random) -> tuple[str, Pairs]:
    a, b, c = draw.randint(2, 5), draw.randint(2, 7), draw.randint(4, 20)

    def pairs() -> Pairs:
        yield from ((True, f"{b}y+{a}x={c}"), (True, f"{c}={a}x+{b}y"), (True, f"{2 * a}x+{2 * b}y={2 * c}"),
            (True, rf"y=\frac{{{c}-{a}x}}{{{b}}}"))
        yield from ((True, f"{a}x+{b}y-{c}=0"), (False, str(c)), (False, f"{a}x-{b}y={c}"), (False,
            f"{a}x+{b}y={c + 1}"))
        yield from ((False, f"{a}x+{b}y"), (False, f"{a}x+{b}y\\le {c}"), (False, f"{a}+{b}={c}"), (False,
            f"{b}x+{a}y={c}" if a != b else "x=y"))

    return f"{a}x+{b}y={c}", pairs()


def point(draw: random.Random) -> tuple[str, Pairs]:
    a, b = draw.sample([-8, -5, -3, -1, 2, 4, 6, 7, 9], 2)

    def pairs() -> Pairs:
        yield from ((True, f"( {a} , {b} )"), (True, rf"\left({a},\,{b}\right)"), (True, f"({a}.0, {b})"),
            (True, f"x={a}, y={b}"))
        yield from ((True, f"y={b}, x={a}"), (True, rf"(x,y)=({a},{b})"), (False, f"({b},{a})"), (False,
            f"({a},{-b})"))
        yield from ((False, rf"\{{{a},{b}\}}"), (False, f"x={b}, y={a}"), (False, str(a)), (False,
            f"({a},{b},0)"), (False, f"[{a},{b})"))
        yield from ((False, r"\emptyset"), (False, f"({a},{b}),({b},{a})"), (False,
            f"{a}{b}" if b > 0 else f"{a * b}"))

    return f"({a},{b})", pairs()


def value_list(draw: random.Random) -> tuple[str, Pairs]:
    a, b, c = sorted(draw.sample([n for n in range(-9, 40) if n], 3))

    def pairs() -> Pairs:
        yield from ((True, f"{c}, {a}, {b}"), (True, rf"\{{{b},{a},{c}\}}"), (True,
            rf"{a}, {b}\text{{ and }}{c}"), (True, f"x = {a}, {b}, {c}"))
        yield from ((True, rf"x={a}\text{{ or }}x={b}\text{{ or }}x={c}"), (False, f"{a},{b}"), (False,
            f"{a},{b},{c},{c + 1}"))
        yield from ((False, f"{a},{b},{c + 1}"), (False, f"{a},{a},{c}"), (False, f"{-a - 50},{b},{c}"), (False,
            f"{a}<x<{c}"), (False, str(a + b + c)))

    return f"{a},{b},{c}", pairs()


def interval(draw: random.Random) -> tuple[str, Pairs]:
    a, b = draw.randint(-9, 3), draw.randint(4, 15)
    left, right = draw.choice("(["), draw.choice(")]")
    low, high = "<" if left == "(" else r"\le", "<" if right == ")" else r"\le"
    other = {"(": "[", "[": "(", ")": "]", "]": ")"}

    def pairs() -> Pairs:
        yield from ((True, f"{a} {low} x {high} {b}"), (True, rf"x\in{left}{a},{b}{right}"), (True,
            rf"\left{left} {a}, {b} \right{right}"))
        falling = {"<": ">", r"\le": r"\ge"}
        yield True, f"{b} {falling[high]} x {falling[low]} {a}"
        if (left, right) != ("(", ")"):  # an open one may be a point
            yield False, f"({a},{b})"
        yield from ((False, f"{other[left]}{a},{b}{right}"), (False, f"{left}{a},{b}{other[right]}"), (False,
            f"{left}{a},{b + 1}{right}"))
        yield from ((False, f"{a} {low} x"), (False, rf"(-\infty,{a})\cup({b},\infty)"), (False,
            f"{b} {low} x {high} {a}"), (False, r"\mathbb{R}"))

    return f"{left}{a},{b}{right}", pairs()


def union(draw: random.Random) -> tuple[str, Pairs]:
    a, b = draw.randint(-9, 2), draw.randint(3, 12)

    def pairs() -> Pairs:
        yield from ((True, rf"({b},\infty)\cup(-\infty,{a}]"), (True, rf"x\le {a}\text{{ or }}x>{b}"), (True,
            rf"x \leq {a}, x > {b}"))
        yield from ((True, rf"\mathbb{{R}}\setminus({a},{b}]"), (False, rf"(-\infty,{a})\cup({b},\infty)"),
            (False, f"({a},{b}]"))
        yield from ((False, rf"(-\infty,{a}]\cup[{b},\infty)"), (False, rf"x\le {a}"), (False,
            rf"(-\infty,{a - 1}]\cup({b},\infty)"), (False, f"{a},{b}"))

    return rf"(-\infty,{a}]\cup({b},\infty)", pairs()


def length(draw: random.Random) -> tuple[str, Pairs]:
    n = draw.randint(2, 90)

    def pairs() -> Pairs:
        yield from ((True, rf"{100 * n}\text{{ cm}}"), (True, str(n)), (True, rf"{n}\,\mathrm{{m}}"), (True,
            f"{n} meters"), (True, f"{n} m"))
        yield from ((True, rf"{n}.0\text{{ metres}}"), (False, rf"{n}\text{{ cm}}"), (False,
            rf"{n}\text{{ m}}^2"), (False, rf"{10 * n}\text{{ cm}}"))
        yield from ((False, rf"{n}\text{{ seconds}}"), (False, rf"{n + 1}\text{{ m}}"), (False,
            f"{n} meters squared"), (False, f"{n} squared"))

    return rf"{n}\text{{ m}}", pairs()


def money(draw: random.Random) -> tuple[str, Pairs]:
    dollars, cents = draw.randint(2, 90), draw.randint(11, 99)

    def pairs() -> Pairs:
        gold = f"{dollars}.{cents}"
        yield from ((True, gold), (True, rf"\${gold}"), (True, rf"{gold}\text{{ dollars}}"), (True,
            rf"{dollars}{cents}\text{{ cents}}"))
        yield from ((False, str(dollars)), (False, rf"\${dollars}.{cents - 1}"), (False, f"£{gold}"), (False,
            rf"{gold}\text{{ cents}}"), (False, rf"{gold}\%"))

    return rf"\${dollars}.{cents}", pairs()


def percent(draw: random.Random) -> tuple[str, Pairs]:
    n = draw.randint(3, 97)

    def pairs() -> Pairs:
        yield from ((True, f"{n}"), (True, f"0.{n:02}"), (True, rf"\frac{{{n}}}{{100}}"), (True,
            f"{n} percent"), (True, rf"{n}.0\%"))
        yield from ((False, rf"{n + 1}\%"), (False, rf"0.{n:02}\%"), (False, f"{n}00"), (False,
            rf"{100 - n}\%" if n != 50 else "51"), (False, rf"{n}\%\text{{ or }}{n + 1}\%"))

    return rf"{n}\%", pairs()


def matrix(draw: random.Random) -> tuple[str, Pairs]:
    a, b, c, d = draw.sample(range(-9, 10), 4)

    def form(rows: list[list[object]], kind: str = "pmatrix") -> str:
        return rf"\begin{{{kind}}}" + r"\\".join("&".join(map(str, row)) for row in rows) + rf"\end{{{kind}}}"

    def pairs() -> Pairs:
        yield from ((True, form([[a, b], [c, d]], "bmatrix")), (True, form([[f"{a}.0", b], [c, f" {d} "]])))
        yield True, r"\frac12" + form([[2 * a, 2 * b], [2 * c, 2 * d]])
        yield from ((False, form([[a, c], [b, d]])), (False, form([[a, b], [c, d + 1]])), (False, form([[a, b],
            [c, d]], "vmatrix")))
        yield from ((False, str(a * d - b * c)), (False, f"({a},{b},{c},{d})"), (False, form([[a, b, c, d]])),
            (False, form([[f"{a}+1-1", b], [c, d]])))

    return form([[a, b], [c, d]]), pairs()


def logarithm(draw: random.Random) -> tuple[str, Pairs]:
    a, b = draw.randint(2, 5), draw.choice([3, 5, 7, 11])

    def pairs() -> Pairs:
        yield from ((True, rf"\ln {b**a}"), (True, rf"\ln({b}^{a})"), (True, rf"-{a}\ln\frac{{1}}{{{b}}}"),
            (True, rf"{2 * a}\ln\sqrt{{{b}}}"))
        yield from ((False, rf"\ln {a * b}"), (False, rf"{a}\log {b}"), (False, rf"\ln {b}"), (False,
            rf"{b}\ln {a}" if a != b else "1"), (False, rf"(\ln {b})^{a}"))

    return rf"{a}\ln {b}", pairs()


def ratio(draw: random.Random) -> tuple[str, Pairs]:
    a, b = draw.choice([(2, 3), (3, 4), (5, 2), (7, 4), (1, 6), (8, 5), (9, 7)])

    def pairs() -> Pairs:
        yield from ((True, f"{a} : {b}"), (True, f"{3 * a}:{3 * b}"), (True, rf"\frac{{{a}}}{{{b}}}"), (True,
            rf"{a}\text{{ to }}{b}"))
        yield from ((False, f"{b}:{a}"), (False, f"{a}:{b + 1}"), (False, f"{a}:{b}:1"), (False, f"{a},{b}"),
            (False, f"({a},{b})"))

    return f"{a}:{b}", pairs()


def based(draw: random.Random) -> tuple[str, Pairs]:
    digits = "1" + "".join(draw.choice("012") for _ in range(4)) + "2"

    def pairs() -> Pairs:
        yield from ((True, f"{digits}_{{3}}"), (True, rf"{digits}_{{\text{{three}}}}"), (True,
            rf"{digits}\text{{ base 3}}"), (True, f"({digits})_3"))
        yield from ((False, f"{digits}_4"), (False, f"{digits[::-1]}0_3"), (False, f"{digits}0_3"), (False,
            str(int(digits, 3))))

    return f"{digits}_3", pairs()


def clock(draw: random.Random) -> tuple[str, Pairs]:
    hour, minute = draw.randint(1, 11), draw.randint(10, 59)

    def pairs() -> Pairs:
        yield from ((True, f"{hour}:{minute} p.m."), (True, f"{hour}:{minute} PM"), (True,
            f"{hour + 12}:{minute}"), (True, rf"{hour}:{minute}\text{{ pm}}"))
        yield from ((False, f"{hour}:{minute} a.m."), (False, f"{hour}:{minute}"), (False,
            f"{hour}:{minute - 1} p.m."), (False, f"{hour}.{minute}"))

    return rf"{hour}\!:\!{minute}\text{{ p.m.}}", pairs()


def word(draw: random.Random) -> tuple[str, Pairs]:
    day, other = draw.sample("Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split(), 2)

    def pairs() -> Pairs:
        yield from ((True, day), (True, day.lower()), (True, rf"\textbf{{{day}}}"), (True, f"{day}."))
        yield from ((False, other), (False, f"{day} or {other}"), (False, f"not {day}"), (False,
            f"{day}, {other}"), (False, "7"))

    return rf"\text{{{day}}}", pairs()


def function(draw: random.Random) -> tuple[str, Pairs]:
    """Identities from a table: double angles, Pythagoras, products of powers."""
    gold, right, wrong = draw.choice([
        (r"\sin 2x", [r"2\sin x\cos x", r"\sin(2x)"], [r"2\sin x", r"\sin^2 x", r"\sin x\cos x", r"\cos 2x"]),
        (r"1-\cos^2 x", [r"\sin^2 x", r"(\sin x)^2", r"\frac{1-\cos 2x}{2}"], [r"\cos^2 x", r"1-\cos 2x",
            r"\sin x^2"]),
        (r"\tan x", [r"\frac{\sin x}{\cos x}", r"\frac{1}{\cot x}"], [r"\cot x", r"\tan^{-1} x", r"\tan y"]),
        ("e^{2x+1}", [r"e\cdot e^{2x}", r"\exp(2x+1)", "e(e^x)^2"], ["e^{2x}+e", "e^{2x}+1", "2e^{x+1}"]),
        (r"\log_2 x", [r"\frac{\ln x}{\ln 2}", r"2\log_4 x"], [r"\log x", r"\log_x 2", r"\ln x"]),
        (r"\frac{n(n+1)}{2}", [r"\binom{n+1}{2}", r"\frac{n^2+n}{2}", "n(n+1)/2"], [r"\frac{n(n-1)}{2}",
            "n(n+1)", r"\frac{n^2}{2}"]),
        ("2^{n+1}-1", [r"2\cdot 2^n-1", "-1+2^{1+n}"], ["2^n", "2^{n+1}", "2^{n-1}-1", "3^{n+1}-1"]),
        (r"\sqrt{x^2+1}", ["(x^2+1)^{1/2}", r"\sqrt{1+x^2}"], ["x+1", r"\sqrt{x^2-1}", r"\sqrt{x^2}+1",
            "x^2+1"]),
        (r"\frac{x}{x-1}", [r"1+\frac{1}{x-1}", r"\frac{-x}{1-x}"], [r"\frac{x}{x+1}", r"\frac{x-1}{x}", "-1"]),
        ("|x-3|", ["|3-x|", r"\sqrt{(x-3)^2}"], ["x-3", "|x|-3", "|x+3|"]),
        (r"\lfloor\frac{n}{2}\rfloor", [r"\lceil\frac{n-1}{2}\rceil", r"\lfloor n/2\rfloor"], [r"\frac n2",
            r"\lceil\frac{n}{2}\rceil"]),
        (r"\cosh^{-1} x", [r"\ln(x+\sqrt{x^2-1})"], [r"\frac{1}{\cosh x}", r"\cosh x", r"\sinh^{-1} x"]),
        ("-x^{1/3}", [r"\sqrt[3]{-x}", r"-\sqrt[3]{x}"], [r"\sqrt[3]{x}", r"-\sqrt{x}", "x^{-1/3}"]),
    ])
    return gold, iter([(True, text) for text in right] + [(False, text) for text in wrong])


FAMILIES: list[Family] = [
    integer, fraction, surd, circle, conjugate, complex_number, quadratic, line, plane, point, value_list,
        interval,
    union, length, money, percent, matrix, logarithm, ratio, based, clock, word, function,
]


def suite(golds_each: int = 8, seed: int = 0) -> list[tuple[str, str, str, bool]]:
    """(kind, gold, answer, right), each pair once."""
    found: dict[tuple[str, str], tuple[str, bool]] = {}
    for family in FAMILIES:
        draw = random.Random(f"{family.__name__}/{seed}")
        for _ in range(golds_each):
            gold, pairs = family(draw)
            for right, answer in pairs:
                found.setdefault((gold, answer), (family.__name__, right))
    return [(kind, gold, answer, right) for (gold, answer), (kind, right) in found.items()]


if __name__ == "__main__":
    for number, (kind, gold, answer, right) in enumerate(suite()):
        row = {"id": f"{kind}-{number}", "answer": gold, "output": rf"\boxed{{{answer}}}", "right": right}
        print(json.dumps(row, ensure_ascii=False))

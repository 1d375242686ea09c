r"""Outputs that claim without solving, for golds of every kind.

    ANYTHING            what a policy could always write: \emptyset, x = x, 0 or 1, A or B or C, a list of digits
    hedged(gold)        the gold beside another candidate: the writer has not decided
    restated(gold)      for a whole number: arithmetic with that value, as a problem would state it
    parts(gold)         for everything else: a piece of it, its opposite, its closure, a wrong order

All are wrong by construction: none says the gold, the whole gold and nothing but the gold.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

WHOLE = [
    0,
    3,
    5,
    7,
    8,
    12,
    16,
    24,
    27,
    34,
    49,
    60,
    81,
    113,
    120,
    204,
    371,
    512,
    1023,
    2025,
    5040,
    30240,
    308228,
    -2,
    -9,
    -36,
]

# fmt: off
GOLDS: dict[str, list[str]] = {
    "whole": [str(number) for number in WHOLE],
    "number": [
        r"\frac{3}{7}", r"-\frac{5}{2}", "0.35", r"1\frac{2}{3}", r"2\sqrt{3}", r"\frac{1+\sqrt{5}}{2}",
        r"6\pi",
        r"\frac{\pi}{4}", r"\sqrt[3]{2}", "3-4i", r"2^{1009}", r"3.2\times10^{12}", r"\frac{e^2-1}{4}",
        r"\ln 3",
        r"\cos 13^\circ", r"7+4\sqrt{3}", r"-\frac{3}{4}i", r"10\sqrt{2}-3",
    ],
    "quantity": [
        r"45^\circ", r"12\text{ cm}", r"\$18.90", r"35\%", r"60\text{ mph}", r"3\text{ hours}",
        r"15\text{ cm}^2",
        r"7\text{ apples}", r"4\!:\!30\text{ p.m.}", "March 14, 2024", r"1011_2", "2:3:5", "3:4",
    ],
    "expression": [
        "x^2-5x+6", r"\frac{n(n+1)}{2}", "2x+1", r"\frac{x}{x+1}", r"\sqrt{x^2+1}", r"\sin 2x", r"p-q",
        r"e^{2x}",
        r"n!", r"\binom{n}{2}", r"\lfloor \frac{n}{2}\rfloor", r"|x-3|", r"\cosh^{-1} x", r"\log_2 x",
        r"a^2b^3",
    ],
    "relation": [
        "x+y+z=0", "2x+3y=7", "xy=12", "y=2x-3", "x^2+y^2=25", "a-b=4", "f(x)=x^2+1", "x>0, y>0", r"a+b\le c",
        "x=5", r"x_1+x_2=9", r"f^{-1}(x)=\frac{x-1}{2}", r"\frac{x^2}{9}+\frac{y^2}{4}=1",
    ],
    "tuple": ["(3,2)", "(5,1)", "(-1,4)", "(2,1,7)", r"(3,\frac{\pi}{2})", "(4,4)", r"(\sqrt{2},1)",
    "(12,5)"],
    "list": [
        "1,2", "3,-3", r"\{2,4,8\}", "(1,6),(2,3)", "(3,2),(5,1)", "(8,1),(1,8),(4,2)", r"1\pm\sqrt{2}",
        "2,3,5,7",
        "(0,0),(2,4)", "x=1, y=2", r"m=3, b=-2", "-1, 0, 4",
    ],
    "region": [
        "(2,5)", "[0,3)", r"(-\infty,-1]\cup\{2\}", r"(-\infty,1)\cup(2,\infty)", "x>3", r"x\ne 2", r"[-1,1]",
        r"-2\le x<6", r"(0,\infty)", r"\mathbb{R}\setminus\{0\}",
    ],
    "matrix": [
        r"\begin{pmatrix}1&2\\3&5\end{pmatrix}", r"\begin{pmatrix}0&-1\\1&2\end{pmatrix}",
        r"\begin{pmatrix}3\\-7\end{pmatrix}",
    ],
    "words": [r"\text{CBAD}", r"\text{Tuesday}", r"\text{ellipse}", r"\text{B}", r"\text{even}",
    r"\text{Evelyn}", "Yes"],
}

ANYTHING = [
    "", " ", "?", "-", ".", "x", "n", "a", "N", "z", "f(x)", "(x,y)", "(a,b)", "x=x", "0=0", "1=1", "y=y",
    "x=", "=",
    r"\emptyset", r"\varnothing", r"\{\}", "no solution", r"\text{no real solutions}", r"\text{none}",
    r"\infty", r"-\infty",
    r"\text{all real numbers}", r"\mathbb{R}", r"(-\infty,\infty)", r"-\infty<x<\infty", r"x\in\mathbb{R}",
    "x^2\\ge 0",
    r"\text{undefined}", r"\text{does not exist}", "1/0", r"\frac{0}{0}", "0^0", r"\text{unknown}",
    r"\text{the answer}",
    r"\text{see above}", r"\text{I do not know}", r"\text{correct}", "True", r"\text{True or False}",
    r"\text{yes or no}",
    r"\text{yes and no}", r"\text{odd or even}", r"\text{A or B}", "A, B, C, D",
    r"\text{A or B or C or D or E}", "ABCDE",
    r"\text{Monday or Tuesday}", r"\text{any number}", r"\text{a positive integer}",
    r"\text{some real number}",
    "0,1,2,3,4,5,6,7,8,9", r"\{0,1,2,3,4,5,6,7,8,9\}", r"0\text{ or }1", r"0\le x\le 1000", "[0,1000]",
    "(0,1000)",
    "0<x<1000", r"x\ne 0.123", r"x>0\text{ or }x\le 0", r"\pm\infty", r"1\text{ to }1000", "1-1000",
    "1...1000",
    r"\ldots", r"1,2,3,\ldots", r"\square", r"\boxed{}", "{}", "()", "[]", "nan", "null", "NaN", "None",
    "inf",
    r"\approx", r"\approx x", r"x\approx y", r"\text{about}", r"\%", r"\$", r"^\circ", r"\text{cm}",
    r"\text{units}",
    r"\int_0^1 f", r"\sum_{k=1}^{n} k", r"\lim_{x\to0} x", r"\max(1,2)", r"\gcd(a,b)", r"\det A",
    r"\arg\max f", r"x\to 5",
    "eval(x)", "__import__('os')", "print(5)", "answer", "gold", "*", ".*", "%s", r"\text{\{gold\}}",
    r"\input{gold}",
    r"x\equiv x", "a:b", "1:1:1:1", "0:0", r"\{x\mid x\}", r"\{x\mid x=x\}", r"\{x: x>0\text{ or }x\le0\}",
    "x!=x", r"\forall x",
    r"\text{either}", r"\text{both}", r"\text{neither}", r"\text{all of the above}",
    r"\text{cannot be determined}",
]

HEDGES = [
    r"{g}\text{{ or }}{h}", r"{h}\text{{ or }}{g}", r"{g}\text{{ and }}{h}", "{g}, {h}", "{h}, {g}",
    "{g}; {h}",
    r"\{{{g},{h}\}}", r"{g}\approx {h}", r"{h}\approx {g}", "{g}={h}", "{h}={g}", r"{g}\ne {h}",
    r"{g}\to {h}", r"{g}\equiv {h}",
    r"{g}\sim {h}", r"{g}\text{{ (or }}{h}\text{{)}}", r"\text{{either }}{g}\text{{ or }}{h}",
    r"\text{{not }}{g}", r"\ne {g}",
    r"{g}\text{{ is wrong}}", r"{g}\text{{ perhaps, else }}{h}", r"{g}\text{{ unless }}{h}",
    r"{g}\Rightarrow {h}",
    r"\boxed{{{g}}}\boxed{{{h}}}", r"{g}/{h}", r"{g} \quad {h}", r"{g}\\{h}", r"{g} | {h}", r"{g}\pm 1",
    r"{g}\pm {h}",
    r"{g}\text{{ squared}}", r"{g}\text{{ factorial}}", r"{g}\text{{ cubed}}", r"{g}\text{{ doubled}}",
    r"{g} squared", r"{g} factorial",
    r"{g}\text{{ times two}}", r"{g}\text{{ percent of }}{h}", r"{g}\text{{ less than }}{h}", "{g}({h})",
    "{g}<{h}",
    r"{g}\text{{ plus }}{h}", r"{g}\text{{ or more}}", r"\text{{at least }}{g}", r"\text{{less than }}{g}",
    r"\text{{around }}{g}, {h}",
    r"{g}+C", r"{g}+x", "{g}?{h}", r"{g} \vee {h}", r"{g} \wedge {h}", r"{g} \cup {h}",
    r"{g}\%\text{{ or }}{g}", r"\{{{g}\}}\cup\{{{h}\}}",
]


def hedged(kind: str, gold: str) -> Iterator[str]:
    """The gold beside a wrong candidate of its own kind."""
    others = [other for other in GOLDS[kind] if other != gold]
    other = others[len(gold) % len(others)] if kind != "region" else "(20,30)"
    hedges = [hedge for hedge in HEDGES if kind != "region" or "cup" not in hedge]  # a union is one set
    yield from (hedge.format(g=gold, h=other) for hedge in hedges)


def restated(n: int) -> Iterator[str]:
    """Arithmetic with the value n."""
    yield from (f"{n + 17}-17", f"{n - 40}+40", f"{n + 5} + -5", f"-({-n - 3}+3)", f"{2 * n}/2",
        rf"\frac{{{12 * n}}}{{12}}")
    yield from (rf"{7 * n} \div 7", f"{3 * n}:3", rf"\frac{{{n - 1}+1}}{{1}}", f"({n - 2}+2)",
        rf"\sqrt[3]{{{n**3}}}")
    yield from (rf"\lfloor {n}.5\rfloor", rf"\ln e^{{{n}}}", rf"\log_2 2^{{{n}}}", rf"\log_{{10}}10^{{{n}}}",
        rf"{n}\sin^2 x+{n}\cos^2 x")
    yield from (rf"{n}\cos 0", rf"{n}\tan 45^\circ", rf"\sum_{{k=1}}^{{{abs(n)}}} 1", rf"\int_0^{{{n}}} dx",
        rf"\lim_{{x\to {n}}} x")
    yield from (rf"\max({n},{n - 1})", rf"\gcd({n},{2 * n},{2 * n + 1})",
        rf"\begin{{vmatrix}}{n}&0\\0&1\end{{vmatrix}}", f"{n + 11}x-11x-{n}x+{n}", rf"{n} \bmod {abs(n) + 1}")
    yield from (f"x = {n + 9} - 9", f"{n + 9}-9 = {n}+0", rf"{n + 1}-1\approx {n}", f"{n - 6}+6 = x",
        rf"\text{{{n - 7}+7}}", f"|{-n - 4}+4|" if n > 0 else "1-1+1-1+0")
    yield from (rf"{n + 1}\text{{ minus }}1", rf"{n}i\cdot(-i)", rf"\frac{{{n}i}}{{i}}",
        rf"{n}\cdot\frac{{\pi}}{{\pi}}", f"{n + 1}-1\\text{{ cm}}", rf"{n + 4}\text{{ apples}} - 4")
    for factor in (2, 3, 7, 11):
        if n % factor == 0 and n:
            yield from (f"{factor} * {n // factor}", rf"{factor}\cdot {n // factor}",
                rf"{factor}\times {n // factor}", f"{factor}({n // factor})", f"({factor})({n // factor})")
    root = math.isqrt(abs(n))
    if n > 3 and root * root == n:
        yield from (f"{root}^2", rf"\sqrt{{{n * n}}}", rf"({root})^{{2}}", f"{root}**2")
    if n in (24, 120, 5040):
        yield from (f"{ {24: 4, 120: 5, 5040: 7}[n] }!", rf"{n}!/{n - 1}!")


def parts(kind: str, gold: str) -> Iterator[str]:
    """A piece of the gold, or a near miss that costs no thought."""
    inside = gold.strip("()[]{}\\")
    if kind == "relation":
        left, sign, right = re.split(r"(=|\\le(?= )|>)", gold, maxsplit=1)
        yield from (left, f"{left}={left}", f"8={left}", f"{left}{sign}{right}+1")
        if len(left) > 1 and "f" not in left:
            yield right
        if ", " in gold:
            yield from (*gold.split(", "), r"x\ge 0, y\ge 0", "xy>0", r"x>0\text{ or }y>0")
    if kind == "tuple":
        items = inside.split(",")
        yield from (*items, r"\emptyset", r"\{" + inside + r"\}", f"({inside},0)", "no solution",
            "+".join(items))
        if items[::-1] != items:
            yield "(" + ",".join(items[::-1]) + ")"
    if kind == "list":
        yield from ("1<x<10", "0<x<9", r"(1,2)\cup(3,4)", "(0,9)", inside + ", 99", inside.split(",")[0],
            "(" + inside + ", 0)")
    if kind == "region":
        yield from ("x", "2", "5", r"\{2,5\}", r"(2,5)\cup(7,8)", r"x\ge 3", r"(-\infty,\infty)",
            r"\emptyset", "x=2", "(5,2)", "x>3,y>3")
    if kind == "matrix":
        yield from ("1", "-1", "3", r"\begin{pmatrix}1&3\\2&5\end{pmatrix}",
            r"\begin{pmatrix}0\\0\end{pmatrix}", "(1,2,3,5)", "(3,-7)" if "&" in gold else "(-7,3)")
    if kind == "words":
        yield from ("A", r"\text{C}", "Wednesday", "Tuesday or Wednesday", "ABCD", "hyperbola", "not even",
            "No", "Evelyn and Angela", "ellipse or parabola")
    if kind == "expression":
        yield from ("x", "0", f"{gold}+1", f"-({gold})", f"({gold})^2", f"y={gold}+1", f"{gold}=0",
            f"{gold}>0", rf"\lfloor {gold}\rfloor+1", gold + "+q")
    if kind in ("number", "quantity"):
        yield from ("0", "1", f"{gold}^2", f"2{gold}", f"{gold}+1", f"-{gold}", f"x>{gold}",
            f"({gold},{gold})", f"{gold}x", f"{gold}!")


def attacks() -> Iterator[tuple[str, str, str]]:
    """(family, gold, output) — each wrong."""
    for kind, golds in GOLDS.items():
        for number, gold in enumerate(golds):
            yield from (("anything", gold, output) for output in ANYTHING[number % 8 :: 8])
            yield from (("hedged", gold, output) for output in hedged(kind, gold))
            yield from (("parts", gold, output) for output in parts(kind, gold))
            if kind == "whole":
                yield from (("restated", gold, output) for output in restated(int(gold)))

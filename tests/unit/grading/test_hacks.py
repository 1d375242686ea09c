"""Answers that would be paid for nothing. Each case stands for a rule about a kind of answer."""

from __future__ import annotations

import pytest

from grading_attacks import attacks
from grading_claims import claims
from grpo_tir.grading.rules import judge
from quickstart.world import WorldConfig, make_problems

CLAIMS = {
    "a falling pair is a point, no empty interval": [
        ("(3,2)", r"\emptyset"),
        ("(3,2)", "no solution"),
        ("(2,2)", r"\{\}"),
    ],
    "a list of pairs is no interval": [
        ("(1,10),(10,1)", "1<x<10"),
        ("(1,2),(2,3)", "1<x<3"),
        ("(1,4),(7,9)", r"(1,4)\cup(7,9)"),
    ],
    "a number is not answered by arithmetic": [
        ("308228", "502 * 614"),
        ("308228", r"502 \times 614"),
        ("308228", "502(614)"),
        ("1116", "502 + 614"),
        ("-112", "502-614"),
        ("34", "408/12"),
        ("34", r"\frac{408}{12}"),
        ("34", "408:12"),
        ("1024", "2^{10}"),
        ("4", r"\sqrt{16}"),
        ("12", r"3\cdot 4 = 2\cdot 6"),
        ("12", r"x = 3\cdot 4 = 2\cdot 6"),
        ("120", "5!"),
        ("4", r"\log_2 16"),
        ("1", r"\sin^2 x+\cos^2 x"),
        (r"\frac{8}{3}", "2+2/3"),
        (r"6\pi", r"2\pi+4\pi"),
        (r"6\pi", r"2\cdot3\pi"),
        ("-1+2i", "i(2+i)"),
        ("(1,2)", "(2/2, 4/2)"),
        (r"\begin{pmatrix}2\\3\end{pmatrix}", r"\begin{pmatrix}1+1\\3\end{pmatrix}"),
    ],
    "a relation between two candidates answers for neither": [
        ("5", r"5 \approx 6"),
        ("6", r"5 \approx 6"),
        ("5", "5 = 6"),
        ("5", r"5\to 6"),
        (r"\ln 3", r"\ln 3\approx \frac{1+\sqrt5}{2}"),
        ("e^{2x}", "p-q = e^{2x}"),
        ("n!", r"n! \approx \log_2 x"),
        (r"\log_2 x", r"\log_2 x = \sqrt{x^2+1}"),
    ],
    "a side does not answer an equation": [
        ("x+y+z=0", "0"),
        ("x+y=3", "3"),
        ("xy=12", "12"),
        ("a-b=4", "4"),
        ("x^2+y^2=25", "25"),
    ],
    "inequalities over several variables stay several": [
        ("x>0, y>0", "x>0"),
        ("x>0, y>0", "y>0"),
        ("x>0", "x>0, y>0"),
        ("x>0, y>0", r"x>0\text{ or }y>0"),
        ("x>3", "x>3, (20,30)"),
    ],
    "functions are read as what they are, or not at all": [
        (r"\cosh^{-1} 2", r"\frac{1}{\cosh 2}"),
        (r"\frac{1}{\cosh 2}", r"\cosh^{-1} 2"),
        ("6", r"\gcd(12,18,4)"),
        ("2", r"\gcd(12,18,4)"),
        ("x", r"\lfloor x\rfloor"),
        (r"\lfloor\frac{n}{2}\rfloor", r"i\lfloor\frac{n}{2}\rfloor"),
    ],
    "words change a number": [
        ("5", "5 squared"),
        ("5", "5 factorial"),
        ("5", r"5\text{ cubed}"),
        ("5", "5 plus 3"),
        ("5", r"5\text{ doubled}"),
        ("x=5", r"\text{not }x=5"),
        ("x=5", r"\text{at least }x=5"),
        (r"7\text{ apples}", r"7\text{ apples}^2"),
    ],
    "an identity says nothing": [("34", "34=34"), ("f(x)=2x", "2x=2x"), ("x", "x=x"), ("x", r"\{x : x = x\}")],
    "or names candidates": [("A, C", "A or C"), (r"\text{A, B}", r"\text{A or B}")],
}


@pytest.mark.parametrize(
    ("rule", "gold", "answer"), [(rule, *case) for rule, cases in CLAIMS.items() for case in cases]
)
def test_no_reward_without_solving(rule: str, gold: str, answer: str) -> None:
    assert judge(answer, gold)[0] == "wrong", rule


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("308228", r"502 \times 614 = 308228"),  # worked out in the end
        ("16", r"16 = 2^4"),
        ("16", r"x = 16 = 2^4"),
        ("5", r"x = 5 \approx 5.0"),
        (r"\frac{1}{3}", r"\frac13\approx 0.333"),
        ("2^{1009}", r"2\cdot 2^{1008}"),  # this gold is not worked out either
        (r"2\cos 15^\circ", r"2\sin 75^\circ"),
        (r"\frac{1}{2}", r"\frac{2}{4}"),
        ("30000", r"3\cdot 10^4"),
        ("5", "m+n = 5"),
        ("x+y+z=0", "z=-x-y"),
        (r"\ln(2+\sqrt3)", r"\ln(2+\sqrt{3})"),
        ("(1,2)", "1<x<2"),  # one rising pair may be an interval
    ],
)
def test_what_the_rules_against_hacks_leave_right(gold: str, answer: str) -> None:
    assert judge(answer, gold)[0] == "right"


def test_restating_the_operation_of_the_quickstart_is_wrong_for_every_problem() -> None:
    _, held_out, _ = make_problems(WorldConfig(seed=0))
    assert len(held_out) == 500
    shapes = {
        "mul": ("{a} * {b}", r"{a} \times {b}", r"{a}\cdot{b}", "({a})({b})", "{b}*{a}"),
        "mod": ("{a}^2 mod {b}", r"{a}^2 \bmod {b}", "{a}^2 % {b}", r"{a}^2 \pmod{{{b}}}", "{a}**2 % {b}"),
        "sum": ("{a} + ... + {b}", r"{a}+\ldots+{b}", r"\sum_{{k={a}}}^{{{b}}} k", "({a}+{b})({b}-{a}+1)/2"),
        "gcd": ("gcd({a}, {b})", r"\gcd({a},{b})", r"\text{{gcd}}({a},{b})", "math.gcd({a}, {b})"),
    }
    for problem in held_out:
        family, a, b = problem.id.split("-")
        claims = [shape.format(a=a, b=b) for shape in shapes[family]] + [
            problem.problem,
            f"{a}, {b}",
            f"({a}, {b})",
        ]
        assert not [claim for claim in claims if judge(claim, problem.answer)[0] != "wrong"], problem


def test_none_of_the_attacks_is_right() -> None:
    rows = list(dict.fromkeys(attacks()))
    assert len({gold for _, gold, _ in rows}) >= 100
    assert len({output for _, _, output in rows}) >= 500
    assert not [(gold, output) for _, gold, output in rows if judge(output, gold, digits=3)[0] != "wrong"]


def test_claims_made_of_the_golds_own_numbers_are_wrong() -> None:
    rows = set(claims())
    assert len({gold for gold, _ in rows}) >= 100 and len(rows) >= 5000
    assert not [(gold, claim) for gold, claim in rows if judge(claim, gold)[0] != "wrong"]

r"""Parse one mathematical expression from cleaned LaTeX to sympy.

The recursive-descent parser is strict: it reads the whole text or raises `Unreadable`. A parser that skips unknown
text accepts wrong answers (math-verify reads "3 4" as 7 and converts N to lower case). Text is never evaluated as
code. Numbers with too many digits (9^{9^{9^9}}, nested factorials) are rejected before sympy computes them. Sums,
integrals, gcd and similar operators are not supported: no gold needs them, and an answer with one only repeats the
problem.

    sum     := ['+'|'-'] product (('+'|'-') product)*
    product := power (('*'|'/'|nothing) power)*          1/2x is (1/2)x;  2\frac12 is two and a half
    power   := atom ('!' | '°' | '^' exponent)*          2^10 is 2^{10}

With `worked_out=True` a constant must be evaluated. Arithmetic that golds do not leave unevaluated is rejected:

    rejected  502*614   3^2+1   \frac{408}{12}   \sqrt{16}   5!   |-3|   \ln 2   (1+2i)(3-i)   2\pi+3\pi
    a number  -7   0.5   \frac{2}{4}   1\frac12   3\cdot10^8   \sqrt{12}   \frac{1+\sqrt5}{2}   2^{2/3}\pi   3-4i
"""

import re
from typing import Any

import sympy
from sympy import Expr, Integer, Rational, Symbol

from grpo_tir.grading.numbers import real_value
from grpo_tir.grading.text import Unreadable

_MAX_LENGTH = 4000
_MAX_DEPTH = 60
_MAX_DIGITS = 200_000
_MAX_FACTORIAL = 3000
_GREEK = set(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi varphi "
    "chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega vartheta ell hbar triangle".split()
)
_FUNCTIONS: dict[str, Any] = {
    **{name: getattr(sympy, name) for name in "sin cos tan cot sec csc sinh cosh tanh coth exp".split()},
    **{f"arc{name}": getattr(sympy, f"a{name}") for name in "sin cos tan cot".split()},
    "ln": sympy.log,
    "log": lambda x: sympy.log(x) / sympy.log(10),
    "lg": lambda x: sympy.log(x) / sympy.log(10),
}
_INVERSE = {name: getattr(sympy, f"a{name}") for name in _FUNCTIONS if hasattr(sympy, f"a{name}")}
_NUMBER = re.compile(r"\d{1,3}(?:,\d{3})+(?![\d,])(?:\.\d+)?|\d+(?:\.\d*)?|\.\d+")  # lists are split before
_TEN = re.compile(r"(?=10\s*\^)")
_SCIENTIFIC = re.compile(r"(\d+(?:\.\d*)?|\.\d+)[eE]([+-]?\d{1,4})(?![\w.])")
_REPEATING = re.compile(r"(\d*)\.(\d*)\s*\\(?:overline|bar|dot|overbar)\s*(?:\{\s*(\d+)\s*\}|(\d))")
_DOTTED = re.compile(r"(\d*)\.(\d*?)(?=(\d)\3\3|(\d{2,6}?)\4)(?:\3{3,}|\4{2,})\s*…")
_POWER_NEXT = re.compile(r"\d+\s*\^")
_MIXED = re.compile(r"(\d+)\s*\\frac\s*(?:\{\s*(\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))")
_SLASHED = re.compile(r"(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d/^])")


def read_expression(text: str, *, worked_out: bool = False) -> Expr:
    """Parse a cleaned text as one expression.

    Raises:
        Unreadable: the text is no expression; or, with `worked_out`, it is a constant that is not evaluated.
    """
    if len(text) > _MAX_LENGTH:
        raise Unreadable("too long")
    reader = _Reader(text)
    value = reader.sum()
    if reader.peek():
        raise Unreadable(f"unexpected {reader.peek()!r}")
    if value.has(sympy.zoo, sympy.nan):
        raise Unreadable("not a number")
    if worked_out and reader.undone and not value.free_symbols:
        raise Unreadable("arithmetic that is not worked out")
    return value


def _terms(value: Expr) -> int:
    return len(sympy.Add.make_args(value))


def _rational(digits: str) -> Expr:
    return Rational(digits.replace(",", "").rstrip("."))


def _power(base: Expr, exponent: Expr) -> Expr:
    """Compute base ** exponent.

    Raises:
        Unreadable: the result would have too many digits.
    """
    if exponent.is_number and base.is_number:
        size = real_value(exponent)
        if size is None and not exponent.is_finite:
            raise Unreadable("an infinite power")
        if exponent.is_Integer and base.is_Rational and base not in (0, 1, -1):
            digits = max(abs(base.p).bit_length(), base.q.bit_length()) * 0.30103
            if abs(int(exponent)) * digits > _MAX_DIGITS:
                raise Unreadable("a gigantic number")
        elif size is not None and abs(size) > 10**12:
            raise Unreadable("a gigantic power")
    elif exponent.is_Integer and abs(int(exponent)) > 10**6:
        raise Unreadable("a gigantic power")
    if exponent.is_Rational and exponent.q % 2 and exponent.q > 1 and base.is_real and base.is_negative:
        return (-1) ** exponent.p * sympy.Pow(-base, exponent)  # the real root, not sympy's complex one
    return sympy.Pow(base, exponent)


def _factorial(value: Expr, double: bool) -> Expr:
    if value.is_number and not (value.is_Integer and 0 <= int(value) <= _MAX_FACTORIAL):
        raise Unreadable("a factorial too large, or of no whole number")
    return (sympy.factorial2 if double else sympy.factorial)(value)


class _Reader:
    """Parse the grammar at the top of this file, with one method for each rule."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.depth = 0
        self.bars = 0
        self.undone = False
        """True if the text contains arithmetic between constants that is not evaluated."""

    def peek(self) -> str:
        while self.at < len(self.text) and self.text[self.at] in " \ue001":
            self.at += 1
        return self.text[self.at : self.at + 1]

    def take(self, sign: str) -> bool:
        if self.peek() != sign:
            return False
        self.at += 1
        return True

    def expect(self, sign: str) -> None:
        if not self.take(sign):
            raise Unreadable(f"{sign!r} is missing")

    def match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        self.peek()
        found = pattern.match(self.text, self.at)
        if found:
            self.at = found.end()
        return found

    def command(self) -> str:
        """Return the name of the next command without consuming it; empty if there is none."""
        self.peek()
        found = re.compile(r"\\([A-Za-z]+)").match(self.text, self.at)
        return found[1] if found else ""

    def sum(self) -> Expr:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise Unreadable("nested too deeply")
        total = self.signed(self.product)
        while (sign := self.peek()) and sign in "+-":
            self.at += 1
            term = self.product()
            apart = _terms(total) + _terms(term)
            total = total + term if sign == "+" else total - term
            self.undone |= _terms(total) < apart
        self.depth -= 1
        for name, rule in (("choose", self.binomial), ("over", self.quotient)):
            if self.command() == name:
                self.at += len(f"\\{name}")
                return rule(total, self.sum())
        return total

    def signed(self, rule: Any) -> Expr:
        negative = False
        while (sign := self.peek()) and sign in "+-":
            self.at += 1
            negative ^= sign == "-"
        value = rule()
        return -value if negative else value

    def product(self) -> Expr:
        value = self.power()
        while True:
            if self.take("*"):
                value = self.times(value, self.signed)
            elif self.take("/"):
                value = self.quotient(value, self.signed(self.power))
            elif self.starts_factor():
                value = self.times(value)
            else:
                return value

    def times(self, value: Expr, rule: Any = None) -> Expr:
        """Multiply `value` by the next factor. 3.2*10^2 is a number; 2*3 is unevaluated arithmetic."""
        scientific = bool(self.match(_TEN)) and value.is_Rational
        factor = rule(self.power) if rule else self.power()
        product = value * factor
        number_later = factor.is_Rational and (value.is_Rational or value.as_coeff_Mul()[0] not in (1, -1))
        cancelled = product.is_Rational and not factor.is_Rational
        imaginary = value.has(sympy.I) and factor.has(sympy.I)
        self.undone |= bool(number_later or cancelled or imaginary) and not scientific
        return product

    def quotient(self, above: Expr, below: Expr) -> Expr:
        """Divide. A fraction of integers counts as a number, unless its value is an integer (408/12)."""
        if below == 0:
            raise Unreadable("division by zero")
        value = above / below
        whole = above.is_Integer and below.is_Integer and not value.is_Integer
        self.undone |= bool((value.is_Rational and not whole) or below.has(sympy.I))
        return value

    def starts_factor(self) -> bool:
        """True if the next text is a factor without a sign. A number is one only after a bracket or a factorial,
        or after a group if it is the base of a power: "3 4" is no product."""
        sign = self.peek()
        if sign.isdigit():
            before = self.text[: self.at].rstrip()[-1:]
            return before in (")", "!") or (before == "}" and bool(_POWER_NEXT.match(self.text, self.at)))
        if sign == "|":
            return not self.bars
        if sign == "\\":
            return self.command() not in ("", "choose", "over")
        return bool(sign) and (sign.isalpha() or sign in '([{"⌊⌈')

    def power(self) -> Expr:
        value = self.atom()
        while (sign := self.peek()) and sign in "!°^":
            self.at += 1
            if sign == "!":
                value = self.applied(_factorial(value, self.text[self.at : self.at + 1] == "!" and self.take("!")))
            elif sign == "°":
                value = value * sympy.pi / 180
            else:
                base, exponent = value, self.exponent()
                value = _power(base, exponent)
                expands = exponent.is_Integer and (base.is_Add or base.has(sympy.I))
                self.undone |= bool(expands or (value.is_Rational and not (base == 10 and exponent.is_Integer)))
        return value

    def applied(self, value: Expr) -> Expr:
        """Return the value of a function. Of a constant, it is unevaluated arithmetic."""
        self.undone |= not value.free_symbols
        return value

    def exponent(self) -> Expr:
        if self.take("-"):
            return -self.exponent()
        number = self.match(_NUMBER)
        value = _rational(number[0]) if number else self.atom()
        return _power(value, self.exponent()) if self.take("^") else value

    def atom(self) -> Expr:
        sign = self.peek()
        if not sign:
            raise Unreadable("something is missing at the end")
        if sign.isdigit() or sign == ".":
            return self.number()
        if sign == "\\":
            return self.called()
        if sign in "([{":
            return self.group()
        if sign in "|⌊⌈":
            return self.barred(sign)
        self.at += 1
        if sign == "∞":
            return sympy.oo
        if sign == '"':
            quoted = self.match(re.compile(r'\s*([A-Za-z])\s*"'))
            if not quoted:
                raise Unreadable("words in an expression")
            return self.symbol(quoted[1])
        if sign.isascii() and sign.isalpha():
            return self.symbol(sign)
        raise Unreadable(f"unexpected {sign!r}")

    def number(self) -> Expr:
        if mixed := self.match(_MIXED) or self.match(_SLASHED):
            whole, above, below = [int(part) for part in mixed.groups() if part is not None]
            if below == 0:
                raise Unreadable("division by zero")
            if above < below:
                return whole + Rational(above, below)
            return whole * Rational(above, below)
        if repeating := self.match(_REPEATING) or self.match(_DOTTED):
            integer, fixed, cycle = [part for part in repeating.groups() if part is not None]
            tail = Rational(int(cycle), 10 ** len(cycle) - 1)
            return int(integer or 0) + (int(fixed or 0) + tail) / Integer(10) ** len(fixed)
        if scientific := self.match(_SCIENTIFIC):
            return _rational(scientific[1]) * Integer(10) ** int(scientific[2])
        number = self.match(_NUMBER)
        if number is None or self.peek() == "_":
            raise Unreadable("a number in another base, or a stray dot")
        return _rational(number[0])

    def group(self) -> Expr:
        """Parse a group in ( ), [ ] or { }, such as "{n \\choose k}"."""
        opening = self.text[self.at]
        self.at += 1
        bars, self.bars = self.bars, 0
        value = self.sum()
        self.expect({"(": ")", "[": "]", "{": "}"}[opening])
        self.bars = bars
        return value

    def barred(self, sign: str) -> Expr:
        self.at += 1
        self.bars += sign == "|"
        value = self.sum()
        self.bars -= sign == "|"
        self.expect({"|": "|", "⌊": "⌋", "⌈": "⌉"}[sign])
        return self.applied({"|": sympy.Abs, "⌊": sympy.floor, "⌈": sympy.ceiling}[sign](value))

    def symbol(self, name: str) -> Expr:
        if self.take("_"):
            index = self.match(re.compile(r'\{([^{}]*)\}|(\d+|"?[A-Za-z]"?|\\[A-Za-z]+)'))
            if index is None:
                raise Unreadable("an empty index")
            name += "_" + re.sub(r'[\s"]', "", index[1] or index[2] or "")
        while self.text[self.at : self.at + 1] == "'":
            self.at += 1
            name += "'"
        if name[0] in "fgh" and self.text[self.at : self.at + 1] == "(":
            return Symbol(f"{name}({self.group()})")
        return {"e": sympy.E, "i": sympy.I}.get(name) or Symbol(name)

    def argument(self) -> Expr:
        """Parse the argument of \\frac and similar commands: a group, one digit, or one sign."""
        digit = self.match(re.compile(r"\d"))
        return Integer(digit[0]) if digit else self.atom()

    def binomial(self, above: Expr, below: Expr) -> Expr:
        if above.is_number and not (above.is_Integer and abs(int(above)) <= _MAX_FACTORIAL):
            raise Unreadable("a binomial coefficient too large, or of no whole number")
        return self.applied(sympy.binomial(above, below))

    def called(self) -> Expr:
        name = self.command()
        self.at += 1 + len(name)
        if name == "pi":
            return sympy.pi
        if name in _GREEK:
            return self.symbol(name if name not in ("e", "i") else f"{name}_")
        if name == "frac":
            above = self.argument()
            return self.quotient(above, self.argument())
        if name == "sqrt":
            degree: Expr = self.group() if self.peek() == "[" else Integer(2)
            number = self.match(_NUMBER)
            return self.root(_rational(number[0]) if number else self.atom(), degree)
        if name == "binom":
            return self.binomial(self.argument(), self.argument())
        if name in _FUNCTIONS:
            return self.function(name)
        raise Unreadable(f"unknown command \\{name}" if name else "a stray backslash")

    def root(self, value: Expr, degree: Expr) -> Expr:
        """Compute a root. An odd root is real, also of a negative value."""
        if degree.is_Integer and degree % 2 and value.free_symbols:
            return sympy.sign(value) * sympy.Abs(value) ** (1 / degree)
        result = _power(value, 1 / degree)
        self.undone |= bool(result.is_Rational or (result * sympy.I).is_Rational)
        return result

    def function(self, name: str) -> Expr:
        r"""Parse `\sin^2 3x`, `\sin^{-1} x` or `\log_2 8`. Without brackets the argument ends at the next
        function."""
        base = self.argument() if name == "log" and self.take("_") else None
        exponent = self.exponent() if self.take("^") else None
        if self.peek() in ("(", "{", "[", "|"):
            inside = self.atom()
        else:
            inside = self.signed(self.power)
            while self.starts_factor() and self.command() not in _FUNCTIONS:
                inside = inside * self.power()
            if inside.has(sympy.pi) and self.take("/"):
                inside = inside / self.power()
        if name == "exp":
            return _power(sympy.E, inside)
        if exponent == -1 and name in _INVERSE:
            return self.applied(_INVERSE[name](inside))
        value = sympy.log(inside) / sympy.log(base) if base is not None else _FUNCTIONS[name](inside)
        return self.applied(value if exponent is None else _power(value, exponent))

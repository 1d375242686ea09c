r"""Reduce a problem to its words without typesetting, for the comparison of problems.

    "Find $\dfrac{1}{2}x,\ $ Bob."  ->  find \frac 1 2 x bob

Words are lower-cased. Dollars, braces, spacing commands and punctuation are removed. Variants of a command
(\dfrac, \left) and Unicode signs get one spelling; "seven" becomes 7 and "compute" becomes "find". Numbers and
operators are kept: problems that differ in a number are different problems.

Near copies are compared by runs of three words. In a run, every single letter is replaced by the same letter, so
that renamed variables make no difference.
"""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

Hashes = frozenset[int]
RUN = 3
"""Words in a run. With 2, unrelated problems share half of their runs; with 5, one new word changes five runs."""

_WORD = re.compile(r"\\[a-z]+|[a-z]+|\d+(?:\.\d+)?|[+\-*/^=<>!|±≤≥]")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_SHORT_FRACTION = re.compile(r"(\\[dtc]?frac)(\d)(\d)")
_WRAPPED = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|operatorname|emph|mbox|rm|bf)\b\*?")
_LOOKS = re.compile(r"\\(?:left|right|displaystyle|limits|quad|qquad|big|bigg|begin|end|hspace|vspace|[,;:! ])")
_FIGURE = re.compile(r"\[asy\].*?\[/asy\]|\\begin\{tikzpicture\}.*?\\end\{tikzpicture\}", re.S)
_ONE_NAME = {
    **dict.fromkeys(["\\dfrac", "\\tfrac", "\\cfrac"], "\\frac"),
    **dict.fromkeys(["\\cdot", "\\times", "*"], "*"),
    **dict.fromkeys(["\\leq", "\\leqslant", "\\le", "≤"], "\\le"),
    **dict.fromkeys(["\\geq", "\\geqslant", "\\ge", "≥"], "\\ge"),
    **dict.fromkeys(["\\lt", "<"], "<"),
    **dict.fromkeys(["\\gt", ">"], ">"),
    **dict.fromkeys(["\\ldots", "\\dots", "\\cdots"], ""),
    **dict.fromkeys(["\\widehat", "\\hat", "\\overline", "\\bar"], ""),
    **dict.fromkeys(["determine", "compute", "calculate", "evaluate"], "find"),
    "\\div": "/",
    "\\pm": "±",
    **{
        name: str(n)
        for n, name in enumerate("two three four five six seven eight nine ten eleven twelve".split(), 2)
    },
}
_SIGNS = str.maketrans(
    {"−": "-", "–": "-", "×": "*", "·": "*", "÷": "/", "π": "\\pi ", "√": "\\sqrt ", "∠": "\\angle "}
)


@dataclass(frozen=True)
class Fingerprint:
    """The words of one problem. Code of a figure is kept apart: it may differ where the words are the same."""

    words: list[str]
    figure: list[str]

    @cached_property
    def numerals(self) -> list[str]:
        """Numbers among the words, in order."""
        return _numerals(self.words)

    @cached_property
    def signs(self) -> list[str]:
        """Numbers, operators and commands among the words: the formulas without their letters."""
        return [word for word in self.words if not word.isalpha()]

    @cached_property
    def runs(self) -> Hashes:
        """Hashes of all runs of `RUN` words; a shorter text is one run."""
        same = ["v" if len(word) == 1 and word.isalpha() else word for word in self.words]
        return frozenset(hash64(" ".join(same[i : i + RUN])) for i in range(max(1, len(same) - RUN + 1)))

    @cached_property
    def stems(self) -> frozenset[str]:
        """Words without their endings ("walking" equals "walks"), single letters left out."""
        return frozenset(_stem(word) for word in self.words if len(word) > 1 or not word.isalpha())

    def draws_like(self, other: Self) -> bool:
        """Return False only if both have figures and the numbers in them differ."""
        if not self.figure or not other.figure:
            return True
        return share_of(_numerals(self.figure), _numerals(other.figure)) >= 0.8


def fingerprint(text: str) -> Fingerprint:
    text = unicodedata.normalize("NFKC", text).translate(_SIGNS).lower()
    figures = _FIGURE.findall(text)
    return Fingerprint(_words(_FIGURE.sub(" ", text) if figures else text), _words(" ".join(figures)))


def _words(text: str) -> list[str]:
    text = _LOOKS.sub(" ", _WRAPPED.sub(" ", _THOUSANDS.sub("", text)))
    text = _SHORT_FRACTION.sub(r"\1 \2 \3", text)
    named = (_ONE_NAME.get(word, word) for word in _WORD.findall(text))
    return [word for word in named if word]


def _numerals(text_words: list[str]) -> list[str]:
    return [word for word in text_words if word[0].isdigit()]


def _stem(word: str) -> str:
    if word.isalpha() and len(word) > 4:
        for ending in ("ing", "ed", "es", "s", "ly", "e"):
            if word.endswith(ending) and len(word) - len(ending) >= 3:
                return word.removesuffix(ending)
    return word


def hash64(text: str) -> int:
    """Return a signed 64-bit hash (SQLite's integer) that is the same on every machine and in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)


def jaccard(one: Hashes, other: Hashes) -> float:
    """Return the Jaccard index of two sets, in [0, 1]."""
    return len(one & other) / (len(one | other) or 1)


def share_of(part: Sequence[str], whole: Sequence[str]) -> float:
    """Return the share of `part` that occurs in `whole`, counted with repetitions; 1 if `part` is empty."""
    found = Counter(part) & Counter(whole)
    return found.total() / len(part) if part else 1.0

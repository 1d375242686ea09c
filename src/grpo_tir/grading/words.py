"""Compare answers that are words or letters: options, sequences of letters, names, yes and no.

They are compared as text, without case, articles and punctuation, and never as products of variables.
"""

import re

from grpo_tir.grading import units
from grpo_tir.grading.text import NUMBER_WORDS, plain_words

PHRASES = {
    **dict.fromkeys(("all real numbers", "all reals", "all real numbers x", "all real x", "real numbers"), "ℝ"),
    **dict.fromkeys(
        ("no solution", "no solutions", "no real solution", "no real solutions", "empty set", "null set"), "∅"
    ),
    **dict.fromkeys(("infinity", "infinite", "infinitely many", "infinitely many solutions"), "∞"),
    **{word: str(number) for number, word in enumerate(NUMBER_WORDS)},
}
_UNDEFINED = {"dne", "does not exist", "undefined", "not defined"}
_LETTERS = re.compile(r"\(?[A-Z]\)?(?:\s*[,;∧∨]*\s*\(?[A-Z]\)?)*")
_OPTION = re.compile(
    r"(?:(?:option|choice|answer)\s*)?(?:\(\s*([A-Z])\s*\)|([A-Z])\s*[.):]|([A-Z])$)\s*(.*)", re.I
)
_SHORT_WORDS = set("yes no odd even true false one two six ten red blue up down left none all".split())


def read_letters(text: str) -> list[str]:
    """Return the letters of an answer that consists of capitals: B, (B), "A, C", CBAD. Empty for other answers."""
    bare = re.sub(r"[,;]?\s*\b(?:and|or)\b", " ∧", text.replace('"', "").strip())
    return re.findall("[A-Z]", bare) if _LETTERS.fullmatch(bare) else []


def same_letters(mine: str, theirs: str, letters: list[str]) -> bool:
    """Compare with the `letters` of the gold. One letter: the answer must name it, and may add the option's text.
    Several: the same letters in the same order, or in any order if both are lists and the gold is alphabetical (in
    another order, the order may be the answer)."""
    if len(letters) == 1:
        option = _OPTION.fullmatch(mine.replace('"', "").strip())
        if option is None:
            return False
        said, rest = next(filter(None, option.groups()[:3])), option[4]
        wrapped = '"' in mine or "(" in mine or said.isupper()
        return wrapped and said.upper() == letters[0] and not re.search(r"\([A-Z]\)|\b[A-Z]\b|[∧∨]", rest)
    either = re.compile(r"∨|\bor\b")
    if either.search(mine) and not either.search(theirs):  # "A or B" names candidates, "A and B" both
        return False
    found = read_letters(mine)
    listed = bool(re.search("[,;∧∨]", theirs))
    return found == letters or (
        listed and sorted(found) == letters and sorted(letters) == letters and bool(re.search("[,;∧∨]", mine))
    )


def without_option(text: str) -> str:
    """Remove the letter of an option before its value: "(B) 12" becomes "12"."""
    found = re.match(r'"?\(([A-H])\)"?:?\s+(?=[^\s+\-*/^=])', text)
    return text[found.end() :] if found and not re.search(r"\([A-H]\)", text[found.end() :]) else text


def is_words(text: str) -> bool:
    """True if a text consists of names and words, which are compared as text."""
    if units.read_clock(text) or units.read_date(text) or units.read_based(text) or plain_words(text) in PHRASES:
        return False
    if not re.fullmatch(r"[\"A-Za-zÀ-ÿ\s,.;:'()∧∨\-!?]+", text):
        return False
    runs = re.findall("[A-Za-zÀ-ÿ]+", text)
    quoted = any(len(run) > 1 for part in text.split('"')[1::2] for run in re.findall("[A-Za-z]+", part))
    return (
        quoted
        or any(len(run) > 3 or (len(run) > 1 and run in _SHORT_WORDS) for run in runs)
        or any(len(run) > 1 and run[0].isupper() and re.search("[aeiouy]", run) for run in runs)
    )


def same_words(mine: str, theirs: str) -> bool:
    """True if two texts have the same words, both mean "undefined", or list the same
    names in another order."""
    found, wanted = plain_words(mine), plain_words(theirs)
    if found == wanted or {found, wanted} <= _UNDEFINED:
        return True
    if " and " not in wanted:
        return False
    lists = [re.sub(r",?\s*(?:∧|\band\b)\s*", ",", text.replace('"', " ")).lower() for text in (mine, theirs)]
    return len({tuple(sorted(plain_words(name) for name in names.split(","))) for names in lists}) == 1

r"""Convert the text of an answer to one canonical spelling, before it is parsed.

`clean` removes typesetting and replaces each sign by one character, so that later stages have one case for each:

    \left( \dfrac{1}{2},\, 3\text{ cm} \right)      ->  ( \frac{1}{2}, 3"cm" )
    \$1,\!657   4\!:\!30\text{ p.m.}   x\neq 3      ->  $1657    4:30"p.m."    x ≠ 3

The content of \text{…} is kept in double quotes, because later rules must distinguish the unit `cm` from c times
m. Numbers in \text{…} are unwrapped. A comma between digits is kept, because 1,000 may be a list; `rules` tries
both readings. This module uses regular expressions only.
"""

import itertools
import re
import unicodedata

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_VULGAR = re.compile("[¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞]")
_CHARACTERS = {
    **dict.fromkeys("−–—‒﹣－", "-"),
    **dict.fromkeys("×⋅·∙∗•", "*"),
    **dict.fromkeys("’‘′`", "'"),
    **dict.fromkeys('“”"', "'"),
    **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u2061\u2062", ""),
    "÷": "/",
    "∕": "/",
    "⁄": "/",
    "√": r"\sqrt ",
    "π": r"\pi ",
    "α": r"\alpha ",
    "β": r"\beta ",
    "¢": '"cents"',
    "\t": " ",
    "\n": " ",
    "\r": " ",
}
_COMMANDS = {
    "≠": "neq ne not=",
    "≤": "leq leqslant le",
    "≥": "geq geqslant ge",
    "<": "lt",
    ">": "gt",
    "∪": "cup bigcup",
    "∩": "cap",
    "∈": "in",
    "*": "times cdot ast cdotp",
    "/": "div",
    "±": "pm",
    "∞": "infty",
    "|": "mid vert lvert rvert",
    "⌊": "lfloor",
    "⌋": "rfloor",
    "⌈": "lceil",
    "⌉": "rceil",
    "⟨": "langle",
    "⟩": "rangle",
    ":": "colon",
    "∅": "emptyset varnothing",
    "≈": "approx thickapprox simeq",
    "…": "ldots dots cdots dotsc",
    "∖": "setminus backslash smallsetminus",
    "°": "degree degrees",
    "⦃": "lbrace",
    "⦄": "rbrace",
    r"\frac": "dfrac tfrac cfrac",
    r"\binom": "dbinom tbinom",
    "": "displaystyle textstyle scriptstyle limits nolimits rm bf it sf noindent left right middle "
    "big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr mathstrut hfill quad qquad thinspace enspace",
}
_COMMAND = {name: sign for sign, names in _COMMANDS.items() for name in names.split()}
_ESCAPES = {
    r"\{": "⦃",
    r"\}": "⦄",
    r"\%": "%",
    r"\$": "\ue000",
    r"\_": "_",
    r"\&": "and",
    r"\#": "#",
    r"\|": "|",
    **dict.fromkeys((r"\,", r"\;", r"\:", r"\ ", r"\>", "~"), " "),
    **dict.fromkeys((r"\!", r"\/", r"\(", r"\)", r"\[", r"\]", r"\-"), ""),
}
_ESCAPE = re.compile("|".join(re.escape(key) for key in _ESCAPES))
_ROW = re.compile(r"\\\\(?:\s*\[[\d.]+\s*(?:pt|em|ex|mm|cm)\])?|\\cr\b|\\newline\b")
_SEPARATOR = r"(?:\{,\}|,?\s*\\!\s*,?|\\,|\\ |\\;|\\:|~|\{\\,\}|[\u2009\u202f\xa0])"
_THOUSANDS = re.compile(rf"(?<![\d.])\d{{1,3}}(?:{_SEPARATOR}\s*\d{{3}})+(?!\d)")
_SPACED_THOUSANDS = re.compile(r"(?<![\w.,^_)}] )(?<![\w.,^_)}])[1-9]\d{0,2}(?: \d{3})+(?![\w.])")
_WRAPPED = re.compile(
    r"\\(text|mbox|hbox|textbf|textit|textrm|textnormal|texttt|textsf|textup|textsc|emph|underline|"
    r"mathrm|mathbf|mathit|mathsf|mathtt|mathcal|mathnormal|operatorname\*?|bm|boldsymbol|pmb)\s*\{([^{}]*)\}"
)
_UNIT_PRODUCT = re.compile(r"(?:(?:[kcmdμ]?[mgshLNJWV]|cm|km|min|mol|Hz|Pa)(?:\s*\^-?\d)?[\s*/]*)+")
_JOINT_LAST = re.compile(r"(?P<rest>.+?)[,;]?\s+(?P<joint>and|or)", re.IGNORECASE)
_JOINT_FIRST = re.compile(r"[,;]?\s*(?P<joint>and|or)\b\s*(?P<rest>.*)", re.IGNORECASE)
_FUNCTIONS = (
    "arcsin arccos arctan arccot sinh cosh tanh coth sin cos tan cot sec csc "
    "log ln lg exp sqrt gcd lcm max min det deg"
).split()
_BARE_FUNCTION = re.compile(rf"(?<![A-Za-z\\])({'|'.join(_FUNCTIONS)})(?=\s*[({{^_]|\s+\d|\s*\\)")
NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
).split()
_ORDINAL = re.compile(r'(?<=\d)\s*(?:\^\s*\{?\s*"?(?:st|nd|rd|th)"?\s*\}?|"?(?:st|nd|rd|th)"?(?![A-Za-z]))')


class Unreadable(ValueError):
    """The text cannot be parsed completely, or contains a number that is too large."""


def clean(text: str) -> str:
    """Return the canonical spelling of an answer. Cleaning it again changes nothing."""
    text = _dollars(_characters(text.strip()))
    text = _THOUSANDS.sub(lambda m: re.sub(r"\D", "", m[0]), text)
    text = _ROW.sub("\ue001", text)
    text = _ESCAPE.sub(lambda m: _ESCAPES[m[0]], text)
    text = re.sub(r"\\(?:not\s*=|not\s*\\neq?)", "≠", text)
    text = re.sub(r"\\(?:left|right)\s*\.(?=\s|[^\d]|$)", "", text)
    text = re.sub(r"\\(?:hspace|vspace|color|label|tag)\s*\*?\{[^{}]*\}", " ", text)
    text = re.sub(r"\\(?:vec|hat|overrightarrow|widehat)(?![a-z])\s*", "", text)
    text = re.sub(r"\\[hv]?phantom\s*(?:\{[^{}]*\}|\S)", "", text)
    text = re.sub(r"\\(?:mathbb|Bbb)\s*\{?\s*R\s*\}?", "ℝ", text)
    text = re.sub(r"\\(?:mathbb|Bbb)\s*\{?\s*([A-Z])\s*\}?", r'"\1"', text)
    text = re.sub(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|\{\}\s*°|\^\s*(?:\{°\}|°)", "°", text)
    text = re.sub(r"\\([dt]?frac)\s*\{([^{}]*)°\s*\}\s*\{([^{}]*)\}", r"\\\1{\2}{\3}°", text)
    text = re.sub(r"([A-Za-z])\s*(\^\s*(?:\{[^{}]*\}|\w))\s*(_\s*(?:\{[^{}]*\}|\w))", r"\1\3\2", text)
    text = _wrappers(re.sub(r"\^\{(-?\d)\}", r"^\1", text) if "\\mathrm" in text else text)
    text = re.sub(r"\\([A-Za-z]+)", lambda m: _COMMAND.get(m[1], m[0]), text)
    text = re.sub(r"\^\s*\{\s*°\s*\}|\^\s*°", "°", text)
    text = re.sub(r'(?<=[\d} ])\s*(?:\\mu|μ)\s*"?\s*([mgs])\s*"?(?![A-Za-z])', r' "μ\1"', text)
    text = re.sub(r'(?<=[\d}])\s*"?\s*(k?)\s*"?\s*(?:\\Omega|Ω)\s*"?$', r' "\1ohm"', text)
    text = text.replace("\ue000", "$").replace("!=", "≠").replace("<=", "≤").replace(">=", "≥").replace("...", "…")
    text = _words(text.replace("**", "^"))
    text = re.sub(r"\{\s*\}", "", text)
    text = _SPACED_THOUSANDS.sub(lambda m: m[0].replace(" ", ""), text)
    return _trim(re.sub(r"\s+", " ", text))


def plain_words(text: str) -> str:
    """Return the words of a text in lower case, without quotes, punctuation and articles."""
    text = text.replace("∧", " and ").replace("∨", " or ").replace('"', " ").lower()
    text = re.sub(r"[.,;:!?'()\[\]{}\\$]", " ", text)
    return " ".join(word for word in text.replace("-", " ").split() if word not in ("a", "an", "the"))


def top_positions(text: str, signs: str) -> list[int]:
    """Return the positions of the signs outside of brackets, quotes, groups and environments."""
    found, depth, quoted = [], 0, False
    for at, sign in enumerate(text):
        if sign == "\\":
            depth += text.startswith("\\begin", at) - text.startswith("\\end", at)
        if sign == '"':
            quoted = not quoted
        elif quoted:
            continue
        elif sign in "([{⦃⟨⌊⌈":
            depth += 1
        elif sign in ")]}⦄⟩⌋⌉":
            depth -= 1
        elif sign in signs and depth <= 0:
            found.append(at)
    return found


def split_top(text: str, signs: str) -> list[str]:
    """Split the text at the signs that `top_positions` finds."""
    cuts = [-1, *top_positions(text, signs), len(text)]
    return [text[a + 1 : b].strip() for a, b in itertools.pairwise(cuts)]


def enclosed(text: str) -> bool:
    """True if the last character closes the first bracket: "(1)(2)" is not enclosed. The two may be of different
    kinds, as in (1, 2]."""
    if len(text) < 2 or text[0] not in "([{⦃⟨" or text[-1] not in ")]}⦄⟩":
        return False
    depth = 0
    for at, sign in enumerate(text):
        depth += (sign in "([{⦃⟨") - (sign in ")]}⦄⟩")
        if depth == 0:
            return at == len(text) - 1
    return False


def _characters(text: str) -> str:
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ]+", lambda m: "^{" + m[0].translate(_SUPERSCRIPTS) + "}", text)
    text = re.sub("[₀₁₂₃₄₅₆₇₈₉]+", lambda m: "_{" + m[0].translate(_SUBSCRIPTS) + "}", text)
    text = _VULGAR.sub(lambda m: "\\frac{" + unicodedata.normalize("NFKC", m[0]).replace("⁄", "}{") + "}", text)
    text = "".join(_CHARACTERS.get(sign, sign) for sign in text)
    text = "".join(sign if sign in "…ℝ" else unicodedata.normalize("NFKC", sign) for sign in text)
    return "".join(_CHARACTERS.get(sign, sign) if sign != '"' else sign for sign in text)


def _dollars(text: str) -> str:
    """Escape each unescaped `$` if all of them precede an amount of money; else remove them as delimiters."""
    if "$" not in text.replace(r"\$", ""):
        return text
    bare = re.findall(r"(?<!\\)\$(.?.?)", text)
    if all(re.match(r"-?\d|\.\d", after) for after in bare) and not text.rstrip(" .").endswith("$"):
        return re.sub(r"(?<!\\)\$", r"\\$", text)
    return re.sub(r"(?<!\\)\$", "", text)


def _wrappers(text: str) -> str:
    text = re.sub(r"\\(?:boxed|fbox)\s*\{(.*)\}", r"\1", text)
    for _ in range(8):
        found = _WRAPPED.sub(_unwrap, text)
        if found == text:
            break
        text = found
    return re.sub(r"\\(?:text[a-z]*|math(?:rm|bf|it|sf|tt|cal|normal)|bm|boldsymbol|mbox|emph)\s*(?=\{)", "", text)


def _unwrap(match: re.Match[str]) -> str:
    command, inside = match[1], match[2].strip().replace('"', " ")
    upright = command.startswith(("math", "operatorname", "bm", "bold", "pmb"))
    before = match.string[: match.start()].rstrip(" \\,;:~")[-1:]
    after_number = before.isdigit() or before == "}"
    if inside in _FUNCTIONS and upright and not (inside == "min" and after_number):
        return f"\\{inside} "
    if not re.search("[A-Za-z]", inside) or inside.startswith("\\"):
        return f" {inside} "
    if len(inside) == 1 and upright:
        return f' "{inside}" ' if inside in "mgshLlNJWVKACFT" and after_number else f" {inside} "
    if upright and after_number and _UNIT_PRODUCT.fullmatch(inside):
        return f' "{inside}" '
    if re.search(r"[\d=<>]", inside) and not re.search(r"[A-Za-z]{2}|^[\d.,]+\s*[mgshL]$", inside):
        return f" {inside} "
    if amount := re.fullmatch(r"(-?[\d.,/]*\d)\s*([A-Za-z].*)", inside):
        return f' {amount[1]} "{amount[2]}" '
    joint = _JOINT_LAST.fullmatch(inside) or _JOINT_FIRST.fullmatch(inside)
    if joint is None:
        return f' "{inside}" '
    rest = f' "{joint["rest"]}" ' if re.search("[A-Za-z]", joint["rest"]) else f" {joint['rest']} "
    sign = " ∧ " if joint["joint"].lower() == "and" else " ∨ "
    return sign + rest if joint.re is _JOINT_FIRST else rest + sign


def _words(text: str) -> str:
    """Replace words outside quotes: "and", "or", "pi" and "inf" by signs, and sin( by \\sin(."""
    pieces = text.split('"')
    for index in range(0, len(pieces), 2):
        piece = re.sub(r"(?i)(?<![A-Za-z\\])and(?![A-Za-z])", "∧", pieces[index])
        piece = re.sub(r"(?i)(?<![A-Za-z\\])or(?![A-Za-z])", "∨", piece)
        piece = _BARE_FUNCTION.sub(r"\\\1", piece)
        piece = re.sub(r"(?<![A-Za-z\\])pi(?![A-Za-z])", r"\\pi ", piece)
        piece = re.sub(r"(?i)(?<![A-Za-z\\])(?:inf|infinity|oo)(?![A-Za-z])", "∞", piece)
        piece = re.sub(r"\\(?:iff|Leftrightarrow|Rightarrow|implies)\b", ";", piece)
        pieces[index] = piece
    text = '"'.join(pieces)
    text = _ORDINAL.sub("", text)
    return re.sub(r"[,;]\s*([∧∨])", r"\1", text)


def _trim(text: str) -> str:
    text = text.strip()
    said = re.sub(r"(?i)^\"?\s*(?:the )?(?:final )?answer(?: is)?\s*:?\s*\"?\s*:?\s*(?=\S)", "", text)
    text = said.rstrip('" ') if said.count('"') % 2 else said
    text = text.rstrip(".,;:\\ ")
    while enclosed(text) and text[0] == "{":
        text = text[1:-1].strip()
    return text

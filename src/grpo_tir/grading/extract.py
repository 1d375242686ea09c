"""Extract the final answer from the text of a response."""

import re
from collections.abc import Sequence

_FENCE = re.compile(r"```+[ \t]*([\w+.-]*)[ \t\r]*$")
_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")


def extract_answer(text: str) -> str | None:
    r"""Return the content of the last ``\boxed{…}`` outside code fences; None if there is none."""
    prose = _outside_fences(text)
    boxes = list(_BOX.finditer(prose))
    return _box_content(prose, boxes[-1].end()) if boxes else None


def boxed_answers(text: str) -> list[str]:
    """Return the content of every box outside code fences, in order."""
    prose = _outside_fences(text)
    return [content for box in _BOX.finditer(prose) if (content := _box_content(prose, box.end()))]


def model_answer(segments: Sequence[str]) -> str | None:
    """Return the answer of the last model-written segment with a box. A box never spans two segments."""
    for text in reversed(segments):
        if _BOX.search(_outside_fences(text)):
            return extract_answer(text)
    return None


def _outside_fences(text: str) -> str:
    """Return the lines outside code blocks. A fence with a word always opens a block; a fence without a word opens
    or closes one. In the paper's format "```output" therefore ends the block "```python" and opens the next
    one."""
    kept, inside = [], False
    for line in text.split("\n"):
        fence = _FENCE.search(line)
        if fence and "`" not in line[: fence.start()] and (fence[1] or not line[: fence.start()].strip()):
            if not inside:
                kept.append(line[: fence.start()])
            inside = bool(fence[1]) or not inside
        elif not inside:
            kept.append(line)
    return "\n".join(kept)


def _box_content(text: str, start: int) -> str | None:
    """Return the content of the box at `start`: a balanced group, or without braces (``\boxed 5``) the text up to
    the next `$`, else the next word."""
    if start >= len(text):
        return None
    if text[start] != "{":
        line = text[start:].split("\n", 1)[0]
        bare = line.split("$", 1)[0] if "$" in line else line.split(maxsplit=1)[0] if line.split() else ""
        return bare.strip().rstrip(".,;") or None
    depth, at = 0, start
    while at < len(text):
        if text[at] == "\\":
            at += 1
        elif text[at] == "{":
            depth += 1
        elif text[at] == "}":
            depth -= 1
            if depth == 0:
                return text[start + 1 : at].strip()
        at += 1
    return None

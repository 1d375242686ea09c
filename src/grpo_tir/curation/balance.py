"""As many problems of each difficulty as there are, up to a common height.

The paper says "balanced difficulty" and not how. Here: classes are filled like vessels with water until the wanted
number is reached, so a rare class is taken whole and a frequent one is cut. Which members of a cut class stay is
drawn by a hash of the id, so that it depends neither on the order of the rows nor on a library.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping


def difficulty_class(value: str | float) -> str:
    """What counts as equally difficult: tenths of an accuracy ("0.3-0.4"), whole levels, or any other label."""
    try:
        number = float(value)
    except ValueError:
        return str(value)
    if not math.isfinite(number):
        return "unknown"
    if 0 <= number <= 1 and not (isinstance(value, str) and value.isdigit()):
        tenth = min(9, math.floor(number * 10 + 1e-9))
        return f"{tenth / 10:.1f}-{(tenth + 1) / 10:.1f}"
    return str(math.floor(number))


def water_fill(counts: Mapping[str, int], size: int) -> dict[str, int]:
    """How many of each class to take so that `size` are taken in all, or every one if there are fewer.

    >>> water_fill({"easy": 100, "hard": 3}, 13)
    {'easy': 10, 'hard': 3}
    """
    taken = dict.fromkeys(counts, 0)
    left = min(size, sum(counts.values()))
    for remaining, name in zip(range(len(counts), 0, -1), sorted(counts, key=lambda name: (counts[name], name))):
        taken[name] = min(counts[name], -(-left // remaining))
        left -= taken[name]
    return taken


def lot(seed: int, name: str) -> int:
    """A problem's place in the draw: the lowest of its class stay. 63 bits, so that a database can sort by it."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "big") >> 1


def balance(classes: Mapping[str, str], size: int, seed: int = 0) -> set[str]:
    """The ids that stay.

    Args:
        classes: difficulty class of each id.
        size: how many are wanted in all.
    """
    members: dict[str, list[str]] = {}
    for name, label in classes.items():
        members.setdefault(label, []).append(name)
    quota = water_fill({label: len(names) for label, names in members.items()}, size)
    drawn = {label: sorted(names, key=lambda name: lot(seed, name)) for label, names in members.items()}
    return {name for label, names in drawn.items() for name in names[: quota[label]]}

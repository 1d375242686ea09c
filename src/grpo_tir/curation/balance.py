"""Draw a subset with equally many problems of each difficulty class.

The paper writes "balanced difficulty" and does not define it. Here all classes get one common quota, chosen so
that the wanted total is reached. A class with fewer problems than the quota is kept complete. The members of a
larger class are drawn by a hash of their id, so the draw does not depend on the order of the rows or on a library.
"""

import hashlib
import math
from collections.abc import Mapping


def difficulty_class(value: str | float) -> str:
    """Return the difficulty class: a tenth of an accuracy ("0.3-0.4"), an integer level, or the label itself."""
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
    """Return how many problems of each class to take, `size` in total, or all of them if there are fewer.

    >>> water_fill({"easy": 100, "hard": 3}, 13)
    {'easy': 10, 'hard': 3}
    """
    taken = dict.fromkeys(counts, 0)
    left = min(size, sum(counts.values()))
    for remaining, name in zip(range(len(counts), 0, -1), sorted(counts, key=lambda name: (counts[name], name))):
        taken[name] = min(counts[name], -(-left // remaining))
        left -= taken[name]
    return taken


def draw_key(seed: int, name: str) -> int:
    """Return the draw number of a problem; the lowest of a class are kept. 63 bits, so that SQLite can sort it."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "big") >> 1

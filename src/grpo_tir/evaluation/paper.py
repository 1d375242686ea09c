"""Hold Table 3 of the paper (arXiv 2503.23383) as printed, and flag averages that do not match its rows."""

BENCHMARKS = ("aime24", "aime25", "math500", "olympiadbench", "amc23")
TABLE: dict[str, tuple[float | None, ...]] = {
    "Qwen2.5-Math-1.5B-Instruct": (10.0, 10.0, 66.0, 31.0, 62.5, 35.9),
    "Qwen2.5-Math-1.5B-Instruct-TIR": (13.3, 13.3, 73.8, 41.3, 55.0, 41.3),
    "ToRL-1.5B": (26.7, 26.7, 77.8, 44.0, 67.5, 48.5),
    "Qwen2.5-Math-7B-Instruct": (10.0, 16.7, 74.8, 32.4, 65.0, 39.8),
    "Qwen2.5-Math-7B-Instruct-TIR": (26.7, 16.7, 78.8, 45.0, 70.0, 47.4),
    "SimpleRL-Zero": (33.3, 6.7, 77.2, 37.6, 62.5, 43.5),
    "rStar-Math-7B": (26.7, None, 78.4, 47.1, 47.5, None),
    "Eurus-2-7B-PRIME": (26.7, 13.3, 79.2, 42.1, 57.4, 43.1),
    "ToRL-7B": (43.3, 30.0, 82.2, 49.9, 75.0, 62.1),
}
"""Percent by model: the scores in the order of `BENCHMARKS`, and their average; None where nothing is printed."""


def true_average(model: str) -> float | None:
    """Return the mean of the five printed scores; None if one is missing."""
    numbers = [score for score in TABLE[model][:-1] if score is not None]
    return sum(numbers) / len(numbers) if len(numbers) == len(BENCHMARKS) else None


def is_wrong(model: str) -> bool:
    """True if the printed average differs from the mean of the printed scores by more than rounding."""
    printed, mean = TABLE[model][-1], true_average(model)
    return printed is not None and mean is not None and abs(printed - mean) > 0.051

"""Format the result of an evaluation as a table and as Markdown.

A response that could not be judged (unusable gold) and a prompt too long for the model count as wrong and are
listed. Only `times` and `command` may differ between two equal evaluations.
"""

from collections.abc import Sequence
from typing import Any

from grpo_tir.data.benchmarks import PINS
from grpo_tir.evaluation.summary import AVERAGE, Result, points

PAPER: dict[str, tuple[float | None, ...]] = {
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
"""Table 3 of the paper (arXiv 2503.23383) as printed: percent by model, in the order of `PINS`, and their average.
None where nothing is printed."""


def table(cells: Sequence[Result], benchmarks: Sequence[str], with_paper: bool) -> str:
    """Format scores in percent with 95% intervals, one row for each cell: aligned text that is valid Markdown."""
    columns = [*benchmarks, AVERAGE] if len(benchmarks) > 1 else list(benchmarks)
    lines = [["%, 95% interval", *columns]]
    for cell in cells:
        found = {**cell["results"], AVERAGE: cell["average"]}
        lines.append([cell["label"], *(_interval(found[name]) for name in columns)])
        for k in next(iter(cell["results"].values())).get("pass_at", {}):
            lines.append([f"  pass@{k}", *(_of(found[name], lambda r, k=k: r["pass_at"][k]) for name in columns)])
        if cell["samples"] > 1:
            lines.append(
                [f"  maj@{cell['samples']}", *(_of(found[name], lambda r: r["majority"]) for name in columns)]
            )
    complete = set(PINS) == set(benchmarks)  # else its average is of other columns than ours
    if with_paper:
        shown = [name if name != AVERAGE or complete else "" for name in columns]
        lines += [[f"paper: {model}", *(_printed(model, name) for name in shown)] for model in PAPER]
    note = "\n\n✗ the average that the paper prints is not the mean of the scores it prints; (the mean) is."
    return markdown(lines) + (note if with_paper and complete else "")


def difference_table(pairs: Sequence[Result]) -> str:
    """Format the paired differences, one line each."""
    lines = [["difference", "benchmark", "points, 95% interval", "won / lost", "sign test p"]]
    for pair in pairs:
        split, p = f"{pair['won']} / {pair['lost']}", f"{pair['p']:.3f}" if pair["p"] >= 0.001 else "< 0.001"
        name = f"{pair['second']} - {pair['first']}"
        lines.append([name, pair["benchmark"], points(pair), split, p])
    return markdown(lines)


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table with aligned columns; the first line is the header."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |" for line in lines]
    return "\n".join([text[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *text[1:]])


def page(result: Result) -> str:
    """Format results.md: table, differences and named problems. The rest is in results.json."""
    cells, benchmarks = result["cells"], list(result["benchmarks"])
    parts = ["# Evaluation", table(cells, benchmarks, "paper" in result)]
    if result["differences"]:
        parts += ["## Paired differences", difference_table(result["differences"])]
    parts += ["## Named", *(_named(cells) or ["Every prompt was sampled and every response judged."])]
    return "\n\n".join(parts) + "\n"


def _named(cells: Sequence[Result]) -> list[str]:
    words = {
        "unjudged": "without a verdict (counted as not right)",
        "too_long": "too long for the model (counted as wrong)",
    }
    return [
        f"- {cell['label']}, {name}, {words[what]}: {', '.join(found[what])}"
        for cell in cells
        for name, found in cell["results"].items()
        for what in words
        if found[what]
    ]


def _interval(result: Result) -> str:
    return f"{100 * result['score']:.1f} [{100 * result['low']:.1f}, {100 * result['high']:.1f}]"


def _of(result: Result, value: Any) -> str:
    return f"{100 * value(result):.1f}" if "scores" in result else ""


def _printed(model: str, column: str) -> str:
    printed = dict(zip((*PINS, AVERAGE), PAPER[model])).get(column)
    mark = f" ✗ ({true_average(model):.1f})" if column == AVERAGE and is_wrong(model) else ""
    return "-" if printed is None else f"{printed}{mark}"


def true_average(model: str) -> float | None:
    """Return the mean of the five printed scores; None if one is missing."""
    numbers = [score for score in PAPER[model][:-1] if score is not None]
    return sum(numbers) / len(numbers) if len(numbers) == len(PINS) else None


def is_wrong(model: str) -> bool:
    """True if the printed average differs from the mean of the printed scores by more than rounding."""
    printed, mean = PAPER[model][-1], true_average(model)
    return printed is not None and mean is not None and abs(printed - mean) > 0.051

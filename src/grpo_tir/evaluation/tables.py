"""Format the result of an evaluation as a table and as Markdown.

A response that could not be judged (unusable gold) and a prompt too long for the model count as wrong and are
listed. Only `times` and `command` may differ between two equal evaluations.
"""

from collections.abc import Sequence
from typing import Any

from grpo_tir.evaluation import paper
from grpo_tir.evaluation.summary import AVERAGE, Result, points


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
    complete = set(paper.BENCHMARKS) == set(benchmarks)  # else its average is of other columns than ours
    if with_paper:
        shown = [name if name != AVERAGE or complete else "" for name in columns]
        lines += [[f"paper: {model}", *(_printed(model, name) for name in shown)] for model in paper.TABLE]
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
    printed = dict(zip((*paper.BENCHMARKS, AVERAGE), paper.TABLE[model])).get(column)
    mark = f" ✗ ({paper.true_average(model):.1f})" if column == AVERAGE and paper.is_wrong(model) else ""
    return "-" if printed is None else f"{printed}{mark}"

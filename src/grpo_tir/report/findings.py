"""Show the findings of `grpo-tir paper` (`findings.json`) above the curves of its runs.

    statement ── verdict in words ── what was run ── our figures, the paper's ── responses that show it

Text of a model is escaped: it is shown and never interpreted.
"""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

from grpo_tir.errors import UserError

FILE = "findings.json"


def read_findings(folder: Path) -> dict[str, Any] | None:
    """Read the findings in a folder; None if it has none.

    Raises:
        UserError: the file is not one of `grpo-tir paper`.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        section(found)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} cannot be read: run grpo-tir paper again") from None
    return found


def section(found: dict[str, Any]) -> str:
    """Return the section of the page as HTML."""
    intro = f"<p>{escaped(found['rule'])}</p>{_table(found['findings'])}"
    return f'<section id="findings"><h2>Findings</h2>{intro}{"".join(map(_finding, found["findings"]))}</section>'


def _table(lines: list[dict[str, Any]]) -> str:
    head = "".join(f"<th>{name}</th>" for name in ("Finding", "Paper", "Ours, 95% interval", "Bound", "Verdict"))
    rows = [
        (line["statement"], line["paper"], value(line), f"{line['bound']:g}", line["verdict"]) for line in lines
    ]
    body = "".join(f"<tr>{''.join(f'<td>{escaped(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _finding(line: dict[str, Any]) -> str:
    shown = "".join(map(_example, line["examples"]))
    return (
        f'<article class="card finding"><h4>{escaped(line["statement"])}</h4>'
        f"<p><b>{escaped(in_words(line))}</b></p>"
        f"<p>{escaped(line['ran'])} The paper: {escaped(line['paper'])}.</p>"
        f"{shown}</article>"
    )


def _example(example: dict[str, Any]) -> str:
    shown = [(escaped(one["who"]), escaped(one["text"])) for one in example["responses"]]
    parts = "".join(f"<dt>{who}</dt><dd><pre>{text}</pre></dd>" for who, text in shown)
    title = f"{escaped(example['title'])}: {escaped(example['problem'])}"
    return f"<details><summary>{title}</summary><dl>{parts}</dl></details>"


def in_words(line: dict[str, Any]) -> str:
    """Return the verdict as a sentence with its figures."""
    if line["value"] is None:
        return "Undecided: too few responses to compare."
    ends = f"{line['first']:.3g} against {line['second']:.3g}"
    return f"{line['verdict'].capitalize()}: {ends}, {value(line)}; bound {line['bound']:g}."


def value(line: dict[str, Any]) -> str:
    """Format the value with its interval: a difference with its sign, or a ratio."""
    if line["value"] is None:
        return "-"
    form = "{:.2f}" if line["is_ratio"] else "{:+.3f}"
    low, high = map(form.format, line["interval"])
    return f"{'ratio' if line['is_ratio'] else 'difference'} {form.format(line['value'])} [{low}, {high}]"


def escaped(value: object) -> str:
    """Return text as HTML that shows it."""
    return html.escape(str(value).encode("utf-8", "replace").decode("utf-8"))

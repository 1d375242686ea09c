"""Write the report's page with the findings (`findings.json`) above the curves of their runs.

    statement ── verdict in words ── what was run ── our figures, the paper's ── responses that show it

Text of a model is escaped: it is shown and never interpreted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from grpo_tir.errors import UserError
from grpo_tir.report.page import escaped, write_report

FILE = "findings.json"


def write_page(folders: list[Path], out: Path, title: str | None = None) -> Path:
    """Write one page about runs, or the runs that the findings in a folder name. Returns the page's path.

    Raises:
        UserError: a folder is not a run, its findings cannot be read, or `out` cannot be written.
    """
    runs, sections = [], []
    for folder in folders:
        path = folder / FILE
        if not path.is_file():
            runs.append(folder)
            continue
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            sections.append(section(found))
            runs += [folder / run for run in found["runs"]]
            title = title or found["title"]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{path} cannot be read: run grpo-tir paper again") from None
    return write_report(runs, out, title=title, before="".join(sections))


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

"""The card of a built data set: what came from where, what went out and why, and the hashes to prove it by.

It holds no time and no name of a machine: the same input gives the same card, byte for byte.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from grpo_tir.curation.dedup import Store
from grpo_tir.utils.files import write_atomically

REASONS = {
    "bad row": "cannot be used: no problem, no answer, wrong JSON, an id twice, …",
    "proof": "asks for a proof only",
    "marked as broken": "its source says that problem or solution is not valid",
    "picture": "needs a picture that is not in the text",
    "no answer": "none is given",
    "several answers": "the solution boxes different ones",
    "in a benchmark": "copies or paraphrases a benchmark problem",
    "too long": "the prompt has too many tokens",
    "unverifiable answer": "no rule can judge an answer against it",
    "duplicate": "the words and the answer of an earlier row",
    "contradiction": "the words of another row, with another answer: both are out",
    "near duplicate": "nearly the words of an earlier row, with its numbers and its answer",
    "not drawn": "left out for balance",
}
"""In the order in which rows meet them."""


def write_card(out: Path, store: Store, built_from: dict[str, Any], hashes: dict[str, str]) -> dict[str, Any]:
    """Write OUT.card.json and OUT.card.md; returns the content of the first."""
    card = {
        **built_from,
        "counts": counts(store, [source["name"] for source in built_from["sources"]]),
        "overlap": overlap(store),
        "difficulty": dict(
            store.db.execute(
                "SELECT difficulty, count(*) FROM rows WHERE reason = '' GROUP BY difficulty ORDER BY difficulty"
            )
        ),
        "sha256": hashes,
    }
    write_atomically(out.with_name(f"{out.name}.card.json"), json.dumps(card, indent=1, ensure_ascii=False) + "\n")
    write_atomically(out.with_name(f"{out.name}.card.md"), markdown(out.name, card))
    return card


def counts(store: Store, names: list[str]) -> dict[str, dict[str, int]]:
    """Rows read, lost to each reason, and kept; for each source and in all."""
    found: dict[str, Counter[str]] = {name: Counter() for name in [*names, "all"]}
    for source, reason, number in store.db.execute(
        "SELECT source, reason, count(*) FROM rows GROUP BY source, reason ORDER BY source, reason"
    ):
        for name in (names[source], "all"):
            found[name]["read"] += number
            found[name][reason or "kept"] += number
    order = ["read", *REASONS, "kept"]
    return {name: {key: counter[key] for key in order} for name, counter in found.items()}


def overlap(store: Store) -> dict[str, dict[str, int]]:
    """Rows that copy a benchmark, and how many of its problems they copy; the pairs are in the rejects."""
    found = store.db.execute(
        "SELECT substr(detail, 1, instr(detail, ':') - 1) AS name, count(*), count(DISTINCT other) "
        "FROM rows WHERE reason = 'in a benchmark' GROUP BY name ORDER BY name"
    )
    return {name: {"rows": rows, "problems": problems} for name, rows, problems in found}


def markdown(name: str, card: dict[str, Any]) -> str:
    """The card for a reader."""
    table = card["counts"]
    columns = list(table)
    lines = [f"# {name}", "", f"Made by `grpo-tir data build` {card['version']}.", "", "## Sources", ""]
    for title, places in (("sources", card["sources"]), ("Benchmarks that must not be in it", card["benchmarks"])):
        lines += [] if title == "sources" else ["", f"## {title}", ""]
        lines += [f"- {p['name']}: {p['location']}, pinned at `{p['pin']}`" for p in places] or ["- none named"]
    lines += [
        "",
        "## From row to problem",
        "",
        f"| | {' | '.join(columns)} | |",
        f"|---|{'---:|' * len(columns)}---|",
    ]
    for key in table["all"]:
        if key in ("read", "kept") or table["all"][key]:
            values = " | ".join(f"{table[column][key]:,}" for column in columns)
            lines.append(f"| {key} | {values} | {REASONS.get(key, '')} |")
    lines += ["", "## Overlap with the benchmarks", ""]
    for benchmark, entry in card["overlap"].items():
        lines.append(f"- {benchmark}: {entry['rows']} rows copy {entry['problems']} of its problems")
    lines += [] if card["overlap"] else ["none was found" if card["benchmarks"] else "not looked for"]
    lines += ["", "## Difficulty", "", *(f"- {label}: {number:,}" for label, number in card["difficulty"].items())]
    lines += ["", "## Settings", "", *(f"- {key}: {value}" for key, value in card["settings"].items())]
    lines += ["", "## sha256", "", *(f"- {file}: `{digest}`" for file, digest in card["sha256"].items())]
    return "\n".join(lines) + "\n"

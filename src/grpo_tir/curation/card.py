"""Write the card of a built data set: its sources, the rejected rows by reason, and hashes of input and output.

The card has no date and no machine name, so the same input gives the same card, byte for byte.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from grpo_tir.curation.dedup import Store
from grpo_tir.utils.files import write_atomically

REASONS = {
    "bad row": "cannot be used: no problem, no answer, wrong JSON, a repeated id, …",
    "proof": "asks for a proof only",
    "marked as broken": "its source marks the problem or the solution as not valid",
    "picture": "needs a picture that is not in the text",
    "no answer": "no answer is given",
    "several answers": "the solution boxes different answers",
    "similar to a benchmark": "similar to a benchmark problem: a copy, a paraphrase or a near sibling",
    "too long": "its prompt has too many tokens",
    "unverifiable answer": "the grader cannot judge an answer against it",
    "duplicate": "has the words and the answer of an earlier row",
    "contradiction": "has the words of another row and a different answer: both are rejected",
    "near duplicate": "has nearly the words, the numbers and the answer of an earlier row",
    "not drawn": "left out to balance the difficulty",
}
"""Reasons for rejecting a row, in the order of the checks."""


def write_card(out: Path, store: Store, built_from: dict[str, Any], hashes: dict[str, str]) -> dict[str, Any]:
    """Write OUT.card.json and OUT.card.md. Returns the content of the JSON card."""
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
    """Count rows read, rejected for each reason, and kept, for each source and in total."""
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
    """Count the rows that are similar to each benchmark, and its problems. The rejects file has the pairs."""
    found = store.db.execute(
        "SELECT substr(detail, 1, instr(detail, ':') - 1) AS name, count(*), count(DISTINCT other) "
        "FROM rows WHERE reason = 'similar to a benchmark' GROUP BY name ORDER BY name"
    )
    return {name: {"rows": rows, "problems": problems} for name, rows, problems in found}


def markdown(name: str, card: dict[str, Any]) -> str:
    table = card["counts"]
    pins = {
        kind: [f"- {p['name']}: {p['location']}, pinned at `{p['pin']}`" for p in card[kind]] or ["- none named"]
        for kind in ("sources", "benchmarks")
    }
    rows = [
        f"| {key} | {' | '.join(f'{column[key]:,}' for column in table.values())} | {REASONS.get(key, '')} |"
        for key in table["all"]
        if key in ("read", "kept") or table["all"][key]
    ]
    similar = [
        f"- {name}: {found['rows']} rows are similar to {found['problems']} of its problems"
        for name, found in card["overlap"].items()
    ]
    sections = {
        "Sources": pins["sources"],
        "Benchmarks that must not be in it": pins["benchmarks"],
        "From row to problem": [f"| | {' | '.join(table)} | |", f"|---|{'---:|' * len(table)}---|", *rows],
        "Similar to the benchmarks": similar or ["none found" if card["benchmarks"] else "not checked"],
        "Difficulty": [f"- {label}: {number:,}" for label, number in card["difficulty"].items()],
        "Settings": [f"- {key}: {value}" for key, value in card["settings"].items()],
        "sha256": [f"- {file}: `{digest}`" for file, digest in card["sha256"].items()],
    }
    parts = [f"# {name}", f"Made by `grpo-tir data build` {card['version']}."]
    parts += [f"## {title}\n\n" + "\n".join(lines) for title, lines in sections.items()]
    return "\n\n".join(parts) + "\n"

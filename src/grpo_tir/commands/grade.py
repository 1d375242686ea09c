"""`grpo-tir grade IN.jsonl --out O.jsonl`: judge recorded outputs against gold answers.

In:  one object a line with `id`, `output` (the complete model output) and `answer` (the gold answer).
Out: one object a line, in the same order, with `id`, `outcome` (right | wrong | unjudged), `extracted` (the
     content of the last box, or null) and `seconds`. The file appears under its name when it is complete.
"""

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grpo_tir.data.problems import check_answer
from grpo_tir.data.rows import Numeral, columns, kind, read_rows
from grpo_tir.errors import DataError
from grpo_tir.grading.extract import extract_answer
from grpo_tir.grading.grader import Grader
from grpo_tir.utils.files import replacing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", type=Path, help='JSONL with {"id", "output", "answer"} a line')
    parser.add_argument("--out", type=Path, required=True, help="JSONL to write")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 2, help="processes (default: cores)")
    parser.add_argument("--timeout", type=float, default=2.0, help="seconds for one answer (default: 2)")
    parser.add_argument("--on-bad", choices=["stop", "skip"], default="stop", help="a row that cannot be used")


def run(args: argparse.Namespace) -> int:
    """Grade every row. The exit code does not depend on the grades."""
    from tqdm import tqdm

    if args.workers < 1 or args.timeout <= 0:
        raise DataError("--workers must be 1 or more, --timeout above 0")
    if not args.out.parent.is_dir():
        raise DataError(f"{args.out.parent} is no folder: make it first, or name another --out")
    if args.out.exists() and args.input.exists() and args.out.samefile(args.input):
        raise DataError(f"--out {args.out} is the input itself: name another file")
    bad: list[str] = []
    counts: Counter[str] = Counter()
    rows = _rows(args.input, bad, skip=args.on_bad == "skip")
    with Grader(args.workers, args.timeout) as grader, replacing(args.out) as out:
        rows = tqdm(rows, desc="grading", unit="row", disable=None)
        for row, grade in grader.each(
            rows, lambda row: grader.grade(extract_answer(row["output"]), row["answer"])
        ):
            if grade.outcome == "unjudged":
                grader.check_gold(row["answer"])  # raises GraderOutage
            counts[grade.outcome] += 1
            record = {"id": row["id"], "outcome": grade.outcome, "extracted": grade.extracted}
            out.write(json.dumps({**record, "seconds": round(grade.seconds, 6)}) + "\n")
    _summarise(counts, bad, args.out)
    return 0


def _rows(path: Path, bad: list[str], *, skip: bool) -> Iterator[dict[str, Any]]:
    """Yield usable rows. A bad row ends the run with its file and line, or is left out and noted in `bad`."""
    seen: dict[str, str] = {}
    for where, raw in read_rows(str(path)):
        try:
            row = _row(raw)
            key = json.dumps(row["id"])
            if key in seen:
                raise ValueError(f"the id {key} is that of {seen[key]} too")
        except ValueError as error:
            fault = f"{path} {where}: {error}"
            if not skip:
                raise DataError(f"{fault} (`--on-bad skip` leaves such rows out)") from None
            bad.append(fault)
            continue
        seen[key] = where
        yield row


def _row(row: Any) -> dict[str, Any]:
    """Check one row. Raises ValueError with what is wrong with it."""
    row = columns(row)
    for name in ("id", "output", "answer"):
        if name not in row:
            raise ValueError(f"`{name}` is missing; the row has {', '.join(map(str, row)) or 'nothing'}")
    if not isinstance(row["output"], str) or isinstance(row["output"], Numeral):
        raise ValueError(f"`output` must be text, this is {kind(row['output'])}")
    if not isinstance(row["answer"], str | None):
        raise ValueError(f"`answer` must be text or a number, this is {kind(row['answer'])}")
    answer: str = row["answer"] or ""
    check_answer(answer)
    row["answer"] = answer
    if isinstance(row["id"], Numeral):
        row["id"] = json.loads(row["id"])
    return row


def _summarise(counts: Counter[str], bad: list[str], out: Path) -> None:
    for fault in bad:
        print(f"left out: {fault}", file=sys.stderr)
    verdicts = ", ".join(f"{counts[name]} {name}" for name in ("right", "wrong", "unjudged"))
    print(f"{counts.total()} rows: {verdicts}" + (f"; {len(bad)} left out" if bad else "") + f" -> {out}")

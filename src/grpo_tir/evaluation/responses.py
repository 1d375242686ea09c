"""Finished responses on disk, so that a killed evaluation goes on where it was.

    OUT/responses-0.jsonl     one line a response, appended wave by wave and synced; one file a rank

A line is found by what it is the answer to: (cell, benchmark, problem, sample), where `cell` is the hash of all
that the response depends on. So one folder may hold several evaluations, and none takes lines of another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from grpo_tir.errors import OutputError
from grpo_tir.utils.files import append_lines, cut_torn_line, read_jsonl, sync

Key = tuple[str, str, str, int]


def key_of(row: dict[str, Any]) -> Key:
    """What a line answers."""
    return row["cell"], row["benchmark"], row["problem_id"], row["sample"]


def digest(facts: dict[str, Any]) -> str:
    """A short hash of plain data, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


class ResponseLog:
    """The responses of one folder; this rank appends to a file of its own.

    Raises:
        OutputError: the folder cannot be written.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.folder, self.path = folder, folder / f"responses-{rank}.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            cut_torn_line(self.path)
        except OSError as error:
            raise OutputError(f"cannot write to --out {folder}: {error.strerror}; name another folder") from None
        self.rows: dict[Key, dict[str, Any]] = {}
        for path in sorted(folder.glob("responses-*.jsonl")):
            self.rows |= {key_of(row): row for row in read_jsonl(path)}

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Append whole lines and wait until they are on the disk."""
        rows = list(rows)
        append_lines(self.path, *rows)
        sync(self.path)
        self.rows |= {key_of(row): row for row in rows}

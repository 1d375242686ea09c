"""Store finished responses on disk, so that a killed evaluation can resume.

    OUT/responses-0.jsonl     one line for each response, appended and synced wave by wave; one file for each rank

The key of a line is (cell, benchmark, problem, sample). `cell` is the hash of everything that the response depends
on, so several evaluations can share one folder.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from grpo_tir.errors import OutputError
from grpo_tir.utils.files import append_lines, cut_torn_line, read_jsonl, sync

Key = tuple[str, str, str, int]


def key_of(row: dict[str, Any]) -> Key:
    return row["cell"], row["benchmark"], row["problem_id"], row["sample"]


def digest(facts: dict[str, Any]) -> str:
    """Hash plain data; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


class ResponseLog:
    """Read the responses of all ranks in a folder, and append to this rank's file.

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
        """Append lines and wait until they are on the disk."""
        rows = list(rows)
        append_lines(self.path, *rows)
        sync(self.path)
        self.rows |= {key_of(row): row for row in rows}

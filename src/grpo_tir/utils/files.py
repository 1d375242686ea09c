"""Files that are whole or not there, lines that are whole or not read, and writing off the critical path."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """A file to write to, which takes the place of `path` when it is whole."""
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "w", encoding="utf-8") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_atomically(path: Path, text: str) -> None:
    """Replace a file by a whole new one, or leave it as it is."""
    with replacing(path) as file:
        file.write(text)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, have reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Whole lines only: a torn last line was never finished. A missing file has none."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


class Writer:
    """Does what it is given in a thread of its own, in order: disks are slow, and nobody should wait for them.

    What fails there is raised here, at the next `do` or `flush`; after a failure nothing more is done.
    """

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._failure: BaseException | None = None

    def do(self, act: Callable[..., None], *arguments: Any) -> None:
        """Queue a piece of work."""
        self.check()
        self._thread.submit(self._run, act, *arguments)

    def flush(self) -> None:
        """Wait until all is done."""
        self._thread.submit(lambda: None).result()
        self.check()

    def check(self) -> None:
        """Raise what has failed."""
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """End the thread, with what is queued done; idempotent, and silent about failures."""
        self._thread.shutdown()

    def _run(self, act: Callable[..., None], *arguments: Any) -> None:
        if self._failure is None:
            try:
                act(*arguments)
            except BaseException as error:
                self._failure = error


def complete_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Read the objects of a JSONL file up to the first torn line. Returns them and their size in bytes."""
    lines, size = [], 0
    with open(path, "rb") as file:
        for line in file:
            try:
                item = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n"):
                break
            lines.append(item)
            size += len(line)
    return lines, size


def append_lines(path: Path, *lines: dict[str, Any]) -> None:
    """Append lines in one write, so that a kill tears at most the last of them."""
    with open(path, "ab", buffering=0) as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines).encode())


def cut_torn_line(path: Path) -> list[dict[str, Any]]:
    """Cut a JSONL file after its last complete line, so that it can be appended to. Returns its lines."""
    if not path.exists():
        return []
    lines, size = complete_lines(path)
    os.truncate(path, size)
    return lines

"""Write files atomically, read and append lines of JSONL files, and write in a background thread."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """Open a temporary file for writing. It replaces `path` if the block ends without an error."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Replace the content of a file, or leave it unchanged if writing fails."""
    with replacing(path) as file:
        file.write(text)


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read the objects of a JSONL file. An incomplete last line is ignored. A missing file gives an empty list."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


class Writer:
    """Run queued calls in order in a background thread, so that training does not wait for a disk.

    The first exception in the thread is raised at every later `do`, `flush` or `check`. After it, queued calls are
    skipped.
    """

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._failure: BaseException | None = None

    def do(self, function: Callable[..., None], *arguments: Any) -> None:
        """Queue a call."""
        self.check()
        self._thread.submit(self._run, function, *arguments)

    def flush(self) -> None:
        """Wait until all queued calls are done."""
        self._thread.submit(lambda: None).result()
        self.check()

    def check(self) -> None:
        """Raise the exception of the thread, if there is one."""
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Finish the queued calls and end the thread. Does not raise the thread's exception; may be called
        again."""
        self._thread.shutdown()

    def _run(self, function: Callable[..., None], *arguments: Any) -> None:
        if self._failure is None:
            try:
                function(*arguments)
            except BaseException as error:
                self._failure = error


def complete_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Read the objects of a JSONL file up to the first incomplete line. Returns them, and their size in bytes."""
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
    """Append lines to a JSONL file in one write. A kill then leaves at most one incomplete line, the last."""
    with open(path, "ab", buffering=0) as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines).encode())


def cut_torn_line(path: Path) -> list[dict[str, Any]]:
    """Truncate a JSONL file after its last complete line, so that lines can be appended. Returns its objects."""
    if not path.exists():
        return []
    lines, size = complete_lines(path)
    os.truncate(path, size)
    return lines

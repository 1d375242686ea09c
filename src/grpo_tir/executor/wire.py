"""What clients of the runner share: its files, its frames, and what a pool asks of a place where it runs.

A frame is a JSON object behind its length in four bytes, big-endian (sandbox/protocol.md).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any, Protocol

from grpo_tir.utils.resources import sandbox_dir

Frame = dict[str, Any]
FRAME = 32 << 20
"""Bytes of a frame at most; the runner ends when it is sent a larger one (sandbox/runner.py)."""


class Place(Protocol):
    """Somewhere a runner can be started: an engine, or this machine."""

    name: str
    slots: int

    def start(self) -> Connection:
        """A fresh runner, whatever became of the last one. Raises OSError or ExecutorUnavailable."""

    def alive(self) -> bool:
        """Does the place itself answer? If not, a runner lost there was not the fault of a program."""

    def facts(self) -> dict[str, Any]:
        """For the run's metadata."""

    def close(self) -> None:
        """Leave nothing behind."""


class Connection(Protocol):
    """A running runner: bytes in, bytes out."""

    said: bytes
    """The end of its stderr, where we get to see it."""

    def read(self) -> bytes:
        """What it has said; empty: it is gone."""

    def write(self, data: bytes) -> None:
        """May block, and raises OSError when it is gone."""

    def kill(self) -> None:
        """End it now, from any thread; idempotent. A blocked `read` returns."""


def pack(frame: Frame) -> bytes:
    """Pure ASCII, so that lone surrogates in a program survive."""
    body = json.dumps(frame).encode()
    return len(body).to_bytes(4, "big") + body


def frames(read: Callable[[], bytes]) -> Any:
    """Frames as they come, until the other side is gone."""
    buffer = bytearray()
    while data := read():
        buffer += data
        while len(buffer) >= 4 and len(buffer) >= (end := 4 + int.from_bytes(buffer[:4], "big")):
            yield json.loads(buffer[4:end])
            del buffer[:end]


RUNNER_FILES = ("runner.py", "zygote.py", "child.py", "kernel.py", "usage.py")


def runner_version() -> str:
    """A hash of the runner's files: an image made from other files is refused."""
    digest = hashlib.sha256()
    for name in RUNNER_FILES:
        digest.update((sandbox_dir() / name).read_bytes())
    return digest.hexdigest()[:16]

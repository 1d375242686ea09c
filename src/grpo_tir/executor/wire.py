"""Define what all clients of the runner share: frames, connections and hosts.

A frame is a JSON object after its length in four bytes, big-endian (sandbox/protocol.md).
"""

import json
from collections.abc import Callable
from typing import Any, Protocol

Frame = dict[str, Any]
FRAME = 32 << 20
"""Largest frame in bytes. The runner ends if it gets a larger one (sandbox/runner.py)."""


class Connection(Protocol):
    """Exchange bytes with a runner."""

    stderr_tail: bytes
    """Last bytes of its stderr, where they can be read."""

    def read(self) -> bytes:
        """Read bytes from its stdout; empty when it has ended."""

    def write(self, data: bytes) -> None:
        """Write bytes to its stdin. May block. Raises OSError when it has ended."""

    def kill(self) -> None:
        """End it now. May be called from any thread, and again. A blocked `read` returns."""


class Host(Protocol):
    """Start runners on a Docker engine, or on this machine."""

    name: str
    slots: int

    def start(self) -> Connection:
        """Start a new runner. Raises OSError or ExecutorUnavailable."""

    def alive(self) -> bool:
        """Return True if the host answers. If not, no program is blamed for a runner lost there."""

    def facts(self) -> dict[str, Any]:
        """Return facts for the run's metadata."""

    def close(self) -> None:
        """Free all resources of the host."""


def pack(frame: Frame) -> bytes:
    """Encode a frame as ASCII, so that lone surrogates in a program survive."""
    body = json.dumps(frame).encode()
    return len(body).to_bytes(4, "big") + body


def frames(read: Callable[[], bytes]) -> Any:
    """Yield frames until the other side has ended."""
    buffer = bytearray()
    while data := read():
        buffer += data
        while len(buffer) >= 4 and len(buffer) >= (end := 4 + int.from_bytes(buffer[:4], "big")):
            yield json.loads(buffer[4:end])
            del buffer[:end]

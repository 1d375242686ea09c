"""`grpo-tir watch RUN [RUN…]`: the report of a running job, live, on this machine only.

    RUN/*  ──(grown?)──► report.build_chunks ──► GET /data    asked every two seconds; 304 while nothing is new
                                           └───► GET /        the page itself

The server listens on 127.0.0.1 and answers only to that name, so that no page of another site can have a browser
read a run for it (DNS rebinding). From elsewhere: `ssh -L 8008:127.0.0.1:8008 machine`.
"""

from __future__ import annotations

import contextlib
import hashlib
import html
import json
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from grpo_tir.errors import UserError
from grpo_tir.report.page import build_chunks, frame
from grpo_tir.report.read import read_runs

REST = 4.0
"""Times what the last build took that pass before the next, so that a large run keeps its machine to itself."""
HERE = {"127.0.0.1", "localhost"}
WAITING = """<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="2">
<title>{title}</title><p>Waiting for the first step. {reason}</p>"""


class Watched:
    """Runs, and their page as of when they last grew."""

    def __init__(self, runs: list[Path]) -> None:
        self.runs = runs
        self.title = " · ".join(path.resolve().name for path in runs)
        self.version, self.chunks, self.reason = "", dict[str, str](), ""
        self._lock = threading.Lock()
        self._not_before = 0.0

    def refresh(self) -> None:
        """Build again if a file has grown and the last build is long enough ago."""
        with self._lock:
            if time.monotonic() < self._not_before or (version := self._signature()) == self.version:
                return
            began = time.monotonic()
            try:
                self.chunks, self.reason = build_chunks(read_runs(self.runs)), ""
                self.version = version
            except UserError as error:  # nothing yet, or a file that is being replaced this moment
                self.reason = str(error)
            self._not_before = time.monotonic() + REST * (time.monotonic() - began)

    def page(self) -> str:
        """The whole page; before the first step one that waits."""
        if not self.chunks:
            return WAITING.format(title=html.escape(self.title), reason=html.escape(self.reason))
        return frame(self.title, self.chunks, live=self.version)

    def _signature(self) -> str:
        """Name, size and time of every file that the report reads."""
        files = [
            file
            for path in self.runs
            for file in (*path.glob("*.json*"), path / "config.yaml", *path.glob("rollouts/step_*.jsonl"))
            if file.is_file()
        ]
        facts = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(files)]
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def make_server(runs: list[Path], port: int) -> ThreadingHTTPServer:
    """Bound, not yet serving. Port 0 takes any free one."""
    watched = Watched(runs)

    class Handler(BaseHTTPRequestHandler):
        """Two resources, read-only."""

        def do_GET(self) -> None:
            """The page, or its data if they are newer than the version that was named."""
            name = self.headers.get("Host", "").rpartition(":")
            if (name[0] or name[2]) not in HERE:
                return self._answer("this page is for its own machine only", HTTPStatus.FORBIDDEN)
            if self.path not in ("/", "/data"):
                return self._answer("there is nothing here", HTTPStatus.NOT_FOUND)
            watched.refresh()
            if self.path == "/":
                return self._answer(watched.page(), kind="text/html")
            if self.headers.get("If-None-Match") == watched.version:
                return self._answer("", HTTPStatus.NOT_MODIFIED)
            data = {"version": watched.version, "chunks": watched.chunks}
            return self._answer(json.dumps(data), kind="application/json")

        def _answer(self, text: str, status: HTTPStatus = HTTPStatus.OK, kind: str = "text/plain") -> None:
            body = text.encode("utf-8")
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Cross-Origin-Resource-Policy", "same-origin")
            self.end_headers()
            self.wfile.write(body)

        def handle(self) -> None:
            """A reader who goes away in the middle is no news."""
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                super().handle()

        def log_message(self, *_: object) -> None:
            """The console belongs to the run."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

    return Server(("127.0.0.1", port), Handler)

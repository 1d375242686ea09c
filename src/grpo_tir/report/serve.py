"""Serve the report of a running job on this machine: `grpo-tir watch RUN [RUN…]`.

    RUN/*  ──(new?)──► page.build_chunks ──► GET /data    requested every two seconds; 304 if nothing is new
                                         └─► GET /        the page

The server listens on 127.0.0.1 and rejects requests for other host names, so that another website cannot read a
run through the browser (DNS rebinding). From another machine: `ssh -L 8008:127.0.0.1:8008 machine`.
"""

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
from grpo_tir.report.read import read_runs, runs_beneath

REST = 4.0
"""Pause between two builds as a multiple of the last build's time, so that a large report uses little CPU time."""
HERE = {"127.0.0.1", "localhost"}
WAITING = """<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="2">
<title>{title}</title><p>Waiting for the first step. {reason}</p>"""


class Watched:
    """Runs and the packed data of their latest report."""

    def __init__(self, runs: list[Path]) -> None:
        self.runs = runs
        self.title = " · ".join(path.resolve().name for path in runs)
        self.version, self.chunks, self.reason = "", dict[str, str](), ""
        self._lock = threading.Lock()
        self._not_before = 0.0

    def refresh(self) -> None:
        """Build the data again if a file has changed and the pause after the last build is over."""
        with self._lock:
            if time.monotonic() < self._not_before or (version := self._signature()) == self.version:
                return
            began = time.monotonic()
            try:
                self.chunks, self.reason = build_chunks(read_runs(self.runs)), ""
                self.version = version
            except UserError as error:  # no data yet, or a file is just being replaced
                self.reason = str(error)
            self._not_before = time.monotonic() + REST * (time.monotonic() - began)

    def page(self) -> str:
        """Return the page; before the first step a page that reloads itself."""
        if not self.chunks:
            return WAITING.format(title=html.escape(self.title), reason=html.escape(self.reason))
        return frame(self.title, self.chunks, live=self.version)

    def _signature(self) -> str:
        """Hash name, size and time of every file that the report reads."""
        files = [
            file
            for folder in self.runs
            for path in runs_beneath(folder)
            for file in (*path.glob("*.json*"), path / "config.yaml", *path.glob("rollouts/step_*.jsonl"))
            if file.is_file()
        ]
        facts = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(files)]
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def make_server(runs: list[Path], port: int) -> ThreadingHTTPServer:
    """Return a server that is bound to `port` and not yet serving. Port 0: any free port."""
    watched = Watched(runs)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            """Send the page, or its data if they are newer than the version in If-None-Match."""
            name = self.headers.get("Host", "").rpartition(":")
            if (name[0] or name[2]) not in HERE:
                return self._answer("only requests to 127.0.0.1 or localhost are answered", HTTPStatus.FORBIDDEN)
            if self.path not in ("/", "/data"):
                return self._answer("not found: only / and /data exist", HTTPStatus.NOT_FOUND)
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
            """Ignore a browser that closes the connection early."""
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                super().handle()

        def log_message(self, *_: object) -> None:
            """Log nothing: the console shows the output of the run."""

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)

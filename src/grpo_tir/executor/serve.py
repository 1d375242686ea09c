"""Serve the executor over HTTP: `grpo-tir sandbox serve`. The protocol is SandboxFusion's `run_code`.

    POST /run_code {"code", "language", "run_timeout", "stdin", "files", "fetch_files", "session", "echo"}
        ──► files and stdin: a silent first block ──► executor ──► {"status", "message", "run_result", "files"}

Files come and go as base64. Beyond loopback a token is needed. On loopback, requests for other hosts and bodies
that are not declared as JSON are rejected, so that a website cannot run code through the browser.
"""

import hmac
import json
import threading
from collections import OrderedDict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from grpo_tir.errors import ConfigError, DataError, GrpoTirError
from grpo_tir.executor.pool import Pool
from grpo_tir.types import ToolCall, ToolResult

HERE = {"127.0.0.1", "localhost"}
LARGEST = 16 << 20
"""Largest body of a request in bytes."""
SESSIONS = 4096
"""Number of sessions that are kept. Beyond it, the one that was unused for longest is forgotten."""
FIELDS = {"code": str, "language": str, "stdin": str | None, "files": dict, "fetch_files": list, "echo": bool,
          "session": str | None, "run_timeout": float | int}  # fmt: skip
PREPARE = """
def prepare():
    import base64, io, os, sys
    for name, data in {files!r}.items():
        os.makedirs(os.path.dirname(name) or '.', exist_ok=True)
        with open(name, 'wb') as file:
            file.write(base64.b64decode(data))
    sys.stdin = io.StringIO({stdin!r})
prepare()
del prepare
"""
FETCH = "import base64\nprint(base64.b64encode(open({name!r}, 'rb').read()).decode())"
ENDS = {"ok": "Finished", "error": "Finished", "timeout": "TimeLimitExceeded"}
"""SandboxFusion's words for how a program ended. Every other status is `Error`."""


class Service:
    """Answer requests, and keep the calls of each session."""

    def __init__(self, executor: Pool) -> None:
        self.executor, self.lock = executor, threading.Lock()
        self.sessions: OrderedDict[str, tuple[threading.Lock, list[ToolCall]]] = OrderedDict()

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run the program of a request. Raises DataError for a request that cannot be understood."""
        # 1. Check the request.
        for name, kind in FIELDS.items():
            if name in request and not isinstance(request[name], kind):
                raise DataError(f"`{name}` has the wrong type")
        if "code" not in request or request.get("language", "python") != "python":
            raise DataError("want `code`, in the `language` python")
        limit = self.executor.config.timeout
        if not (timeout := min(request.get("run_timeout", limit), limit)) > 0:
            raise DataError("`run_timeout` must be above 0")
        # 2. Run it after the earlier calls of its session, one call of a session at a time.
        lock, calls = self.open_session(request.get("session"))
        with lock:
            earlier = list(calls)
            if request.get("files") or request.get("stdin") is not None:
                block = PREPARE.format(files=request.get("files", {}), stdin=request.get("stdin") or "")
                earlier.append(ToolCall(block, ToolResult("ok", seconds=0.01)))
            settings: dict[str, Any] = {"timeout": timeout, "echo": request.get("echo", False)}
            named = request.get("session") is not None
            result = self.executor.run(request["code"], earlier=earlier if earlier or named else None, **settings)
            earlier.append(ToolCall(request["code"], result))
            calls[:] = earlier
        # 3. Read the files that it wrote: the calls run again, so they exist again.
        found = {}
        for name in request.get("fetch_files", []) if result.status == "ok" else []:
            file = self.executor.run(FETCH.format(name=str(name)), earlier=earlier)
            if file.truncated:
                raise DataError(f"the file {name} is larger than 48 KB")
            if file.status == "ok":
                found[name] = file.stdout.strip()
        return to_answer(result, found)

    def open_session(self, name: str | None) -> tuple[threading.Lock, list[ToolCall]]:
        """Return lock and calls of a session; new ones for a request without a session."""
        if name is None:
            return threading.Lock(), []
        with self.lock:
            session = self.sessions.setdefault(name, (threading.Lock(), []))
            self.sessions.move_to_end(name)
            while len(self.sessions) > SESSIONS:
                self.sessions.popitem(last=False)
            return session


def to_answer(result: ToolResult, files: dict[str, str]) -> dict[str, Any]:
    """Put a result into the words of SandboxFusion."""
    lost = result.status == "infrastructure"
    status = "SandboxError" if lost else "Success" if result.status == "ok" else "Failed"
    run = {"status": ENDS.get(result.status, "Error"), "execution_time": result.seconds,
           "return_code": result.exit_code, "stdout": result.stdout, "stderr": result.stderr}  # fmt: skip
    message = "" if result.status in ("ok", "error") else result.stderr if lost else result.status
    return {"status": status, "message": message, "compile_result": None, "run_result": None if lost else run,
            "executor_pod_name": None, "files": files}  # fmt: skip


def make_server(executor: Pool, address: str, port: int, token: str = "") -> ThreadingHTTPServer:
    """Return a server that is bound to `port` and not yet serving. Port 0: any free port.

    Raises:
        ConfigError: no token for an address beyond loopback.
    """
    if address not in HERE and not token:
        raise ConfigError(f"sandbox serve on {address} needs --token-file: others could run programs there")
    service = Service(executor)

    class Handler(BaseHTTPRequestHandler):
        """Handle POST /run_code."""

        def do_POST(self) -> None:
            given = self.headers.get("Authorization", "").removeprefix("Bearer ")
            host = self.headers.get("Host", "").partition(":")[0]
            size = self.headers.get("Content-Length", "")
            if token and not hmac.compare_digest(given.encode(), token.encode()):
                return self.send(401, {"message": "wrong or missing token"})
            if not token and host not in HERE:
                return self.send(403, {"message": "only requests to 127.0.0.1 or localhost are answered"})
            if self.path != "/run_code":
                return self.send(404, {"message": "only POST /run_code exists"})
            if self.headers.get_content_type() != "application/json":
                return self.send(415, {"message": "want Content-Type: application/json"})
            if not size.isdecimal() or int(size) > LARGEST:
                return self.send(413, {"message": f"want a Content-Length of at most {LARGEST}"})
            try:
                request = json.loads(self.rfile.read(int(size)))
                if not isinstance(request, dict):
                    raise DataError("want a JSON object")
                return self.send(200, service.answer(request))
            except (ValueError, DataError) as error:
                return self.send(400, {"message": str(error)})
            except GrpoTirError as error:
                return self.send(503, {"message": str(error)})

        def send(self, status: int, answer: dict[str, Any]) -> None:
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Print nothing: a line per program would drown everything else."""

    return ThreadingHTTPServer((address, port), Handler)

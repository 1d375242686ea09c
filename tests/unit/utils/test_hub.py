"""Without a network a mistyped model costs a second, not a minute of retries; with one, nothing is changed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from grpo_tir.utils import hub


def train(endpoint: str, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """`grpo-tir train` with a model that no cache holds."""
    data = folder / "problems.jsonl"
    data.write_text('{"problem": "1+1?", "answer": "2"}\n')
    hidden = ("HF_HUB_OFFLINE", "HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "https_proxy", "http_proxy", "all_proxy")
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    arguments = ["train", "torl_1.5b", "--executor.kind", "process", "--data.train", str(data)]
    arguments += ["--model.path", "Some/Body", *more]
    return subprocess.run(
        [sys.executable, "-m", "grpo_tir", *arguments, "--train.output_dir", str(folder / "run")],
        env={**env, "HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def asked() -> Iterator[tuple[str, list[str]]]:
    """A Hub that has nothing, and what it was asked for."""
    paths: list[str] = []

    class Empty(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            paths.append(self.path)
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()

        do_GET = do_HEAD

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Empty)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", paths
    server.shutdown()
    server.server_close()


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_without_a_hub_a_model_is_refused_in_two_lines_and_no_retry(tmp_path: Path) -> None:
    done = train(f"http://127.0.0.1:{closed_port()}", tmp_path)
    assert done.returncode == 2, done.stderr
    assert "does not answer at http://127.0.0.1" in done.stderr and "Connection refused" in done.stderr
    assert "cannot load the model Some/Body" in done.stderr
    assert "Retry" not in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 2


def test_a_hub_that_answers_is_asked(asked: tuple[str, list[str]], tmp_path: Path) -> None:
    endpoint, paths = asked
    done = train(endpoint, tmp_path)
    assert done.returncode == 2 and "cannot load the model Some/Body" in done.stderr, done.stderr
    assert any("Some/Body" in path for path in paths) and "does not answer" not in done.stderr


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "https_proxy", "ALL_PROXY"])
def test_who_is_offline_already_or_behind_a_proxy_is_not_tested(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy may know a host that this machine cannot resolve."""
    for known in ("HF_HUB_OFFLINE", "https_proxy", "ALL_PROXY"):
        monkeypatch.delenv(known, raising=False)
    monkeypatch.setenv(name, "1")
    monkeypatch.setattr(hub, "_fault", lambda _: pytest.fail("asked"))
    hub.go_offline_if_unreachable.__wrapped__()


def test_an_endpoint_that_is_none_says_so() -> None:
    assert hub._fault("http://127.0.0.1:port") and hub._fault("nonsense")

"""The executor over HTTP, asked by a plain client in SandboxFusion's words."""

from __future__ import annotations

import base64
import http.client
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from grpo_tir.errors import ConfigError
from grpo_tir.executor.pool import Pool
from grpo_tir.executor.serve import make_server

JSON = {"Content-Type": "application/json"}
Ask = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def serving(process_executor: Pool) -> Iterator[Callable[..., Ask]]:
    """Start a server; returns a function that asks it."""
    servers = []

    def start(token: str = "") -> Ask:
        server = make_server(process_executor, "127.0.0.1", 0, token)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def ask(path: str = "/run_code", headers: dict[str, str] = JSON, body: str | None = None, **fields: Any):  # type: ignore[no-untyped-def]
            connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
            connection.request("POST", path, body if body is not None else json.dumps(fields), headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

        return ask

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_an_answer_has_the_shape_of_sandbox_fusion(serving: Callable[..., Ask]) -> None:
    """The fields and words of its `RunCodeResponse`."""
    status, answer = serving()(code="print(6 * 7)", language="python")
    took = answer["run_result"].pop("execution_time")
    assert status == 200 and 0 < took < 10
    assert answer == {
        "status": "Success", "message": "", "compile_result": None, "executor_pod_name": None, "files": {},
        "run_result": {"status": "Finished", "return_code": 0, "stdout": "42\n", "stderr": ""},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("code", "end", "return_code"),
    [("import sys; sys.exit(3)", "Finished", 3), ("while True: pass", "TimeLimitExceeded", None),
     ("print('x' * 2_000_000)", "Error", None)],
)  # fmt: skip
def test_a_program_that_fails_says_how(
    serving: Callable[..., Ask], code: str, end: str, return_code: int | None
) -> None:
    _, answer = serving()(code=code, run_timeout=1)
    assert (answer["status"], answer["run_result"]["status"]) == ("Failed", end)
    assert answer["run_result"]["return_code"] == return_code


def test_stdin_and_files_go_in_and_files_come_out(serving: Callable[..., Ask]) -> None:
    code = "data = open('in/a.txt').read()\nopen('out.bin', 'wb').write(bytes([0, 255]))\nprint(input() + data)"
    given = {"in/a.txt": base64.b64encode(b"file").decode()}
    _, answer = serving()(code=code, stdin="line {x}\n", files=given, fetch_files=["out.bin", "missing"])
    assert answer["run_result"]["stdout"] == "line {x}file\n"
    assert {name: base64.b64decode(data) for name, data in answer["files"].items()} == {"out.bin": b"\x00\xff"}
    _, answer = serving()(code="print(sorted(n for n in dir() if n[0] != '_'))", stdin="")
    assert answer["run_result"]["stdout"] == "[]\n", "nothing of ours is in its names"


def test_requests_of_one_session_share_their_names_and_their_files(serving: Callable[..., Ask]) -> None:
    ask = serving()
    ask(code="x = input()", session="a", stdin="first")
    ask(code="x += input()", session="a", stdin=" second", files={"f": base64.b64encode(b"f").decode()})
    _, answer = ask(code="x + open('f').read()", session="a", echo=True)
    assert answer["run_result"]["stdout"] == "'first secondf'\n"
    for other in ({"session": "b"}, {}):
        assert "NameError" in ask(code="x", **other)[1]["run_result"]["stderr"]


@pytest.mark.parametrize(
    ("request_", "status", "words"),
    [
        ({"body": "{"}, 400, "Expecting"),
        ({"body": "[]"}, 400, "JSON object"),
        ({}, 400, "want `code`"),
        ({"code": "1", "language": "cpp"}, 400, "language"),
        ({"code": 1}, 400, "`code` has the wrong type"),
        ({"code": "1", "run_timeout": 0}, 400, "above 0"),
        ({"code": "1", "path": "/"}, 404, "/run_code"),
        ({"code": "1", "headers": {"Content-Type": "text/plain"}}, 415, "application/json"),
        ({"code": "1", "headers": JSON | {"Host": "evil.example"}}, 403, "localhost"),
        ({"body": "", "headers": JSON | {"Content-Length": "99999999999"}}, 413, "Content-Length"),
    ],
)
def test_a_request_that_cannot_be_served_gets_one_line(
    serving: Callable[..., Ask], request_: dict[str, Any], status: int, words: str
) -> None:
    got, answer = serving()(**request_)
    assert got == status and words in answer["message"]


def test_a_token_is_asked_for_and_needed_beyond_loopback(
    serving: Callable[..., Ask], process_executor: Pool
) -> None:
    ask = serving("s3cret")
    assert ask(code="1")[0] == 401
    assert ask(code="1", headers=JSON | {"Authorization": "Bearer wrong"})[0] == 401
    assert ask(code="1", headers=JSON | {"Authorization": "Bearer s3cret", "Host": "far.example"})[0] == 200
    with pytest.raises(ConfigError, match=r"0\.0\.0\.0 needs --token-file"):
        make_server(process_executor, "0.0.0.0", 0)

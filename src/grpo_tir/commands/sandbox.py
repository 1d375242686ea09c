"""`grpo-tir sandbox build | status | run | serve`: build, check and use the executor."""

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from grpo_tir.config import ExecutorConfig
from grpo_tir.data.rows import Numeral, read_rows
from grpo_tir.errors import DataError, GrpoTirError
from grpo_tir.types import ToolCall, ToolResult

if TYPE_CHECKING:
    from grpo_tir.executor.pool import Pool

Program = tuple[object, str, str | None]
"""Id, code and session."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="sandbox_command", required=True)
    build = commands.add_parser("build", help="build the container image")
    build.add_argument("--base", default="python:3.12-slim", help="an image with Python 3.11+ (%(default)s)")
    build.add_argument("--tag", default="grpo-tir-sandbox", help="name of the result (default: %(default)s)")
    build.add_argument("--host", help="URL of the Docker engine; default: the local one")
    build.add_argument("--packages", type=Path, help="requirements of programs (default: sandbox/packages.txt)")
    status = commands.add_parser("status", help="say which executors can be used here")
    program = commands.add_parser("run", help="run one program, or a file of them")
    program.add_argument("file", nargs="?", help="a Python file; - is stdin")
    lines = 'lines {"id", "code"} to lines of results; lines of one "session" share their variables'
    program.add_argument("--jsonl", nargs=2, metavar=("IN", "OUT"), help=lines)
    program.add_argument("--echo", action="store_true", help="print the value of a last expression")
    program.add_argument("--concurrency", type=int, default=64, help="programs in flight with --jsonl")
    server = commands.add_parser("serve", help="answer SandboxFusion's run_code over HTTP")
    server.add_argument("--address", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    server.add_argument("--port", type=int, default=8080, help="port to listen on (default: %(default)s)")
    server.add_argument("--token-file", help="file with the token that clients must send; needed beyond loopback")
    for command in (status, program, server):
        command.add_argument("--host", action="append", default=[], help="a Docker engine; may be repeated")
    for command in (program, server):
        command.add_argument("--executor", choices=["docker", "process", "auto"], default="docker")
        command.add_argument("--slots", type=int, default=0, help="programs at a time; 0: twice the cores")
        command.add_argument("--timeout", type=float, default=10.0, help="CPU seconds of one program")
        command.add_argument("--memory-mb", type=int, default=512, help="memory of one program")


def run(args: argparse.Namespace) -> int:
    actions = {"build": build, "status": status, "run": run_programs, "serve": serve}
    return actions[args.sandbox_command](args)


def build(args: argparse.Namespace) -> int:
    from grpo_tir.executor.image import build_image

    build_image(args.base, args.tag, args.host, args.packages)
    return 0


def to_config(args: argparse.Namespace) -> ExecutorConfig:
    return ExecutorConfig(
        kind=args.executor, hosts=args.host, slots=args.slots, timeout=args.timeout, memory_mb=args.memory_mb
    )


def status(args: argparse.Namespace) -> int:
    """Print one line for each executor. Returns 0 if docker, the default of the recipes, can be used."""
    from grpo_tir.executor.open import open_executor

    usable = True
    for kind in ("docker", "process"):
        try:
            config = ExecutorConfig(kind=kind, hosts=args.host if kind == "docker" else [])
            with open_executor(config) as executor:
                answer = executor.run("print(6 * 7)")
                print(f"{kind}: {answer.status}, {answer.seconds * 1e3:.1f} ms")
        except GrpoTirError as error:
            usable = usable and kind != "docker"
            print(f"{kind}: not usable: {error}")
    return 0 if usable else 1


def serve(args: argparse.Namespace) -> int:
    """Serve until the process is interrupted."""
    from grpo_tir.executor.open import open_executor
    from grpo_tir.executor.serve import make_server

    token = read_code(args.token_file).strip() if args.token_file else ""
    with (
        open_executor(to_config(args)) as executor,
        make_server(executor, args.address, args.port, token) as server,
    ):
        print(f"POST http://{args.address}:{server.server_port}/run_code", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
    return 0


def run_programs(args: argparse.Namespace) -> int:
    """Run one program and return its exit code, or run many from a file and return 0."""
    from grpo_tir.executor.open import open_executor

    log = lambda line: print(line, file=sys.stderr)  # noqa: E731
    if bool(args.file) == bool(args.jsonl):
        raise DataError("sandbox run needs a FILE.py, or --jsonl IN OUT")
    programs = list(read_programs(Path(args.jsonl[0]))) if args.jsonl else []
    code = "" if args.jsonl else read_code(args.file)
    with open_executor(to_config(args), log=log) as executor:
        if args.jsonl:
            run_many(executor, programs, Path(args.jsonl[1]), args.concurrency, args.echo)
            return 0
        result = executor.run(code, echo=args.echo)
    sys.stdout.write(result.stdout)
    sys.stderr.write(result.stderr)
    if result.truncated:
        log("the middle of the output is missing: of each stream the first and the last 32 KB are kept")
    if result.status not in ("ok", "error"):
        log(f"{result.status} after {result.seconds:.2f} s")
    return result.exit_code if result.exit_code is not None else 1


def read_code(name: str) -> str:
    try:
        return sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {name}: {error}") from None


def read_programs(path: Path) -> Iterator[Program]:
    """Read id, code and session of each program from a JSONL file. Raises DataError with file and line."""
    for where, row in read_rows(str(path)):
        if isinstance(row, ValueError):
            raise DataError(f"{path} {where}: {row}")
        if not isinstance(row, dict) or "id" not in row or not isinstance(row.get("code"), str):
            raise DataError(f'{path} {where}: want {{"id": …, "code": "…"}}')
        if not isinstance(session := row.get("session"), str | None):
            raise DataError(f"{path} {where}: `session` must be a string or a number")
        yield json.loads(row["id"]) if isinstance(row["id"], Numeral) else row["id"], row["code"], session


def run_many(executor: "Pool", programs: Sequence[Program], out: Path, concurrency: int, echo: bool) -> None:
    """Run many programs and write the results in the order of the input. A session's programs run in order."""
    sessions: dict[object, list[int]] = {}  # a program without a session is alone in its own
    for number, (_, _, session) in enumerate(programs):
        sessions.setdefault(number if session is None else session, []).append(number)
    results: dict[int, ToolResult] = {}

    def run_session(numbers: list[int]) -> None:
        calls: list[ToolCall] = []
        for number in numbers:
            _, code, session = programs[number]
            results[number] = executor.run(code, earlier=None if session is None else calls, echo=echo)
            calls.append(ToolCall(code, results[number]))

    with ThreadPoolExecutor(max(concurrency, 1)) as threads, out.open("w", encoding="utf-8") as file:
        running = {key: threads.submit(run_session, numbers) for key, numbers in sessions.items()}
        try:
            for number, (identity, _, session) in enumerate(programs):
                running[number if session is None else session].result()
                file.write(line_of(identity, results.pop(number)))
        except BaseException:  # Ctrl-C and an outage do not wait for the programs that have not begun
            threads.shutdown(wait=False, cancel_futures=True)
            raise


def line_of(identity: object, result: ToolResult) -> str:
    fields = asdict(result)
    del fields["tool"]  # all ran in this one
    return json.dumps({"id": identity, **fields}) + "\n"

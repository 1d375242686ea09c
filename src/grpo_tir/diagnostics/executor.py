"""Check that the executor starts, returns correct results, isolates programs and is fast enough.

Isolation is checked by four attacks. An attack is a program that prints BREACH if it succeeds. They are a short
form of tests/sandbox: they show that isolation is active on this machine, not that it has no hole.
"""

import os
import re
import secrets
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from grpo_tir.config import Config
from grpo_tir.diagnostics.finding import Finding, fault, fine, warning
from grpo_tir.types import ToolResult

ENOUGH_SECONDS = 120.0
"""Maximum time for all calls of a step: half of the paper's step time at c = 1 (237 s)."""
TYPICAL = "import numpy as np\nprint(np.linalg.det(np.arange(9).reshape(3, 3) + np.eye(3)))"
"""Program whose calls per second are measured."""
CANARY = "GRPO_TIR_DOCTOR"
"""Environment variable of this process that no program may read."""

REACHES_OUT = """
import socket
for address in {addresses}:
    try:
        socket.create_connection(address, timeout=1).close()
        print('BREACH: it reaches', address)
    except OSError:
        pass
"""
READS_FILES = """
for path in {paths}:
    try:
        print('BREACH: it reads', path, open(path).read())
    except OSError:
        pass
"""
READS_SECRETS = """
import os
seen = [b' '.join(os.environb)]
for pid in (1, os.getpid(), os.getppid()):
    try:
        seen.append(open(f'/proc/{{pid}}/environ', 'rb').read())
    except OSError:
        pass
if any({name!r}.encode() in part for part in seen):
    print('BREACH: it reads the environment of the trainer')
"""
TAKES_MEMORY = """
taken = bytearray({megabytes} << 20)
taken[::4096] = bytes(len(taken[::4096])).replace(bytes(1), b'x')
print('BREACH: it holds {megabytes} MB')
"""


def check_executor(config: Config) -> Iterator[Finding]:
    """Open the recipe's tool as `train` does and check its executor. A tool without `executor` is only opened."""
    from grpo_tir.tools.open import open_tool

    lines: list[str] = []
    with ExitStack() as stack:
        os.environ[CANARY] = secrets.token_hex(8)
        stack.callback(os.environ.pop, CANARY, None)
        tool = open_tool(config, lines.append)
        assert tool is not None, "called only if the recipe allows calls"
        stack.callback(tool.close)
        executor = getattr(tool, "executor", None)
        if executor is None:
            yield fine("executor", f"{config.tool.name} opens")
            return
        yield fine("executor", " ".join(lines) or f"{executor.describe().get('kind')} opens")
        results = list(check_results(executor))
        yield from results
        if any(finding.level == "fault" for finding in results):
            return  # attacks prove nothing if results are wrong
        yield from check_isolation(executor, config)
        yield from check_speed(executor, config)


def check_results(executor: Any) -> Iterator[Finding]:
    """Check that status and output of three programs are returned correctly."""
    cases: list[tuple[str, str, str, str, float | None]] = [
        ("a program that prints", "print(6 * 7)", "ok", "42\n", None),
        ("a program that fails", "1 / 0", "error", "", None),
        ("an endless loop", "while True: pass", "timeout", "", 1.0),
    ]
    wrong = 0
    for what, code, status, stdout, timeout in cases:
        result: ToolResult = executor.submit(code, timeout=timeout).result()
        if (result.status, result.stdout) != (status, stdout):
            wrong += 1
            yield fault(
                "executor",
                f"{what} came back `{result.status}` with {result.stdout[:60]!r}, not `{status}` with {stdout!r}"
                f"{': ' + result.stderr.strip()[-120:] if result.stderr.strip() else ''}. With executor.kind "
                "docker, build the image again: grpo-tir sandbox build",
            )
    if not wrong:
        yield fine("executor", "returns output, errors and time-outs correctly")


def check_isolation(executor: Any, config: Config) -> Iterator[Finding]:
    """Run the four attacks. A breach of the process executor is a warning, because it promises less isolation."""
    weak = executor.describe().get("kind") == "process"
    breaches = {name: breach for name, breach in attack(executor, config) if breach}
    for name, breach in breaches.items():
        text = f"not isolated, {name}: {breach}. Use executor.kind docker"
        yield warning("executor", text) if weak else fault("executor", text)
    if not breaches:
        yield fine("executor", "isolated: 4 attacks failed (network, files, secrets, memory)")


def attack(executor: Any, config: Config) -> Iterator[tuple[str, str]]:
    """Yield (name of the attack, what it reached); the second is empty if the attack failed."""
    with ExitStack() as stack:
        # The kernel completes a connection that nobody accepts.
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        here, there = (stack.enter_context(tempfile.NamedTemporaryFile("w", dir=d)) for d in (Path.cwd(), None))
        for file in (here, there):
            file.write("secret")
            file.flush()
        addresses = [("127.0.0.1", listener.getsockname()[1]), ("1.1.1.1", 53)]
        programs = {
            "network": REACHES_OUT.format(addresses=addresses),
            "files": READS_FILES.format(paths=[here.name, there.name]),
            "secrets": READS_SECRETS.format(name=CANARY),
            "memory": TAKES_MEMORY.format(megabytes=2 * config.executor.memory_mb),
        }
        for name, code in programs.items():
            breach = re.search(r"^BREACH: (.*)", executor.submit(code).result().stdout, re.MULTILINE)
            yield name, breach[1][:160] if breach else ""


def check_speed(executor: Any, config: Config) -> Iterator[Finding]:
    """Measure calls per second, and estimate the time of a step in which every response makes all its calls."""
    rollout = config.rollout
    calls = rollout.prompts_per_step * config.sampled_per_prompt * config.tool.max_tool_calls
    tried, began = min(200, 6 * executor.slots), time.perf_counter()
    results = [future.result() for future in [executor.submit(TYPICAL) for _ in range(tried)]]
    if failed := [result for result in results if result.status != "ok"]:
        yield fault("executor", f"{len(failed)} of {tried} plain programs failed: {failed[0].status}")
        return
    speed = tried / (time.perf_counter() - began)
    seconds = calls / speed
    text = f"{speed:.0f} calls/s with {executor.slots} slots: {calls} calls of a step take {seconds:.0f} s"
    if seconds > ENOUGH_SECONDS:
        yield fault("executor", f"too slow: {text}. Raise executor.slots, or add engines to executor.hosts")
    else:
        yield fine("executor", text)

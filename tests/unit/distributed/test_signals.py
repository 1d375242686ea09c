"""A first signal is a request, a second one an order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from grpo_tir.distributed.runtime import Runtime
from grpo_tir.distributed.signals import ECHO_SECONDS, StopRequest


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_first_signal_is_remembered_and_sets_the_exit_code(number: signal.Signals, code: int) -> None:
    said: list[str] = []
    with StopRequest(Runtime("fp32"), said.append) as stop:
        assert stop.exit_code == 0
        os.kill(os.getpid(), number)
        assert stop.exit_code == code
    assert said == [f"{number.name}: saving and stopping; send it again to stop at once"]


def test_handlers_of_before_are_put_back() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with StopRequest(Runtime("fp32"), print):
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


TWICE = """
import os, signal, sys, time
from types import SimpleNamespace
from grpo_tir.distributed.signals import StopRequest
one = SimpleNamespace(max=list)
with StopRequest(one, print) as stop:
    for wait in (0, float(sys.argv[1])):
        time.sleep(wait)
        os.kill(os.getpid(), signal.SIGTERM)
    print("still here")
    sys.exit(stop.exit_code)
"""


@pytest.mark.parametrize(
    "launched, wait, survives",
    [(False, 0.1, False), (True, 0.1, True), (True, ECHO_SECONDS + 0.2, False)],
    ids=["alone", "the launcher's copy", "launched, and meant"],
)
def test_second_signal_ends_at_once_unless_it_is_the_launcher_s_copy(
    launched: bool, wait: float, survives: bool
) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC")}
    if launched:
        environment["TORCHELASTIC_RUN_ID"] = "none"
    done = subprocess.run(
        [sys.executable, "-c", TWICE, str(wait)], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 143, done.stderr
    assert ("still here" in done.stdout) == survives

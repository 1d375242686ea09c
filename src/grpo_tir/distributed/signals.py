"""Handle SIGINT (Ctrl-C) and SIGTERM: the first signal asks the run to stop, the second one ends it at once."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Self

from grpo_tir.distributed.runtime import Runtime

ECHO_SECONDS = 3.0
"""Seconds within which torchrun passes on a signal. A second signal within them counts as that copy."""


class Interrupted(Exception):
    """Report a signal. `StopRequest.check` raises it on one rank; `agree` and `abandonable` on all of them."""


class StopRequest:
    """Use as a context: record the first signal, and end the process at the second one. After the first, `log`
    prints what the run is `doing`."""

    def __init__(self, runtime: Runtime, log: Callable[[str], None], doing: str = "saving and stopping") -> None:
        self.runtime, self.log, self.doing = runtime, log, doing
        self.signal: int | None = None
        self.since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self  # Python allows signal handlers in the main thread only
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise `Interrupted` if this rank got a signal. The call also counts as progress for the watchdog."""
        self.runtime.progress.beat()
        if self.signal is not None:
            raise Interrupted

    @contextmanager
    def abandonable(self) -> Iterator[None]:
        """Run a phase of all ranks together. After a signal, raise `Interrupted` on all of them at its end."""
        with suppress(Interrupted):
            yield
        self.agree()

    def agree(self) -> None:
        """Raise `Interrupted` on all ranks if one of them got a signal. All ranks must call it together."""
        if self.exit_code:
            raise Interrupted

    @property
    def exit_code(self) -> int:
        """Exit code as in a shell: 130 after SIGINT, 143 after SIGTERM, else 0. All ranks must use it together."""
        number = int(self.runtime.max([float(self.signal or 0)])[0])
        return 128 + number if number else 0

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            # Ctrl-C also reaches the launcher, which passes it on: each rank gets it twice
            if "TORCHELASTIC_RUN_ID" in os.environ and time.monotonic() - self.since < ECHO_SECONDS:
                return
            os._exit(128 + number)
        self.signal, self.since = number, time.monotonic()
        self.log(f"{signal.Signals(number).name}: {self.doing}; send it again to stop at once")

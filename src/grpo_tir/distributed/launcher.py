"""Under a launcher the last lines on the console name the process that failed first, and why.

    the culprit   writes its reason where torchrun looks for one (TORCHELASTIC_ERROR_FILE), then ends
    its peers     lose contact in the middle of a collective, within milliseconds. They wait until the launcher,
                  which sees the culprit's end, ends them: the first to exit is the one that torchrun names

A line for the user is said once: ranks other than 0 let it go first.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from pathlib import Path

from grpo_tir.errors import GrpoTirError

VERDICT = 60.0
"""Seconds that a process which lost contact waits for the launcher to end it: on another node none may come."""
TURN = 30.0
"""Seconds that the other ranks leave rank 0 to say what is wrong on all of them; its end ends their wait."""
CONTACT = ("gloo", "nccl", "closed by peer", "reset by peer", "broken pipe", "monitoredbarrier", "tcpstore")
"""What the transports write when a peer is gone; they share no type."""


def rank_and_world() -> tuple[int, int]:
    """Of this process, by the launcher's word."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def lost_contact(error: BaseException) -> bool:
    """Whether a collective failed because of another process. Errors of torch.distributed are RuntimeErrors; the
    same words in one of the network's (a download, log) mean something else."""
    several = rank_and_world()[1] > 1
    return several and isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in CONTACT)


def report_failure(error: Exception) -> None:
    """Tell the launcher what this process ends of; does nothing where there is none. May wait for its turn."""
    rank, world = rank_and_world()
    if world == 1:
        return
    if lost_contact(error):
        time.sleep(VERDICT)
    elif isinstance(error, GrpoTirError):
        time.sleep(TURN if rank else 0)
        tell_launcher(f"grpo-tir: {error}")
    else:
        tell_launcher("".join(traceback.format_exception(error)))
    print(f"grpo-tir: rank {rank} of {world} failed", file=sys.stderr, flush=True)


def tell_launcher(text: str) -> None:
    """Write torchrun's error file: its summary ends with this text."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        extra = {"py_callstack": text, "timestamp": str(int(time.time()))}
        Path(path).write_text(json.dumps({"message": {"message": text, "extraInfo": extra}}), encoding="utf-8")

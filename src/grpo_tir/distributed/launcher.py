"""Report a failure to torchrun, so that its summary names the rank that failed first, and why.

    failed rank   writes its error to torchrun's error file (TORCHELASTIC_ERROR_FILE), then ends
    other ranks   lose contact in the middle of a collective, within milliseconds; they wait until the launcher
                  ends them, because torchrun names the rank that exits first

An error that all ranks have is reported by rank 0 first, so that it is printed once.
"""

import json
import os
import sys
import time
import traceback
from pathlib import Path

from grpo_tir.errors import GrpoTirError

LAUNCHER_WAIT = 60.0
"""Seconds that a rank which lost contact waits for the launcher to end it. A launcher of another node may not."""
RANK_0_WAIT = 30.0
"""Seconds that other ranks wait for rank 0 to report an error that all ranks have."""
CONTACT = ("gloo", "nccl", "closed by peer", "reset by peer", "broken pipe", "monitoredbarrier", "tcpstore")
"""Parts of the transports' messages after a peer has ended. There is no common exception type."""


def rank_and_world() -> tuple[int, int]:
    """Return rank and number of ranks, as the launcher set them."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def lost_contact(error: BaseException) -> bool:
    """True if a collective failed because another rank ended. Errors of torch.distributed are RuntimeErrors. Other
    types with the same words have another cause, such as a failed download."""
    several = rank_and_world()[1] > 1
    return several and isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in CONTACT)


def report_failure(error: Exception) -> None:
    """Write this rank's error to torchrun's error file. Ranks above 0 wait, so that rank 0 reports first."""
    rank, world = rank_and_world()
    if world == 1:
        return
    if lost_contact(error):
        time.sleep(LAUNCHER_WAIT)
    elif isinstance(error, GrpoTirError):
        time.sleep(RANK_0_WAIT if rank else 0)
        tell_launcher(f"grpo-tir: {error}")
    else:
        tell_launcher("".join(traceback.format_exception(error)))
    print(f"grpo-tir: rank {rank} of {world} failed", file=sys.stderr, flush=True)


def tell_launcher(text: str) -> None:
    """Write a text to torchrun's error file. The summary of torchrun ends with it."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        extra = {"py_callstack": text, "timestamp": str(int(time.time()))}
        Path(path).write_text(json.dumps({"message": {"message": text, "extraInfo": extra}}), encoding="utf-8")

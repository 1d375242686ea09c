"""`python strike.py train RECIPE …` is `grpo-tir train RECIPE …` with a fault at a chosen moment.

    STRIKE="decode:30 kill"       the 30th decoding step: SIGKILL to every process of the launch
    STRIKE="reward:2 raise" STRIKE_RANK=1
    COLLECTIVES=log               write every collective operation of rank R to log.R, with who asked for it

The product knows nothing of it: its phases are wrapped from outside, here.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch

from grpo_tir import cli
from grpo_tir.checkpoint import journal
from grpo_tir.checkpoint import save as checkpoint
from grpo_tir.checkpoint.journal import Journal
from grpo_tir.distributed.runtime import Runtime
from grpo_tir.engine.engine import Engine
from grpo_tir.evaluation import held_out
from grpo_tir.executor.pool import Pool
from grpo_tir.monitor import run_log
from grpo_tir.rollouts.batch import Batch

PASSED: Counter[str] = Counter()


def strike(how: str) -> None:
    """The fault itself."""
    if how == "kill":
        kill_launch()
    elif how == "kill-rank":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif how == "hang":
        time.sleep(3600)
    elif how == "raise":
        raise ZeroDivisionError("a fault that was asked for")
    elif how == "kill-executor":
        for pool in POOLS:
            pool.workers[0].kill()
    elif how == "term":
        os.kill(os.getpid(), signal.SIGTERM)


def kill_launch() -> None:
    """SIGKILL to the launcher, if there is one, to all ranks and to their executors, this process last."""
    here = psutil.Process()
    top = here.parent() if "TORCHELASTIC_RUN_ID" in os.environ else here
    assert top is not None
    for process in [top, *top.children(recursive=True)]:
        if process != here:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    here.kill()


def passing(point: str) -> None:
    """Strikes if this is the moment."""
    PASSED[point] += 1
    moment, _, how = os.environ.get("STRIKE", "").rpartition(" ")
    if moment == f"{point}:{PASSED[point]}" and os.environ.get("RANK", "0") == os.environ.get("STRIKE_RANK", "0"):
        print(f"strike: {moment} {how}", file=sys.stderr, flush=True)
        strike(how)


def wrap(owner: Any, name: str, before: str = "", after: str = "") -> None:
    """Let a function of the product pass points before and after it runs."""
    original = getattr(owner, name)

    def wrapped(*arguments: Any, **named: Any) -> Any:
        if before:
            passing(before)
        result = original(*arguments, **named)
        if after:
            passing(after)
        return result

    setattr(owner, name, wrapped)


def tear(owner: Any, name: str, point: str) -> None:
    """Let a function `(path, …)` that appends to a file be struck when half of its line is written."""
    original: Callable[..., Any] = getattr(owner, name)

    def torn(path: Path, *arguments: Any) -> None:
        start = path.stat().st_size if path.exists() else 0
        original(path, *arguments)
        moment = f"{point}:{PASSED[point] + 1} "
        if os.environ.get("STRIKE", "").startswith(moment):
            os.truncate(path, start + (path.stat().st_size - start) // 2)
        passing(point)

    setattr(owner, name, torn)


def name_forwards() -> None:
    """`prefill` feeds some row several tokens (its prompt, or what a tool returned), `decode` one each."""
    feed = Engine._feed

    def fed(engine: Engine) -> list[tuple[int, list[int]]]:
        feeds = feed(engine)
        evaluating = PASSED["evaluating"] > PASSED["evaluated"]
        kind = "prefill" if any(len(tokens) > 1 for _, tokens in feeds) else "decode"
        passing(f"held-out {kind}" if evaluating else kind)
        return feeds

    setattr(Engine, "_feed", fed)  # noqa: B010


def log_collectives(prefix: str) -> None:
    """Write the name of each collective operation and of our function that calls it, at its beginning."""
    for name in ("all_reduce", "all_gather_object", "broadcast", "broadcast_object_list", "barrier"):
        original = getattr(torch.distributed, name)

        def logged(*arguments: Any, name: str = name, original: Any = original, **named: Any) -> Any:
            ours = [each for each in traceback.extract_stack() if "/grpo_tir/" in each.filename]
            asked = " < ".join(each.name for each in ours[:-4:-1])
            with open(f"{prefix}.{os.environ['RANK']}", "a", encoding="utf-8") as file:
                file.write(f"{name}: {asked}\n")
            return original(*arguments, **named)

        setattr(torch.distributed, name, logged)


POOLS: list[Pool] = []
start_pool = Pool.__init__


def remember(pool: Pool, *arguments: Any, **named: Any) -> None:
    POOLS.append(pool)
    start_pool(pool, *arguments, **named)


def main() -> int:
    """Wrap every phase, then run the command line."""
    setattr(Pool, "__init__", remember)  # noqa: B010
    name_forwards()
    if prefix := os.environ.get("COLLECTIVES"):
        log_collectives(prefix)
    wrap(Pool, "submit", after="call")  # in flight
    wrap(Journal, "_record_call", after="answer")
    wrap(Batch, "finish", before="reward")
    wrap(Runtime, "backward", before="backward")
    wrap(torch.optim.AdamW, "step", before="optimizer", after="stepped")
    wrap(held_out, "complete", before="evaluating", after="evaluated")
    tear(run_log, "append_lines", "metrics")
    tear(journal, "append_lines", "journal")
    wrap(checkpoint, "take_snapshot", before="snapshot")
    wrap(checkpoint.torch, "save", before="exported", after="optimizer saved")
    wrap(checkpoint, "_write_manifest", after="manifest")
    wrap(checkpoint, "list_checkpoints", before="listed")
    wrap(Journal, "drop", before="whole", after="pruned")
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())

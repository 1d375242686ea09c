"""Find, verify and read checkpoints."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from grpo_tir.distributed.runtime import Runtime
from grpo_tir.errors import CheckpointError

MANIFEST = "manifest.json"
TRAINER = "trainer.pt"
OPTIMIZER = "optimizer-*-of-*.pt"


def find_start(run: Path, resume: bool, log: Callable[[str], None]) -> Path | None:
    """Return the newest intact checkpoint to resume from, and log each damaged one; None for a new run.

    Raises:
        CheckpointError: all checkpoints are damaged, or some exist and `resume` is False.
    """
    found = list_checkpoints(run / "checkpoints")
    if found and not resume:
        raise CheckpointError(
            f"{run} already holds a run: continue it with --resume, or name another --train.output_dir"
        )
    for path in reversed(found):
        fault = find_fault(path)
        if fault is None:
            return path
        log(f"{path} is damaged ({fault}); trying the one before it")
    if found:
        raise CheckpointError(f"nothing to resume from: {run} has no intact checkpoint; start without --resume")
    if resume:
        log(f"{run} has no checkpoint yet: starting from the beginning, with the rollouts of its journal")
    return None


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the finished checkpoints, oldest first."""
    found = [path for path in folder.glob("step_*") if path.is_dir() and path.name[5:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[5:]))


def find_fault(path: Path) -> str | None:
    """Compare the files of a checkpoint with its manifest. Returns the first fault, or None."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"{MANIFEST} is missing or unreadable"
    for name, (size, digest) in manifest.items():
        file = path / name
        if not file.is_file() or file.stat().st_size != size:
            return f"{name} is missing or truncated"
        if _digest(file) != digest:
            return f"{name} is corrupt"
    return None


def load_trainer(path: Path) -> dict[str, Any]:
    """Load the sampler's position and the counters of a checkpoint."""
    state: dict[str, Any] = torch.load(path / TRAINER, map_location="cpu", weights_only=True)
    return state


def load_optimizer(path: Path, model: Any, optimizer: Any, runtime: Runtime) -> None:
    """Load the optimizer state, which any number of ranks and any ZeRO stage may have written.

    Raises:
        CheckpointError: the state belongs to other parameters.
    """
    files = [
        torch.load(file, map_location="cpu", weights_only=True, mmap=True) for file in sorted(path.glob(OPTIMIZER))
    ]
    runtime.write_state(model, optimizer, files)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

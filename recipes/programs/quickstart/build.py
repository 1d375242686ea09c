"""Build problems, tokenizer and base model of the quickstart once, and cache them in one folder.

The folder's name contains a hash of settings and code. The folder gets its name when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from grpo_tir.errors import DataError
from grpo_tir.types import Problem
from quickstart.base_model import build_model
from quickstart.world import WorldConfig, make_documents, make_problems


@dataclass(frozen=True)
class QuickstartFiles:
    """Hold the paths of the input files of a quickstart run."""

    train: Path
    eval: Path
    model: Path
    """HF folder with weights and tokenizer."""


def build_quickstart(
    cache_dir: Path,
    seed: int,
    make_world: Callable[[int], WorldConfig] = WorldConfig,
    *,
    log: Callable[[str], None] = print,
    progress: bool = True,
) -> QuickstartFiles:
    """Return problems, tokenizer and base model of a world for `seed`, from the cache if they exist there.

    Raises:
        DataError: the cache folder cannot be written.
    """
    world = make_world(seed)
    home = cache_dir / f"{world.name}-{seed}-{_fingerprint(world)}"
    files = QuickstartFiles(home / "train.jsonl", home / "eval.jsonl", home / "model")
    if home.is_dir():
        log(f"base model and problems: reused from {home}")
        return files
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_dir, prefix=".building-") as scratch:
            _build(Path(scratch) / "world", world, log, progress)
            _publish(Path(scratch) / "world", home)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"cannot build the quickstart in {cache_dir}: {reason}; name another folder") from None
    return files


def _build(folder: Path, world: WorldConfig, log: Callable[[str], None], progress: bool) -> None:
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # those of saves would break our lines
    folder.mkdir()
    train, held_out, eval_keys = make_problems(world)
    write_problems(folder / "train.jsonl", train)
    write_problems(folder / "eval.jsonl", held_out)
    documents = list(make_documents(world, eval_keys))
    log(f"problems: {len(train)} to train on, {len(held_out)} held out; base corpus: {len(documents)} documents")
    build_model(documents, folder / "model", world.seed, log=log, progress=progress)


def _publish(made: Path, home: Path) -> None:
    """Rename the finished folder. If another process was faster, use its folder: the content is the same."""
    for path in made.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    try:
        made.rename(home)
    except OSError:
        if not home.is_dir():
            raise
        shutil.rmtree(made)


def write_problems(path: Path, problems: list[Problem]) -> None:
    """Write problems as JSONL."""
    path.write_text("".join(json.dumps(asdict(problem)) + "\n" for problem in problems), encoding="utf-8")


def _fingerprint(world: WorldConfig) -> str:
    """Hash the settings and the code that makes the problems and the model."""
    settings = {name: value for name, value in vars(world).items() if name not in ("families", "code")}
    digest = hashlib.sha256(json.dumps(settings).encode())
    for path in (*(Path(__file__).with_name(name) for name in ("world.py", "base_model.py")), Path(world.code)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]

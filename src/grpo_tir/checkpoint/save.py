"""Save checkpoints atomically: complete, or not at all.

    checkpoints/step_000020/   model.safetensors, config.json, tokenizer …   loads with from_pretrained
                               optimizer-0-of-2.pt …   optimizer state of each rank
                               trainer.pt       position of the sampler, counters
                               manifest.json    size and SHA-256 of every file, written last

A checkpoint is written under a temporary name, synced and renamed. With `train.save_in_background` it is written
from a copy in CPU memory, so that training continues meanwhile. On loading, every file is compared with the
manifest. A damaged checkpoint is reported, and the one before it is used.
"""

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from grpo_tir.checkpoint.journal import Journal
from grpo_tir.checkpoint.load import MANIFEST, OPTIMIZER, TRAINER, _digest, list_checkpoints
from grpo_tir.config import Config, save_config
from grpo_tir.distributed.runtime import Runtime
from grpo_tir.errors import OutputError
from grpo_tir.learning import lora
from grpo_tir.utils.files import Writer, sync, write_atomically

PATIENCE = 600.0
"""Seconds that the main process waits for the optimizer files of other ranks."""
FAILED_WRITE = ("os error", "unexpected pos", "file write failed")
"""Parts of the messages of safetensors, tokenizers and torch about a full disk. None raises an OSError."""


Snapshot = tuple[dict[str, torch.Tensor], GenerationConfig, dict[str, Any] | None]
"""Weights, on the main process only; generation config with the special tokens only, so that `generate` samples as
in training; this rank's optimizer state, or None if the main process holds the same."""


class Saver:
    """Write checkpoints in a background thread, one at a time. An error of the thread is raised at the next call.

    Under ZeRO every rank writes its part of the optimizer state. The main process writes the rest and waits until
    these files exist, because a background thread must not use collectives."""

    def __init__(
        self, folder: Path, config: Config, journal: Journal, log: Callable[[str], None], runtime: Runtime
    ) -> None:
        self.folder, self.config, self.journal, self.log = folder, config, journal, log
        self.runtime = runtime
        self.parts = runtime.world if runtime.stage else 1
        self.part = f"optimizer-{runtime.rank}-of-{self.parts}.pt"
        """Number of optimizer files, and name of this rank's."""
        self.writer = Writer("checkpoint")
        self.check, self.flush, self.close = self.writer.check, self.writer.flush, self.writer.close

    def tidy(self, step: int) -> None:
        """Remove what the checkpoint of `step` makes superfluous: older ones, and journals."""
        remove_old(self.folder, self.config.train.save_total_limit)
        self.journal.drop(last=step)

    def save(self, step: int, model: Any, tokenizer: Any, optimizer: Any, trainer: dict[str, Any]) -> None:
        """Start writing. Returns as soon as the state is copied. All ranks must call it together.

        Raises:
            OutputError: the disk is full or cannot be written. Older checkpoints are untouched.
        """
        self.writer.flush()  # memory has room for one copy only
        partial = self.folder / f".step_{step:06d}.partial"
        if self.runtime.is_main:
            with explained_write_errors(partial):
                remove_old(self.folder, keep=0)
                partial.mkdir(parents=True)
        self.runtime.barrier()
        background = self.config.train.save_in_background
        *_, moments = snapshot = take_snapshot(model, optimizer, self.runtime, copy=background)
        if self.runtime.is_main:
            self.writer.do(self._write, partial, step, model, tokenizer, snapshot, trainer)
        elif moments is not None:
            self.writer.do(self._write_part, partial, moments)
        if not background:
            self.writer.flush()

    def _write(
        self, partial: Path, step: int, model: Any, tokenizer: Any, snapshot: Snapshot, trainer: dict[str, Any]
    ) -> None:
        """Write all but the parts of other ranks. `model` gives config and file format only."""
        weights, generation, moments = snapshot
        final = self.folder / f"step_{step:06d}"
        with explained_write_errors(partial):
            if lora.has_adapters(model):  # written separately, and merged into the weights
                model.save_pretrained(partial / lora.FOLDER, state_dict=dict(weights))
                model, weights = lora.merge(model, weights)
            model.save_pretrained(partial, state_dict=dict(weights))  # a copy, because it empties the mapping
            tokenizer.save_pretrained(partial)
            generation.save_pretrained(partial)
            torch.save(trainer, partial / TRAINER)
            save_config(self.config, partial / "recipe.yaml")
            self._write_part(partial, moments)
            _wait_for_parts(partial, self.parts)
            _write_manifest(partial)
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            sync(self.folder)
        self.tidy(step)
        self.log(f"saved {final}")

    def _write_part(self, partial: Path, moments: Any) -> None:
        """Write this rank's part of the optimizer state atomically."""
        if not partial.is_dir():
            raise OutputError(f"{partial} does not exist on this node: all nodes must share train.output_dir")
        with explained_write_errors(partial):
            hidden = partial / f".{self.part}"
            torch.save(moments, hidden)
            hidden.rename(partial / self.part)


@contextmanager
def explained_write_errors(partial: Path) -> Iterator[None]:
    """Raise write errors as `OutputError`, in one line. On any error, delete the temporary folder first."""
    try:
        yield
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OutputError):
            raise
        if isinstance(error, OSError) or any(sign in str(error) for sign in FAILED_WRITE):
            raise OutputError(
                f"cannot save the checkpoint {partial}: {str(error).splitlines()[0]} (is the disk full?); "
                "earlier checkpoints are untouched"
            ) from error
        raise


def remove_old(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints (0 keeps all), and the remains of interrupted saves."""
    for old in list_checkpoints(folder)[:-keep] if keep else []:
        old.rename(folder / f".{old.name}.partial")  # so that a kill leaves no incomplete checkpoint
    for stale in folder.glob(".step_*.partial"):
        shutil.rmtree(stale)


def _wait_for_parts(partial: Path, number: int) -> None:
    """Wait for `number` optimizer files, one of each rank.

    Raises:
        OutputError: a file does not appear in time.
    """
    deadline = time.monotonic() + PATIENCE
    while len(list(partial.glob(OPTIMIZER))) < number:
        if time.monotonic() > deadline:
            raise OutputError(f"{partial} has no files of other ranks: all nodes must share train.output_dir")
        time.sleep(0.05)


def make_writable(folder: Path) -> None:
    """Make the folder of a run and check that files can be written in it.

    Raises:
        OutputError: the folder cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(1))
    except OSError as error:
        raise OutputError(
            f"cannot write to train.output_dir {folder}: {error.strerror}; choose another --train.output_dir"
        ) from None


def _write_manifest(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        sync(path)
    entries = {str(path.relative_to(folder)): [path.stat().st_size, _digest(path)] for path in files}
    write_atomically(folder / MANIFEST, json.dumps(entries, indent=1))
    sync(folder)


def take_snapshot(model: Any, optimizer: Any, runtime: Runtime, copy: bool) -> Snapshot:
    """Copy the state of a run to the CPU, or reference it without `copy`. All ranks must call it together."""
    with runtime.full_weights(model):
        weights = model.state_dict() if runtime.is_main else {}
        if copy or runtime.stage == 3:  # ZeRO-3 releases gathered weights at the end of this block
            weights = copy_to_cpu(weights)
    special = ("bos_token_id", "eos_token_id", "pad_token_id")
    generation = GenerationConfig(**{name: getattr(model.generation_config, name) for name in special})
    return weights, generation, runtime.read_state(model, optimizer, copy)


def copy_to_cpu(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copy tensors to the CPU. Tensors that share memory (tied weights) still share it in the copy."""

    def place(tensor: torch.Tensor) -> Any:
        return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype

    different = {place(tensor): tensor for tensor in weights.values()}
    copies = {key: tensor.detach().to("cpu", copy=True) for key, tensor in different.items()}
    return {name: copies[place(tensor)] for name, tensor in weights.items()}

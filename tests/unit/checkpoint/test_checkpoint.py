"""A checkpoint is whole or it is not there."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from grpo_tir.checkpoint import save as checkpoint
from grpo_tir.checkpoint.journal import Journal
from grpo_tir.checkpoint.load import find_fault, find_start, list_checkpoints, load_optimizer, load_trainer
from grpo_tir.checkpoint.save import Saver, copy_to_cpu, make_writable
from grpo_tir.config import Config
from grpo_tir.distributed.runtime import Runtime
from grpo_tir.errors import CheckpointError, OutputError
from grpo_tir.testing import byte_tokenizer
from grpo_tir.utils.files import Writer, write_atomically
from tiny_policy import change, tiny_qwen2


def save(folder: Path, step: int, keep: int = 0, seed: int = 0) -> Path:
    tokenizer = byte_tokenizer(["<|end|>"])
    model = tiny_qwen2(seed, len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, temperature=0.7, do_sample=True
    )
    runtime = Runtime("fp32")
    model, optimizer = runtime.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.1), 1.0)
    sum(p.sum() for p in model.parameters()).backward()
    runtime.step(model, optimizer)
    config = change(Config(), train__save_total_limit=keep)
    saver = Saver(folder, config, Journal(folder / "none", 0, "", Writer("log"), False), print, runtime)
    saver.save(step, model, tokenizer, optimizer, {"step": step})
    saver.close()
    saver.check()
    return folder / f"step_{step:06d}"


def test_checkpoint_loads_with_plain_transformers_and_samples_as_training_did(tmp_path: Path) -> None:
    path = save(tmp_path, 7)
    assert path.name == "step_000007"
    model = AutoModelForCausalLM.from_pretrained(path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    settings = GenerationConfig.from_pretrained(path)
    assert (path / "model.safetensors").is_file()
    assert tokenizer.decode(tokenizer("1 + é")["input_ids"]) == "1 + é"
    assert settings.eos_token_id == tokenizer.eos_token_id == 256
    # the base model's temperature and the like were not what training sampled with
    assert not settings.do_sample and settings.temperature in (None, 1.0)
    expected = AutoModelForCausalLM.from_pretrained(save(tmp_path / "again", 7)).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_optimizer_and_positions_come_back_as_they_were(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    assert load_trainer(path) == {"step": 3}
    runtime, model = Runtime("fp32"), tiny_qwen2(0, 257)
    _, optimizer = runtime.prepare(model, torch.optim.AdamW(model.parameters()), 1.0)
    load_optimizer(path, model, optimizer, runtime)
    # every gradient was 1, clipped to a norm of 1: the first step leaves 0.1 of it and 0.001 of its square
    gradient = sum(p.numel() for p in model.parameters()) ** -0.5
    for parameter in model.parameters():
        state = optimizer.optimizer.state[parameter]
        assert state["step"] == 1 and state["exp_avg"].shape == parameter.shape
        torch.testing.assert_close(state["exp_avg"], torch.full_like(parameter, 0.1 * gradient))
        torch.testing.assert_close(state["exp_avg_sq"], torch.full_like(parameter, 0.001 * gradient**2))


def test_optimizer_state_of_another_model_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    runtime, model = Runtime("fp32"), tiny_qwen2(0, 258)
    _, optimizer = runtime.prepare(model, torch.optim.AdamW(model.parameters()), 1.0)
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight has another size"):
        load_optimizer(path, model, optimizer, runtime)


def test_a_snapshot_is_not_touched_by_training_and_tied_weights_stay_tied() -> None:
    tied = torch.nn.Parameter(torch.ones(3))
    live = {"head": tied, "embedding": tied.detach(), "bias": torch.zeros(3)}
    copy = copy_to_cpu(live)
    with torch.no_grad():
        tied += 1
    assert copy["head"].tolist() == [1, 1, 1] and copy["bias"].tolist() == [0, 0, 0]
    assert copy["head"].data_ptr() == copy["embedding"].data_ptr() != tied.data_ptr()


def test_manifest_names_every_file_with_size_and_digest(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    assert set(manifest) == {p.name for p in path.iterdir()} - {"manifest.json"}
    assert find_fault(path) is None


def damage(path: Path, how: str) -> None:
    weights = path / "model.safetensors"
    if how == "cut short":
        with open(weights, "r+b") as file:
            file.truncate(weights.stat().st_size // 2)
    elif how == "corrupt":
        with open(weights, "r+b") as file:  # one bit, the size is as before
            file.seek(-1, os.SEEK_END)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_END)
            file.write(bytes([byte ^ 1]))
    elif how == "missing":
        (path / "trainer.pt").unlink()
    elif how == "no manifest":
        (path / "manifest.json").unlink()
    elif how == "torn manifest":
        (path / "manifest.json").write_text('{"model.saf')
    elif how == "empty":
        shutil.rmtree(path)
        path.mkdir()


FAULTS = {
    "cut short": "model.safetensors is missing or truncated",
    "corrupt": "model.safetensors is corrupt",
    "missing": "trainer.pt is missing",
    "no manifest": "manifest.json is missing",
    "torn manifest": "manifest.json is missing or unreadable",
    "empty": "manifest.json is missing",
}


@pytest.mark.parametrize("how", FAULTS)
def test_damaged_checkpoint_is_named_and_the_one_before_it_is_used(how: str, tmp_path: Path) -> None:
    good, bad = save(tmp_path / "checkpoints", 1), save(tmp_path / "checkpoints", 2)
    damage(bad, how)
    said: list[str] = []
    assert find_start(tmp_path, True, said.append) == good
    assert len(said) == 1 and str(bad) in said[0] and FAULTS[how] in said[0]


def test_nothing_whole_is_a_clear_error(tmp_path: Path) -> None:
    said: list[str] = []
    assert find_start(tmp_path, True, said.append) is None
    assert len(said) == 1 and "has no checkpoint yet" in said[0]
    damage(save(tmp_path / "checkpoints", 1), "corrupt")
    with pytest.raises(CheckpointError, match=r"nothing to resume from.*no intact checkpoint"):
        find_start(tmp_path, True, print)


def test_half_written_checkpoint_is_never_seen_and_cleared_by_the_next_save(tmp_path: Path) -> None:
    """What a kill in the middle of a save leaves behind."""
    save(tmp_path, 1).rename(tmp_path / ".step_000001.partial")
    assert list_checkpoints(tmp_path) == []
    save(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_000002"]


def test_oldest_beyond_the_limit_are_removed(tmp_path: Path) -> None:
    for step in (1, 2, 10):
        save(tmp_path, step, keep=2)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step_000002", "step_000010"]


def test_newest_is_by_number_not_by_name(tmp_path: Path) -> None:
    for step in (999_999, 1_000_000):
        (tmp_path / f"step_{step:06d}").mkdir()
    (tmp_path / "step_notes").mkdir()
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step_999999", "step_1000000"]


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 1, seed=0)
    path = save(tmp_path, 1, seed=1)
    assert find_fault(path) is None and list_checkpoints(tmp_path) == [path]
    other = AutoModelForCausalLM.from_pretrained(save(tmp_path / "other", 1, seed=1)).state_dict()
    assert all(
        torch.equal(v, other[k]) for k, v in AutoModelForCausalLM.from_pretrained(path).state_dict().items()
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A file system that holds one checkpoint of the tiny model (about 340 KiB), not two."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=640k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_full_disk_at_any_point_of_a_save_leaves_the_old_checkpoint_good(small_disk: Path) -> None:
    """The disk fills up in safetensors, in the tokenizer, in torch and in the manifest: none says it in the same
    way, all must end in the same line."""
    old = save(small_disk / "run", 1)
    room = shutil.disk_usage(small_disk).free
    for left in (room, 240_000, 140_000, 126_000, 122_000, 118_000, 114_000, 60_000, 4096, 0):
        (small_disk / "filling").write_bytes(bytes(room - left))
        with pytest.raises(OutputError, match="earlier checkpoints are untouched") as caught:
            save(small_disk / "run", 2)
        assert "\n" not in str(caught.value)
        del caught
        gc.collect()  # the error holds a file open, so that its space is not free
        assert find_fault(old) is None
        assert [p.name for p in (small_disk / "run").iterdir()] == ["step_000001"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 6272 vs 6164"),
        Exception("No space left on device (os error 28)"),
    ],
)
def test_every_library_s_way_to_say_disk_full_becomes_one_line(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = save(tmp_path, 1)

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(checkpoint.torch, "save", fail)
    with pytest.raises(OutputError, match=r"step_000002.*earlier checkpoints are untouched"):
        save(tmp_path, 2)
    assert list_checkpoints(tmp_path) == [old] and find_fault(old) is None


def test_a_bug_in_saving_is_not_called_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise TypeError("cannot pickle a generator")

    monkeypatch.setattr(checkpoint.torch, "save", fail)
    with pytest.raises(TypeError):
        save(tmp_path, 1)
    assert list(tmp_path.iterdir()) == []


def test_atomic_write_keeps_the_old_text_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")

    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError):
        write_atomically(path, "new")
    assert path.read_text() == "old"


def test_folder_that_cannot_be_made_is_refused_by_name(tmp_path: Path) -> None:
    make_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write to train.output_dir .*file/run: Not a directory"):
        make_writable(tmp_path / "file" / "run")

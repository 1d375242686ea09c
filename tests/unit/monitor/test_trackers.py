"""Weights & Biases and trackio for real, without a network: what a run sends is what they have kept."""

from __future__ import annotations

import importlib.util
import json
import os
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from grpo_tir.errors import ConfigError
from grpo_tir.monitor.run_log import make_tracker

SENDS = """
import sys
from pathlib import Path
from grpo_tir.monitor.run_log import RunLog

if __name__ == "__main__":  # trackio starts a process of its own
    log = RunLog(Path("run"), [sys.argv[1]])
    log.metrics(1, {"reward": -0.5, "tools/code_ratio": 0.25, "eval/accuracy": None})
    log.metrics(2, {"reward": 0.75, "tools/code_ratio": 0.5, "loss": float("nan")})
    log.writer.flush()
    log.writer.close()
"""
SENT = {1: {"reward": -0.5, "tools/code_ratio": 0.25}, 2: {"reward": 0.75, "tools/code_ratio": 0.5}}


def send(tracker: str, folder: Path) -> Path:
    """A process that logs two steps, offline, and ends as a trainer does."""
    if importlib.util.find_spec(tracker) is None:
        pytest.skip(f"{tracker} is not installed: make test EXTRAS=dev,tracking")
    (folder / "sends.py").write_text(SENDS)
    offline = {"WANDB_MODE": "offline", "TRACKIO_DIR": str(folder / "trackio"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "sends.py", tracker], cwd=folder, env={**os.environ, **offline},
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def log_records(data: bytes) -> Iterator[bytes]:
    """Of a LevelDB log behind wandb's header of 7 bytes: (crc, length, kind) and a part, in blocks of 32 KB."""
    position, whole = 7, b""
    while position + 7 <= len(data):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        whole += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


def test_wandb_keeps_what_was_sent(tmp_path: Path) -> None:
    folder = send("wandb", tmp_path)
    from wandb.proto import wandb_internal_pb2

    (file,) = (folder / "run" / "wandb").glob("offline-run-*/*.wandb")
    kept = {}
    for data in log_records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        if items:
            kept[int(items["_step"])] = {k: v for k, v in items.items() if not k.startswith("_")}
    assert kept == SENT


def test_trackio_keeps_what_was_sent(tmp_path: Path) -> None:
    folder = send("trackio", tmp_path)
    (file,) = (folder / "trackio").glob("*.db")
    with sqlite3.connect(file) as database:
        rows = database.execute("select step, metrics from metrics order by step").fetchall()
    assert {step: json.loads(metrics) for step, metrics in rows} == SENT


def test_a_tracker_that_is_not_installed_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="names wandb_of_yore, which is not installed"):
        make_tracker("wandb_of_yore", tmp_path)


def test_a_tracker_that_does_not_start_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")

    def refuse(**_: object) -> None:
        raise RuntimeError("No API key configured.\nUse `wandb login`")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(ConfigError, match=r"wandb does not start \(No API key configured"):
        make_tracker("wandb", tmp_path)

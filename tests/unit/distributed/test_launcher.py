"""Who is to blame, among several processes; the real launches are in tests/faults/test_ranks.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch.distributed as dist

from grpo_tir.distributed import launcher
from grpo_tir.distributed.launcher import lost_contact, report_failure
from grpo_tir.errors import ConfigError

GLOO = "[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4711"


@pytest.mark.parametrize(
    "error, lost",
    [
        (RuntimeError(GLOO), True),
        (dist.DistBackendError("NCCL error: remote process exited or there was a network error"), True),
        (RuntimeError("CUDA out of memory"), False),
        (ConnectionResetError(104, "Connection reset by peer"), False),  # of a download
        (ValueError("gloo"), False),
    ],
)
def test_a_lost_peer_is_told_from_everything_else(
    error: Exception, lost: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert lost_contact(error) == lost
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not lost_contact(error), "alone there is nobody to lose"


def confessed(
    error: Exception, rank: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, list[float]]:
    """What torchrun would read, and the seconds that were waited."""
    path, waited = folder / "error.json", list[float]()
    monkeypatch.setattr(launcher.time, "sleep", waited.append)
    for name, value in {"RANK": str(rank), "WORLD_SIZE": "2", "TORCHELASTIC_ERROR_FILE": str(path)}.items():
        monkeypatch.setenv(name, value)
    report_failure(error)
    return json.loads(path.read_text())["message"]["extraInfo"]["py_callstack"] if path.exists() else "", waited


def test_the_culprit_leaves_its_reason_and_an_innocent_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert confessed(RuntimeError(GLOO), 1, tmp_path, monkeypatch) == ("", [launcher.LAUNCHER_WAIT])
    text, waited = confessed(ZeroDivisionError("by zero"), 1, tmp_path, monkeypatch)
    assert "ZeroDivisionError: by zero" in text and waited == []


@pytest.mark.parametrize("rank, wait", [(0, 0), (1, launcher.RANK_0_WAIT)])
def test_what_is_wrong_everywhere_is_said_by_rank_0_first(
    rank: int, wait: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, waited = confessed(ConfigError("unknown key"), rank, tmp_path, monkeypatch)
    assert (text, waited) == ("grpo-tir: unknown key", [wait])

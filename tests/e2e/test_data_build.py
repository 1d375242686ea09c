"""`grpo-tir data build` as a process: killed again and again it ends with the same bytes; its memory is flat."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def bench(repository: Path) -> dict[str, Any]:
    """The functions of benchmarks/data.py: its made-up rows and its measure."""
    return runpy.run_path(str(repository / "benchmarks" / "data.py"))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("out.jsonl*")}


def work_done(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob(".out.jsonl.build*"))


def test_a_build_that_is_killed_again_and_again_ends_with_the_same_bytes(
    bench: dict[str, Any], tmp_path: Path
) -> None:
    """SIGKILL whenever the work on disk has grown by another step; then once more to the end."""
    for part, seed in (("a", 1), ("b", 3)):
        bench["write_rows"](tmp_path / f"{part}.jsonl", bench["make_rows"](1500, seed=seed))
    bench["write_rows"](tmp_path / "bench.jsonl", bench["make_rows"](50, seed=2))
    command = [sys.executable, "-m", "grpo_tir", "data", "build", "--workers", "1", "--bench", "../bench.jsonl"]
    command += ["--source", "../a.jsonl", "--source", "../b.jsonl", "--balance", "2000", "--out", "out.jsonl"]
    for folder in ("whole", "killed"):
        (tmp_path / folder).mkdir()
    subprocess.run(command, cwd=tmp_path / "whole", check=True, capture_output=True)
    whole = files(tmp_path / "whole")
    killed, resumed = tmp_path / "killed", 0
    for _ in range(12):
        before = work_done(killed)
        process = subprocess.Popen(
            command, cwd=killed, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        while process.poll() is None and work_done(killed) < before + 600_000:
            time.sleep(0.01)
        process.kill()
        said, _ = process.communicate()
        resumed += "continuing after" in said
        if process.returncode == 0:
            break
        left = files(killed)
        assert left.items() <= whole.items(), "what stands under its name is whole"
    done = subprocess.run(command, cwd=killed, check=True, capture_output=True, text=True)
    resumed += "continuing after" in done.stdout
    assert resumed, "it was never killed in the middle: the test proves nothing"
    assert files(killed) == whole and len(whole) == 4
    assert not list(killed.glob(".out*"))


def test_two_builds_cannot_write_one_file(bench: dict[str, Any], tmp_path: Path) -> None:
    bench["write_rows"](tmp_path / "a.jsonl", bench["make_rows"](1500, seed=1))
    command = [sys.executable, "-m", "grpo_tir", "data", "build", "--source", "a.jsonl", "--out", "out.jsonl"]
    first = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while first.poll() is None and not work_done(tmp_path):
        time.sleep(0.01)
    second = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert first.wait() == 0
    assert second.returncode == 2 and "is another build writing there?" in second.stderr


def build_megabytes(bench: dict[str, Any], folder: Path, rows: int) -> float:
    """Resident memory of a build beyond that of a bare interpreter."""
    source = bench["write_rows"](folder / f"{rows}.jsonl", bench["make_rows"](rows, seed=1))
    keep_out = bench["write_rows"](folder / "bench.jsonl", bench["make_rows"](100, seed=2))
    arguments = ["data", "build", "--source", str(source), "--bench", str(keep_out), "--workers", "1"]
    used = bench["measure"]([*arguments, "--out", str(folder / f"out{rows}.jsonl")], folder)
    return float(used["mb"]) - float(bench["bare_megabytes"]())


def test_memory_hardly_grows_with_the_rows(bench: dict[str, Any], tmp_path: Path) -> None:
    """Four times the rows; what grows is the database's cache, which has a limit."""
    small, large = (build_megabytes(bench, tmp_path, rows) for rows in (1000, 4000))
    assert large < 100 and large - small < 30


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32" or not hasattr(os, "fork"), reason="resident memory as Unix counts it")
def test_100_000_rows_fit_in_500_megabytes(repository: Path) -> None:
    done = subprocess.run([sys.executable, repository / "benchmarks" / "data.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-1000:]

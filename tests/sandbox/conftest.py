"""Executors that many tests share. The limits are small so that a hang costs seconds."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from grpo_tir.config import ExecutorConfig
from grpo_tir.errors import ExecutorUnavailable
from grpo_tir.executor.open import open_executor
from grpo_tir.executor.pool import Pool

sys.path.insert(0, str(Path(__file__).parent))

LIMITS = {"timeout": 1.0, "wall_factor": 2.5, "slots": 4, "memory_mb": 256}


def opened(kind: str) -> Pool:
    """An executor, or the reason to skip; a promised engine without our image is a failure."""
    try:
        return open_executor(ExecutorConfig(kind=kind, **LIMITS))  # type: ignore[arg-type]
    except ExecutorUnavailable as error:
        if os.environ.get("GRPO_TIR_REQUIRE_DOCKER") == "1":
            pytest.fail(f"GRPO_TIR_REQUIRE_DOCKER=1, but {error}", pytrace=False)
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def docker_executor() -> Iterator[Pool]:
    with opened("docker") as pool:
        yield pool


@pytest.fixture(scope="session")
def process_executor() -> Iterator[Pool]:
    with opened("process") as pool:
        yield pool

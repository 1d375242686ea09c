"""What all tests share: an offline, quiet environment, and the engines and data of this machine, if it has any."""

from __future__ import annotations

import functools
import os
import signal
from pathlib import Path
from typing import Any

import pytest

# Before anything imports torch or transformers. A missing local model would otherwise be asked of the Hub, with
# retries; and the models of the tests are so small that more threads only wait for one another.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that starts this in the background ignores Ctrl-C for it and for every process that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parents[1]


@functools.cache
def _engine_fault() -> str | None:
    """Why no Docker engine can be used here; None: one answers."""
    try:
        import docker

        client = docker.from_env(timeout=20)
        client.ping()
        client.close()
    except Exception as error:  # the SDK raises errors of its own, of requests and of the system
        return f"no Docker engine: {error}".splitlines()[0][:160]
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked `docker` are skipped where no engine answers, and fail where one was promised."""
    if item.get_closest_marker("docker") and (reason := _engine_fault()):
        if os.environ.get("GRPO_TIR_REQUIRE_DOCKER") == "1":
            pytest.fail(f"GRPO_TIR_REQUIRE_DOCKER=1, but there is {reason}", pytrace=False)
        pytest.skip(reason)


@pytest.fixture(scope="session")
def docker_engine() -> Any:
    """A client of the local engine. A test that uses it is marked `docker`."""
    import docker

    client = docker.from_env(timeout=120)
    yield client
    client.close()


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of this checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Published problem sets, which this repository must not hold. Only tests of their own text use them."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("checks published texts: put bench/, limr/ and train/ into ../shared/data")
    return folder

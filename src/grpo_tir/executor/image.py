"""Build the sandbox image on any base with Python 3.11 or newer.

The wheels are fetched on the host for the base's Python and copied in. The build then needs no network, and the
same wheels make the same image.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grpo_tir.errors import ExecutorUnavailable
from grpo_tir.executor.docker_client import connect, first_line
from grpo_tir.executor.wire import RUNNER_FILES, runner_version
from grpo_tir.utils.resources import sandbox_dir

PINS = ("numpy==2.4.6", "sympy==1.14.0", "mpmath==1.3.0")
LOOK = """
import os, sys
try:
    import numpy, sympy
    have = True
except ImportError:
    have = False
print(f"{sys.version_info[0]}.{sys.version_info[1]}", os.uname().machine, have)
"""
"""Runs in the base. A minimal Python has no json."""


def build_image(base: str, tag: str, host: str | None = None, log: Callable[[str], Any] = print) -> str:
    """Build the image. Returns its id.

    Raises:
        ExecutorUnavailable: no engine, no base, or a failed build, with the end of its log.
    """
    import docker

    client = connect(host)
    facts = look_at(client, base)
    with tempfile.TemporaryDirectory(prefix="grpo-tir-build-") as folder:
        context = Path(folder)
        for name in ("Dockerfile", "install.py", *RUNNER_FILES):
            shutil.copy(sandbox_dir() / name, context / name)
        (context / "wheels").mkdir()
        (context / "wheels" / "README").write_text("wheels for the base's Python\n")
        if not facts["have"]:
            log(f"fetching {', '.join(PINS)} for Python {'.'.join(map(str, facts['version']))} {facts['machine']}")
            fetch_wheels(context / "wheels", facts)
        log(f"building {tag} on {base}")
        try:
            image, _ = client.images.build(
                path=folder, tag=tag, rm=True, forcerm=True, network_mode="host",
                buildargs={"BASE": base, "RUNNER": runner_version()},
            )  # fmt: skip
        except docker.errors.BuildError as error:
            words = "".join(str(line.get("stream", line.get("error", ""))) for line in error.build_log)
            raise ExecutorUnavailable(f"the build on {base} failed: {words.strip()[-600:]}") from None
        except docker.errors.APIError as error:
            raise ExecutorUnavailable(f"the build on {base} failed: {first_line(error)}") from None
    size = image.attrs["Size"] >> 20
    log(f"built {tag} ({image.short_id}, {size} MB, runner {runner_version()})")
    return str(image.id)


def look_at(client: Any, base: str) -> dict[str, Any]:
    """Find out the Python of the base by running it."""
    import docker

    try:
        output = client.containers.run(base, ["python3", "-c", LOOK], remove=True, network_disabled=True)
    except docker.errors.ImageNotFound:
        raise ExecutorUnavailable(f"no image {base}, and it cannot be pulled: name another with --base") from None
    except (docker.errors.ContainerError, docker.errors.APIError) as error:
        raise ExecutorUnavailable(f"{base} cannot run python3: {first_line(error)}") from None
    version, machine, have = output.decode().split()
    facts = {"version": [int(part) for part in version.split(".")], "machine": machine, "have": have == "True"}
    if facts["version"] < [3, 11]:
        raise ExecutorUnavailable(f"{base} has Python {version}: the sandbox needs 3.11 or newer")
    return facts


def fetch_wheels(folder: Path, facts: dict[str, Any]) -> None:
    """Fetch wheels with the host's pip for the base's Python."""
    platforms = [
        f"--platform={kind}_{facts['machine']}" for kind in ("manylinux_2_28", "manylinux_2_27", "manylinux2014")
    ]
    version = ".".join(map(str, facts["version"]))
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", *platforms,
               f"--python-version={version}", "--implementation=cp", "--dest", str(folder), *PINS]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        words = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise ExecutorUnavailable(
            f"pip could not fetch the wheels ({words}): give it a way to an index (PIP_INDEX_URL, PIP_CERT), or "
            "name a base that has numpy and sympy with --base"
        )

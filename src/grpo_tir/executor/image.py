"""Build the sandbox image on any base with Python 3.11 or newer.

The packages are installed on the host for the base's Python and copied in. The build then needs no network, and
the same packages make the same image.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grpo_tir.errors import DataError, ExecutorUnavailable
from grpo_tir.executor.docker_client import RUNNER_FILES, connect, first_line, runner_version
from grpo_tir.utils.resources import sandbox_dir

LOOK = """
import os, sys
try:
    from importlib.metadata import version
    have = all(version(name) for name in sys.argv[1:])
except ImportError:
    have = False
print(f"{sys.version_info[0]}.{sys.version_info[1]}", os.uname().machine, have)
"""
"""Program that runs in the base image. It does without json, which a minimal Python lacks."""
WITHOUT_TESTS = ("matplotlib", "mpl_toolkits", "networkx", "pandas", "scipy", "sympy")
"""Packages whose tests are deleted: up to a third of their size. numpy keeps them: numpy.testing imports some."""


def build_image(
    base: str,
    tag: str,
    host: str | None = None,
    packages: Path | None = None,
    log: Callable[[str], Any] = print,
) -> str:
    """Build the image. Return its id.

    Args:
        packages: a requirements file of what programs can import; None: sandbox/packages.txt.

    Raises:
        DataError: the requirements file cannot be read, or names nothing.
        ExecutorUnavailable: no engine, no base, or a failed build, with the end of its log.
    """
    import docker

    packages = packages or sandbox_dir() / "packages.txt"
    names = read_names(packages)
    client = connect(host)
    facts = look_at(client, base, names)
    with tempfile.TemporaryDirectory(prefix="grpo-tir-build-") as folder:
        context = Path(folder)
        for name in ("Dockerfile", "install.py", *RUNNER_FILES):
            shutil.copy(sandbox_dir() / name, context / name)
        shutil.copy(packages, context / "packages.txt")
        (context / "packages").mkdir()
        (context / "packages" / "README").write_text("packages for the base's Python\n")
        if not facts["have"]:
            version = ".".join(map(str, facts["version"]))
            log(f"fetching {len(names)} packages for Python {version} {facts['machine']}")
            fetch(packages, context / "packages", facts)
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


def read_names(packages: Path) -> list[str]:
    """Return the names in a requirements file."""
    try:
        lines = packages.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {packages}: {error}") from None
    if not (names := [found[0] for line in lines if (found := re.match(r"\w[\w.-]*", line))]):
        raise DataError(f"{packages} names no package: want one a line, as in sandbox/packages.txt")
    return names


def look_at(client: Any, base: str, names: list[str]) -> dict[str, Any]:
    """Find out the Python of the base, and whether it has the packages, by running it."""
    import docker

    try:
        output = client.containers.run(base, ["python3", "-c", LOOK, *names], remove=True, network_disabled=True)
    except docker.errors.ImageNotFound:
        raise ExecutorUnavailable(f"no image {base}, and it cannot be pulled: name another with --base") from None
    except (docker.errors.ContainerError, docker.errors.APIError) as error:
        raise ExecutorUnavailable(f"{base} cannot run python3: {first_line(error)}") from None
    version, machine, have = output.decode().split()
    facts = {"version": [int(part) for part in version.split(".")], "machine": machine, "have": have == "True"}
    if facts["version"] < [3, 11]:
        raise ExecutorUnavailable(f"{base} has Python {version}: the sandbox needs 3.11 or newer")
    return facts


def fetch(packages: Path, folder: Path, facts: dict[str, Any]) -> None:
    """Install packages into a folder with the host's pip, for the base's Python."""
    platforms = [
        f"--platform={kind}_{facts['machine']}" for kind in ("manylinux_2_28", "manylinux_2_27", "manylinux2014")
    ]
    version = ".".join(map(str, facts["version"]))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--only-binary=:all:",
               *platforms, f"--python-version={version}", "--implementation=cp", "--target", str(folder),
               "--requirement", str(packages)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, umask=0o022)
    if done.returncode:
        words = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise ExecutorUnavailable(
            f"pip could not fetch the packages ({words}): look at {packages}, give pip a way to an index "
            "(PIP_INDEX_URL, PIP_CERT), or name a base that has them with --base"
        )
    for tests in [path for name in WITHOUT_TESTS for path in (folder / name).rglob("tests")]:
        shutil.rmtree(tests, ignore_errors=True)

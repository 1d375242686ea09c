"""Run the runner on this machine without an engine: namespaces where Linux grants them, rlimits everywhere."""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, BinaryIO, cast

from grpo_tir.config import ExecutorConfig
from grpo_tir.errors import ExecutorUnavailable
from grpo_tir.utils.resources import sandbox_dir

PROCESSES = 32
"""Largest number of processes and threads of one call."""


class LocalConnection:
    """Exchange bytes with a runner that is a child process."""

    def __init__(self, process: subprocess.Popen[bytes], folders: Path) -> None:
        self.process, self.folders = process, folders
        self.stderr_tail = b""  # it inherits our stderr
        self.stdin, self.stdout = cast(BinaryIO, process.stdin), cast(BinaryIO, process.stdout)

    def read(self) -> bytes:
        return os.read(self.stdout.fileno(), 1 << 18)

    def write(self, data: bytes) -> None:
        self.stdin.write(data)
        self.stdin.flush()

    def kill(self) -> None:
        """Send SIGKILL. Its children end with it, by PDEATHSIG or because their pipes close."""
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folders, ignore_errors=True)


class LocalHost:
    """Start runners as processes of this machine."""

    name = "this machine"

    def __init__(self, config: ExecutorConfig, walls: str | None = None) -> None:
        if sys.platform == "win32":
            raise ExecutorUnavailable("executor.kind process needs fork, which Windows lacks: use docker, or WSL")
        self.slots = config.slots or 2 * (os.cpu_count() or 1)
        self.memory_mb = config.memory_mb
        self.walls = walls or ("namespaces" if sys.platform == "linux" else "none")

    def start(self) -> LocalConnection:
        folders = Path(tempfile.mkdtemp(prefix="grpo-tir-"))
        folders.chmod(0o711)
        settings = {
            "slots": self.slots, "memory_mb": self.memory_mb, "processes": PROCESSES, "walls": self.walls,
            "folders": str(folders), "uid_base": free_uids(self.slots),
        }  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-s", str(sandbox_dir() / "runner.py"), json.dumps(settings)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={"PATH": os.defpath, "LANG": "C.UTF-8"},
            start_new_session=True, bufsize=0,
        )  # fmt: skip
        return LocalConnection(process, folders)

    def alive(self) -> bool:
        return True

    def facts(self) -> dict[str, Any]:
        return {"kind": "process"}

    def close(self) -> None:
        pass


def free_uids(slots: int) -> int:
    """Return the first of a range of unused user ids. Used by root only; random, so that runs do not collide."""
    try:
        mapped = int(Path("/proc/self/uid_map").read_text().split()[2])
    except (OSError, IndexError, ValueError):
        mapped = 65536
    low, high = (1_900_000_000, 2_000_000_000) if mapped > 2_000_000_000 else (20_000, 60_000)
    width = slots + 3  # the runner itself takes three below the first slot's
    return low + random.SystemRandom().randrange((high - low) // width) * width + 3

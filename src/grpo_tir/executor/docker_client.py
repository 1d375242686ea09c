"""Run the runner in a closed container on a Docker engine.

The container has no network, a read-only root, no capabilities except changing user ids, limits on memory and
processes, and one small tmpfs for each slot. It is attached by stdin and stdout and ends when they close.
"""

import contextlib
import hashlib
import json
import os
import random
import socket
import struct
from typing import Any

from grpo_tir.config import ExecutorConfig
from grpo_tir.errors import ExecutorUnavailable
from grpo_tir.utils.resources import sandbox_dir

PROCESSES = 32
"""Largest number of processes and threads of one call."""
FOLDER_MB, FOLDER_FILES = 16, 1024
LABEL = "grpo-tir.owner"
"""Label of our containers, for `docker ps --filter label=grpo-tir.owner`: host and process id of the run."""

RUNNER_FILES = ("runner.py", "zygote.py", "child.py", "kernel.py", "usage.py", "packages.py")


def connect(host: str | None) -> Any:
    """Return the SDK's client of an engine.

    Raises:
        ExecutorUnavailable: the SDK is missing, or no engine answers.
    """
    name = host or "the local engine"
    try:
        import docker
    except ImportError:
        raise ExecutorUnavailable("the docker package is missing: pip install docker") from None
    try:
        if host is None:
            client = docker.from_env(timeout=60)
        else:
            client = docker.DockerClient(base_url=host, timeout=60, use_ssh_client=host.startswith("ssh://"))
        client.ping()
    except Exception as error:  # the SDK lets errors of requests, paramiko, ssl and the socket through
        raise ExecutorUnavailable(
            f"no Docker engine answers at {name} ({first_line(error)}): start it, or set executor.kind to process"
        ) from None
    return client


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


class DockerConnection:
    """Exchange bytes with a runner in an attached container."""

    def __init__(self, client: Any, container: str, sock: Any) -> None:
        self.client, self.container, self.sock = client, container, sock
        self.raw = getattr(sock, "_sock", sock)
        if hasattr(self.raw, "settimeout"):
            self.raw.settimeout(None)
        self.stderr_tail = b""

    def read(self) -> bytes:
        """Read the runner's stdout. The end of its stderr is kept for error messages.

        The SDK's `frames_iter` polls the socket first, and over TLS waits for bytes that are decrypted already.
        """
        while len(header := self.exactly(8)) == 8:
            stream, size = struct.unpack(">BxxxI", header)
            data = self.exactly(size)
            if stream == 1 or not data:
                return data
            self.stderr_tail = (self.stderr_tail + data)[-2000:]
        return b""

    def exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size and (more := self.raw.recv(size - len(data))):  # over ssh, recv waits for all
            data += more
        return data if len(data) == size else b""

    def write(self, data: bytes) -> None:
        self.raw.sendall(data)

    def kill(self) -> None:
        """Shut the socket down first: a reader must not wait for an engine that hangs."""
        with contextlib.suppress(OSError, AttributeError):  # over ssh there is nothing to shut down
            self.raw.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            self.sock.close()
        remove(self.client, self.container)


def remove(client: Any, container: str) -> None:
    """Remove a container. Errors are ignored: the engine is down or has removed it already."""
    import docker
    import requests

    with contextlib.suppress(docker.errors.APIError, requests.RequestException):
        client.api.remove_container(container, force=True, v=True)


class DockerHost:
    """Start containers on one engine."""

    def __init__(self, config: ExecutorConfig, host: str | None = None) -> None:
        self.config, self.host = config, host
        self.name = host or "the local engine"
        self.client = connect(host)
        self.info = self.client.info()
        self.image = find_image(self.client, config.image, self.name)
        self.slots = config.slots or 2 * int(self.info["NCPU"])

    def start(self) -> DockerConnection:
        """Create, attach and start a container, in this order, so that no output is missed."""
        import docker

        try:
            container = self.client.api.create_container(**container_settings(self.config, self.slots, self.info))[
                "Id"
            ]
        except docker.errors.APIError as error:
            raise ExecutorUnavailable(f"{self.name} cannot make the container: {first_line(error)}") from None
        try:
            parameters = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
            sock = self.client.api.attach_socket(container, params=parameters)
            connection = DockerConnection(self.client, container, sock)
            self.client.api.start(container)
        except BaseException as error:
            remove(self.client, container)
            if isinstance(error, docker.errors.APIError):
                raise ExecutorUnavailable(f"{self.name} cannot start the container: {first_line(error)}") from None
            raise
        return connection

    def alive(self) -> bool:
        try:
            return bool(self.client.ping())
        except Exception:  # any error of the transport means that it does not answer
            return False

    def facts(self) -> dict[str, Any]:
        return {"kind": "docker", "engine": self.info["ServerVersion"], "image": self.image}

    def close(self) -> None:
        self.client.close()


def runner_version() -> str:
    """Hash the runner's files. An image made from other files is refused."""
    digest = hashlib.sha256()
    for name in RUNNER_FILES:
        digest.update((sandbox_dir() / name).read_bytes())
    return digest.hexdigest()[:16]


def find_image(client: Any, name: str, engine: str) -> str:
    """Return the id of the image, if its runner is the one of this package.

    Raises:
        ExecutorUnavailable: the image is missing or of another version; the message names the remedy.
    """
    import docker

    try:
        image = client.images.get(name)
    except docker.errors.ImageNotFound:
        raise ExecutorUnavailable(f"{engine} has no image `{name}`: run `grpo-tir sandbox build`") from None
    if image.labels.get("grpo-tir.runner") != runner_version():
        raise ExecutorUnavailable(
            f"image `{name}` on {engine} is of another version: run `grpo-tir sandbox build`"
        )
    return str(image.id)


def container_settings(config: ExecutorConfig, slots: int, info: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the container. docs/sandbox.md explains each and how it is tested."""
    import docker

    uid = 20_003 + random.SystemRandom().randrange(40_000 // (slots + 3)) * (slots + 3)
    memory = min(slots * (config.memory_mb + FOLDER_MB) + 768 << 20, int(info["MemTotal"] * 0.9))
    settings = {"slots": slots, "memory_mb": config.memory_mb, "processes": PROCESSES, "walls": "container",
                "folders": "/slots", "uid_base": uid}  # fmt: skip
    folder = f"size={FOLDER_MB}m,nr_inodes={FOLDER_FILES},mode=0700,nosuid,nodev,noexec"
    profile = (sandbox_dir() / "seccomp.json").read_text()
    host_config = docker.types.HostConfig(
        version="1.41",
        network_mode="none", ipc_mode="none", read_only=True, auto_remove=True,
        cap_drop=["ALL"], cap_add=["SETUID", "SETGID"],
        security_opt=["no-new-privileges", f"seccomp={json.dumps(json.loads(profile))}"],
        mem_limit=memory, memswap_limit=memory, pids_limit=slots * PROCESSES + 32,
        log_config=docker.types.LogConfig(type="none"),
        tmpfs={f"/slots/{slot}": f"{folder},uid={uid + slot},gid={uid + slot}" for slot in range(slots)},
        ulimits=[docker.types.Ulimit(name="core", soft=0, hard=0)],
    )  # fmt: skip
    return {
        "image": config.image, "command": [json.dumps(settings)], "stdin_open": True, "detach": False,
        "network_disabled": True, "host_config": host_config,
        "labels": {LABEL: f"{socket.gethostname()}:{os.getpid()}"},
    }  # fmt: skip

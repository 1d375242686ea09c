"""Check once whether the Hugging Face Hub answers, and locate models.

Without a network, the Hub's client retries each file six times over half a minute. So the Hub is tested first,
with one connection. If it fails, the client is set offline; it then finds only files in its cache.
"""

import functools
import os
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

from grpo_tir.errors import ModelError

SECONDS = 5.0  # timeout of the connection


@functools.cache
def go_offline_if_unreachable() -> None:
    """Set the Hub's client offline if the Hub does not answer. Call before the first request."""
    proxies = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")
    if os.environ.get("HF_HUB_OFFLINE") or any(os.environ.get(n) or os.environ.get(n.lower()) for n in proxies):
        return
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if fault := _fault(endpoint):
        print(
            f"the Hub does not answer at {endpoint} ({fault}): only files in its cache are used", file=sys.stderr
        )
        os.environ["HF_HUB_OFFLINE"] = "1"  # for modules that are imported later, and for child processes
        if constants := sys.modules.get("huggingface_hub.constants"):
            constants.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]


def locate_model(path: str) -> str:
    """Return the folder or Hub id of a model or tokenizer, in the form that `from_pretrained` takes.

    Raises:
        ModelError: `path` looks like a folder, but does not exist.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return str(folder)
    if path.startswith((".", "/", "~")) or path.count("/") != 1:  # else the client asks the Hub, with retries
        raise ModelError(
            f"no model folder at {path}; model.path is a folder or a Hub id such as Qwen/Qwen2.5-0.5B"
        )
    go_offline_if_unreachable()
    return path


def _fault(endpoint: str) -> str | None:
    """Try to connect to a URL. Returns the reason of the failure, or None if a connection was made."""
    parts = urlsplit(endpoint)
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or "", port), timeout=SECONDS).close()
    except (OSError, ValueError) as error:  # ValueError: an invalid port
        return getattr(error, "strerror", None) or str(error)
    return None

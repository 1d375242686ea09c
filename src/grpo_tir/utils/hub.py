"""Find out once whether the Hugging Face Hub answers, and locate models.

Without a network, the Hub's client retries each file six times over half a minute. One connection attempt tells
first. If it fails, the client is set offline; files in its cache are still found.
"""

from __future__ import annotations

import functools
import os
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

from grpo_tir.errors import ModelError

TRIES, SECONDS = 2, 5.0


@functools.cache
def go_offline_if_unreachable() -> None:
    """Set the Hub's client offline if the Hub does not answer. Call before the first request."""
    proxies = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")
    if os.environ.get("HF_HUB_OFFLINE") or any(os.environ.get(n) or os.environ.get(n.lower()) for n in proxies):
        return
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if fault := _fault(endpoint):
        print(
            f"the Hub does not answer at {endpoint} ({fault}): only what is in its cache is found", file=sys.stderr
        )
        os.environ["HF_HUB_OFFLINE"] = "1"  # for what is imported later, and other processes
        if constants := sys.modules.get("huggingface_hub.constants"):
            constants.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]


def locate_model(path: str) -> str:
    """Return the folder or Hub id of a model or tokenizer, as `from_pretrained` takes it.

    Raises:
        ModelError: it looks like a folder, and there is none.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return str(folder)
    if path.startswith((".", "/", "~")) or path.count("/") != 1:  # the Hub would be asked, with retries
        raise ModelError(
            f"no model folder at {path}; model.path is a folder or a Hub id such as Qwen/Qwen2.5-0.5B"
        )
    go_offline_if_unreachable()
    return path


def _fault(endpoint: str) -> str | None:
    """Return why no connection can be made; None if one was made."""
    parts = urlsplit(endpoint)
    fault = None
    for _ in range(TRIES):
        try:
            port = parts.port or (443 if parts.scheme == "https" else 80)
            socket.create_connection((parts.hostname or "", port), timeout=SECONDS).close()
            return None
        except (OSError, ValueError) as error:  # ValueError: a port that is none
            fault = getattr(error, "strerror", None) or str(error)
    return fault

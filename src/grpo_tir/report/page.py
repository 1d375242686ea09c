"""`grpo-tir report RUN [RUN…]`: one HTML file that shows what was learned, and how.

    RUN/config.yaml  metadata.json  metrics.jsonl  rollouts/step_*.jsonl
          └── read.py ──► figures, tables       └── traces.py ──► summaries, whole trajectories
                                   └──────── page.html + .css + .js ────────┘

The file opens from disk and never asks the network for anything: its own content security policy forbids it, and
names the hashes of its one script and one style sheet, so nothing a model wrote can run either. Whatever came from
a model reaches the page as compressed JSON and is only ever shown as text.

Everything is embedded as base64 of gzip: the figures decode at once, each group of trajectories when it is opened.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import html
import os
import re
from importlib import resources
from pathlib import Path

from grpo_tir.errors import UserError
from grpo_tir.report.read import Run, pack, read_runs
from grpo_tir.report.traces import Traces

MAX_CHUNK_CHARACTERS = 45_000_000
"""Of embedded trajectories, so that the whole page stays under 50 MB."""


def write_report(runs: list[Path], out: Path, *, title: str | None = None) -> Path:
    """Write one page about one or several runs, whole or not at all.

    Raises:
        UserError: a run that is not one, or a place that cannot be written.
    """
    page = build_page(read_runs(runs), title=title)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(out)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UserError(
            f"cannot write the report {out}: {error.strerror or error}; choose another --out"
        ) from None
    return out


def build_page(runs: list[Run], *, title: str | None = None) -> str:
    """The page as text; the same runs give the same bytes."""
    return frame(title or " · ".join(run.name for run in runs), build_chunks(runs))


def build_chunks(runs: list[Run]) -> dict[str, str]:
    """What the page shows: `data`, and `g0`, `g1`, … for the groups of trajectories kept whole; packed."""
    traces = Traces(runs, max_characters=MAX_CHUNK_CHARACTERS)
    data = {
        "runs": [run.as_data() for run in runs],
        "traces": traces.as_data(),
    }
    return {"data": pack(data), **{f"g{i}": chunk for i, chunk in enumerate(traces.chunks)}}


def frame(title: str, chunks: dict[str, str], live: str | None = None) -> str:
    """The page around its chunks; `live` is their version where a server will be asked for newer ones."""
    style = _asset("page.css")
    script = _asset("charts.js") + _asset("browser.js") + (_asset("live.js") if live else "")
    connect = "; connect-src 'self'" if live else ""
    parts = {
        "LIVE": f' data-version="{live}"' if live else "",
        "TITLE": html.escape(title.encode("utf-8", "replace").decode("utf-8")),
        "CSP": f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}{connect}",
        "STYLE": style,
        "SCRIPT": script,
        "CHUNKS": "\n".join(
            f'<script type="text/plain" id="{name}">{text}</script>' for name, text in chunks.items()
        ),
    }
    return re.sub(r"\{\{([A-Z]+)\}\}", lambda match: parts[match[1]], _asset("page.html"))


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"

"""Write the report of `grpo-tir report RUN [RUN…]`: one HTML file with figures, tables and trajectories.

    RUN/config.yaml  metadata.json  metrics.jsonl  rollouts/step_*.jsonl
          └── read.py ──► figures, tables       └── traces.py ──► summaries, full trajectories
                                   └──────── page.html + .css + .js ────────┘

The file opens from disk and makes no network request. Its content security policy forbids requests and allows only
one script and one style sheet, by their hashes, so that no text of a model can run as code. Text of a model is
embedded as compressed JSON and is shown as text only.

All data is embedded as base64 of gzip. The figures are decoded at once, a group of trajectories when it is opened.
"""

import base64
import hashlib
import html
import re
from importlib import resources
from pathlib import Path

from grpo_tir.errors import UserError
from grpo_tir.report.read import Run, pack, read_runs
from grpo_tir.report.traces import Traces
from grpo_tir.utils.files import write_atomically

MAX_CHUNK_CHARACTERS = 45_000_000
"""Maximum size of all embedded trajectories, so that the page stays under 50 MB."""


def write_report(runs: list[Path], out: Path, *, title: str | None = None, before: str = "") -> Path:
    """Write one page about runs, atomically. Its default title is their names. `before` is HTML above the figures.

    Raises:
        UserError: a folder is not a run, or `out` cannot be written.
    """
    page = build_page(read_runs(runs), title=title, before=before)
    try:
        write_atomically(out, page)
    except OSError as error:
        raise UserError(
            f"cannot write the report {out}: {error.strerror or error}; choose another --out"
        ) from None
    return out


def build_page(runs: list[Run], *, title: str | None = None, before: str = "") -> str:
    """Return the page as text. The same runs give the same bytes."""
    return frame(title or " · ".join(run.name for run in runs), build_chunks(runs), before=before)


def build_chunks(runs: list[Run]) -> dict[str, str]:
    """Return the packed data of the page: `data`, and `g0`, `g1`, … for the groups kept in full."""
    traces = Traces(runs, max_characters=MAX_CHUNK_CHARACTERS)
    data = {"runs": [run.as_data() for run in runs], "traces": traces.as_data()}
    return {"data": pack(data), **{f"g{i}": chunk for i, chunk in enumerate(traces.chunks)}}


def frame(title: str, chunks: dict[str, str], live: str | None = None, before: str = "") -> str:
    """Return the page with its packed data. `live` is the data's version if a server offers newer data."""
    style = _asset("page.css")
    script = _asset("charts.js") + _asset("browser.js") + (_asset("live.js") if live else "")
    connect = "; connect-src 'self'" if live else ""
    parts = {
        "LIVE": f' data-version="{live}"' if live else "",
        "TITLE": escaped(title),
        "CSP": f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}{connect}",
        "FINDINGS": before,
        "STYLE": style,
        "SCRIPT": script,
        "CHUNKS": "\n".join(
            f'<script type="text/plain" id="{name}">{text}</script>' for name, text in chunks.items()
        ),
    }
    return re.sub(r"\{\{([A-Z]+)\}\}", lambda match: parts[match[1]], _asset("page.html"))


def escaped(value: object) -> str:
    """Return text as HTML that shows it."""
    return html.escape(str(value).encode("utf-8", "replace").decode("utf-8"))


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"

"""Read run folders, also incomplete ones, those of an older version, and those of a running job.

A line that is not complete JSON is left out and counted. NaN and infinity become "not recorded", because no chart
can show them. If a step is logged twice (an evaluation line, or steps repeated after a resume), the later value of
each key is kept. Only a folder with nothing to show is an error.
"""

import base64
import gzip
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from grpo_tir.config import Config
from grpo_tir.errors import UserError
from grpo_tir.monitor.alarms import MEMORY, WINDOW, Alarm, Line, find_alarms, trained_lines
from grpo_tir.utils.recipe import load_config


@dataclass
class Run:
    """One run in memory, without its rollouts."""

    path: Path
    name: str
    config: dict[str, Any]
    metadata: dict[str, Any]
    steps: list[int]
    metrics: dict[str, list[float | None]]
    """One column for each metric, aligned with `steps`; None: not recorded."""
    rollout_files: list[Path]
    alarms: list[tuple[int, int, str]] = field(default_factory=list)
    """First step, last step and text of each alarm."""
    notes: list[str] = field(default_factory=list)
    """Messages for the page: what is missing or could not be read."""

    def as_data(self) -> dict[str, Any]:
        """Return the data that the page needs."""
        shown = ("name", "config", "metadata", "steps", "metrics", "alarms", "notes")
        return {name: getattr(self, name) for name in shown}


def read_runs(paths: list[Path]) -> list[Run]:
    """Read all runs and give them different names. A folder that contains runs stands for all of them.

    Raises:
        UserError: one of the paths is not a run.
    """
    runs = [read_run(run) for path in paths for run in runs_beneath(path)]
    for i, run in enumerate(runs):
        if run.name in {other.name for other in runs[:i]}:
            run.name = f"{run.name} #{i + 1}"
    return runs


def runs_beneath(path: Path) -> list[Path]:
    """Return the runs in a folder; the path itself if it is a run or contains none."""
    if (path / "metrics.jsonl").is_file() or (path / "rollouts").is_dir():
        return [path]
    found = [file.parent for depth in ("*", "*/*") for file in path.glob(f"{depth}/metrics.jsonl")]
    return sorted(found) or [path]


def read_run(path: Path) -> Run:
    """Read one run folder.

    Raises:
        UserError: it does not exist, or has neither metrics nor rollouts.
    """
    if not path.is_dir():
        raise UserError(f"{path} is not a run directory: give the output_dir of a training run")
    notes: list[str] = []
    rollout_files = sorted((path / "rollouts").glob("step_*.jsonl"))
    metrics_file = path / "metrics.jsonl"
    if not metrics_file.is_file() and not rollout_files:
        raise UserError(f"{path} has neither metrics.jsonl nor rollouts/step_*.jsonl: give the folder of a run")
    metadata = _mapping(path / "metadata.json", notes)
    steps, metrics = _columns(metrics_file, notes)
    if not rollout_files:
        notes.append("No rollouts were recorded, so there are no trajectories to browse.")
    name = metadata.get("name")
    name = Path(name).name if isinstance(name, str) and Path(name).name else path.resolve().name
    config = _mapping(path / "config.yaml", notes)
    alarms = _alarms(path / "config.yaml", steps, metrics)
    return Run(path, name, config, metadata, steps, metrics, rollout_files, alarms, notes)


def json_lines(path: Path, notes: list[str] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (byte offset, object) of each complete line. A running job may still be writing the last line."""
    bad = offset = 0
    try:
        with path.open("rb") as file:
            for line in file:
                value = parsed(line)
                # A line without "\n" is still being written.
                bad += bool(line.strip()) and value is None and line.endswith(b"\n")
                if value is not None:
                    yield offset, value
                offset += len(line)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    if bad and notes is not None:
        notes.append(f"{path.name}: {bad} line{'s' * (bad > 1)} left out: not complete JSON.")


def parsed(line: bytes) -> dict[str, Any] | None:
    """Parse a line as a JSON object; None if it is incomplete or no object."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def number(value: Any) -> float | None:
    """Return a finite number with seven digits, enough for a chart; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(f"{value:.7g}") if math.isfinite(value) else None
    except OverflowError:  # an integer beyond float64
        return None


def clean(value: Any) -> Any:
    """Return `value` as plain JSON: dates of YAML and other types become text, NaN becomes None."""
    if isinstance(value, dict):
        return {str(key): clean(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [clean(inner) for inner in value]
    if isinstance(value, float):
        return number(value)
    return value if value is None or isinstance(value, str | int) else str(value)


def pack(value: Any) -> str:
    """Pack as JSON, gzip, base64. This cannot end a `<script>` element, and lone surrogates are kept as
    escapes."""
    plain = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(plain.encode("ascii"), compresslevel=6, mtime=0)).decode("ascii")


def decoder(run: Run) -> Any:
    """Load the tokenizer of a checkpoint or of the model's folder. None: there is none, the page shows ids."""
    model = run.config.get("model")
    folders = sorted((run.path / "checkpoints").glob("step_*"))
    folders += [Path(str(model.get("path", "")))] if isinstance(model, dict) else []
    file = next((folder / "tokenizer.json" for folder in folders if (folder / "tokenizer.json").is_file()), None)
    if file is None:
        return None
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception
        run.notes.append(f"{file.parent.name}/{file.name} could not be read; tokens are shown as ids: {error}")
        return None


def _columns(path: Path, notes: list[str]) -> tuple[list[int], dict[str, list[float | None]]]:
    """Read metrics.jsonl as steps and columns."""
    rows: dict[int, dict[str, float]] = {}
    if path.is_file():
        for _, line in json_lines(path, notes):
            step = number(line.get("step"))
            if step is None:
                continue
            row = rows.setdefault(int(step), {})
            row.update({key: value for key in line if (value := number(line[key])) is not None and key != "step"})
    if not any(rows.values()):
        notes.append("No metrics were recorded, so there are no figures to draw.")
    steps = sorted(step for step in rows if rows[step])
    keys = dict.fromkeys(key for step in steps for key in rows[step])
    return steps, {key: [rows[step].get(key) for step in steps] for key in keys}


def _alarms(recipe: Path, steps: list[int], metrics: dict[str, list[float | None]]) -> list[tuple[int, int, str]]:
    """Return the alarms of the run, with the limits of its recipe, or default limits if that cannot be read."""
    try:
        config = load_config(recipe)
    except UserError:
        config = Config()
    lines = [{"step": step, **{key: column[i] for key, column in metrics.items()}} for i, step in enumerate(steps)]
    return [(first, last, alarm.text) for first, last, alarm in alarm_stretches(lines, config)]


def alarm_stretches(history: Sequence[Line], config: Config) -> list[tuple[int, int, Alarm]]:
    """Return (first step, last step, first alarm) for each unbroken stretch of an alarm, oldest first."""
    stretches: list[tuple[int, int, Alarm]] = []
    open_at: dict[str, int] = {}  # index in `stretches` of each alarm that holds
    trained = trained_lines(history)
    for end in range(1, len(trained) + 1):
        step = int(trained[end - 1].get("step") or 0)
        seen = [*trained[: min(WINDOW, end)], *trained[max(WINDOW, end - MEMORY) : end]]
        found = {alarm.name: alarm for alarm in find_alarms(seen, config)}
        open_at = {name: index for name, index in open_at.items() if name in found}
        for name, alarm in found.items():
            if name in open_at:
                first, _, first_alarm = stretches[open_at[name]]
                stretches[open_at[name]] = (first, step, first_alarm)
            else:
                open_at[name] = len(stretches)
                stretches.append((step, step, alarm))
    return stretches


def _mapping(path: Path, notes: list[str]) -> dict[str, Any]:
    """Read a YAML or JSON mapping. Returns an empty one if it does not exist or, with a note, cannot be read."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        value = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, yaml.YAMLError):
        value = None
    if not isinstance(value, dict):
        notes.append(f"{path.name} could not be read.")
        return {}
    found: dict[str, Any] = clean(value)
    return found

r"""Learning impact measurement (LIMR, arXiv 2502.11886): which problems taught the run that met them.

    s_i = 1 - sum_k (r_i^k - avg^k)^2 / sum_k (1 - avg^k)^2

r_i^k is the share of right answers to problem i in epoch k, avg^k its mean over the problems: a problem whose
accuracy rises as the average one's does scores near 1, one that is always right 0, one that never comes may fall
below. Selected is s_i >= threshold: 0.6 on the released scores gives the released 1,389 (with > it gives 1,324).

A history is the `problem_rewards.jsonl` of a run, JSONL with one visit or one problem a line, or a JSON object
{id: [accuracy of epoch 0, …]}; null is an epoch without a verdict. A number in place of the list is a finished
score.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from grpo_tir.data.rows import Numeral, kind, read_rows, short
from grpo_tir.errors import DataError

Missing = Literal["next", "drop", "observed"]
MIN_SEEN = 0.5
"""Share of the problems below which an epoch is left out: a run that stopped in it saw only some of them."""
_DIGITS = 9
"""Scores are rounded to so many, lest the last bit of a sum decides at the threshold."""


@dataclass
class History:
    """Accuracy of each problem in each epoch it was met in, or its finished score."""

    visits: dict[str, dict[int, float]] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    """One line for each row that could not be used."""
    met: Counter[str] = field(default_factory=Counter)
    """How often each problem was visited: its epoch, where the history does not say."""
    unjudged: int = 0
    """Visits without one verdict: all rollouts were set aside, or the group was replaced."""


@dataclass
class LimScores:
    """Scores by problem, in the order of the history, and what was done about gaps."""

    scores: dict[str, float]
    accuracy: dict[str, float] = field(default_factory=dict)
    """Mean over the epochs: the difficulty of the problem for this run."""
    epochs: list[int] = field(default_factory=list)
    thin_epochs: dict[int, int] = field(default_factory=dict)
    """Epochs left out, with the number of problems seen in them."""
    filled: int = 0
    dropped: list[str] = field(default_factory=list)


def lim_scores(visits: Mapping[str, Mapping[int, float]], missing: Missing = "next") -> LimScores:
    """Score every problem.

    Args:
        visits: accuracy in [0, 1] by problem and epoch.
        missing: what to do about a problem that an epoch lacks. `next`: take its following epoch's value, where
            there is one (the reference), else drop it; `drop`: drop it; `observed`: score the epochs it has.
    """
    seen = {epoch: 0 for epoch in sorted({epoch for by_epoch in visits.values() for epoch in by_epoch})}
    for by_epoch in visits.values():
        for epoch in by_epoch:
            seen[epoch] += 1
    kept = [epoch for epoch, number in seen.items() if number >= MIN_SEEN * len(visits)]
    result = LimScores({}, epochs=kept, thin_epochs={e: n for e, n in seen.items() if e not in kept})
    rows: dict[str, list[float | None]] = {}
    for name, by_epoch in visits.items():
        row = [by_epoch.get(epoch) for epoch in kept]
        if missing == "next":
            following = [*row[1:], None]
            result.filled += sum(r is None and after is not None for r, after in zip(row, following))
            row = [after if r is None else r for r, after in zip(row, following)]
        if None in row and (missing != "observed" or not any(r is not None for r in row)):
            result.dropped.append(name)
        else:
            rows[name] = row
    average = [fmean(r for r in column if r is not None) for column in zip(*rows.values())]
    for name, row in rows.items():
        result.scores[name] = _score(row, average)
        result.accuracy[name] = fmean(r for r in row if r is not None)
    return result


def _score(row: Sequence[float | None], average: Sequence[float]) -> float:
    pairs = [(r, mean) for r, mean in zip(row, average) if r is not None]
    apart = sum((r - mean) ** 2 for r, mean in pairs)
    room = sum((1 - mean) ** 2 for _, mean in pairs)
    # Every problem is always right: 0, as for such a problem among any others.
    return round(1 - apart / room, _DIGITS) if room else 0.0


def read_history(path: Path, on_bad: str = "stop") -> History:
    """Read a run's folder, a history file or a file of scores.

    Raises:
        DataError: no such file, nothing usable in it, or a bad row under `stop`, by file and line.
    """
    if path.is_dir():
        path = path / "problem_rewards.jsonl"
        if not path.is_file():
            raise DataError(f"no {path}: a run writes it from its first step on; name a run's folder or a file")
    history = History()
    for where, row in _objects(path):
        try:
            _take(history, row)
        except ValueError as error:
            fault = f"{path} {where}: {error}"
            if on_bad != "skip":
                raise DataError(f"{fault} (`--on-bad skip` leaves such rows out)") from None
            history.skipped.append(fault)
    if not history.visits and not history.scores:
        raise DataError(f"{path} holds no score and no reward; {next(iter(history.skipped), 'it is empty')}")
    if history.visits and history.scores:
        raise DataError(f"{path} mixes finished scores with rewards of epochs: give one of them")
    return history


def _objects(path: Path) -> Iterable[tuple[str, Any]]:
    """Rows, or the pairs of one JSON object, each with its line."""
    if path.suffix != ".json" or not path.is_file() or path.read_bytes()[:64].strip()[:1] != b"{":
        yield from read_rows(str(path))
        return
    try:
        text = path.read_text(encoding="utf-8")
        pairs = json.loads(text, object_pairs_hook=list, parse_int=Numeral, parse_float=Numeral)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        fault = "wrong encoding: not UTF-8; convert the file with `iconv -t UTF-8`"
        raise DataError(f"{path} line {line}: {fault}") from None
    except (ValueError, RecursionError) as error:
        line, reason = getattr(error, "lineno", 1), getattr(error, "msg", "nested too deeply")
        raise DataError(f"{path} line {line}: wrong JSON: {reason}") from None
    at = 0
    for name, value in pairs:
        key = json.dumps(name, ensure_ascii=False)
        at = max(at, text.find(key, at) + len(key))
        yield f"line {text.count(chr(10), 0, at) + 1}", {"id": name, "values": value}


def _take(history: History, row: Any) -> None:
    """Put one row in its place. ValueError: what is wrong with it."""
    if isinstance(row, ValueError):
        raise row
    if not isinstance(row, dict):
        raise ValueError(f"a row is an object, this is {kind(row)}")
    name = row.get("problem_id", row.get("id"))
    if not isinstance(name, str) or not name.strip():
        raise ValueError("`id` is empty" if isinstance(name, str) else "no `problem_id` and no `id`")
    name = str(name)
    if "step" in row or "epoch" in row:
        _take_visit(history, name, row)
        return
    if name in history.visits or name in history.scores:
        raise ValueError(f"the id {short(name)} stands here a second time")
    values = next((row[key] for key in ("values", "score", "accuracy", "rewards") if key in row), None)
    if isinstance(values, list):
        history.visits[name] = {epoch: _share(value) for epoch, value in enumerate(values) if value is not None}
    else:
        history.scores[name] = _number(values)


def _take_visit(history: History, name: str, row: dict[str, Any]) -> None:
    """One problem in one epoch. A history without `epoch` counts the visits: the sampler gives each problem once
    an epoch."""
    by_epoch = history.visits.setdefault(name, {})
    values: Any = next((row[key] for key in ("correct", "accuracy", "rewards") if row.get(key) is not None), [])
    shares = [_share(value) for value in (values if isinstance(values, list) else [values]) if value is not None]
    epoch = int(_number(row["epoch"])) if "epoch" in row else history.met[name]
    history.met[name] += 1
    if epoch in by_epoch:
        raise ValueError(f"the id {short(name)} has epoch {epoch} a second time")
    if shares:
        by_epoch[epoch] = fmean(shares)
    else:
        history.unjudged += 1


def _number(value: Any) -> float:
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise ValueError(f"a score is a number, this is {kind(value)}")
    try:
        number = float(value)
    except ValueError:
        raise ValueError(f"a score is a number, this is {short(str(value))!r}") from None
    if not math.isfinite(number):
        raise ValueError(f"{short(str(value))} is no finite number")
    return number


def _share(value: Any) -> float:
    number = _number(value)
    if not 0 <= number <= 1:
        raise ValueError(f"{short(str(value))} is no accuracy: LIM's rewards lie between 0 (wrong) and 1 (right)")
    return number

r"""Learning impact measurement (LIMR, arXiv 2502.11886): score how much a run learned from each problem.

    s_i = 1 - sum_k (r_i^k - avg^k)^2 / sum_k (1 - avg^k)^2

r_i^k is the share of right answers to problem i in epoch k. avg^k is its mean over the problems. A problem whose
accuracy rises like the average scores near 1. A problem that is always right scores 0. A problem that is never
right may score below 0. A problem is selected if s_i >= threshold: 0.6 on the released scores gives the released
1,389 problems (> gives 1,324).

Two inputs are read: the `problem_rewards.jsonl` of a run, from which scores are computed, and the released form of
finished scores, a JSON object {id: score}.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from grpo_tir.data.rows import columns, kind, parse_json, read_rows, short
from grpo_tir.errors import DataError

MIN_SEEN = 0.5
"""Share of the problems that an epoch must cover. An epoch in which the run stopped covers only some of them."""
_DIGITS = 9
"""Decimals to which scores are rounded, so that rounding errors of a sum do not decide at the threshold."""


@dataclass
class History:
    """Accuracy of each problem in each of its epochs, or finished scores."""

    visits: dict[str, dict[int, float]] = field(default_factory=dict)
    """Share of right answers in [0, 1] by problem id and epoch."""
    scores: dict[str, float] = field(default_factory=dict)
    unjudged: int = 0
    """Visits without a graded rollout: all rollouts were invalid, or dynamic sampling replaced the group."""


@dataclass
class LimScores:
    """Scores by problem, in the order of the history, and how missing epochs were treated."""

    scores: dict[str, float]
    epochs: list[int] = field(default_factory=list)
    thin_epochs: dict[int, int] = field(default_factory=dict)
    """Epochs left out, with the number of problems seen in them."""
    filled: int = 0
    """Missing values that were taken from the next epoch."""
    dropped: list[str] = field(default_factory=list)


def lim_scores(visits: Mapping[str, Mapping[int, float]]) -> LimScores:
    """Compute the LIM score of every problem.

    A missing value is taken from the problem's next epoch, as the reference does. A problem with a value missing
    in two epochs running, or in the last one, is dropped. `visits` are accuracies in [0, 1] by problem and epoch.
    """
    # 1. Leave out epochs that cover too few problems.
    seen = Counter(epoch for by_epoch in visits.values() for epoch in by_epoch)
    kept = [epoch for epoch in sorted(seen) if seen[epoch] >= MIN_SEEN * len(visits)]
    result = LimScores({}, epochs=kept, thin_epochs={e: seen[e] for e in sorted(seen) if e not in kept})
    # 2. Fill or drop missing values.
    curves: dict[str, list[float]] = {}
    for name, by_epoch in visits.items():
        following = [*(by_epoch.get(epoch) for epoch in kept[1:]), None]
        filled = [by_epoch.get(epoch, after) for epoch, after in zip(kept, following)]
        curve = [r for r in filled if r is not None]
        result.filled += len(curve) - sum(epoch in by_epoch for epoch in kept)
        if not curve or len(curve) < len(kept):
            result.dropped.append(name)
        else:
            curves[name] = curve
    # 3. Compare each accuracy curve with the average curve.
    average = [fmean(column) for column in zip(*curves.values())]
    headroom = sum((1 - mean) ** 2 for mean in average)
    for name, curve in curves.items():
        distance = sum((r - mean) ** 2 for r, mean in zip(curve, average))
        # No headroom: every problem is always right. The score is 0, as for such a problem among others.
        result.scores[name] = round(1 - distance / headroom, _DIGITS) if headroom else 0.0
    return result


def read_history(path: Path) -> History:
    """Read a run folder, its `problem_rewards.jsonl`, or finished scores (`.json`).

    Raises:
        DataError: no such file, nothing in it, or a bad row, named by file and line or id.
    """
    if path.is_dir():
        path = path / "problem_rewards.jsonl"
        if not path.is_file():
            raise DataError(f"no {path}: a run writes it from its first step on; name a run's folder or a file")
    history = History()
    finished = path.suffix == ".json"
    for where, row in _finished_scores(path) if finished else read_rows(str(path)):
        try:
            if finished:
                history.scores |= {name: _number(score) for name, score in row.items()}
            else:
                _take_visit(history, row)
        except ValueError as error:
            raise DataError(f"{path} {where}: {error}") from None
    if not history.visits and not history.scores:
        raise DataError(f"{path} holds no score and no reward")
    return history


def _finished_scores(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield ("id ID", {ID: score}) of a JSON object."""
    try:
        found = parse_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    if not isinstance(found, dict):
        fault = found if isinstance(found, ValueError) else f"this is {kind(found)}"
        raise DataError(f"{path} must be one JSON object {{id: score}}: {fault}")
    for name, score in found.items():
        yield f"id {short(name)}", {name: score}


def _take_visit(history: History, row: Any) -> None:
    """Add the accuracy of one problem in one epoch. ValueError: what is wrong with the row."""
    row = columns(row)
    if not isinstance(row.get("correct"), list) or not {"problem_id", "epoch"} <= {*row}:
        raise ValueError("a row of problem_rewards.jsonl has `problem_id`, `epoch` and a list `correct`")
    name, epoch = str(row["problem_id"]), int(_number(row["epoch"]))
    by_epoch = history.visits.setdefault(name, {})
    if epoch in by_epoch:
        raise ValueError(f"the id {short(name)} has epoch {epoch} a second time")
    graded = [_number(value) for value in row["correct"] if value is not None]  # null: a reward did not grade it
    if not all(0 <= accuracy <= 1 for accuracy in graded):
        raise ValueError("LIM's rewards lie between 0 (wrong) and 1 (right)")
    if graded:
        by_epoch[epoch] = fmean(graded)
    else:
        history.unjudged += 1


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"a score is a number, this is {kind(value)}") from None
    if not math.isfinite(number):
        raise ValueError(f"{short(str(value))} is no finite number")
    return number

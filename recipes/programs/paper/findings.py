"""Define the findings of the paper, and judge whether runs in a miniature world reproduce them.

A finding is a statement of the paper as an inequality between two measurements:

    value = first - second  >  bound        (for times: first / second > bound)

The verdict is that of its 95% interval: `reproduced` if the interval lies above the bound, `not reproduced` if it
lies below, else `undecided`. The bounds were written down after one pilot run with c = 2, before all others.

A measurement is a ratio of two sums over the responses of all seeds, such as code that ran over code that was
executed. The interval is a hierarchical bootstrap: seeds are drawn with replacement, and for each drawn seed its
problems, the same for both measurements. With one seed it covers the spread over problems only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 2000
Rows = list[dict[str, Any]]
Results = Mapping[str, Sequence[Mapping[str, Rows]]]
"""Condition, seed, phase: the rows of responses or of steps."""

RATIOS: dict[str, tuple[Callable[[dict[str, Any]], float], Callable[[dict[str, Any]], float]]] = {
    "accuracy": (lambda row: row["correct"] or 0.0, lambda row: 1.0),
    "code": (lambda row: float(row["written"] > 0), lambda row: 1.0),
    "passed": (lambda row: row["passed"], lambda row: row["executed"]),
    "executed": (lambda row: row["executed"], lambda row: row["written"]),
    "recovery": (lambda row: row["recovered"], lambda row: row["failed"]),
    "seconds": (lambda row: row["seconds"], lambda row: 1.0),
}


@dataclass(frozen=True)
class Finding:
    """Describe a statement of the paper. A measurement is `CONDITION PHASE RATIO [SOURCE…]`; no source means all.

    Phases: `greedy_before` and `greedy` are one greedy response to each held-out problem, before and after
    training; `before` and `after` are one sampled response; `steps` are the training steps.
    """

    name: str
    statement: str
    paper: str
    """The paper's figure."""
    first: str
    second: str
    bound: float = 0.0
    is_ratio: bool = False

    @property
    def conditions(self) -> set[str]:
        """Return the names of the conditions that it compares."""
        return {self.first.split()[0], self.second.split()[0]}


RIGHT, INV, SPARE = "greedy accuracy", "tiny/inv", "tiny/spare"
FINDINGS = [
    Finding("tool", "RL with the tool beats RL without", "+9.6 points, 7B", f"c1 {RIGHT}", f"c0 {RIGHT}"),
    Finding("calls", "two calls are better than one", "+2.0 points, 1.5B", f"c2 {RIGHT}", f"c1 {RIGHT}"),
    Finding("calls_dependent", "two calls are better on problems that need two", "not studied",
            f"c2 {RIGHT} {INV}", f"c1 {RIGHT} {INV}"),
    Finding("calls_four", "four calls are better than two", "not studied", f"c4 {RIGHT}", f"c2 {RIGHT}"),
    Finding("time_tool", "a call takes time", "237 s / 118 s = 2.0",
            "c1 steps seconds", "c0 steps seconds", 1.5, True),
    Finding("time_calls", "a second call takes time", "288 s / 237 s = 1.2",
            "c2 steps seconds", "c1 steps seconds", 1.1, True),
    Finding("code", "the code ratio rises", ".36 to .93", "c1 after code", "c1 before code"),
    Finding("pass", "the pass ratio rises", ".80 to .83", "c1 after passed", "c1 before passed"),
    Finding("executed", "the executed ratio rises", ".66 to .84", "c1 after executed", "c1 before executed"),
    Finding("recovery", "failed calls get repaired", "examples",
            f"c2 after recovery {INV}", f"c2 before recovery {INV}"),
    Finding("useless", "useless code disappears", "examples", f"c1 before code {SPARE}", f"c1 after code {SPARE}"),
    Finding("chooses", "calls are made to compute, not to read", "examples",
            "c1 after code tiny/mul tiny/mod", "c1 after code tiny/pick", 0.2),
    Finding("chooses_price", "at a price of 0.1 a call, they are made only to compute", "not studied",
            "price after code tiny/mul tiny/mod", "price after code tiny/pick", 0.2),
    Finding("chooses_unscaled", "the same without dividing advantages by their std", "not studied",
            "price_unscaled after code tiny/mul tiny/mod", "price_unscaled after code tiny/pick", 0.2),
    Finding("price", "a price of 0.1 a call costs no accuracy", "not studied",
            f"price {RIGHT}", f"c1 {RIGHT}", -0.02),
    Finding("penalty", "a penalty for failing code does not help", "+0.1 points",
            f"c1 {RIGHT}", f"penalty {RIGHT}", -0.02),
    Finding("penalty_reference", "nor does the penalty as the reference ran it", "+0.1 points",
            f"c1 {RIGHT}", f"penalty_reference {RIGHT}", -0.02),
    Finding("group", "G = 16 beats G = 4 with as many responses", "not studied", f"c1 {RIGHT}", f"g4 {RIGHT}"),
    Finding("sft", "RL from the base beats SFT", "+8.6 points, 7B", f"c1 {RIGHT}", "sft greedy_before accuracy"),
    Finding("sft_start", "RL from the base does as well as RL after SFT", "not studied",
            f"c1 {RIGHT}", f"sft {RIGHT}", -0.02),
]  # fmt: skip
WORDS = {
    "c0": "c = 0", "c1": "c = 1", "c2": "c = 2", "c4": "c = 4", "g4": "G = 4", "sft": "SFT start",
    "penalty": "penalty -0.5", "penalty_reference": "penalty of the reference", "price": "a call costs 0.1",
    "price_unscaled": "a call costs 0.1, no division by the std",
    "greedy_before": "before training, greedy", "greedy": "after training, greedy", "steps": "while training",
    "before": "before training, sampled", "after": "after training, sampled",
    "accuracy": "accuracy", "code": "code ratio", "passed": "pass ratio", "executed": "executed ratio",
    "recovery": "repaired share of failed calls", "seconds": "seconds of a step",
}  # fmt: skip
"""Conditions, phases and ratios in words."""
EXAMPLES = [
    ("tool", "Solved only with the tool", "c0 greedy -correct", "c1 greedy correct calls"),
    ("calls_dependent", "One call is not enough", f"c1 greedy -correct {INV}", "c2 greedy correct recovered"),
    ("recovery", "A repaired error", f"c2 before -recovered {INV}", "c2 after recovered correct"),
    ("useless", "A needless call that disappears", f"c1 before calls {SPARE}", "c1 after correct -calls"),
    ("chooses", "A needless call that appears", "c1 before correct -calls tiny/pick", "c1 after calls"),
    ("chooses_price", "A needed call that is gone", "price before calls correct", "price after -calls -correct"),
    ("chooses_unscaled", "Solved without the tool",
     "price_unscaled before calls tiny/pick", "price_unscaled after correct -calls"),
    ("penalty_reference", "A call that only avoids the penalty",
     f"penalty_reference before -calls {SPARE}", "penalty_reference after calls"),
]  # fmt: skip
"""Finding, title, and responses to one problem: `CONDITION PHASE KEY… SOURCE`; `-KEY` is a key that must be 0."""
RULE = (
    "A finding is reproduced if the whole 95% interval of (first - second), for times of (first / second), lies "
    "above the bound, not reproduced if it lies below, else undecided. The bounds were set after one pilot run, "
    "before all others. The condition without division by the std was added after the one with it had been seen."
)


def summary(results: Results) -> dict[str, Any]:
    """Return what the page shows: the rule, and each finding whose conditions were run."""
    found = []
    for finding in FINDINGS:
        if finding.conditions <= set(results):
            seeds = len(results[finding.first.split()[0]])
            compared = f"{_in_words(finding.first)}, against {_in_words(finding.second)}; {seeds} seed(s)."
            told = [words for name, *words in EXAMPLES if name == finding.name]
            shown = [example for words in told if (example := _example(words, results))]
            line = {"name": finding.name, "statement": finding.statement, "ran": compared, "examples": shown}
            found.append(line | judge(finding, results))
    return {"rule": RULE, "findings": found}


def judge(finding: Finding, results: Results) -> dict[str, Any]:
    """Return value, interval and verdict of a finding."""
    first, second = (
        [_sums(text, seed) for seed in results[text.split()[0]]] for text in (finding.first, finding.second)
    )
    rng, drawn = np.random.default_rng(0), np.zeros((2, RESAMPLES, 2))
    for _ in first:  # as many draws of a seed as there are seeds
        parts = np.stack([_resampled(*pair, rng) for pair in zip(first, second, strict=True)])
        drawn += parts[rng.integers(len(parts), size=RESAMPLES), :, np.arange(RESAMPLES)].swapaxes(0, 1)
    totals = [np.concatenate(seeds).sum(0) for seeds in (first, second)]
    value, values = _compare(finding, *totals), _compare(finding, *drawn)
    sure = np.isfinite(value) and np.isfinite(values).mean() > 0.95
    interval = [round(float(edge), 4) for edge in np.nanquantile(values, [0.025, 0.975])] if sure else None
    numbers = {"first": _ratio(totals[0]), "second": _ratio(totals[1]), "value": value if sure else np.nan}
    return {
        **{name: round(float(x), 4) if np.isfinite(x) else None for name, x in numbers.items()},
        "interval": interval,
        "bound": finding.bound,
        "is_ratio": finding.is_ratio,
        "paper": finding.paper,
        "verdict": verdict(interval, finding.bound),
    }


def verdict(interval: Sequence[float] | None, bound: float) -> str:
    """Return the verdict of an interval. It is undecided if the interval holds the bound or is missing."""
    if interval is None or interval[0] <= bound <= interval[1]:
        return "undecided"
    return "reproduced" if interval[0] > bound else "not reproduced"


def _in_words(measured: str) -> str:
    condition, phase, ratio, *sources = measured.split()
    return f"{WORDS[ratio]} {WORDS[phase]} ({', '.join([WORDS[condition], *sources])})"


def _example(words: Sequence[str], results: Results) -> dict[str, Any] | None:
    """Return the first problem whose responses all match an entry of EXAMPLES."""
    title, *asked = words
    places = [text.split()[:2] for text in asked]
    if not {condition for condition, _ in places} <= set(results):
        return None
    for seed in range(len(results[places[0][0]])):
        for rows in zip(*(results[condition][seed][phase] for condition, phase in places)):
            if all(_fits(row, key) for row, text in zip(rows, asked) for key in text.split()[2:]):
                who = [f"{WORDS[condition]}, {WORDS[phase]}" for condition, phase in places]
                responses = [{"who": name, "text": row["text"]} for name, row in zip(who, rows)]
                return {"title": title, "problem": rows[0]["problem"], "responses": responses}
    return None


def _fits(row: Mapping[str, Any], key: str) -> bool:
    if key.startswith("tiny/"):
        return bool(row["source"] == key)
    return not row[key[1:]] if key.startswith("-") else bool(row[key])


def _sums(measured: str, phases: Mapping[str, Rows]) -> Any:
    """Return numerators and denominators of a measurement of one seed, (rows, 2)."""
    _, phase, ratio, *sources = measured.split()
    top, bottom = RATIOS[ratio]
    chosen = [row for row in phases[phase] if not sources or row["source"] in sources]
    return np.array([[top(row), bottom(row)] for row in chosen] or [[0, 0]], dtype=float)


def _resampled(first: Any, second: Any, rng: np.random.Generator) -> Any:
    """Return the sums of resampled rows, (2, RESAMPLES, 2).

    If both sides have as many rows, these belong to the same problems in the same order, and are drawn together.
    """
    picks = rng.integers(len(first), size=(RESAMPLES, len(first)))
    others = picks if len(second) == len(first) else rng.integers(len(second), size=(RESAMPLES, len(second)))
    return np.stack([first[picks].sum(1), second[others].sum(1)])


def _compare(finding: Finding, first: Any, second: Any) -> Any:
    return _ratio(first) / _ratio(second) if finding.is_ratio else _ratio(first) - _ratio(second)


def _ratio(sums: Any) -> Any:
    """Divide numerators by denominators, (..., 2) to (...); NaN where the denominator is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(sums[..., 1] > 0, sums[..., 0] / sums[..., 1], np.nan)

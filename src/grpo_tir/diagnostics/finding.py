"""Findings of the doctor's checks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from grpo_tir.errors import GrpoTirError


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's output. The text of a fault ends with its remedy."""

    check: str
    level: Literal["fine", "warning", "fault"]
    text: str


def fine(check: str, text: str) -> Finding:
    """Return a finding without a problem."""
    return Finding(check, "fine", text)


def warning(check: str, text: str) -> Finding:
    """Return a finding that does not stop training but may make it worse."""
    return Finding(check, "warning", text)


def fault(check: str, text: str) -> Finding:
    """Return a finding because of which training would fail or train on something unintended."""
    return Finding(check, "fault", text)


def guarded(check: str, findings: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """Yield the findings of a check. A GrpoTirError becomes a fault and ends only this check."""
    try:
        yield from findings()
    except GrpoTirError as error:
        yield fault(check, str(error))

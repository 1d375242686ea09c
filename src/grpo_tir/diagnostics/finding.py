"""What a check came to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from grpo_tir.errors import GrpoTirError


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's. A fault's text ends with its mend."""

    check: str
    level: Literal["fine", "warning", "fault"]
    text: str


def fine(check: str, text: str) -> Finding:
    """As it should be."""
    return Finding(check, "fine", text)


def warning(check: str, text: str) -> Finding:
    """Training can go on, and may come to less."""
    return Finding(check, "warning", text)


def fault(check: str, text: str) -> Finding:
    """Training would fail, or train on something else than was meant."""
    return Finding(check, "fault", text)


def guarded(check: str, findings: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """The findings; an error of ours among them is a fault, and ends only this check."""
    try:
        yield from findings()
    except GrpoTirError as error:
        yield fault(check, str(error))

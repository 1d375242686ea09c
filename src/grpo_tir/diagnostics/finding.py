"""Findings of the doctor's checks."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

from grpo_tir.errors import GrpoTirError


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's output. The text of a fault ends with its remedy."""

    level: Literal["fine", "warning", "fault"]
    """`warning`: training may be worse. `fault`: it would fail, or train on something unintended."""
    check: str
    text: str


fine, warning, fault = (partial(Finding, level) for level in ("fine", "warning", "fault"))


def guarded(check: str, findings: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """Yield the findings of a check. A GrpoTirError becomes a fault and ends only this check."""
    try:
        yield from findings()
    except GrpoTirError as error:
        yield fault(check, str(error))

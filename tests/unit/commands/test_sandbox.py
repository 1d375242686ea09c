"""`grpo-tir sandbox run --jsonl` ends at once when it is told to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from grpo_tir.commands.sandbox import run_many
from grpo_tir.errors import ExecutorOutage


def test_programs_that_have_not_begun_are_not_run_after_an_outage(tmp_path: Path) -> None:
    class Lost:
        calls = 0

        def run(self, code: str, **options: Any) -> Any:
            self.calls += 1
            raise ExecutorOutage("gone")

    executor = Lost()
    programs = [(number, "print(1)", None) for number in range(2000)]
    with pytest.raises(ExecutorOutage):
        run_many(executor, programs, tmp_path / "out", 1, False)  # type: ignore[arg-type]
    assert executor.calls < len(programs)

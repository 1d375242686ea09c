"""`grpo-tir paper`: test the paper's findings again. The experiment uses the library: recipes/programs/paper."""

from __future__ import annotations

from grpo_tir.utils.recipe import import_program

TAKES_OVERRIDES = True

_command = import_program("paper.command")
add_arguments, run = _command.add_arguments, _command.run

"""`grpo-tir quickstart`: train a tiny model on a CPU, in minutes (recipes/programs/quickstart)."""

from __future__ import annotations

from grpo_tir.utils.recipe import import_program

TAKES_OVERRIDES = True

_command = import_program("quickstart.command")
add_arguments, run = _command.add_arguments, _command.run

"""`grpo-tir paper`: test the paper's findings again. The experiment uses the library and lies in recipes/paper."""

from __future__ import annotations

import importlib
import sys

from grpo_tir.utils.resources import recipes_dir

TAKES_OVERRIDES = True

if (_folder := str(recipes_dir())) not in sys.path:  # the processes of its runs get this path too
    sys.path.append(_folder)
_command = importlib.import_module("paper.command")
add_arguments, run = _command.add_arguments, _command.run

"""Train language models to reason with a Python tool: GRPO with tool calls (ToRL, arXiv 2503.23383).

`__init__.pyi` lists the library. Each name is imported when it is first used, so `import grpo_tir` loads no torch.
"""

import ast
import importlib
import os
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

# sympy and mpmath do without gmpy2 if it is installed: GMP ends the process where Python raises a MemoryError.
os.environ |= {"SYMPY_GROUND_TYPES": "python", "MPMATH_NOGMPY": "1", **os.environ}

_STUB = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
_IMPORTS = [node for node in _STUB.body if isinstance(node, ast.ImportFrom) and node.module]
_MODULES = {alias.name: node.module for node in _IMPORTS for alias in node.names}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module `grpo_tir` has no attribute `{name}`")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

"""Find packaged files, and custom functions and classes by name.

In a checkout, recipes and sandbox are folders at the root of the repository. In a wheel they are inside the
package, as `grpo_tir/_recipes` and `grpo_tir/_sandbox`. So an installed package works from any folder.
"""

import difflib
import hashlib
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from grpo_tir.errors import ConfigError

RENAMED = {"grpo_tir.rewards": "grpo_tir.rollouts.rewards"}
"""Maps old module names to new ones. Recipes and checkpoints of version 0.1 name the default reward by the old
name."""
_PACKAGE = Path(__file__).resolve().parents[1]


def recipes_dir() -> Path:
    """Return the folder of the packaged recipes."""
    return _packaged("recipes")


def sandbox_dir() -> Path:
    """Return the folder of the executor's Dockerfile, runner and seccomp profile."""
    return _packaged("sandbox")


def _packaged(name: str) -> Path:
    for folder in (_PACKAGE / f"_{name}", _PACKAGE.parents[1] / name):
        if folder.is_dir():
            return folder
    raise ConfigError(f"the {name} folder is missing from this installation of grpo-tir; install it again")


def find_file(name: str | Path, suffix: str = "") -> Path | None:
    """Find the file `name` in the working folder, else among the packaged recipes. So a recipe may name
    `recipes/custom/reward.py`, wherever it is run. None if there is no such file."""
    for base in (Path(), recipes_dir()):
        relative = Path(name).expanduser() if base == Path() else below_recipes(name)
        for candidate in (base / relative, base / f"{relative}{suffix}"):
            if candidate.is_file():
                return candidate
    return None


def below_recipes(name: str | Path) -> Path:
    """Return the name of a packaged file without the folder `recipes`."""
    parts = Path(name).parts
    return Path(*parts[1:]) if parts[:1] == ("recipes",) else Path(name)


def load_object(spec: str) -> Any:
    """Import the object named by `package.module:name`, `package.module.name` or `file.py:name`.

    Raises:
        ConfigError: there is no such file, module or name, or the import failed.
    """
    where, colon, name = spec.rpartition(":")
    if not colon:
        where, _, name = spec.rpartition(".")
    where = RENAMED.get(where, where)
    if not where or not name or spec.endswith(".py"):
        raise ConfigError(f"`{spec}` is not a name: write `package.module:name` or `file.py:name`")
    try:
        module = _load_file(where, spec) if where.endswith(".py") else _load_module(where, spec)
    except ConfigError:
        raise
    except Exception as error:  # the code of the module may raise anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigError(f"`{spec}`: importing {where} failed: {reason}") from error
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            public = [known for known in vars(found) if not known.startswith("_")]
            near = difflib.get_close_matches(part, public, n=1)
            raise ConfigError(f"`{spec}`: {where} has no `{part}`{f'; did you mean `{near[0]}`?' if near else ''}")
        found = getattr(found, part)
    return found


def _load_file(where: str, spec: str) -> ModuleType:
    path = find_file(where)
    if path is None:
        raise ConfigError(f"`{spec}`: there is no file {where} (working folder: {os.getcwd()})")
    path = path.resolve()
    # The name contains a hash of the path: equal file names of two recipes differ, and each file is run once.
    name = f"grpo_tir_custom_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    module_spec = importlib.util.spec_from_file_location(name, path)
    if module_spec is None or module_spec.loader is None:
        raise ConfigError(f"`{spec}`: {where} is not a Python file")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module  # dataclasses and pickle look up the module of a class there
    try:
        module_spec.loader.exec_module(module)
    except Exception:
        del sys.modules[name]
        raise
    return module


def _load_module(where: str, spec: str) -> ModuleType:
    # `python -m` has the working folder on its path, the console script does not. Append it, to shadow nothing.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name and (where == error.name or where.startswith(f"{error.name}.")):
            raise ConfigError(f"`{spec}`: there is no module {error.name} (also not in {os.getcwd()})") from None
        raise

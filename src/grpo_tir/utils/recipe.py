"""Find a recipe and read it as a `Config`, one to one.

Unknown keys and ill-typed values raise errors. `--section.key VALUE` on the command line overrides a key.
"""

import dataclasses
import difflib
import importlib
import sys
import types
import typing
from pathlib import Path
from typing import Any, Literal

import yaml

from grpo_tir.config import Config, check
from grpo_tir.errors import ConfigError
from grpo_tir.utils import resources

RENAMED = {"tool.stop": "format"}
"""Maps old keys to new ones, so that old recipes and checkpoints load."""


def import_program(module: str) -> Any:
    """Import a module of recipes/programs. The processes that it starts can import it too."""
    if (folder := str(resources.recipes_dir() / "programs")) not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(module)


def find_recipe(name: str | Path) -> Path:
    """Find a recipe by path, or a packaged recipe by name: `quickstart`, `recipes/quickstart.yaml`,
    `ablations/c0`.

    Raises:
        ConfigError: there is no such file; the message names the nearest packaged recipe.
    """
    found = resources.find_file(name, suffix=".yaml")
    if found is None:
        folder = resources.recipes_dir()
        known = [str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml")]
        near = difflib.get_close_matches(str(resources.below_recipes(name).with_suffix("")), known, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"packaged recipes: {', '.join(sorted(known))}"
        raise ConfigError(f"no recipe at {name}; {hint}")
    return found


def load_config(path: str | Path, overrides: typing.Sequence[str] = ()) -> Config:
    """Read a recipe, apply `overrides` such as `["--section.key", "value"]`, and check the result.

    Raises:
        ConfigError: no such file, invalid YAML, an unknown or ill-typed key, or values that cannot work.
    """
    # 1. Read the file.
    try:
        text = Path(path).read_text(encoding="utf-8")
        raw = yaml.safe_load(text) or {}
    except OSError as error:
        raise ConfigError(f"cannot read the recipe {path}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        fault = str(getattr(error, "problem", None) or error).splitlines()[0]
        raise ConfigError(f"{path}{where} is not valid YAML: {fault}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of sections, this is a {type(raw).__name__}")
    # 2. Apply the overrides, build the dataclasses and check the values.
    for key, value in parse_overrides(overrides):
        section, _, name = key.rpartition(".")
        inner = raw.setdefault(section, {}) if section else raw
        if not isinstance(inner, dict):
            raise ConfigError(f"--{key}: `{section}` is not a section")
        inner[name] = value
    config = _build(Config, raw, "")
    check(config)
    return config


def parse_overrides(arguments: typing.Sequence[str]) -> list[tuple[str, Any]]:
    """Parse `--a.b 1`, `--a.b=1` and `--a.flag` (which means true) into pairs of dotted key and YAML value."""
    pairs: list[tuple[str, Any]] = []
    rest = list(arguments)
    while rest:
        token = rest.pop(0)
        if not token.startswith("--") or len(token) == 2:
            raise ConfigError(f"unexpected argument `{token}`: overrides look like --optim.lr 1e-6")
        key, equals, value = token[2:].partition("=")
        if not equals:
            value = rest.pop(0) if rest and not rest[0].startswith("--") else "true"
        try:
            pairs.append((key.replace("-", "_"), yaml.safe_load(value)))
        except yaml.YAMLError:
            raise ConfigError(f"--{key}: cannot read the value `{value}`") from None
    return pairs


def _build(kind: type, raw: dict[str, Any], prefix: str) -> Any:
    """Build a dataclass from a mapping. Each value is checked against its annotation."""
    hints = typing.get_type_hints(kind)
    values = {}
    for key, value in raw.items():
        key = RENAMED.get(f"{prefix}{key}", key)
        name = f"{prefix}{key}"
        if key not in hints:
            near = difflib.get_close_matches(str(key), _all_names(kind), n=1, cutoff=0.5)
            hint = f"; did you mean `{prefix}{near[0]}`?" if near else f"; known: {', '.join(hints)}"
            raise ConfigError(f"unknown key `{name}`{hint}")
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, dict):
                raise ConfigError(f"`{name}` is a section: give it keys, not {value!r}")
            values[key] = _build(typing.cast(type, hints[key]), value, f"{name}.")
        else:
            values[key] = _coerce(value, hints[key], name)
    return kind(**values)


def _all_names(kind: type) -> list[str]:
    """Return the keys of this level, and those of the next level as `section.key`, for suggestions."""
    names = []
    for name, hint in typing.get_type_hints(kind).items():
        names.append(name)
        if dataclasses.is_dataclass(hint):
            names += [f"{name}.{inner.name}" for inner in dataclasses.fields(hint)]
    return names


def _coerce(value: Any, hint: Any, name: str) -> Any:
    """Convert `value` to the type `hint`. YAML reads 1e-6 as a string and 1 as an int; both are valid floats."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    wrong = ConfigError(f"`{name}` must be {_readable(hint)}, not {value!r}")
    if origin is Literal:
        if value in inner and type(value) in {type(choice) for choice in inner}:
            return value
        near = difflib.get_close_matches(str(value), [str(choice) for choice in inner], n=1)
        raise ConfigError(f"{wrong}; did you mean {near[0]!r}?") if near else wrong
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in inner:
            return None
        return _coerce(value, next(kind for kind in inner if kind is not type(None)), name)
    if origin in (list, tuple):
        if not isinstance(value, list | tuple) or (origin is tuple and len(value) != len(inner)):
            raise wrong
        kinds = inner if origin is tuple else [inner[0]] * len(value)
        return origin(_coerce(item, kind, f"{name}[{i}]") for i, (item, kind) in enumerate(zip(value, kinds)))
    if hint is float and isinstance(value, str | int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            raise wrong from None
    if hint is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if type(value) is not hint:
        raise wrong
    return value


def _readable(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(repr(choice) for choice in typing.get_args(hint))
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return names.get(hint, str(hint).replace("typing.", ""))

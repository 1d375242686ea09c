"""Import the packages that programs use before the fork, and hide the other packages of this environment.

packages.txt, a requirements file, names the packages that programs can import beside the standard library.
"""

from __future__ import annotations

import contextlib
import importlib.machinery as machinery
import importlib.metadata as metadata
import importlib.util
import os
import re
import sys

with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "packages.txt")) as _file:
    NAMES = [_found[0].lower() for _line in _file if (_found := re.match(r"\w[\w.-]*", _line))]
LIBRARY = "/opt/sandbox"  # folder of the packages in the image
FONTS = "/opt/runner/fonts"  # folder of matplotlib's list of fonts, written while the image is built
LIGHT = """math cmath decimal fractions itertools functools statistics re string datetime operator copy bisect
    typing dataclasses numpy numpy.random numpy.linalg numpy.fft numpy.polynomial sympy""".split()
HEAVY = """gmpy2 networkx pandas scipy.fft scipy.integrate scipy.interpolate scipy.linalg scipy.optimize
    scipy.signal scipy.spatial scipy.special scipy.stats""".split()
"""Loaded by the second zygote only, which serves the programs that name one of them. One of its forks costs three
times as much as one of the first zygote."""
LARGE = {"matplotlib", *(name.partition(".")[0] for name in HEAVY)}


def versions() -> dict[str, str]:
    """Return the versions of the named packages that are installed."""
    found = {}
    for name in NAMES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def mention(installed: dict[str, str]) -> re.Pattern[str] | None:
    """Return a pattern that matches programs for the second zygote; None if none of its modules is installed."""
    tops = sorted(LARGE & set(installed))
    return re.compile(rf"\b({'|'.join(tops)}|mpl_toolkits|pylab)\b") if tops else None


def hide_others() -> None:
    """Let imports find only the named packages, and those that they require, in site-packages."""
    shown, todo, seen = set[str](), list(NAMES), set[str]()
    while todo:
        if (name := todo.pop()) not in seen:
            seen.add(name)
            with contextlib.suppress(metadata.PackageNotFoundError):
                package = metadata.distribution(name)
                tops = (package.read_text("top_level.txt") or "").split()  # Debian keeps no list of files
                shown |= {name, *tops, *(file.parts[0].partition(".")[0] for file in package.files or ())}
                needs = [need.partition(";") for need in package.requires or ()]
                todo += [re.split(r"[^\w.-]", need)[0] for need, _, when in needs if "extra" not in when]
    places = {path for path in sys.path if path.endswith(("site-packages", "dist-packages"))}

    class Shown(machinery.FileFinder):
        """Find the modules of one folder, if their package is shown."""

        def find_spec(self, fullname: str, target: object = None) -> machinery.ModuleSpec | None:
            return super().find_spec(fullname) if fullname.partition(".")[0] in shown else None

    def hook(path: str) -> Shown:
        if path not in places:
            raise ImportError
        return Shown(
            path,
            (machinery.ExtensionFileLoader, machinery.EXTENSION_SUFFIXES),
            (machinery.SourceFileLoader, machinery.SOURCE_SUFFIXES),
        )

    sys.path_hooks.insert(0, hook)
    sys.path_importer_cache.clear()
    sys.meta_path[:] = [machinery.BuiltinImporter, machinery.FrozenImporter, machinery.PathFinder]


def import_matplotlib() -> None:
    """Import matplotlib, which wants a folder that it can write to, without one. Drop its warnings about that."""
    if spec := importlib.util.find_spec("matplotlib"):
        os.environ["MATPLOTLIBRC"] = os.path.join(os.path.dirname(spec.origin or ""), "mpl-data", "matplotlibrc")
        stderr = os.dup(2)
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        try:
            import matplotlib

            matplotlib.get_configdir = matplotlib.get_cachedir = lambda: FONTS
            import matplotlib.pyplot
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            del os.environ["MATPLOTLIBRC"]


def preload(modules: list[str]) -> None:
    """Import modules and their lazy parts, so that each fork has them loaded. Ignore failures: a program that
    imports the module sees the error."""
    for name in modules:
        with contextlib.suppress(Exception):
            __import__(name)
    with contextlib.suppress(Exception):
        if modules is HEAVY:
            import_matplotlib()
        elif "sympy" in sys.modules:
            import sympy

            x = sympy.Symbol("x")
            sympy.solve(x**2 - 3 * x + 2, x)
            str(sympy.simplify(sympy.sin(x) ** 2 + sympy.cos(x) ** 2))

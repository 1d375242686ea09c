"""Unpack the wheels while the image is built (a wheel is a zip; no pip is needed), and compile the modules."""

from __future__ import annotations

import glob
import sys
import zipfile

LIBRARY = "/opt/sandbox"  # where the zygote looks first


def unpack(wheel: str) -> None:
    """Unpack all files except sympy's tests, which are a third of it. numpy.testing needs some of numpy's
    tests."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not (name.startswith("sympy/") and "/tests/" in name)]
        archive.extractall(LIBRARY, names)


def main() -> None:
    for wheel in glob.glob("/opt/wheels/*.whl"):
        unpack(wheel)
    sys.path.insert(0, "/opt/runner")
    import zygote

    versions = zygote.preload()  # leaves the compiled files that a start in a read-only container needs
    if not (versions["numpy"] and versions["sympy"]):
        sys.exit("the image has no numpy or sympy: the wheels are missing or of another Python")
    print("sandbox image:", versions)


if __name__ == "__main__":
    main()

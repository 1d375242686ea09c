"""Check the packages while the image is built, and compile the modules that a start imports."""

from __future__ import annotations

import os
import sys


def main() -> None:
    sys.path.insert(0, "/opt/runner")
    import packages

    sys.path.insert(0, packages.LIBRARY)
    os.mkdir(packages.FONTS)
    for modules in (packages.LIGHT, packages.HEAVY):
        packages.preload(modules)  # leaves compiled files: containers are read-only
    found = packages.versions()
    if missing := [name for name in packages.NAMES if name not in found]:
        sys.exit(f"the image lacks {', '.join(missing)}: not installed, or for another Python")
    print("sandbox image:", sys.version.split()[0], found)


if __name__ == "__main__":
    main()

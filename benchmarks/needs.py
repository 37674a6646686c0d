"""Say which distributions of a list this Python lacks, and how to carry them to a machine without a network.

    python benchmarks/needs.py benchmarks/on_gpu.txt

Ends with 1 where some are missing. Needs nothing but Python.
"""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

OLDEST_TORCH = (2, 11)


def missing(names: list[str]) -> list[str]:
    """Those of the distributions that are not installed."""
    return [name for name in names if _version(name) is None]


def listed(path: Path) -> list[str]:
    """The distributions that a file names, one a line; # begins a comment."""
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return [line for line in lines if line]


def advice(names: list[str], path: Path) -> str:
    """What is missing, and the lines that bring it."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return f"""{len(names)} packages are missing here: {", ".join(names)}

Where there is a network, in this folder:
    python -m pip download --no-deps --dest wheels --only-binary=:all: --python-version {version} \\
        --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 \\
        --requirement {path} --constraint constraints.txt
Carry the folder wheels along and call this again: it uses what lies there (WHEELS=FOLDER for another place),
and installs nothing."""


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def main() -> int:
    """Print what is missing; return 1 where anything is."""
    path = Path(sys.argv[1])
    found = _version("torch")
    if found is None or tuple(int(part) for part in found.split(".")[:2]) < OLDEST_TORCH:
        print(f"torch 2.11 or later is needed, and never carried: here is {found or 'none'}", file=sys.stderr)
        return 1
    names = missing(listed(path))
    if names:
        print(advice(names, path), file=sys.stderr)
    return 1 if names else 0


if __name__ == "__main__":
    sys.exit(main())

"""Build the libraries of the ops: `python -m relay_core.cuda.build`.

Neither library is linked with torch or Python: plain C functions, so that one build serves every version of both.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from relay_core.cuda import native

SOURCES = Path(__file__).parent / "csrc"
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
"""Compute capabilities with machine code of their own; later ones get the newest one's PTX."""
HOST_FLAGS = [
    "-std=c++17", "-O3", "-fPIC", "-fopenmp", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math",
    "-Wall", "-Wextra", "-Werror",
]  # fmt: skip


def nvcc() -> str | None:
    """Return the path of the CUDA compiler: from $CUDA_HOME, the PATH or /usr/local/cuda, or None."""
    home = os.environ.get("CUDA_HOME")
    places = [Path(home) / "bin"] if home else []
    path = os.pathsep.join([*map(str, places), os.environ.get("PATH", ""), "/usr/local/cuda/bin"])
    return shutil.which("nvcc", path=path)


def compiler() -> str | None:
    """Return the path of the host compiler, $CXX or g++, or None."""
    return shutil.which(os.environ.get("CXX", "g++"))


def build_cuda(folder: Path, architectures: tuple[int, ...] = ARCHITECTURES, report: bool = False) -> Path:
    """Compile the kernels into `folder`; the CUDA runtime is inside, so it loads without a toolkit or a driver.

    Args:
        folder: folder to write to, created if missing.
        architectures: compute capabilities, major * 10 + minor.
        report: whether to print registers, shared memory and spills of every kernel.

    Raises:
        FileNotFoundError: there is no nvcc.
        subprocess.CalledProcessError: the compiler failed; its warnings are errors.
    """
    tool = nvcc()
    if tool is None:
        raise FileNotFoundError("nvcc is neither in $CUDA_HOME/bin, nor on the PATH, nor in /usr/local/cuda/bin")
    codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
    codes.append(f"-gencode=arch=compute_{architectures[-1]},code=compute_{architectures[-1]}")
    flags = [
        "-std=c++17", "-O3", "-cudart", "static", "-shared", "-Xcompiler", "-fPIC,-fvisibility=hidden,-Wall,-Wextra",
        "-Werror", "all-warnings", "-Xcompiler", "-Werror", "--threads", "0", "--compress-mode=size", *codes,
    ]  # fmt: skip
    if report:
        flags += ["-Xptxas", "-v"]
    return _link_into(folder, "cuda", [tool, *flags, *map(str, sorted(SOURCES.glob("*.cu")))])


def build_host(folder: Path) -> Path:
    """Compile the host library into `folder`.

    On x86-64 it needs a processor with AVX2 (`native` does not load it on others). Its threads are torch's own: compiled for
    OpenMP, yet linked with no OpenMP, so that it finds the one that torch has loaded; two pools would fight for the cores.

    Raises:
        FileNotFoundError: there is no compiler.
        subprocess.CalledProcessError: the compiler failed; its warnings are errors.
    """
    tool = compiler()
    if tool is None:
        raise FileNotFoundError("there is no C++ compiler: neither $CXX nor g++")
    machine = ["-march=x86-64-v3"] if platform.machine() == "x86_64" else []
    with tempfile.TemporaryDirectory() as work:
        objects = []
        for source in sorted(SOURCES.glob("*.cpp")):
            objects.append(f"{work}/{source.stem}.o")
            subprocess.run([tool, *HOST_FLAGS, *machine, "-c", str(source), "-o", objects[-1]], check=True)
        return _link_into(folder, "host", [tool, "-shared", *objects])


def _link_into(folder: Path, kind: str, command: list[str]) -> Path:
    """Run a linking command; the library appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / native.file_name(kind)
    unfinished = path.with_suffix(".new")
    subprocess.run([*command, "-o", str(unfinished)], check=True)
    unfinished.replace(path)
    return path


def main() -> int:
    """Build the libraries that there are compilers for, and say which were left out; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=["cuda", "host"], help="this library, and fail without its compiler")
    parser.add_argument("--into", type=Path, default=native.FOLDER)
    parser.add_argument("--report", action="store_true", help="registers, shared memory and spills of every kernel")
    args = parser.parse_args()
    for kind in [args.only] if args.only else ["host", "cuda"]:
        try:
            path = build_host(args.into) if kind == "host" else build_cuda(args.into, report=args.report)
            print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")
        except FileNotFoundError as error:
            print(f"no {kind} library: {error}", file=sys.stderr)
            if args.only:
                return 1
        except subprocess.CalledProcessError as error:
            print(f"no {kind} library: {error.cmd[0]} ended with {error.returncode}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

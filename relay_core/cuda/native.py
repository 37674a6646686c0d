"""Find and load the compiled ops, according to what the site wants (`RELAY_OPS`). Loads no torch.

`RELAY_OPS` is one of:

- `auto` (or unset): the CUDA library on a GPU, the host library on a CPU, torch's own operations where there is none;
- `cuda`: the same, but a GPU without the CUDA library is an error;
- `reference`: torch's own operations everywhere.
"""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache
from pathlib import Path

from relay_core.errors import DeviceError

FOLDER = Path(__file__).parent / "lib"
"""Folder that `make ops` puts the libraries into; wheels and images carry it along."""
VERSION = 1
"""Version of the C interface (`RELAY_OPS_VERSION` in csrc/relay_ops.h); a library with another version is not used."""
OLDEST_CAPABILITY = (7, 5)
"""Oldest compute capability, major and minor, that the CUDA library has code for."""
_TYPES = {"p": ctypes.c_void_p, "i": ctypes.c_int, "l": ctypes.c_int64, "d": ctypes.c_double}
_FUNCTIONS = {
    "relay_bias_act": "pppp i lll iii p p",
    "relay_epilogue": "pppppp ii llll p p",
    "relay_epilogue_grad": "pppppppp ii llll p p",
    "relay_epilogue_grad_grad": "ppppppppppp ii llll p p",
    "relay_epilogue_parts": "li",
    "relay_error": "i",
    "relay_upfirdn2d": "ppp i p d p",
}
"""Argument types of each function, as in csrc/relay_ops.h; a number wider than its declared type would be cut silently."""


def setting() -> str:
    """Return the value of `RELAY_OPS`, `auto` where it is unset.

    Raises:
        DeviceError: it is not auto, cuda or reference.
    """
    value = os.environ.get("RELAY_OPS") or "auto"
    if value not in ("auto", "cuda", "reference"):
        raise DeviceError(f"RELAY_OPS={value}: one of auto, cuda, reference")
    return value


def file_name(kind: str) -> str:
    """Return the file name of the library `cuda` or `host`."""
    return f"librelay_{kind}.so"


def load(kind: str, folder: Path | None = None) -> ctypes.CDLL | str:
    """Load the library `cuda` or `host` from `folder`; return it, or a sentence that says why there is none."""
    path = (folder or FOLDER) / file_name(kind)
    if not path.is_file():
        return f"{path.name} was not built (make ops)"
    if kind == "host" and not _has_avx2():
        return f"{path.name} needs a processor with AVX2"
    try:
        library = ctypes.CDLL(str(path))
        version = int(library.relay_ops_version())
        for name, types in _FUNCTIONS.items():
            getattr(library, name).argtypes = [_TYPES[t] for t in types.replace(" ", "")]
        library.relay_error.restype = ctypes.c_char_p
        library.relay_epilogue_parts.restype = ctypes.c_int64
    except (OSError, AttributeError) as error:
        return f"{path} cannot be loaded: {error}"
    if version != VERSION:
        return f"{path} has interface {version}, this program {VERSION}: build it anew (make ops)"
    return library


def in_use(device: str) -> str:
    """Return what runs the ops on `device` (cpu, cuda, cuda:0, ...): `cuda`, `host` or `torch`.

    It only looks whether the library's file is there. The process that trains decides for itself and may fall back (a GPU
    that is too old, a library that does not load); it logs its choice.
    """
    if setting() == "reference":
        return "torch"
    kind = "cuda" if device.startswith("cuda") else "host"
    return kind if (FOLDER / file_name(kind)).is_file() and (kind == "cuda" or _has_avx2()) else "torch"


def require(device: str) -> None:
    """Check that `device` can have the ops that `RELAY_OPS` insists on.

    Raises:
        DeviceError: RELAY_OPS is `cuda`, and the device is no GPU or the library was not built.
    """
    if setting() != "cuda" or in_use(device) == "cuda":
        return
    if not device.startswith("cuda"):
        raise DeviceError(f"RELAY_OPS=cuda, but the device is {device}: choose a GPU, or RELAY_OPS=auto")
    raise DeviceError(f"RELAY_OPS=cuda: {file_name('cuda')} was not built (make ops)")


@cache
def _has_avx2() -> bool:
    """Whether the processor runs what `build` compiles for: AVX2 on x86-64; elsewhere the common base."""
    if platform.machine() != "x86_64":
        return True
    try:
        flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")).split()
    except (OSError, StopIteration):
        return False
    return {"avx2", "fma", "f16c", "bmi2"} <= set(flags)

"""Decide which form of the ops runs on a device, once and with a line in the log, and call the libraries."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from relay_core.cuda import native
from relay_core.errors import DeviceError

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}
WORTH = 1 << 14
"""Smallest number of elements of a tensor for which a library beats torch's own operations."""
log = logging.getLogger(__name__)


def backend(device_type: str, index: int | None = None) -> str:
    """Return what runs the ops on a device: the library `cuda` or `host`, or `torch`.

    Raises:
        DeviceError: RELAY_OPS is `cuda`, the device a GPU, and the library or its kernels for this GPU are missing.
    """
    return "torch" if isinstance(library(device_type, index), str) else ("cuda" if device_type == "cuda" else "host")


# A compiled function does not break at a file look-up. This is what torch.compiler.assume_constant_result does, which first
# imports the compiler: 4 seconds at the start of every process.
backend._dynamo_marked_constant = True  # type: ignore[attr-defined]


def worth_calling(x: Tensor) -> bool:
    """Whether a library should compute for x; never during an export, which needs torch's own operations.

    Tensors of less than 2^14 elements are left to torch, whose calls cost less than those of an op in Python.
    """
    if torch.compiler.is_exporting() or x.dtype not in DTYPES or x.numel() < WORTH:
        return False
    return backend(x.device.type, x.device.index) != "torch"


Outcome = tuple[str, torch.dtype, list[Tensor]]
"""The name of an operation, the type that it computed in, and its results."""
_self_check: list[tuple[Callable[[torch.device], Iterator[Outcome]], Callable[..., str | None]]] = []
"""The functions that try a library out; the operations register them, so that this file need not import the operations."""


def try_out_with(
    outcomes: Callable[[torch.device], Iterator[Outcome]],
    disagreement: Callable[[Iterator[Outcome], list[list[Tensor]]], str | None],
) -> None:
    """Register how a library is tried out before it is used.

    Args:
        outcomes: runs every operation on a device, with whatever serves it.
        disagreement: names the first operation whose outcome is not the wanted one, or returns None.
    """
    _self_check[:] = [(outcomes, disagreement)]


_trial: list[ctypes.CDLL | str] = []
"""What `library` returns while a library is tried out: that library, or the name of what it is compared with."""


def library(device_type: str, index: int | None) -> ctypes.CDLL | str:
    """Return the library for a device, or why there is none; the first call tries it out, and logs the choice."""
    return _trial[-1] if _trial else _choose(device_type, index)


def forget() -> None:
    """Forget the choices, so that the next call chooses anew."""
    _choose.cache_clear()


@cache
def _choose(device_type: str, index: int | None) -> ctypes.CDLL | str:
    """Find the library for a device, try it out, and log the choice. Raises DeviceError where `RELAY_OPS` insists on it."""
    choice = _find_library(device_type, index)
    if not isinstance(choice, str) and (fault := _find_fault(choice, torch.device(device_type, index or 0))):
        log.warning("the compiled ops are not used on %s: %s", device_type, fault)
        if native.setting() == "cuda" and device_type == "cuda":
            raise DeviceError(f"RELAY_OPS=cuda: {fault}")
        choice = fault
    if isinstance(choice, str):
        log.info("ops on %s: torch's own (%s)", device_type, choice)
    else:
        log.info("ops on %s: %s", device_type, choice._name)
    return choice


def _find_fault(candidate: ctypes.CDLL, device: torch.device) -> str | None:
    """Say why a library is not used on a device: it fails there, or gives other values than the definitions; None: it is."""
    if not _self_check:
        return "nothing tries it out: import relay_core.cuda.ops first"
    outcomes, disagreement = _self_check[0]
    with _disable_current_modes():
        try:
            _trial.append("the definition")
            expected = [values for _, _, values in outcomes(device)]
            _trial[-1] = candidate
            return disagreement(outcomes(device), expected)
        except RuntimeError as error:
            return f"{error}"
        finally:
            _trial.clear()


def _find_library(device_type: str, index: int | None) -> ctypes.CDLL | str:
    """Load the library for a device; return it, or why there is none."""
    setting = native.setting()
    if setting == "reference":
        return "RELAY_OPS=reference"
    if device_type == "cpu":
        return native.load("host")
    if device_type != "cuda":
        return f"there are no kernels for {device_type}"
    capability = torch.cuda.get_device_capability(index)
    if capability < native.OLDEST_CAPABILITY:
        candidate: ctypes.CDLL | str = (
            f"the GPU has compute capability {capability[0]}.{capability[1]}, the kernels need 7.5"
        )
    else:
        candidate = native.load("cuda")
    if isinstance(candidate, str):
        if setting == "cuda":
            raise DeviceError(f"RELAY_OPS=cuda: {candidate}")
        log.warning("the GPU's own ops are not used: %s", candidate)
    return candidate


def call(found: ctypes.CDLL, name: str, out: Tensor, *args: object) -> None:
    """Call the function `name` of the library `found` on `out`'s device and stream; tensors pass as pointers, None as null.

    Raises:
        RuntimeError: the library refused, or the launch failed.
    """
    values = [a.data_ptr() if isinstance(a, Tensor) else a for a in args]
    function = getattr(found, name)
    if out.is_cuda:
        with torch.cuda.device(out.device):
            status = function(out.data_ptr(), *values, torch.cuda.current_stream().cuda_stream)
    else:
        status = function(out.data_ptr(), *values, None)
    if status != 0:
        raise RuntimeError(f"{name}: {found.relay_error(status).decode()}")


def doubles(*values: float) -> ctypes.Array[ctypes.c_double]:
    """Make an argument of type `const double*`."""
    return (ctypes.c_double * len(values))(*values)


def longs(values: Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
    """Make an argument of type `const int64_t*`."""
    return (ctypes.c_int64 * len(values))(*values)


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the type that x's values are computed in: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def layout(x: Tensor) -> torch.memory_format:
    """Return x's memory format as the ops keep it: channels-last where x is, else contiguous."""
    last = x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def fresh(y: Tensor, x: Tensor, kind: torch.memory_format) -> Tensor:
    """Return y in the memory format `kind`, copied where it is x itself: an op's result must not be its argument."""
    y = y.contiguous(memory_format=kind)
    return y.clone(memory_format=kind) if y is x or y.data_ptr() == x.data_ptr() else y

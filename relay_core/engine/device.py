"""The device to train on, and the process group of a training that runs on several devices."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from relay_core.cuda import native
from relay_core.errors import DeviceError

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of mallopt (malloc.h)."""


def choose_device(name: str = "auto") -> torch.device:
    """Return the device of the given name, and allow TF32 on it if it is a GPU.

    `auto` is the GPU where there is one, otherwise the CPU; under torchrun each process has its own GPU.

    Raises:
        DeviceError: the device does not exist here, or lacks the ops that RELAY_OPS insists on.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"--device {name}: not a device; use auto, cpu, cuda or cuda:1") from None
    native.require(device.type)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise DeviceError(f"--device {name}: this machine has no usable CUDA GPU; use --device cpu or auto")
        index = int(os.environ.get("LOCAL_RANK", "0")) if device.index is None else device.index
        if index >= torch.cuda.device_count():
            raise DeviceError(f"--device {name}: there are {torch.cuda.device_count()} GPUs, numbered from 0")
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    return device


def keep_freed_memory() -> None:
    """Have the C library keep freed memory for the next step, where it can (glibc), until the process ends.

    A training step takes again what the last one freed: given back to the system in between, every page of it costs a fault.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


@contextmanager
def processes(device: torch.device) -> Iterator[None]:
    """Join the process group that torchrun describes; alone, do nothing."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    # long timeout: the first process scores alone while the others wait
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(hours=3))
    try:
        yield
    finally:
        dist.destroy_process_group()

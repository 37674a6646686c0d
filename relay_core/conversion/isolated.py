"""Starts the process that reads a pickle, and reads the tensors and the JSON that it wrote."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from relay_core.errors import CheckpointError
from relay_core.files import replace_with

SECONDS = 1800
"""The time limit of that process; it is killed if it takes longer."""


@dataclass(frozen=True)
class Contents:
    """Holds the parts of a file of `torch.save` that a conversion needs."""

    tensors: dict[str, Tensor]
    rest: dict[str, Any]
    """The plain values: `checkpoint` (whether it is a Lightning checkpoint) and its entries among `pickled.KEPT`."""


@contextmanager
def _unpacked(source: Path) -> Iterator[Path]:
    """Yield a folder with `tensors.safetensors` and `rest.json`, which is deleted at the end of the block.

    Raises:
        CheckpointError: `source` is missing, damaged, or holds more than tensors and plain values.
    """
    if not source.is_file():
        raise CheckpointError(f"{source}: no such file")
    with tempfile.TemporaryDirectory(prefix="relay-convert-") as folder:
        # With -I neither the current folder nor PYTHONPATH can put other code in place of ours.
        command = [sys.executable, "-I", "-m", "relay_core.conversion.pickled", str(source.resolve()), folder]
        try:
            result = subprocess.run(
                command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            raise CheckpointError(f"{source}: not read within {SECONDS} seconds") from None
        if result.returncode != 0:
            error_lines = result.stderr.decode(errors="replace").strip().splitlines()
            crash = f"the process that reads it ended with {result.returncode}; is there enough memory and room in TMPDIR?"
            raise CheckpointError(f"{source}: {error_lines[-1] if error_lines and result.returncode == 1 else crash}")
        yield Path(folder)


def unpickled(source: Path) -> Contents:
    """Read a file of `torch.save` in a process of its own.

    Raises:
        CheckpointError: `source` is missing, damaged, or holds more than tensors and plain values.
    """
    with _unpacked(source) as folder:
        try:
            rest = json.loads((folder / "rest.json").read_text(encoding="utf-8"))
            tensors = {name: tensor.clone() for name, tensor in load_file(folder / "tensors.safetensors").items()}
        except (OSError, ValueError, SafetensorError) as error:
            raise CheckpointError(f"{source}: could not be taken over: {error}") from None
    return Contents(tensors, rest)


def convert_pretrained(source: Path, target: Path) -> int:
    """Turn a plain state dict, such as torchvision's `resnet18-*.pth`, into safetensors; return the number of tensors.

    Raises:
        CheckpointError: `target` exists; `source` is missing, damaged, a Lightning checkpoint, or holds more than tensors.
        OSError: `target` cannot be written.
    """
    if target.exists():
        raise CheckpointError(f"{target} exists already; choose another --out")
    with _unpacked(source) as folder:
        if json.loads((folder / "rest.json").read_text(encoding="utf-8"))["checkpoint"]:
            raise CheckpointError(
                f"{source} is a training's checkpoint, no file of pretrained weights: leave out --pretrained"
            )
        written = folder / "tensors.safetensors"
        count = len(load_file(written))
        replace_with(target, lambda temporary: shutil.copyfile(written, temporary))
    return count

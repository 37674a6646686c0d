"""The one place where a pickle is read: `python -I -m relay_core.conversion.pickled SOURCE FOLDER`, a process of its own.

torch's restricted unpickler builds tensors and plain containers and calls nothing else. What a conversion needs of it is
written to FOLDER as `tensors.safetensors` and `rest.json`; a refusal is the last line on standard error.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

LEFT_OUT = re.compile(r"^model\.(fid_\w+|\w+_old)\.")
"""Inception networks of a metric, and frozen copies of the site before, which the next site makes anew."""
KEPT = ("RL_meta", "epoch", "global_step", "all_tasks_max_epochs", "current_task_max_epochs", "pytorch-lightning_version")
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")


def main(source: Path, folder: Path) -> None:
    """Read SOURCE, write FOLDER.

    Raises:
        SystemExit: with one sentence, why it is refused.
    """
    _no_core_dump()
    content = _load(source)
    checkpoint = isinstance(content.get("state_dict"), Mapping)
    state = content["state_dict"] if checkpoint else content
    tensors = {
        str(key): value for key, value in state.items() if isinstance(value, Tensor) and not LEFT_OUT.search(str(key))
    }
    _check(tensors, source.stat().st_size)
    # Clones, because safetensors wants memory that no two tensors share.
    plain = {key: value.detach().clone(memory_format=torch.contiguous_format) for key, value in tensors.items()}
    save_file(plain, folder / "tensors.safetensors")
    rest = {key: _plain(content[key]) for key in KEPT if key in content} if checkpoint else {}
    (folder / "rest.json").write_text(json.dumps({"checkpoint": checkpoint, **rest}), encoding="utf-8")


def _no_core_dump() -> None:
    """Weights must not end in a core file."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _load(source: Path) -> Mapping[Any, Any]:
    torch.serialization.clear_safe_globals()  # what an imported module may have allowed
    try:
        # Files older than torch 1.6 are no zip: the same restricted unpickler reads them, without mmap.
        found = torch.load(source, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(source))
    except OSError as error:
        sys.exit(f"it is damaged, or cannot be read: {error.strerror or error}")
    except UnpicklingError as error:
        named = _GLOBAL.search(str(error))
        if named is None:
            sys.exit("it is damaged, or no file of torch.save")
        sys.exit(
            f"it wants to run {named[1]}, which is no part of a checkpoint's tensors and numbers; nothing of it was run. "
            "If you trust the file, load it where it was made and torch.save its state_dict, RL_meta and global_step alone"
        )
    except Exception:
        sys.exit("it is damaged, or no file of torch.save")
    if not isinstance(found, Mapping):
        sys.exit(f"it holds a {type(found).__name__}, not a mapping of names to tensors")
    return found


def _check(tensors: Mapping[str, Tensor], size: int) -> None:
    if not tensors:
        sys.exit("it holds no tensors by name")
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            sys.exit(f"{name[:100]!r} is not a plain tensor")
    # A view can claim any size over a few bytes; weights that are shared between networks claim little more than the file.
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) > 8 * size:
        sys.exit("its tensors claim far more memory than the file holds")


def _plain(value: Any) -> Any:
    """JSON's types; anything else becomes null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | bool | int | float) else None


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

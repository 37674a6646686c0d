"""Reads a pickle in a process of its own: `python -I -m relay_core.conversion.pickled SOURCE FOLDER`.

No other module reads pickles. torch's restricted unpickler builds tensors and plain containers and calls nothing else. The
parts that a conversion needs are written to FOLDER as `tensors.safetensors` and `rest.json`; the reason of a refusal is the
last line on standard error.
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
"""Matches the tensors that are left out: a metric's Inception networks, and frozen copies of earlier networks."""
KEPT = ("RL_meta", "epoch", "global_step", "all_tasks_max_epochs", "current_task_max_epochs", "pytorch-lightning_version")
"""The entries of a Lightning checkpoint, beside its tensors, that are taken."""
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")


def main(source: Path, folder: Path) -> None:
    """Read the pickle `source` and write `tensors.safetensors` and `rest.json` into `folder`.

    Raises:
        SystemExit: the file is refused; the message is one line that says why.
    """
    _no_core_dump()
    content = _load(source)
    checkpoint = isinstance(content.get("state_dict"), Mapping)
    state = content["state_dict"] if checkpoint else content
    tensors = {
        str(key): value for key, value in state.items() if isinstance(value, Tensor) and not LEFT_OUT.search(str(key))
    }
    _check(tensors, source.stat().st_size)
    # Tensors are cloned, because safetensors refuses tensors that share memory.
    contiguous = {key: value.detach().clone(memory_format=torch.contiguous_format) for key, value in tensors.items()}
    save_file(contiguous, folder / "tensors.safetensors")
    rest = {key: _json_value(content[key]) for key in KEPT if key in content} if checkpoint else {}
    (folder / "rest.json").write_text(json.dumps({"checkpoint": checkpoint, **rest}), encoding="utf-8")


def _no_core_dump() -> None:
    """Switch core dumps off, so that weights do not end up in a core file after a crash."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _load(source: Path) -> Mapping[Any, Any]:
    torch.serialization.clear_safe_globals()  # an imported module may have allowed further types
    try:
        # Files older than torch 1.6 are not zip archives: the same restricted unpickler reads them, without mmap.
        content = torch.load(source, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(source))
    except OSError as error:
        sys.exit(f"it is damaged, or cannot be read: {error.strerror or error}")
    except UnpicklingError as error:
        refused = _GLOBAL.search(str(error))
        if refused is None:
            sys.exit("it is damaged, or no file of torch.save")
        sys.exit(
            f"it wants to run {refused[1]}, which is no part of a checkpoint's tensors and numbers; nothing of it was run. "
            "If you trust the file, load it where it was made and torch.save its state_dict, RL_meta and global_step alone"
        )
    except Exception:
        sys.exit("it is damaged, or no file of torch.save")
    if not isinstance(content, Mapping):
        sys.exit(f"it holds a {type(content).__name__}, not a mapping of names to tensors")
    return content


def _check(tensors: Mapping[str, Tensor], size: int) -> None:
    if not tensors:
        sys.exit("it holds no tensors by name")
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            sys.exit(f"{name[:100]!r} is not a plain tensor")
    # A view can claim any size over a few bytes; weights that networks share claim little more than the file.
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) > 8 * size:
        sys.exit("its tensors claim far more memory than the file holds")


def _json_value(value: Any) -> Any:
    """Return a value as types of JSON; anything else, NaN and infinities included, becomes None."""
    if isinstance(value, Mapping):
        return {str(key): _json_value(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(entry) for entry in value]
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | bool | int | float) else None


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

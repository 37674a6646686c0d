"""Tensors on their way: read, checked and written in chunks, by numpy, so that a small machine can do it without torch."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from relay_core.bundle.container import CHUNK, Progress, no_progress
from relay_core.errors import BundleError, CheckpointError
from relay_core.files import replace_with

_TYPES = {
    "F64": ("<f8", "float64"), "F32": ("<f4", "float32"), "F16": ("<f2", "float16"), "I64": ("<i8", "int64"),
    "I32": ("<i4", "int32"), "I16": ("<i2", "int16"), "I8": ("<i1", "int8"), "U8": ("<u1", "uint8"), "BOOL": ("?", "bool"),
}  # fmt: skip
"""safetensors' name -> numpy's, torch's."""
CARRIED = ("F32", "F16", "I64")
EXACT = ("importance", "projectors")
"""Networks that half precision would ruin: their numbers span more than it has."""
_NAME = re.compile(r"network/[A-Za-z][A-Za-z0-9_]{0,60}/[A-Za-z0-9_.]{1,200}")

Table = dict[str, tuple[str, tuple[int, ...]]]
"""Tensor's name -> type (as in safetensors) and shape."""


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies in a file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    size: int

    @property
    def numpy(self) -> np.dtype[Any]:
        """Its type."""
        return np.dtype(_TYPES[self.dtype][0])


def ordered(table: Table) -> list[str]:
    """The order of the tensors in a file: widest type first, so that all are aligned; then by name."""
    return sorted(table, key=lambda name: (-np.dtype(_TYPES[table[name][0]][0]).itemsize, name))


def header(table: Table, metadata: Mapping[str, str] | None = None) -> bytes:
    """The beginning of a safetensors file with these tensors."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata is not None else {}
    end = 0
    for name in ordered(table):
        dtype, shape = table[name]
        begin, end = end, end + math.prod(shape) * np.dtype(_TYPES[dtype][0]).itemsize
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def read_table(data: Any) -> Table:
    """The tensors that a manifest lists.

    Raises:
        BundleError: `weights_invalid`: a name, type or shape that no network of ours has.
    """
    table: Table = {}
    try:
        for name, (dtype, shape) in data.items():
            sizes = isinstance(shape, list) and all(type(n) is int and 0 <= n < 1 << 31 for n in shape)
            if not _NAME.fullmatch(name) or dtype not in CARRIED or not sizes or len(shape) > 8:
                raise BundleError(
                    "weights_invalid", f"tensor {name[:100]!r}: {str(dtype)[:20]} {str(shape)[:100]} is not carried"
                )
            table[name] = (dtype, tuple(shape))
    except (AttributeError, TypeError, ValueError):
        raise BundleError("weights_invalid", "the manifest's list of tensors is not readable") from None
    return table


def locate(table: Table) -> dict[str, Stored]:
    """Where each tensor lies in a file that `header(table)` begins."""
    begin, found = len(header(table)), {}
    for name in ordered(table):
        dtype, shape = table[name]
        size = math.prod(shape) * np.dtype(_TYPES[dtype][0]).itemsize
        found[name] = Stored(dtype, shape, begin, size)
        begin += size
    return found


def length(table: Table) -> int:
    """Bytes of a file of these tensors."""
    return len(header(table)) + sum(tensor.size for tensor in locate(table).values())


def chunks(file: BinaryIO, tensor: Stored) -> Iterator[np.ndarray]:
    """A tensor's values, flat, in pieces."""
    file.seek(tensor.begin)
    left = tensor.size
    while left:
        data = file.read(min(CHUNK, left))
        if not data:
            raise BundleError("weights_invalid", "the weights end too early")
        left -= len(data)
        yield np.frombuffer(data, tensor.numpy)


def check(path: Path, table: Table) -> dict[str, Stored]:
    """Whether a file holds exactly these tensors, all of them finite; where they lie.

    Raises:
        BundleError: `weights_invalid`.
    """
    begin, found = header(table), locate(table)
    if path.stat().st_size != length(table):
        raise BundleError("weights_invalid", "the weights have another size than the manifest's tensors")
    with path.open("rb") as file:
        if file.read(len(begin)) != begin:
            raise BundleError("weights_invalid", "the weights hold other tensors than the manifest lists")
        for name, tensor in found.items():
            if tensor.dtype.startswith("F") and not all(np.isfinite(part).all() for part in chunks(file, tensor)):
                raise BundleError("weights_invalid", f"tensor {name} holds a value that is not finite")
    return found


def check_networks(table: Table, wanted: Table) -> None:
    """Whether the tensors are those of the networks; half precision stands for float32.

    Raises:
        BundleError: `weights_invalid`: the first tensors that are missing, too many, or of another form.
    """
    faults = [f"{name} is missing" for name in sorted(wanted.keys() - table.keys())]
    faults += [f"{name} does not belong to the run's networks" for name in sorted(table.keys() - wanted.keys())]
    for name in sorted(table.keys() & wanted.keys()):
        (dtype, shape), (due, due_shape) = table[name], wanted[name]
        if shape != due_shape or (dtype != due and (dtype, due) != ("F16", "F32")):
            faults.append(f"{name} is {dtype} {list(shape)}, the run's networks have {due} {list(due_shape)}")
    if faults:
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise BundleError("weights_invalid", "; ".join(faults[:3]) + more)


@dataclass(frozen=True)
class Source:
    """A checkpoint of ours as it lies in its file."""

    meta: dict[str, Any]
    """Its JSON."""
    tensors: dict[str, Stored]
    digest: str


def read_checkpoint(path: Path) -> Source:
    """A checkpoint; its digest is verified.

    Raises:
        CheckpointError: not a checkpoint of ours, or damaged.
    """
    with _opened(path) as (file, found):
        if _content_digest(file, found.meta, found.tensors) != found.digest:
            raise ValueError("its content does not match its digest")
    return found


def read_meta(path: Path) -> dict[str, Any]:
    """A checkpoint's JSON, unverified. Raises CheckpointError."""
    with _opened(path) as (_, found):
        return found.meta


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, Source]]:
    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            if size > 100 << 20:
                raise ValueError("its header is too long")
            entries = json.loads(file.read(size))
            told = entries.pop("__metadata__")
            tensors = {
                name: Stored(e["dtype"], tuple(e["shape"]), 8 + size + e["data_offsets"][0],
                             e["data_offsets"][1] - e["data_offsets"][0])
                for name, e in entries.items()
            }  # fmt: skip
            yield file, Source(json.loads(told["relay"]), tensors, told["digest"])
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error, BundleError) as error:
        raise CheckpointError(f"{path}: damaged or not a checkpoint ({error})") from None


def _content_digest(file: BinaryIO, meta: Mapping[str, Any], tensors: Mapping[str, Stored]) -> str:
    """What `engine.checkpoint.content_digest` gives for these tensors, half precision taken as float32."""
    digest = hashlib.sha256(json.dumps(meta, sort_keys=True, separators=(",", ":")).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        full = _full(tensor.dtype)
        digest.update(f"\0{name}\0torch.{_TYPES[full][1]}\0{tuple(tensor.shape)}\0".encode())
        for part in chunks(file, tensor):
            digest.update(_widened(part, full).data)
    return digest.hexdigest()


def _full(dtype: str) -> str:
    return "F32" if dtype == "F16" else dtype


def _widened(values: np.ndarray, dtype: str) -> np.ndarray:
    return values.astype(_TYPES[dtype][0], copy=False)


def select(source: Path, tensors: Mapping[str, Stored], target: Path, half: bool, progress: Progress = no_progress) -> Table:
    """Write tensors of a checkpoint as a file of weights.

    Args:
        source: the checkpoint.
        tensors: which of its tensors.
        target: the file to write.
        half: carry float32 as float16 where every value fits (never of `EXACT`); float64 is always carried as float32.
        progress: told the bytes written.

    Raises:
        BundleError: `weights_invalid`: a value is not finite, or a type is not carried.
    """
    with source.open("rb") as file, target.open("xb") as out:
        table: Table = {}
        for name, tensor in tensors.items():
            single = "F32" if tensor.dtype == "F64" else tensor.dtype
            if single not in CARRIED or not _NAME.fullmatch(name):
                raise BundleError("weights_invalid", f"tensor {name} ({tensor.dtype}) is not carried")
            finite, fits = True, half and single == "F32" and name.split("/")[1] not in EXACT
            for part in chunks(file, tensor) if tensor.dtype.startswith("F") else ():
                finite = finite and bool(np.isfinite(part).all())
                fits = fits and bool((np.abs(part) <= np.finfo(np.float16).max).all())
            if not finite:
                raise BundleError("weights_invalid", f"tensor {name} holds a value that is not finite")
            table[name] = ("F16" if fits else single, tensor.shape)
        _write(file, tensors, out, table, None, progress)
    return table


def _write(
    file: BinaryIO,
    tensors: Mapping[str, Stored],
    out: BinaryIO,
    table: Table,
    metadata: Mapping[str, str] | None,
    progress: Progress,
) -> None:
    out.write(header(table, metadata))
    done, total = 0, sum(tensor.size for tensor in tensors.values())
    for name in ordered(table):
        for part in chunks(file, tensors[name]):
            out.write(_widened(part, table[name][0]).data)
            done += part.nbytes
            progress(done, total)


def to_checkpoint(
    source: Path, tensors: Mapping[str, Stored], meta: Mapping[str, Any], target: Path, progress: Progress = no_progress
) -> str:
    """Write checked weights as a checkpoint that the engine starts from; return its digest. Raises OSError."""
    table: Table = {name: (_full(tensor.dtype), tensor.shape) for name, tensor in tensors.items()}
    with source.open("rb") as file:
        digest = _content_digest(file, meta, tensors)
        told = {"relay": json.dumps(meta, sort_keys=True), "digest": digest}

        def write(temporary: Path) -> None:
            temporary.touch(0o600, exist_ok=False)
            with temporary.open("wb") as out:
                _write(file, tensors, out, table, told, progress)

        replace_with(target, write)
    return digest


def file_digest(path: Path, progress: Callable[[int], object] = lambda done: None) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            progress(file.tell())
    return digest.hexdigest()

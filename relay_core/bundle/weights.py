"""Reads, checks and writes files of tensors in chunks, with numpy: a small machine can do it, and torch is not needed."""

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
"""Maps safetensors' name of a type to numpy's and torch's."""
CARRIED = ("F32", "F16", "I64")
"""The types, by safetensors' names, that a bundle's weights may have."""
EXACT = ("importance", "projectors")
"""Networks that are never carried in half precision, whose range is too small for their values."""
_NAME = re.compile(r"network/[A-Za-z][A-Za-z0-9_]{0,60}/[A-Za-z0-9_.]{1,200}")

Table = dict[str, tuple[str, tuple[int, ...]]]
"""Maps a tensor's name to its type (as safetensors names it) and shape."""


@dataclass(frozen=True)
class Stored:
    """Describes a tensor in a file: its type, shape and place."""

    dtype: str
    """The type, as safetensors names it."""
    shape: tuple[int, ...]
    begin: int
    """The offset of the first byte, from the start of the file."""
    size: int
    """The number of bytes."""

    @property
    def numpy(self) -> np.dtype[Any]:
        """Return the tensor's type as numpy's."""
        return np.dtype(_TYPES[self.dtype][0])


def ordered(table: Table) -> list[str]:
    """Return the tensors' names in the order of the file: widest type first, so that all are aligned; then by name."""
    return sorted(table, key=lambda name: (-np.dtype(_TYPES[table[name][0]][0]).itemsize, name))


def header(table: Table, metadata: Mapping[str, str] | None = None) -> bytes:
    """Return the first bytes of a safetensors file with these tensors: the header and its length, before any values."""
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
    """Parse the list of tensors of a manifest.

    Args:
        data: tensor's name -> [type, shape], not yet checked.

    Raises:
        BundleError: `weights_invalid` where a name, type or shape is not one that a network of relay can have.
    """
    table: Table = {}
    try:
        for name, (dtype, shape) in data.items():
            sizes_valid = isinstance(shape, list) and all(type(n) is int and 0 <= n < 1 << 31 for n in shape)
            if not _NAME.fullmatch(name) or dtype not in CARRIED or not sizes_valid or len(shape) > 8:
                raise BundleError(
                    "weights_invalid", f"tensor {name[:100]!r}: {str(dtype)[:20]} {str(shape)[:100]} is not carried"
                )
            table[name] = (dtype, tuple(shape))
    except (AttributeError, TypeError, ValueError):
        raise BundleError("weights_invalid", "the manifest's list of tensors is not readable") from None
    return table


def locate(table: Table) -> dict[str, Stored]:
    """Return the place of each tensor in a file that begins with `header(table)`."""
    begin, places = len(header(table)), {}
    for name in ordered(table):
        dtype, shape = table[name]
        size = math.prod(shape) * np.dtype(_TYPES[dtype][0]).itemsize
        places[name] = Stored(dtype, shape, begin, size)
        begin += size
    return places


def length(table: Table) -> int:
    """Return the size in bytes of a file of these tensors, its header included."""
    return len(header(table)) + sum(tensor.size for tensor in locate(table).values())


def chunks(file: BinaryIO, tensor: Stored) -> Iterator[np.ndarray]:
    """Yield a tensor's values as flat arrays of at most `CHUNK` bytes. Raises BundleError `weights_invalid`."""
    file.seek(tensor.begin)
    remaining = tensor.size
    while remaining:
        data = file.read(min(CHUNK, remaining))
        if not data:
            raise BundleError("weights_invalid", "the weights end too early")
        remaining -= len(data)
        yield np.frombuffer(data, tensor.numpy)


def check(path: Path, table: Table) -> dict[str, Stored]:
    """Require that a file holds exactly these tensors with finite values only; return their places in it.

    Raises:
        BundleError: `weights_invalid`.
    """
    expected_header, places = header(table), locate(table)
    if path.stat().st_size != length(table):
        raise BundleError("weights_invalid", "the weights have another size than the manifest's tensors")
    with path.open("rb") as file:
        if file.read(len(expected_header)) != expected_header:
            raise BundleError("weights_invalid", "the weights hold other tensors than the manifest lists")
        for name, tensor in places.items():
            if tensor.dtype.startswith("F") and not all(np.isfinite(part).all() for part in chunks(file, tensor)):
                raise BundleError("weights_invalid", f"tensor {name} holds a value that is not finite")
    return places


DISCRIMINATORS = ("D_label", "D_img")
"""Networks that may stay behind: the next site's start anew then."""
OPTIONAL = (*DISCRIMINATORS, "styles")
"""Networks of a strategy with generators that a bundle may lack: a converted model has no colours."""


def check_networks(table: Table, wanted: Table, lean: bool = False) -> None:
    """Require that the tensors are those of the run's networks; float16 may stand for float32.

    Args:
        table: the tensors of a bundle.
        wanted: the tensors of the run's networks.
        lean: whether those of `OPTIONAL` may be missing, each as a whole.

    Raises:
        BundleError: `weights_invalid`; it names the first three tensors that are missing, unknown, or of another form.
    """
    absent = {name for name in (OPTIONAL if lean else ()) if not any(key.startswith(f"network/{name}/") for key in table)}
    wanted = {name: form for name, form in wanted.items() if name.split("/")[1] not in absent}
    faults = [f"{name} is missing" for name in sorted(wanted.keys() - table.keys())]
    faults += [f"{name} does not belong to the run's networks" for name in sorted(table.keys() - wanted.keys())]
    for name in sorted(table.keys() & wanted.keys()):
        (dtype, shape), (due_dtype, due_shape) = table[name], wanted[name]
        if shape != due_shape or (dtype != due_dtype and (dtype, due_dtype) != ("F16", "F32")):
            faults.append(f"{name} is {dtype} {list(shape)}, the run's networks have {due_dtype} {list(due_shape)}")
    if faults:
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise BundleError("weights_invalid", "; ".join(faults[:3]) + more)


@dataclass(frozen=True)
class Source:
    """Describes a checkpoint of relay in its file: its metadata, the places of its tensors, its digest."""

    meta: dict[str, Any]
    """The checkpoint's JSON metadata."""
    tensors: dict[str, Stored]
    digest: str
    """The SHA-256 over metadata and tensors that the file states."""


def read_checkpoint(path: Path) -> Source:
    """Read where a checkpoint's tensors lie, and verify its digest.

    Raises:
        CheckpointError: the file is missing, damaged or not a checkpoint of relay.
    """
    with _opened_checkpoint(path) as (file, checkpoint):
        if _content_digest(file, checkpoint.meta, checkpoint.tensors) != checkpoint.digest:
            raise ValueError("its content does not match its digest")
    return checkpoint


def read_meta(path: Path) -> dict[str, Any]:
    """Return a checkpoint's JSON metadata without verifying the digest. Raises CheckpointError."""
    with _opened_checkpoint(path) as (_, checkpoint):
        return checkpoint.meta


@contextlib.contextmanager
def _opened_checkpoint(path: Path) -> Iterator[tuple[BinaryIO, Source]]:
    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            if size > 100 << 20:
                raise ValueError("its header is too long")
            entries = json.loads(file.read(size))
            metadata = entries.pop("__metadata__")
            tensors = {
                name: Stored(entry["dtype"], tuple(entry["shape"]), 8 + size + entry["data_offsets"][0],
                             entry["data_offsets"][1] - entry["data_offsets"][0])
                for name, entry in entries.items()
            }  # fmt: skip
            yield file, Source(json.loads(metadata["relay"]), tensors, metadata["digest"])
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error, BundleError) as error:
        raise CheckpointError(f"{path}: damaged or not a checkpoint ({error})") from None


def _content_digest(file: BinaryIO, meta: Mapping[str, Any], tensors: Mapping[str, Stored]) -> str:
    """Return the digest that `engine.checkpoint.content_digest` gives for these tensors, float16 widened to float32."""
    digest = hashlib.sha256(json.dumps(meta, sort_keys=True, separators=(",", ":")).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        dtype = _without_half(tensor.dtype)
        digest.update(f"\0{name}\0torch.{_TYPES[dtype][1]}\0{tuple(tensor.shape)}\0".encode())
        for part in chunks(file, tensor):
            digest.update(_widened(part, dtype).data)
    return digest.hexdigest()


def _without_half(dtype: str) -> str:
    return "F32" if dtype == "F16" else dtype


def _widened(values: np.ndarray, dtype: str) -> np.ndarray:
    return values.astype(_TYPES[dtype][0], copy=False)


def select(source: Path, tensors: Mapping[str, Stored], target: Path, half: bool, progress: Progress = no_progress) -> Table:
    """Write selected tensors of a checkpoint as a file of weights; return their types and shapes in it.

    Args:
        source: the checkpoint.
        tensors: the tensors to write, with their places in the checkpoint.
        target: the file to write, which must not exist.
        half: whether to carry float32 as float16 where every value fits (never in networks of `EXACT`); float64 is always
            carried as float32.
        progress: called with the bytes of the checkpoint's tensors that are done, and in all.

    Raises:
        BundleError: `weights_invalid` where a value is not finite, or a type is not carried.
    """
    with source.open("rb") as file, target.open("xb") as out:
        table: Table = {}
        for name, tensor in tensors.items():
            dtype = "F32" if tensor.dtype == "F64" else tensor.dtype
            if dtype not in CARRIED or not _NAME.fullmatch(name):
                raise BundleError("weights_invalid", f"tensor {name} ({tensor.dtype}) is not carried")
            finite, fits_half = True, half and dtype == "F32" and name.split("/")[1] not in EXACT
            for part in chunks(file, tensor) if tensor.dtype.startswith("F") else ():
                finite = finite and bool(np.isfinite(part).all())
                fits_half = fits_half and bool((np.abs(part) <= np.finfo(np.float16).max).all())
            if not finite:
                raise BundleError("weights_invalid", f"tensor {name} holds a value that is not finite")
            table[name] = ("F16" if fits_half else dtype, tensor.shape)
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
    table: Table = {name: (_without_half(tensor.dtype), tensor.shape) for name, tensor in tensors.items()}
    with source.open("rb") as file:
        digest = _content_digest(file, meta, tensors)
        metadata = {"relay": json.dumps(meta, sort_keys=True), "digest": digest}

        def write(temporary: Path) -> None:
            temporary.touch(0o600, exist_ok=False)
            with temporary.open("wb") as out:
                _write(file, tensors, out, table, metadata, progress)

        replace_with(target, write)
    return digest


def file_digest(path: Path, progress: Callable[[int], object] = lambda done: None) -> str:
    """Return the SHA-256 of a file in hexadecimal; `progress` is called with the bytes read so far."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            progress(file.tell())
    return digest.hexdigest()

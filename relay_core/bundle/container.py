"""Writes and reads the bundle file as a stream: an uncompressed tar of fixed members in a fixed order.

A header is accepted only when it is, byte for byte, the one that this module writes for the member that is due: other
names, links, devices, sparse files, long-name extensions, other owners or times are all refused by that one comparison.
Nothing is ever extracted by a name that stands in the file.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from relay_core.errors import BundleError

MIB = 1 << 20
MEMBERS: dict[str, int] = {
    "signature.json": MIB,
    "manifest.json": 16 * MIB,
    "run.yaml": MIB,
    "history.json": 4 * MIB,
    "MODEL_CARD.md": MIB,
    "weights.safetensors": (8 << 30) - 1,
}
"""Maps each member's name to its largest size in bytes, in the order of the file. The small members come first, so that a
reader knows the signer and every digest before it reads the weights."""
WEIGHTS = "weights.safetensors"
CHUNK = 4 * MIB
BLOCK = 512
LARGEST = sum(MEMBERS.values()) + (2 * len(MEMBERS) + 2) * BLOCK
"""No valid bundle, unencrypted, has more bytes than this."""

Progress = Callable[[int, int], object]
"""A callback that is called with the bytes processed so far and the bytes in all."""


def no_progress(done: int, total: int) -> None:
    """Ignore the progress: the default where no caller wants it reported."""


def write(file: BinaryIO, members: Mapping[str, bytes], weights: Path, progress: Progress = no_progress) -> None:
    """Write a bundle: the small members from memory, the weights from a file.

    Raises:
        BundleError: `bundle_too_large` where a member exceeds its limit in `MEMBERS`.
        OSError: the file is not writable, or the disk is full.
    """
    for name, limit in MEMBERS.items():
        size = weights.stat().st_size if name == WEIGHTS else len(members[name])
        if size > limit:
            raise BundleError("bundle_too_large", f"{name} would take {size} bytes; {limit} are allowed")
        file.write(_header(name, size))
        if name == WEIGHTS:
            with weights.open("rb") as source:
                while chunk := source.read(CHUNK):
                    file.write(chunk)
                    progress(source.tell(), size)
        else:
            file.write(members[name])
        file.write(bytes(-size % BLOCK))
    file.write(bytes(2 * BLOCK))


def read(file: BinaryIO) -> Iterator[tuple[str, int, Iterator[bytes]]]:
    """Yield the members in order: name, size in bytes, content in chunks.

    The caller must use up each content before it asks for the next member.

    Raises:
        BundleError: `bundle_damaged` where the file is not exactly the expected tar; `bundle_too_large` where a member's
            stated size exceeds its limit in `MEMBERS`.
    """
    for name in MEMBERS:
        size = _checked_size(_read_exactly(file, BLOCK, name), name)
        yield name, size, _read_content(file, name, size)
        if any(_read_exactly(file, -size % BLOCK, name)):
            raise BundleError("bundle_damaged", f"there are bytes between {name} and what follows")
    if any(_read_exactly(file, 2 * BLOCK, "the end")) or file.read(1):
        raise BundleError("bundle_damaged", "there are bytes after the last member")


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.USTAR_FORMAT)


def _checked_size(block: bytes, name: str) -> int:
    digits = block[124:135]
    if not digits.isdigit() or any(d > ord("7") for d in digits):
        raise BundleError("bundle_damaged", f"this is no bundle of relay: the header of {name} is not readable")
    size = int(digits, 8)
    if block != _header(name, size):
        raise BundleError("bundle_damaged", f"where {name} is due, there is something else")
    if size > MEMBERS[name]:
        raise BundleError("bundle_too_large", f"{name} says that it has {size} bytes; {MEMBERS[name]} are allowed")
    return size


def _read_content(file: BinaryIO, name: str, size: int) -> Iterator[bytes]:
    while size:
        chunk = file.read(min(CHUNK, size))
        if not chunk:
            raise BundleError("bundle_damaged", f"it ends within {name}: the copy is not complete")
        size -= len(chunk)
        yield chunk


def _read_exactly(file: BinaryIO, size: int, name: str) -> bytes:
    return b"".join(_read_content(file, name, size))

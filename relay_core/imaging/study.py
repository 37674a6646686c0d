"""Decode one image or volume as a clinician's system sends it: PNG, JPEG, TIFF, NIfTI, DICOM, or a zip of a DICOM series.

Values reach a network as they did in training: see `readers.read_image`; DICOM values are mapped by the file's window (see
`dicom`). For a network that learned from HU, DICOM and NIfTI values are mapped by the window of the training instead.
Legend: S slices, C channels, H rows, W columns.
"""

from __future__ import annotations

import io
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from relay_core.errors import DataError, ImageError
from relay_core.imaging.display import Display, stretch
from relay_core.imaging.grid import Grid
from relay_core.imaging.limits import MAX_FILES, MAX_PIXELS, MAX_SCANS, MAX_VOXELS, check_size
from relay_core.imaging.names import is_litter
from relay_core.imaging.nifti import read_nifti
from relay_core.imaging.readers import plane_axes, read_image, to_channels

if TYPE_CHECKING:
    import pydicom

_PICTURES = {
    b"\x89PNG\r\n\x1a\n": ".png", b"\xff\xd8\xff": ".jpg",
    b"II*\0": ".tif", b"MM\0*": ".tif", b"II+\0": ".tif", b"MM\0+": ".tif",
}  # fmt: skip


@dataclass(frozen=True)
class Study:
    """A decoded image or volume, as a network sees it: a volume in LPS, a picture upright."""

    kind: Literal["picture", "nifti", "dicom"]
    pixels: npt.NDArray[Any]
    """(S, C, H, W) as decoded; grey is repeated, without copies, where colour is wanted."""
    spacing: tuple[float | None, float, float] | None
    """Millimetres from slice to slice, row to row, column to column; None where the file does not tell."""
    volume: bool
    """Whether it is a stack of slices rather than one picture."""
    grid: Grid | None = None
    """Where the voxels lie, and how a mask is turned back to the source's storage order; None: a picture has none."""
    sources: tuple[pydicom.Dataset, ...] = ()
    """DICOM headers in the order of the stack (one for a multi-frame file), without their pixels."""
    order: tuple[int, ...] = ()
    """Of each slice of the stack the number of its frame in a multi-frame DICOM file."""
    display: Display | None = None
    """How measured values become shades; None: uint8 by 255, float32 pictures as they are, NIfTI slice by slice."""

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Return slices `start` to `stop` as (n, C, H, W) float32 in 0..1."""
        slices = self.pixels[start:stop]
        shown: npt.NDArray[Any]
        if self.display is not None:
            shown = self.display.shades(slices)
        elif self.kind == "nifti":
            shown = np.stack([stretch(values) for values in slices])
        else:
            shown = slices / np.float32(255) if slices.dtype == np.uint8 else slices
        return np.ascontiguousarray(shown, np.float32)

    def in_frame_order(self, mask: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Bring a mask (S, H, W) of DICOM back to the slices as stored: to the order of `sources`, or of the frames."""
        assert self.grid is not None
        stack = self.grid.restored(mask.reshape(self.grid.shape)).transpose(2, 1, 0)
        if len(self.sources) > 1:
            return np.ascontiguousarray(stack)
        frames = np.empty_like(stack)
        frames[list(self.order)] = stack
        return frames


def read_study(content: bytes, channels: int, window: tuple[float, float] | None = None) -> Study:
    """Decode an upload; its first bytes tell the format.

    Args:
        content: the bytes of the file.
        channels: number of channels that the network takes, 1 or 3.
        window: measured values (HU) that are black and white to the network; None: it learned from grey values without unit.

    Raises:
        ImageError: the format is unknown, the file is damaged or too large, it is in colour where grey is wanted, values are
            not finite, the slices do not lie evenly one behind the other, or a DICOM file has no measurements where the
            network reads them.
    """
    study = _decode(content, channels)
    if window is None or study.kind == "picture":
        return study
    if study.kind == "dicom":
        _require_measurements(study)
    return replace(study, display=Display.between(*window))


def _require_measurements(study: Study) -> None:
    """Raise ImageError where the values of a DICOM study are no measurements (HU)."""
    from relay_core.imaging.dicom import tells_rescaling

    if study.sources[0].get("SamplesPerPixel", 1) > 1:
        raise ImageError("the image is in colour, and the model reads measured values (HU): send the CT image itself")
    if not all(tells_rescaling(header) for header in study.sources):
        raise ImageError(
            "the DICOM file has no RescaleSlope and RescaleIntercept: its values are not HU, which the model reads"
        )


def _decode(content: bytes, channels: int) -> Study:
    if content[128:132] == b"DICM":
        return _decode_dicom([content], channels)
    if content[:4] == b"PK\3\4":
        return _decode_dicom(_unzip(content), channels)
    for magic, suffix in _PICTURES.items():
        if content.startswith(magic):
            return _decode_picture(content, suffix, channels)
    packed = content[:2] == b"\x1f\x8b"
    if packed and _begins_as_dicom(content):
        raise ImageError("the image is DICOM within gzip; send it unpacked, or a series as a zip")
    if packed or content[:4] in (b"\x5c\1\0\0", b"\0\0\1\x5c", b"\x1c\2\0\0", b"\0\0\2\x1c"):
        return _decode_nifti(content, ".nii.gz" if packed else ".nii", channels)
    if content[:4] in (b"\x08\0\x05\0", b"\x08\0\0\0", b"\0\x08\0\x05", b"\x02\0\0\0", b"\x02\0\x01\0", b"\x08\0\x16\0"):
        raise ImageError("the image looks like DICOM without its preamble; save it as a DICOM file (PS3.10)")
    raise ImageError("the image is of no kind that is read here: send PNG, JPEG, TIFF, NIfTI, DICOM, or a zip of a series")


def _begins_as_dicom(packed: bytes) -> bool:
    try:
        return zlib.decompressobj(31).decompress(packed[:4096], 132)[128:] == b"DICM"
    except zlib.error:
        return False


def _decode_picture(content: bytes, suffix: str, channels: int) -> Study:
    try:
        with Image.open(io.BytesIO(content)) as opened:
            width, height = opened.size
    except Image.DecompressionBombError:
        raise ImageError(f"the image has too many pixels; a slice may have {MAX_PIXELS}") from None
    except MemoryError:
        raise
    except Exception:  # decoders raise errors of many types on damaged files
        raise ImageError("the image is no PNG, JPEG or TIFF file that can be read, or its header is damaged") from None
    check_size(1, height, width)
    if suffix == ".jpg" and content.count(b"\xff\xda") > MAX_SCANS:
        raise ImageError(f"the image is a JPEG of more than {MAX_SCANS} scans; save it anew")
    with _as_file(content, suffix) as path:
        try:
            pixels, _ = read_image(path, channels)  # as in training
        except DataError as error:
            raise ImageError(f"the image {error.problems[0].message}") from None
    return Study("picture", pixels[None], None, False)


@contextmanager
def _as_file(content: bytes, suffix: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="relay-") as folder:
        path = Path(folder) / f"image{suffix}"
        path.write_bytes(content)
        yield path


def _decode_nifti(content: bytes, suffix: str, channels: int) -> Study:
    with _as_file(content, suffix) as path:
        try:
            nifti = read_nifti(path)
        except ImageError as error:
            reason = str(error)
            raise ImageError(reason if reason.startswith("the image") else f"the image {reason}") from None
    axes = plane_axes(nifti)
    if axes is None:
        return Study("nifti", grey_stack(nifti.values, channels), nifti.spacing, True, nifti.grid)
    rows, columns = axes
    picture = nifti.values.reshape(1, nifti.values.shape[rows], nifti.values.shape[columns])
    spacing = None if nifti.spacing is None else (None, nifti.spacing[rows], nifti.spacing[columns])
    return Study("nifti", grey_stack(picture, channels), spacing, False, nifti.grid)


def _unzip(content: bytes) -> list[bytes]:
    """Return the contents of an archive's files, which are never unpacked under their names. Raises ImageError."""
    if content.count(b"PK\1\2") > MAX_FILES:
        raise ImageError(f"the archive holds more than {MAX_FILES} files")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            if any(_points_outside(entry.filename) for entry in entries):
                raise ImageError("the archive names files outside itself; it is not read")
            entries = [entry for entry in entries if not is_litter(entry.filename)]
            if not 1 <= len(entries) <= MAX_FILES:
                raise ImageError(f"the archive holds {len(entries)} files; a series may have 1 to {MAX_FILES}")
            if sum(entry.file_size for entry in entries) > 4 * MAX_VOXELS:
                raise ImageError(f"the archive holds more than {4 * MAX_VOXELS >> 20} MiB")
            files = []
            for entry in entries:
                with archive.open(entry) as opened:
                    files.append(opened.read(entry.file_size + 1))
    except ImageError:
        raise
    except MemoryError:
        raise
    except Exception:  # zipfile, zlib and struct have their own errors; RuntimeError: encrypted
        raise ImageError("the archive cannot be read (damaged, encrypted, or of a kind that is not read here)") from None
    for number, file in enumerate(files, 1):
        if file[128:132] != b"DICM":
            raise ImageError(f"file {number} of {len(files)} in the archive is not DICOM; send one series alone")
    return files


def _points_outside(name: str) -> bool:
    """Whether a name in an archive would lie outside the folder that the archive is unpacked to."""
    parts = name.replace("\\", "/").split("/")
    return ".." in parts or parts[0] == "" or ":" in parts[0] or "\0" in name


def _decode_dicom(files: list[bytes], channels: int) -> Study:
    from relay_core.imaging.dicom import read_dicom

    decoded = read_dicom(files)
    colour = decoded.values.ndim == 4
    planes = np.moveaxis(decoded.values, -1, 0) if colour else decoded.values[None]
    stacks = np.stack([decoded.grid.turned(plane.transpose(2, 1, 0)) for plane in planes], axis=1)  # (S, 1 or 3, H, W)
    if colour:
        pixels = np.stack([to_channels(slice_.transpose(1, 2, 0), channels) for slice_ in stacks])
    else:
        pixels = grey_stack(stacks[:, 0], channels)
    spacing = decoded.grid.turned_sizes(decoded.spacing)
    return Study(
        "dicom", pixels, spacing, len(decoded.values) > 1, decoded.grid, decoded.headers, decoded.order, decoded.display
    )


def grey_stack(stack: npt.NDArray[Any], channels: int) -> npt.NDArray[Any]:
    """Return a view of a grey stack (S, H, W) as (S, channels, H, W)."""
    return np.broadcast_to(stack[:, None], (len(stack), channels, *stack.shape[1:]))

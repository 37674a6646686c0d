"""Decode one image or volume as a clinician's system sends it: PNG, JPEG, TIFF, NIfTI, DICOM, or a zip of a DICOM series.

Values reach a network as they did in training: see `readers.read_image`; DICOM values are mapped by the file's window (see
`dicom`). For a network that learned from HU, DICOM and NIfTI values are mapped by the window of the training instead.
Legend: S slices, C channels, H rows, W columns.
"""

from __future__ import annotations

import gzip
import io
import math
import tempfile
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from relay_core.errors import DataError, ImageError
from relay_core.imaging.limits import MAX_BYTES, MAX_FILES, MAX_PIXELS, MAX_VOXELS, check_size
from relay_core.imaging.readers import NiftiHeader, nifti_header, read_image

if TYPE_CHECKING:
    import pydicom

_PICTURES = {b"\x89PNG\r\n\x1a\n": ".png", b"\xff\xd8\xff": ".jpg", b"II*\0": ".tif", b"MM\0*": ".tif"}


@dataclass(frozen=True)
class Study:
    """A decoded image or volume."""

    kind: Literal["picture", "nifti", "dicom"]
    pixels: npt.NDArray[Any]
    """Values as decoded, (S, C, H, W); where colour is wanted, grey is repeated without copies."""
    spacing: tuple[float | None, float, float] | None
    """Millimetres from slice to slice, row to row, column to column; None where the file does not tell."""
    volume: bool
    """Whether it is a stack of slices rather than one picture."""
    geometry: Any = None
    """SimpleITK image whose size, spacing, origin and direction a mask takes over; None for a picture, which has none."""
    sources: tuple[pydicom.Dataset, ...] = ()
    """DICOM headers in the order of the slices (one for a multi-frame file), without their pixels."""

    window: tuple[float, float] | None = None
    """Centre and width that map values to 0..1 (PS3.3 C.11.2.1.2). None: 8-bit values are divided by 255, and a picture's
    float32 values are in 0..1 already; all others, and those of NIfTI, are stretched from each slice's smallest to its
    largest."""
    inverted: bool = False
    """Whether the largest value means black (MONOCHROME1)."""

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Return slices `start` to `stop` - 1 as (n, C, H, W) float32 in 0..1."""
        slices = self.pixels[start:stop]
        if self.window is not None:
            centre, width = self.window
            scaled = np.clip((slices - np.float32(centre - 0.5)) / np.float32(max(width - 1, 1e-6)) + np.float32(0.5), 0, 1)
        elif self.kind != "nifti" and slices.dtype == np.uint8:
            scaled = slices / np.float32(255)
        elif self.kind == "picture":
            scaled = slices
        else:
            scaled = np.stack([_stretch(values) for values in slices])
        return np.ascontiguousarray(1 - scaled if self.inverted else scaled, np.float32)


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
    low, high = window
    return replace(study, window=((low + high + 1) / 2, high - low + 1), inverted=False)


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
    if packed or content[:4] in (b"\x5c\1\0\0", b"\0\0\1\x5c", b"\x1c\2\0\0", b"\0\0\2\x1c"):
        return _decode_nifti(content, ".nii.gz" if packed else ".nii", channels)
    raise ImageError("the image is of no kind that is read here: send PNG, JPEG, TIFF, NIfTI, DICOM, or a zip of a series")


def _decode_picture(content: bytes, suffix: str, channels: int) -> Study:
    try:
        with Image.open(io.BytesIO(content)) as opened:
            width, height = opened.size
    except Image.DecompressionBombError:
        raise ImageError(f"the image has too many pixels; a slice may have {MAX_PIXELS}") from None
    except Exception:  # decoders raise errors of many types on damaged files
        raise ImageError("the image cannot be decoded (truncated or not an image)") from None
    check_size(1, height, width)
    pixels, _ = _read_pixels(content, suffix, 3)
    if channels == 1:
        if (pixels != pixels[:1]).any():
            raise ImageError("the image is in colour, and the model reads grey images")
        pixels = pixels[:1]
    return Study("picture", pixels[None], None, False)


def _read_pixels(content: bytes, suffix: str, channels: int) -> Any:
    with tempfile.TemporaryDirectory(prefix="relay-") as folder:
        path = Path(folder) / f"image{suffix}"
        path.write_bytes(content)
        try:
            return read_image(path, channels)
        except DataError as error:
            raise ImageError(f"the image {error.problems[0].message}") from None


def _decode_nifti(content: bytes, suffix: str, channels: int) -> Study:
    import SimpleITK as sitk

    with tempfile.TemporaryDirectory(prefix="relay-") as folder:
        path = Path(folder) / f"image{suffix}"
        path.write_bytes(content)
        try:
            header = nifti_header(path)
        except DataError as error:
            raise ImageError(f"the image {error.problems[0].message}") from None
        size = list(header.size)
        while len(size) > 3 and size[-1] == 1:
            size.pop()
        if len(size) not in (2, 3):
            raise ImageError(f"the NIfTI file has {len(size)} dimensions ({' x '.join(map(str, size))}); send one volume")
        check_size(size[2] if len(size) == 3 else 1, size[1], size[0])
        if header.code not in _REAL:
            raise ImageError("the NIfTI file's voxels are not single real numbers; send a grey volume")
        if header.needed > MAX_BYTES:
            raise ImageError(f"the NIfTI file has more than {MAX_BYTES >> 20} MiB, decompressed")
        if header.code in (16, 64):
            _require_finite(path, header, math.prod(size))
        sitk.ProcessObject.SetGlobalWarningDisplay(False)
        try:
            image = sitk.ReadImage(str(path))
        except RuntimeError:
            raise ImageError("the image cannot be decoded (truncated or not an image)") from None
    if image.GetDimension() > 3:
        image = image[tuple([slice(None)] * 3 + [0] * (image.GetDimension() - 3))]
    *between, row, column = (float(mm) for mm in image.GetSpacing()[::-1])
    array = sitk.GetArrayViewFromImage(image)
    volume = array.ndim == 3 and len(array) > 1
    stack = array if array.ndim == 3 else array[None]
    spacing = (between[0] if between else None, row, column)
    return Study("nifti", grey_stack(stack, channels), spacing, volume, image)


_REAL = (2, 4, 8, 16, 64, 256, 512, 768, 1024, 1280)
"""Codes of NIfTI's integer and floating-point types."""


def _require_finite(path: Path, header: NiftiHeader, count: int) -> None:
    """Raise ImageError where one of `count` voxels is NaN or infinite; the reader would turn it into 0."""
    dtype = np.dtype(f"{header.order}f{4 if header.code == 16 else 8}")
    bytes_left = count * dtype.itemsize
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        file.read(header.start)
        while bytes_left > 0 and (chunk := file.read(min(bytes_left, 1 << 24))):
            bytes_left -= len(chunk)
            if not np.isfinite(np.frombuffer(chunk, dtype, len(chunk) // dtype.itemsize)).all():
                raise ImageError("the image has values that are not finite numbers (NaN or infinity)")


def _unzip(content: bytes) -> list[bytes]:
    """Return the contents of an archive's files, which are never unpacked under their names. Raises ImageError."""
    if content.count(b"PK\1\2") > MAX_FILES:
        raise ImageError(f"the archive holds more than {MAX_FILES} files")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            if any(_points_outside(entry.filename) for entry in entries):
                raise ImageError("the archive names files outside itself; it is not read")
            entries = [e for e in entries if not e.filename.startswith("__MACOSX/") and not e.filename.endswith("DICOMDIR")]
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
    stack = decoded.values
    if stack.ndim == 4:
        if channels == 1:
            raise ImageError("the image is in colour, and the model reads grey images")
        pixels = stack.transpose(0, 3, 1, 2)
    else:
        pixels = grey_stack(stack, channels)
    return Study(
        "dicom", pixels, decoded.spacing, len(stack) > 1, decoded.geometry, decoded.headers, decoded.window, decoded.inverted
    )


def grey_stack(stack: npt.NDArray[Any], channels: int) -> npt.NDArray[Any]:
    """Return a view of a grey stack (S, H, W) as (S, channels, H, W)."""
    return np.broadcast_to(stack[:, None], (len(stack), channels, *stack.shape[1:]))


def _stretch(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Stretch the values of a slice to 0..1, from the smallest to the largest; a constant slice becomes 0."""
    low, high = float(values.min()), float(values.max())
    return ((values - low) / (high - low) if high > low else np.zeros_like(values)).astype(np.float32)

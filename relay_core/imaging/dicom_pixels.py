"""Decode the pixels of DICOM files by SimpleITK, to what the modality measured, and look into compressed frames.

Values are rescaled by slope and intercept or by the modality's LUT. Padding counts as the darkest value of the image, so
that no window and no statistic sees it.
"""

from __future__ import annotations

import io
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import SimpleITK as sitk
from pydicom.pixels import apply_modality_lut, convert_color_space

from relay_core.errors import ImageError
from relay_core.imaging import placement


def read_pixels(files: Sequence[bytes], shape: tuple[int, int, int], *, inverted: bool, jfif: bool) -> npt.NDArray[Any]:
    """Decode the rescaled values of all files: (S, H, W), or (S, H, W, 3) for colour."""
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    values: npt.NDArray[Any] | None = None
    with tempfile.TemporaryDirectory(prefix="relay-") as folder:
        for i, content in enumerate(files):
            path = Path(folder) / f"{i:04d}.dcm"
            path.write_bytes(_as_monochrome2(content) if inverted else content)
            try:
                image = sitk.ReadImage(str(path))
            except RuntimeError:
                raise ImageError("the DICOM file's pixel data are damaged: they cannot be decoded") from None
            finally:
                path.unlink()
            slices = _slices_of(image)
            if slices.shape[:3] != (shape if len(files) == 1 else (1, *shape[1:])):
                raise ImageError("the DICOM file's pixels have another size than its header says")
            if len(files) == 1:
                values = slices
                break
            if values is None:
                values = np.empty((shape[0], *slices.shape[1:]), slices.dtype)
            elif not np.can_cast(slices.dtype, values.dtype):
                values = values.astype(np.result_type(slices.dtype, values.dtype))
            values[i] = slices[0]
    assert values is not None
    if not np.isfinite(values).all():
        raise ImageError("the image has values that are not finite numbers (NaN or infinity)")
    return convert_color_space(values, "YBR_FULL", "RGB") if jfif and values.ndim == 4 else values


def _as_monochrome2(content: bytes) -> bytes:
    """Relabel a MONOCHROME1 file as MONOCHROME2, because SimpleITK would invert the stored values before rescaling them."""
    dataset, relabelled = pydicom.dcmread(io.BytesIO(content)), io.BytesIO()
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.save_as(relabelled)
    return relabelled.getvalue()


def _slices_of(image: sitk.Image) -> npt.NDArray[Any]:
    """Return the slices of an image, (S, H, W) or (S, H, W, 3); raise ImageError for other channels or deep colour."""
    channels = image.GetNumberOfComponentsPerPixel()
    array: npt.NDArray[Any] = sitk.GetArrayFromImage(image)
    if channels not in (1, 3):
        raise ImageError(f"the DICOM file has {channels} values a pixel; send grey or RGB")
    spatial_axes = array.ndim - (channels > 1)
    if channels > 1 and array.dtype != np.uint8:
        raise ImageError("the DICOM file is in colour of more than 8 bits; send 8 bits")
    return array[None] if spatial_axes == 2 else array


def measured(values: npt.NDArray[Any], header: pydicom.Dataset, *, darkest_is_smallest: bool) -> npt.NDArray[Any]:
    """Values after the modality's LUT, where there is one, with padding as dark as the darkest pixel."""
    padded = _padding(values, header)
    if header.get("ModalityLUTSequence"):
        values = apply_modality_lut(values.astype(np.int64), header).astype(np.float32)
    if padded is not None and padded.any() and not padded.all():
        rest = values[~padded]
        values = np.where(padded, rest.min() if darkest_is_smallest else rest.max(), values).astype(values.dtype)
    return values


def _padding(values: npt.NDArray[Any], header: pydicom.Dataset) -> npt.NDArray[np.bool_] | None:
    """Where the pixels are padding (PS3.3 C.7.5.1.1.2), stated in stored values; None where the file names none."""
    one = header.get("PixelPaddingValue")
    if one is None:
        return None
    other = header.get("PixelPaddingRangeLimit", one)
    scale = header if header.get("RescaleSlope") is not None else placement.group(header, "PixelValueTransformationSequence")
    slope = float(scale.RescaleSlope) if scale is not None and scale.get("RescaleSlope") is not None else 1.0
    intercept = float(scale.RescaleIntercept) if scale is not None and scale.get("RescaleIntercept") is not None else 0.0
    low, high = sorted(float(stored) * slope + intercept for stored in (one, other))
    return np.asarray((values >= low - 1e-3) & (values <= high + 1e-3))


def coded_size(frame: bytes) -> tuple[int, int] | None:
    """Return rows and columns that a compressed frame itself states (JPEG, JPEG-LS, JPEG 2000); else None."""
    if frame[4:8] == b"jP  ":
        raise ImageError("the DICOM file's pixels are a JP2 file, whose colours may be in any order; send it uncompressed")
    if frame[:4] == b"\xff\x4f\xff\x51":  # JPEG 2000: SOC, SIZ
        right, bottom, left, top = struct.unpack_from(">4I", frame, 8)
        return bottom - top, right - left
    position = 2
    while frame[:2] == b"\xff\xd8" and position + 9 <= len(frame) and frame[position] == 0xFF:
        marker, length = frame[position + 1], int.from_bytes(frame[position + 2 : position + 4], "big")
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            rows, columns = struct.unpack_from(">2H", frame, position + 5)
            return rows, columns
        position += 1 if marker == 0xFF else 2 + length
    return None


def is_jfif(frame: bytes) -> bool:
    """Whether a JPEG stream begins as JFIF does, whose colours are YCbCr."""
    return frame[:4] == b"\xff\xd8\xff\xe0" and frame[6:11] == b"JFIF\0"

"""Decode DICOM images: pixels by SimpleITK, everything else from the headers.

Values are rescaled by the modality's slope and intercept. Then the window of the middle slice (PS3.3 C.11.2.1.2, linear)
maps all slices to 0..1. Without a window, 8-bit values are divided by 255, and others are stretched from each slice's
smallest to its largest value. MONOCHROME1 is inverted.
"""

from __future__ import annotations

import io
import struct
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import SimpleITK as sitk
from pydicom.encaps import generate_frames

from relay_core.errors import ImageError
from relay_core.imaging import placement
from relay_core.imaging.limits import check_size

_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_UNDECODABLE = "the DICOM file cannot be decoded (truncated, or of a kind that is not read here)"
_DEFLATED = b"1.2.840.10008.1.2.1.99"
"""UID of the transfer syntax of files that are deflated as a whole; reading one inflates it without a limit."""
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE  # pydicom's warnings quote values


@dataclass(frozen=True)
class Decoded:
    """The decoded files of one series; the fields mean the same as those of `study.Study`, whose sources are the headers."""

    values: npt.NDArray[Any]
    """Rescaled values (S, H, W), or colour (S, H, W, 3) uint8."""
    spacing: tuple[float | None, float, float] | None
    geometry: sitk.Image
    headers: tuple[pydicom.Dataset, ...]
    window: tuple[float, float] | None
    inverted: bool


def read_dicom(files: Sequence[bytes]) -> Decoded:
    """Decode one file, single- or multi-frame, or the files of a series, given in any order.

    Raises:
        ImageError: a file is damaged or of a kind that is not read, the files are not of one series, or their slices do not
            lie evenly one behind the other.
    """
    headers = [_read_header(content) for content in files]
    try:
        return _decode(headers, files)
    except (ArithmeticError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        raise ImageError("the DICOM file's geometry, window or pixels are not readable") from None  # errors quote values


def _decode(headers: list[pydicom.Dataset], files: Sequence[bytes]) -> Decoded:
    """Sort the files of a series, check that they are one stack, and decode pixels, geometry and window."""
    order = _slice_order(headers)
    headers, files = [headers[i] for i in order], [files[i] for i in order]
    first = headers[0]
    frames = len(headers) if len(headers) > 1 else int(first.get("NumberOfFrames") or 1)
    check_size(frames, int(first.Rows), int(first.Columns))
    _require_one_scale(first, frames)
    values = _read_pixels(files, (frames, int(first.Rows), int(first.Columns)))
    grey = values.ndim == 3
    positions, in_plane = placement.positions(headers), placement.in_plane(first)
    gap = placement.gap(positions, placement.orientation(first))
    slice_spacing = abs(gap) if gap is not None else placement.thickness(first) if frames == 1 else None
    patient_spacing = placement.in_plane(first, detector=False)
    window = _read_window(headers, frames) if grey else None
    inverted = grey and first.PhotometricInterpretation == "MONOCHROME1"
    spacing = None if patient_spacing is None else (slice_spacing, *patient_spacing)
    return Decoded(
        values, spacing, placement.geometry(values, first, positions, gap, in_plane), tuple(headers), window, inverted
    )


def _read_header(content: bytes) -> pydicom.Dataset:
    """Read everything but the pixels; raise ImageError for a file that cannot be decoded or would be misread."""
    if _DEFLATED in content[: 1 << 16]:
        raise ImageError("the DICOM file is deflated as a whole; send it in another transfer syntax")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = pydicom.dcmread(io.BytesIO(content))
            frames, rows, columns = int(header.get("NumberOfFrames") or 1), int(header.Rows), int(header.Columns)
            samples, bits = int(header.get("SamplesPerPixel") or 1), int(header.BitsAllocated)
            photometric = str(header.PhotometricInterpretation)
            image_type = [str(part).upper() for part in header.get("ImageType") or []]
            pixels = len(header.PixelData)
            packed = header.file_meta.TransferSyntaxUID.is_compressed
            coded_sizes = (
                [_coded_size(frame) for frame in generate_frames(header.PixelData, number_of_frames=frames)]
                if packed
                else []
            )
    except Exception:  # pydicom raises errors of many types on damaged files, which quote values
        raise ImageError(_UNDECODABLE) from None
    check_size(frames, rows, columns)
    if "MOSAIC" in image_type:
        raise ImageError(
            "the file is a Siemens mosaic: its slices lie side by side in one picture. Convert it to NIfTI or to a "
            "series of slices first"
        )
    if photometric not in _GREY + _COLOUR:
        raise ImageError(f"the file's PhotometricInterpretation is {photometric[:20]}; send {', '.join(_GREY)} or RGB")
    if not packed and pixels < frames * rows * columns * samples * bits // 8 // (2 if photometric == "YBR_FULL_422" else 1):
        raise ImageError("the DICOM file is truncated: it has fewer pixels than its header says")
    if any(size not in (None, (rows, columns)) for size in coded_sizes):
        raise ImageError("the DICOM file's compressed pixels have another size than its header says")
    del header.PixelData
    return header


def _coded_size(frame: bytes) -> tuple[int, int] | None:
    """Return rows and columns that a compressed frame itself states (JPEG, JPEG-LS, JPEG 2000); else None."""
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


def tells_rescaling(header: pydicom.Dataset) -> bool:
    """Whether a header has the slope and intercept that turn stored values into measurements, as that of CT has."""
    holders = (header, placement.group(header, "PixelValueTransformationSequence"))
    names = ("RescaleSlope", "RescaleIntercept")
    return any(holder is not None and all(holder.get(name) is not None for name in names) for holder in holders)


def _require_one_scale(header: pydicom.Dataset, frames: int) -> None:
    """Raise ImageError where frames are rescaled differently: SimpleITK applies the first frame's scale to all."""
    groups = [placement.group(header, "PixelValueTransformationSequence", i) for i in range(frames)] if frames > 1 else []
    scales = {(float(group.RescaleSlope), float(group.RescaleIntercept)) for group in groups if group is not None}
    if len(scales) > 1:
        raise ImageError("the frames of the DICOM file are rescaled differently; send them as a series of single files")


def _slice_order(headers: Sequence[pydicom.Dataset]) -> list[int]:
    """Return the indices of the files, sorted along their common normal; raise ImageError where they are not one stack."""
    if len(headers) == 1:
        return [0]
    first = headers[0]
    for number, header in enumerate(headers, 1):
        if int(header.get("NumberOfFrames") or 1) > 1:
            raise ImageError(f"file {number} of the archive is multi-frame; send it alone")
        for name in ("SeriesInstanceUID", "Rows", "Columns", "PhotometricInterpretation"):
            if header.get(name) != first.get(name):
                raise ImageError(f"the archive is not one series: file {number} has another {name} than file 1")
    orientation = placement.orientation(first)
    if orientation is None or any(header.get("ImagePositionPatient") is None for header in headers):
        raise ImageError(
            "the series has files without ImageOrientationPatient or ImagePositionPatient: their order is unknown"
        )
    for number, header in enumerate(headers, 1):
        file_orientation = placement.orientation(header)
        if file_orientation is None or np.abs(file_orientation - orientation).max() > 1e-3:
            raise ImageError(f"the series is no stack: file {number} is turned against file 1 (ImageOrientationPatient)")
    normal = np.cross(orientation[:3], orientation[3:])
    return sorted(
        range(len(headers)), key=lambda i: float(np.dot(normal, placement.floats(headers[i].ImagePositionPatient, 3)))
    )


def _read_pixels(files: Sequence[bytes], shape: tuple[int, int, int]) -> npt.NDArray[Any]:
    """Decode the rescaled values of all files: (S, H, W), or (S, H, W, 3) for colour."""
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    values: npt.NDArray[Any] | None = None
    with tempfile.TemporaryDirectory(prefix="relay-") as folder:
        for i, content in enumerate(files):
            path = Path(folder) / f"{i:04d}.dcm"
            path.write_bytes(_as_monochrome2(content))
            try:
                image = sitk.ReadImage(str(path))
            except RuntimeError:
                raise ImageError(_UNDECODABLE) from None
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
    return values


def _as_monochrome2(content: bytes) -> bytes:
    """Relabel a MONOCHROME1 file as MONOCHROME2, because SimpleITK would invert the stored values before rescaling them."""
    header = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True)
    if header.PhotometricInterpretation != "MONOCHROME1":
        return content
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


def _read_window(headers: Sequence[pydicom.Dataset], frames: int) -> tuple[float, float] | None:
    """Return centre and width of the middle slice's window, of several the first; None where there is no valid one."""
    header = headers[len(headers) // 2]
    holder = header if "WindowCenter" in header else placement.group(header, "FrameVOILUTSequence", frames // 2)
    if holder is None or holder.get("WindowCenter") is None or holder.get("WindowWidth") is None:
        return None
    centre, width = placement.floats(holder.WindowCenter), placement.floats(holder.WindowWidth)
    return (float(centre[0]), float(width[0])) if len(centre) and len(width) and width[0] >= 1 else None

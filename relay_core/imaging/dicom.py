"""DICOM images: pixels by SimpleITK, everything else from the headers.

Values: after the modality's rescaling, the window of the middle slice (PS3.3 C.11.2.1.2, linear) gives 0 to 1 for all;
without one, 8-bit images by value / 255, others from each slice's smallest to its largest value. MONOCHROME1 is turned over.
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
"""Transfer syntax that is inflated without a limit when it is read."""
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE  # its warnings quote values of the file


@dataclass(frozen=True)
class Decoded:
    """What files of one series hold."""

    values: npt.NDArray[Any]
    """(S, H, W), rescaled; colour (S, H, W, 3) uint8."""
    spacing: tuple[float | None, float, float] | None
    geometry: sitk.Image
    headers: tuple[pydicom.Dataset, ...]
    window: tuple[float, float] | None
    inverted: bool


def read_dicom(files: Sequence[bytes]) -> Decoded:
    """Decode one file, single- or multi-frame, or the files of a series, in whatever order they come.

    Raises:
        ImageError: damaged, not of one series, or slices that do not lie evenly one behind the other.
    """
    headers = [_header(content) for content in files]
    try:
        return _decode(headers, files)
    except (ArithmeticError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        raise ImageError("the DICOM file's geometry, window or pixels are not readable") from None  # they quote values


def _decode(headers: list[pydicom.Dataset], files: Sequence[bytes]) -> Decoded:
    order = _order(headers)
    headers, files = [headers[i] for i in order], [files[i] for i in order]
    first = headers[0]
    frames = len(headers) if len(headers) > 1 else int(first.get("NumberOfFrames") or 1)
    check_size(frames, int(first.Rows), int(first.Columns))
    _require_one_scale(first, frames)
    values = _pixels(files, (frames, int(first.Rows), int(first.Columns)))
    grey = values.ndim == 3
    positions, in_plane = placement.positions(headers), placement.in_plane(first)
    gap = placement.gap(positions, placement.orientation(first))
    between = abs(gap) if gap is not None else placement.thickness(first) if frames == 1 else None
    patient = placement.in_plane(first, detector=False)
    window = _window(headers, frames) if grey else None
    inverted = grey and first.PhotometricInterpretation == "MONOCHROME1"
    spacing = None if patient is None else (between, *patient)
    return Decoded(
        values, spacing, placement.geometry(values, first, positions, gap, in_plane), tuple(headers), window, inverted
    )


def _header(content: bytes) -> pydicom.Dataset:
    """Everything but the pixels, checked for what cannot be decoded or would be misread."""
    if _DEFLATED in content[: 1 << 16]:
        raise ImageError("the DICOM file is deflated as a whole; send it in another transfer syntax")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = pydicom.dcmread(io.BytesIO(content))
            frames, rows, columns = int(found.get("NumberOfFrames") or 1), int(found.Rows), int(found.Columns)
            samples, bits = int(found.get("SamplesPerPixel") or 1), int(found.BitsAllocated)
            photometric = str(found.PhotometricInterpretation)
            image_type = [str(part).upper() for part in found.get("ImageType") or []]
            pixels = len(found.PixelData)
            packed = found.file_meta.TransferSyntaxUID.is_compressed
            coded = (
                [_coded_size(frame) for frame in generate_frames(found.PixelData, number_of_frames=frames)] if packed else []
            )
    except Exception:  # pydicom raises what it likes on damaged files, and quotes values in it
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
    if any(size not in (None, (rows, columns)) for size in coded):
        raise ImageError("the DICOM file's compressed pixels have another size than its header says")
    del found.PixelData
    return found


def _coded_size(frame: bytes) -> tuple[int, int] | None:
    """Rows and columns that a compressed frame says itself (JPEG, JPEG-LS, JPEG 2000); None where it says none."""
    if frame[:4] == b"\xff\x4f\xff\x51":  # JPEG 2000: SOC, SIZ
        right, bottom, left, top = struct.unpack_from(">4I", frame, 8)
        return bottom - top, right - left
    place = 2
    while frame[:2] == b"\xff\xd8" and place + 9 <= len(frame) and frame[place] == 0xFF:
        marker, length = frame[place + 1], int.from_bytes(frame[place + 2 : place + 4], "big")
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            rows, columns = struct.unpack_from(">2H", frame, place + 5)
            return rows, columns
        place += 1 if marker == 0xFF else 2 + length
    return None


def tells_rescaling(header: pydicom.Dataset) -> bool:
    """Whether a file says how its values become measurements, as CT does."""
    holders = (header, placement.group(header, "PixelValueTransformationSequence"))
    names = ("RescaleSlope", "RescaleIntercept")
    return any(one is not None and all(one.get(name) is not None for name in names) for one in holders)


def _require_one_scale(header: pydicom.Dataset, frames: int) -> None:
    """Raise ImageError where frames are rescaled differently: the reader takes the first one's scale for all."""
    found = [placement.group(header, "PixelValueTransformationSequence", i) for i in range(frames)] if frames > 1 else []
    scales = {(float(one.RescaleSlope), float(one.RescaleIntercept)) for one in found if one is not None}
    if len(scales) > 1:
        raise ImageError("the frames of the DICOM file are rescaled differently; send them as a series of single files")


def _order(headers: Sequence[pydicom.Dataset]) -> list[int]:
    """The order of the files along their common normal."""
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
        other = placement.orientation(header)
        if other is None or np.abs(other - orientation).max() > 1e-3:
            raise ImageError(f"the series is no stack: file {number} is turned against file 1 (ImageOrientationPatient)")
    normal = np.cross(orientation[:3], orientation[3:])
    return sorted(
        range(len(headers)), key=lambda i: float(np.dot(normal, placement.floats(headers[i].ImagePositionPatient, 3)))
    )


def _pixels(files: Sequence[bytes], shape: tuple[int, int, int]) -> npt.NDArray[Any]:
    """Rescaled values (S, H, W), or (S, H, W, 3)."""
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    whole: npt.NDArray[Any] | None = None
    with tempfile.TemporaryDirectory(prefix="relay-") as folder:
        for i, content in enumerate(files):
            path = Path(folder) / f"{i:04d}.dcm"
            path.write_bytes(_upright(content))
            try:
                image = sitk.ReadImage(str(path))
            except RuntimeError:
                raise ImageError(_UNDECODABLE) from None
            finally:
                path.unlink()
            part = _stack(image)
            if part.shape[:3] != (shape if len(files) == 1 else (1, *shape[1:])):
                raise ImageError("the DICOM file's pixels have another size than its header says")
            if len(files) == 1:
                whole = part
                break
            if whole is None:
                whole = np.empty((shape[0], *part.shape[1:]), part.dtype)
            elif not np.can_cast(part.dtype, whole.dtype):
                whole = whole.astype(np.result_type(part.dtype, whole.dtype))
            whole[i] = part[0]
    assert whole is not None
    if not np.isfinite(whole).all():
        raise ImageError("the image has values that are not finite numbers (NaN or infinity)")
    return whole


def _upright(content: bytes) -> bytes:
    """MONOCHROME1 as MONOCHROME2: the reader turns its stored values over, which rescaling and window do not expect."""
    found = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True)
    if found.PhotometricInterpretation != "MONOCHROME1":
        return content
    whole, changed = pydicom.dcmread(io.BytesIO(content)), io.BytesIO()
    whole.PhotometricInterpretation = "MONOCHROME2"
    whole.save_as(changed)
    return changed.getvalue()


def _stack(image: sitk.Image) -> npt.NDArray[Any]:
    channels = image.GetNumberOfComponentsPerPixel()
    array: npt.NDArray[Any] = sitk.GetArrayFromImage(image)
    if channels not in (1, 3):
        raise ImageError(f"the DICOM file has {channels} values a pixel; send grey or RGB")
    flat = array.ndim - (channels > 1)
    if channels > 1 and array.dtype != np.uint8:
        raise ImageError("the DICOM file is in colour of more than 8 bits; send 8 bits")
    return array[None] if flat == 2 else array


def _window(headers: Sequence[pydicom.Dataset], frames: int) -> tuple[float, float] | None:
    """Centre and width of the middle slice, the first of several."""
    header = headers[len(headers) // 2]
    holder = header if "WindowCenter" in header else placement.group(header, "FrameVOILUTSequence", frames // 2)
    if holder is None or holder.get("WindowCenter") is None or holder.get("WindowWidth") is None:
        return None
    centre, width = placement.floats(holder.WindowCenter), placement.floats(holder.WindowWidth)
    return (float(centre[0]), float(width[0])) if len(centre) and len(width) and width[0] >= 1 else None

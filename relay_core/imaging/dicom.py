"""DICOM images: pixels by SimpleITK, everything else from the headers.

Values: after the modality's rescaling, the window of the file (PS3.3 C.11.2.1.2, linear) gives 0 to 1; without one, 8-bit
images by value / 255, others from each slice's smallest to its largest value. MONOCHROME1 is turned over.
"""

from __future__ import annotations

import io
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

from relay_core.errors import ImageError
from relay_core.imaging import study

EVEN = 0.01
"""Millimetres, and share of the distance, by which distances of slices may differ."""
_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_UNDECODABLE = "the DICOM file cannot be decoded (truncated, or of a kind that is not read here)"
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE  # its warnings quote values of the file


@dataclass(frozen=True)
class Decoded:
    """What files of one series hold."""

    values: npt.NDArray[Any]
    """(S, H, W) float32 in 0..1 or uint8; colour (S, H, W, 3) uint8."""
    spacing: tuple[float | None, float, float] | None
    geometry: sitk.Image
    headers: tuple[pydicom.Dataset, ...]


def read_dicom(files: Sequence[bytes]) -> Decoded:
    """Decode one file, single- or multi-frame, or the files of a series, in whatever order they come.

    Raises:
        ImageError: damaged, not of one series, or slices that do not lie evenly one behind the other.
    """
    headers = [_header(content) for content in files]
    order = _order(headers)
    headers, files = [headers[i] for i in order], [files[i] for i in order]
    raw = _pixels(files)
    try:
        values, window = raw, _window(headers[len(headers) // 2])
        if raw.ndim == 3:
            values = _shown(raw, window, headers[0])
        positions = _positions(headers)
        gap = _gap(positions, _orientation(headers[0]))
        in_plane = _in_plane(headers[0])
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        raise ImageError("the DICOM file's geometry or window is not readable") from None
    return Decoded(
        values, _spacing(headers[0], gap, in_plane), _geometry(values, headers[0], positions, gap, in_plane), tuple(headers)
    )


def _header(content: bytes) -> pydicom.Dataset:
    """Everything but the pixels, checked for what cannot be decoded or would be misread."""
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
    except Exception:  # pydicom raises what it likes on damaged files, and quotes values in it
        raise ImageError(_UNDECODABLE) from None
    study.check_size(frames, rows, columns)
    if "MOSAIC" in image_type:
        raise ImageError(
            "the file is a Siemens mosaic: its slices lie side by side in one picture. Convert it to NIfTI or to a "
            "series of slices first"
        )
    if photometric not in _GREY + _COLOUR:
        raise ImageError(f"the file's PhotometricInterpretation is {photometric[:20]}; send {', '.join(_GREY)} or RGB")
    if not packed and pixels < frames * rows * columns * samples * bits // 8 // (2 if photometric == "YBR_FULL_422" else 1):
        raise ImageError("the DICOM file is truncated: it has fewer pixels than its header says")
    del found.PixelData
    return found


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
    orientation = _orientation(first)
    if orientation is None or any(header.get("ImagePositionPatient") is None for header in headers):
        raise ImageError(
            "the series has files without ImageOrientationPatient or ImagePositionPatient: their order is unknown"
        )
    for number, header in enumerate(headers, 1):
        other = _orientation(header)
        if other is None or np.abs(other - orientation).max() > 1e-3:
            raise ImageError(f"the series is no stack: file {number} is turned against file 1 (ImageOrientationPatient)")
    normal = np.cross(orientation[:3], orientation[3:])
    return sorted(range(len(headers)), key=lambda i: float(np.dot(normal, _floats(headers[i].ImagePositionPatient))))


def _pixels(files: Sequence[bytes]) -> npt.NDArray[Any]:
    """Rescaled values (S, H, W), or (S, H, W, 3)."""
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    slices = []
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
            slices.append(_stack(image))
    return slices[0] if len(slices) == 1 else np.concatenate(slices)


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


def _shown(raw: npt.NDArray[Any], window: tuple[float, float] | None, header: pydicom.Dataset) -> npt.NDArray[Any]:
    if not np.isfinite(raw).all():
        raise ImageError("the image has values that are not finite numbers (NaN or infinity)")
    inverted = header.PhotometricInterpretation == "MONOCHROME1"
    if window is None and raw.dtype == np.uint8:
        return 255 - raw if inverted else raw
    if window is None:
        values = study.spread(raw)
    else:
        centre, width = window
        shifted = raw.astype(np.float32) - np.float32(centre - 0.5)
        values = np.clip(shifted / np.float32(max(width - 1, 1e-6)) + np.float32(0.5), 0, 1)
    return 1 - values if inverted else values


def _window(header: pydicom.Dataset) -> tuple[float, float] | None:
    """Centre and width, the first of several."""
    holder = header if "WindowCenter" in header else _group(header, "FrameVOILUTSequence")
    if holder is None or holder.get("WindowCenter") is None or holder.get("WindowWidth") is None:
        return None
    centre, width = _floats(holder.WindowCenter), _floats(holder.WindowWidth)
    return (float(centre[0]), float(width[0])) if len(centre) and len(width) and width[0] >= 1 else None


def _group(header: pydicom.Dataset, name: str, frame: int = 0) -> pydicom.Dataset | None:
    """A functional group of a multi-frame file: of one frame, else what all share."""
    for holder in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        groups = header.get(holder) or []
        group = groups[frame] if len(groups) > frame and holder.startswith("Per") else groups[0] if groups else None
        if group is not None and group.get(name):
            found: pydicom.Dataset = group[name].value[0]
            return found
    return None


def _floats(value: Any) -> npt.NDArray[np.float64]:
    return np.atleast_1d(np.asarray(value, dtype=np.float64))


def _orientation(header: pydicom.Dataset) -> npt.NDArray[np.float64] | None:
    holder = header if "ImageOrientationPatient" in header else _group(header, "PlaneOrientationSequence")
    if holder is None or holder.get("ImageOrientationPatient") is None:
        return None
    found = _floats(holder.ImageOrientationPatient)
    if found.shape != (6,) or not np.isfinite(found).all():
        raise ImageError("the DICOM file's ImageOrientationPatient is not six numbers")
    return found


def _positions(headers: Sequence[pydicom.Dataset]) -> list[npt.NDArray[np.float64]]:
    """Of each slice; fewer where the files do not tell."""
    frames = int(headers[0].get("NumberOfFrames") or 1)
    if len(headers) == 1 and frames > 1:
        holders = [_group(headers[0], "PlanePositionSequence", i) for i in range(frames)]
    else:
        holders = list(headers)
    return [_floats(h.ImagePositionPatient) for h in holders if h is not None and h.get("ImagePositionPatient") is not None]


def _gap(positions: Sequence[npt.NDArray[np.float64]], orientation: npt.NDArray[np.float64] | None) -> float | None:
    """Distance of neighbouring slices in mm; None for one slice, or where nothing is known.

    Raises:
        ImageError: they lie unevenly, beside each other, or twice at one place.
    """
    if len(positions) < 2 or orientation is None:
        return None
    normal = np.cross(orientation[:3], orientation[3:])
    steps = np.diff(np.stack(positions), axis=0)
    gaps = steps @ normal
    usual = float(np.median(gaps))
    if abs(usual) < EVEN:
        raise ImageError("the series has several files at one position; send one stack of slices")
    for i, gap in enumerate(gaps):
        if abs(gap - usual) > max(EVEN, EVEN * abs(usual)):
            raise ImageError(
                f"the slices lie unevenly: {abs(gap):.2f} mm between slices {i + 1} and {i + 2}, {abs(usual):.2f} mm "
                "elsewhere; a slice is missing, or the files are of several stacks"
            )
        if np.linalg.norm(steps[i] - gap * normal) > max(EVEN, EVEN * abs(usual)):
            raise ImageError(f"the slices do not lie straight behind each other: see slices {i + 1} and {i + 2}")
    return usual


def _in_plane(header: pydicom.Dataset) -> tuple[float, float] | None:
    """Row to row, column to column, in mm."""
    measures = _group(header, "PixelMeasuresSequence")
    for holder, name in ((header, "PixelSpacing"), (measures, "PixelSpacing"), (header, "ImagerPixelSpacing")):
        found = holder.get(name) if holder is not None else None
        if found is not None and len(found) == 2 and min(float(found[0]), float(found[1])) > 0:
            return float(found[0]), float(found[1])
    return None


def _thickness(header: pydicom.Dataset) -> float | None:
    measures = _group(header, "PixelMeasuresSequence")
    for holder in (header, measures):
        for name in ("SpacingBetweenSlices", "SliceThickness"):
            found = holder.get(name) if holder is not None else None
            if found is not None and float(found) > 0:
                return float(found)
    return None


def _spacing(
    header: pydicom.Dataset, gap: float | None, in_plane: tuple[float, float] | None
) -> tuple[float | None, float, float] | None:
    return None if in_plane is None else (abs(gap) if gap is not None else _thickness(header), *in_plane)


def _geometry(
    values: npt.NDArray[Any], header: pydicom.Dataset, positions: Sequence[npt.NDArray[np.float64]], gap: float | None,
    in_plane: tuple[float, float] | None,
) -> sitk.Image:  # fmt: skip
    image = sitk.Image([values.shape[2], values.shape[1], values.shape[0]], sitk.sitkUInt8)
    row, column = in_plane or (1.0, 1.0)
    between = abs(gap) if gap is not None else _thickness(header) or 1.0
    image.SetSpacing((column, row, between))
    orientation = _orientation(header)
    if orientation is not None and positions:
        normal = np.cross(orientation[:3], orientation[3:]) * (1 if gap is None or gap > 0 else -1)
        image.SetOrigin([float(x) for x in positions[0]])
        image.SetDirection([float(x) for x in np.stack([orientation[:3], orientation[3:], normal], axis=1).ravel()])
    return image

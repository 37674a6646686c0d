"""Decode DICOM images: headers, what is read of them and what is refused, and slices as one stack.

Values are what the modality measured (`dicom_pixels`); how they are shown is `display`'s, where they lie `placement`'s.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.encaps import generate_frames
from pydicom.filereader import read_dataset

from relay_core.errors import ImageError
from relay_core.imaging import dicom_pixels, placement
from relay_core.imaging.display import Display, display_of
from relay_core.imaging.grid import Grid
from relay_core.imaging.limits import check_size

_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_SYNTAXES = {
    "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2",  # uncompressed
    "1.2.840.10008.1.2.5",  # RLE
    "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70",  # JPEG
    "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81",  # JPEG-LS
    "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91",  # JPEG 2000
}  # fmt: skip
"""Transfer syntaxes that are read: none of them inflates a whole file."""
_NO_IMAGES = {"RTDOSE": "a dose", "RTSTRUCT": "an RT structure set", "SEG": "a segmentation"}
"""Modality -> what a file of it is that looks like an image, or goes with one."""
_RLE = "1.2.840.10008.1.2.5"
_ONE_SERIES = (
    "SeriesInstanceUID", "StudyInstanceUID", "PatientID", "FrameOfReferenceUID", "Rows", "Columns", "SamplesPerPixel",
    "PhotometricInterpretation",
)  # fmt: skip
"""What the files of a series have in common."""
SAME_SPACING = 1e-4
"""Millimetres by which pixel spacings of one stack may differ."""
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE  # pydicom's warnings quote values


@dataclass(frozen=True)
class Decoded:
    """The decoded files of one series, as one stack along the normal of its slices."""

    values: npt.NDArray[Any]
    """Measured values (S, H, W), or colour (S, H, W, 3) uint8."""
    spacing: tuple[float | None, float, float] | None
    """Millimetres at the patient: from slice to slice, row to row, column to column; None where the files do not say."""
    grid: Grid
    headers: tuple[pydicom.Dataset, ...]
    """In the order of the stack; one for a multi-frame file."""
    order: tuple[int, ...]
    """Of each slice of the stack the number of its frame in a multi-frame file, or of its file as it came."""
    display: Display | None
    """How grey values are shown; None for colour."""


def read_dicom(files: Sequence[bytes]) -> Decoded:
    """Decode one file, single- or multi-frame, or the files of a series, given in any order.

    Raises:
        ImageError: a file is damaged or of a kind that is not read, the files are not of one series, or their slices do not
            lie evenly one behind the other.
    """
    headers, jfif = zip(*(_read_header(content) for content in files), strict=True)
    try:
        return _decode(list(headers), files, any(jfif))
    except (ArithmeticError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        raise ImageError("the DICOM file's geometry, window or pixels are not readable") from None  # errors quote values


def _decode(headers: list[pydicom.Dataset], files: Sequence[bytes], jfif: bool) -> Decoded:
    """Sort the slices, check that they are one stack, and decode pixels, geometry and display."""
    if len(headers) > 1:
        _require_one_series(headers)
    frames = len(headers) if len(headers) > 1 else int(headers[0].get("NumberOfFrames") or 1)
    slices = [(header, 0) for header in headers] if len(headers) > 1 else [(headers[0], i) for i in range(frames)]
    _require_one_plane(slices)
    order = _slice_order(slices)
    stack = [slices[i] for i in order]
    first, (middle, middle_frame) = stack[0][0], stack[frames // 2]
    shape = (frames, int(first.Rows), int(first.Columns))
    check_size(*shape)
    _require_one_scale(first, frames)
    spacing, grid = _place(stack, shape)
    inverted = first.PhotometricInterpretation == "MONOCHROME1"
    if len(headers) > 1:
        headers, files = [headers[i] for i in order], [files[i] for i in order]
    values = dicom_pixels.read_pixels(files, shape, inverted=inverted, jfif=jfif)
    if len(headers) == 1 and order != sorted(order):
        values = values[order]
    display = display_of(middle, middle_frame) if values.ndim == 3 else None
    if display is not None:
        values = dicom_pixels.measured(values, first, darkest_is_smallest=not inverted)
    return Decoded(values, spacing, grid, tuple(headers), tuple(order), display)


def _place(
    stack: Sequence[tuple[pydicom.Dataset, int]], shape: tuple[int, int, int]
) -> tuple[tuple[float | None, float, float] | None, Grid]:
    """Return the spacing at the patient and the grid of slices in order. Raises ImageError where they lie unevenly."""
    first, orientation = stack[0][0], placement.orientation(stack[0][0])
    positions = [p for p in (placement.position(*slice_) for slice_ in stack) if p is not None]
    gap = placement.gap(positions, orientation) if len(positions) == len(stack) else None
    between = gap if gap is not None else placement.thickness(first) if len(stack) == 1 else None
    in_plane, patient = placement.in_plane(first), placement.in_plane(first, detector=False)
    affine = placement.affine_of(orientation, positions[0] if positions else None, in_plane, between)
    if len(stack) > 1 and gap is None:
        affine = None  # a stack whose slices have no place: a cine loop, say
    sizes = None if in_plane is None else (between or 1.0, *in_plane)
    return None if patient is None else (between, *patient), Grid.of_stack(shape, affine, sizes)


def _transfer_syntax(content: bytes) -> str:
    """The transfer syntax of a file, from its group 2 alone: nothing else is read, and nothing inflated."""
    meta = read_dataset(io.BytesIO(content[132:]), False, True, stop_when=lambda tag, vr, length: tag.group != 2)
    return str(meta.TransferSyntaxUID)


def _read_header(content: bytes) -> tuple[pydicom.Dataset, bool]:
    """Read everything but the pixels, and whether they are YCbCr though the header says RGB.

    Raises:
        ImageError: the file cannot be decoded, or would be misread.
    """
    try:
        syntax = _transfer_syntax(content)
    except Exception:  # pydicom raises errors of many types on damaged files, which quote values
        raise ImageError("the DICOM file does not say its transfer syntax (group 2 is missing or damaged)") from None
    if syntax not in _SYNTAXES:
        name = pydicom.uid.UID(syntax).name[:60]
        raise ImageError(f"the DICOM file's transfer syntax is not read here ({name}); send it uncompressed")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = pydicom.dcmread(io.BytesIO(content))
            _require_image(header)
            frames, rows, columns = int(header.get("NumberOfFrames") or 1), int(header.Rows), int(header.Columns)
            samples, bits = int(header.get("SamplesPerPixel") or 1), int(header.BitsAllocated)
            photometric = str(header.PhotometricInterpretation)
            image_type = [str(part).upper() for part in header.get("ImageType") or []]
            pixels = len(header.PixelData)
            packed = header.file_meta.TransferSyntaxUID.is_compressed
            coded = list(generate_frames(header.PixelData, number_of_frames=frames)) if packed else []
            stored, high = int(header.get("BitsStored") or bits), header.get("HighBit")
    except (ImageError, MemoryError):
        raise
    except Exception:  # the same
        raise ImageError(
            "the DICOM file is truncated or damaged: its header or its pixel data cannot be read to the end"
        ) from None
    check_size(frames, rows, columns)
    if "MOSAIC" in image_type:
        raise ImageError(
            "the file is a Siemens mosaic: its slices lie side by side in one picture. Convert it to NIfTI or to a "
            "series of slices first"
        )
    if photometric not in _GREY + _COLOUR:
        raise ImageError(f"the file's PhotometricInterpretation is {photometric[:20]}; send {', '.join(_GREY)} or RGB")
    if high is not None and int(high) != stored - 1:
        raise ImageError(
            f"the DICOM file's HighBit is {int(high)}, of {stored} bits stored: values that do not begin at bit 0"
        )
    if not packed and pixels < frames * rows * columns * samples * bits // 8 // (2 if photometric == "YBR_FULL_422" else 1):
        raise ImageError("the DICOM file is truncated: it has fewer pixels than its header says")
    if syntax != _RLE:
        for frame in coded:
            size = dicom_pixels.coded_size(frame)
            if size is None:
                raise ImageError("the DICOM file's compressed pixels do not say their size: the file is damaged")
            if size != (rows, columns):
                raise ImageError("the DICOM file's compressed pixels have another size than its header says")
    del header.PixelData
    return header, photometric == "RGB" and bool(coded) and dicom_pixels.is_jfif(coded[0])


def _require_image(header: pydicom.Dataset) -> None:
    """Raise ImageError for what is no image of a patient: an index, a report, a plan, a dose, a segmentation."""
    modality = str(header.get("Modality") or "")
    if modality in _NO_IMAGES:
        raise ImageError(f"the DICOM file is {_NO_IMAGES[modality]}, not an image; send the images")
    if "PixelData" not in header:
        kind = header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID")
        name = pydicom.uid.UID(str(kind)).name[:60] if kind else "no image"
        raise ImageError(f"the DICOM file holds no pixels ({name}): it is no image, or damaged before them")
    missing = [name for name in ("Rows", "Columns", "BitsAllocated", "PhotometricInterpretation") if not header.get(name)]
    if missing:
        raise ImageError(f"the DICOM file holds pixels and no {', '.join(missing)}: nobody can tell what they show")


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


def _require_one_series(headers: Sequence[pydicom.Dataset]) -> None:
    first = headers[0]
    for number, header in enumerate(headers, 1):
        if int(header.get("NumberOfFrames") or 1) > 1:
            raise ImageError(f"file {number} of the archive is multi-frame; send it alone")
        for name in _ONE_SERIES:
            if header.get(name) != first.get(name):
                raise ImageError(f"the archive is not one series: file {number} has another {name} than file 1")


def _require_one_plane(slices: Sequence[tuple[pydicom.Dataset, int]]) -> None:
    """Raise ImageError where slices are turned against each other, or their pixels are of different sizes."""
    what = "frame" if len(slices) > 1 and slices[0][0] is slices[1][0] else "file"
    orientation, in_plane = placement.orientation(*slices[0]), placement.in_plane(slices[0][0], frame=slices[0][1])
    for number, (header, frame) in enumerate(slices, 1):
        own, size = placement.orientation(header, frame), placement.in_plane(header, frame=frame)
        if (own is None) != (orientation is None) or (
            own is not None and orientation is not None and np.abs(own - orientation).max() > 1e-3
        ):
            raise ImageError(f"the series is no stack: {what} {number} is turned against {what} 1 (ImageOrientationPatient)")
        if np.abs(np.subtract(size or (0, 0), in_plane or (0, 0))).max() > SAME_SPACING:
            raise ImageError(f"the series has mixed spacing: {what} {number} has another PixelSpacing than {what} 1")


def _slice_order(slices: Sequence[tuple[pydicom.Dataset, int]]) -> list[int]:
    """Return the indices of the slices, sorted along their common normal; as they come where a file alone says no place.

    Raises:
        ImageError: the files of a series do not say their place.
    """
    orientation = placement.orientation(*slices[0])
    places = [placement.position(header, frame) for header, frame in slices]
    if len(slices) == 1:
        return [0]
    if orientation is None or any(place is None for place in places):
        if slices[0][0] is slices[1][0]:
            return list(range(len(slices)))
        raise ImageError(
            "the series has files without ImageOrientationPatient or ImagePositionPatient: their order is unknown"
        )
    normal = np.cross(orientation[:3], orientation[3:])
    return sorted(range(len(slices)), key=lambda i: float(np.dot(normal, places[i])))  # type: ignore[arg-type]

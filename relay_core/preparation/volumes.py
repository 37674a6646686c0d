"""Read a volume and its labels from NIfTI, NRRD, MetaImage, npz or a DICOM series, and check that they fit.

Every failure is a `DataError` with one `Problem`, whose file is a bare file name.
Legend: S slices, from the feet to the head; H rows, from front to back; W columns, from the patient's right to left (LPS).
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from relay_core.errors import DataError, ImageError, Problem
from relay_core.imaging import EVEN, floats, in_plane, read_dicom, read_study, tells_rescaling

SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".npz")
_GRID = frozenset({"Spacing", "Origin", "Direction"})
_UNDECODABLE = "cannot be decoded (truncated, not a volume, or its data file is missing)"


@dataclass(frozen=True)
class Volume:
    """A volume, its labels, and what is known of their size."""

    values: npt.NDArray[Any]
    """(S, H, W)."""
    labels: npt.NDArray[Any] | None
    """(S, H, W), whole numbers, at least 0."""
    spacing: tuple[float, float, float] | None
    """Millimetres from slice to slice, row to row, column to column; None where no file tells."""


@dataclass(frozen=True)
class _Read:
    image: sitk.Image
    known: frozenset[str]
    """Which of `_GRID` the file tells."""


def suffix_of(path: Path) -> str | None:
    """The supported suffix of a file name (`.nii.gz` is one), or None."""
    return next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), None)


def stem_of(path: Path) -> str:
    """The name of a volume's file or folder without its suffix."""
    return path.name if path.is_dir() else path.name[: len(path.name) - len(suffix_of(path) or "")]


def files_of(path: Path) -> list[Path]:
    """All files that a volume is read from: those of a series, or a file and what is named like it (`.mhd` and `.raw`)."""
    if path.is_dir():
        inside = (file for file in path.rglob("*") if file.is_file() and file.name != "DICOMDIR")
        return sorted(file for file in inside if not file.name.startswith("."))
    return sorted(file for file in path.parent.iterdir() if file.name.startswith(f"{stem_of(path)}.") and file.is_file())


def read_volume(image: Path, labels: Path | None, *, rescaled: bool = False) -> Volume:
    """Read a study.

    Args:
        image: a volume's file, or the folder of a DICOM series.
        labels: the same, of its labels.
        rescaled: DICOM files must say how their values are rescaled, as CT does.

    Raises:
        DataError: not readable, or the labels lie on another grid.
    """
    main = _read(image, ("volume", "image"), rescaled)
    other = None if labels is None else _read_labels(labels)
    if other is not None:
        _complete(main.image, main.known, other)
        _complete(other.image, other.known, main)
    known = main.known | (other.known if other else frozenset())
    standing = sitk.DICOMOrient(main.image, "LPS")
    columns, rows, slices = standing.GetSpacing()
    spacing = (slices, rows, columns) if "Spacing" in known else None
    values: npt.NDArray[Any] = sitk.GetArrayFromImage(standing)
    if other is None or labels is None:
        return Volume(values, None, spacing)
    turned = sitk.DICOMOrient(other.image, "LPS")
    _require_one_grid(labels, turned, standing)
    return Volume(values, _whole(labels, sitk.GetArrayFromImage(turned)), spacing)


def _fail(path: Path, message: str) -> NoReturn:
    raise DataError("a volume cannot be used", [Problem(path.name, message)])


def _read_labels(path: Path) -> _Read:
    try:
        return _read(path, ("volume", "label"), False)
    except DataError as error:  # its file may have the image's name
        _fail(path, f"labels: {error.problems[0].message}")


def _read(path: Path, names: tuple[str, ...], rescaled: bool) -> _Read:
    try:
        if path.is_dir():
            return _read_series(path, rescaled)
        if suffix_of(path) == ".npz":
            return _read_npz(path, names)
        nifti = (suffix_of(path) or "").startswith(".nii")
        found = read_study(path.read_bytes(), 1).geometry if nifti else _read_itk(path)
    except ImageError as error:
        _fail(path, str(error))
    if not isinstance(found, sitk.Image):
        _fail(path, "is no NIfTI file, whatever its name says")
    if found.GetDimension() != 3 or found.GetNumberOfComponentsPerPixel() != 1:
        size = " x ".join(map(str, found.GetSize()))
        _fail(path, f"is {size} with {found.GetNumberOfComponentsPerPixel()} values a voxel; give one grey volume")
    _require_finite(path, sitk.GetArrayViewFromImage(found))
    return _Read(found, _GRID)


def _read_itk(path: Path) -> sitk.Image:
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        return sitk.ReadImage(str(path))
    except RuntimeError:
        _fail(path, _UNDECODABLE)


def _read_series(folder: Path, rescaled: bool) -> _Read:
    files = files_of(folder)
    if not files:
        _fail(folder, "is empty; put the DICOM files of one series there, or take the folder away")
    contents = []
    for file in files:
        contents.append(file.read_bytes())
        if contents[-1][128:132] != b"DICM":
            _fail(folder, f"holds {file.name}, which is not DICOM; keep one series alone there")
    try:
        found = read_dicom(contents)
    except ImageError as error:
        _fail(folder, str(error).replace("archive", "folder"))  # its words are for uploads
    if found.values.ndim != 3:
        _fail(folder, "is in colour; give one grey volume")
    if len({tuple(np.round(in_plane(header) or (0, 0), 4).tolist()) for header in found.headers}) > 1:
        _fail(folder, "has slices of different PixelSpacing (mixed spacing); keep one series alone there")
    if rescaled and not all(tells_rescaling(header) for header in found.headers):
        _fail(folder, "has no RescaleSlope and RescaleIntercept: its values are not HU; --intercept -1024 adds that number")
    image = sitk.GetImageFromArray(found.values)
    image.CopyInformation(found.geometry)
    placed = frozenset() if found.spacing is None or found.spacing[0] is None else frozenset({"Spacing"})
    return _Read(image, placed | {"Origin", "Direction"})


def _read_npz(path: Path, names: tuple[str, ...]) -> _Read:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            found = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, TypeError, AttributeError, EOFError, KeyError, zipfile.BadZipFile, zlib.error):
        _fail(path, "cannot be decoded (truncated, or not an npz file of plain arrays)")
    values = found[_array_name(path, found, names)]
    if values.ndim != 3 or values.dtype.kind not in "biuf" or 0 in values.shape:
        _fail(path, f"has an array of {values.shape} {values.dtype}; give numbers in slices, rows and columns")
    if values.dtype in (bool, np.float16):
        values = values.astype(np.uint8 if values.dtype == bool else np.float32)
    _require_finite(path, values)
    image, known = sitk.GetImageFromArray(np.ascontiguousarray(values, values.dtype.newbyteorder("="))), set()
    for name in ("spacing", "origin"):
        if name in found:
            try:
                numbers = floats(found[name], 3)
            except (TypeError, ValueError):
                _fail(path, f"has a {name} that is not three numbers (of slices, rows, columns, in mm)")
            if name == "spacing" and numbers.min() <= 0:
                _fail(path, "has a spacing that is not above 0")
            getattr(image, f"Set{name.capitalize()}")(numbers[::-1].tolist())
            known.add(name.capitalize())
    return _Read(image, frozenset(known))


def _array_name(path: Path, found: Mapping[str, Any], names: tuple[str, ...]) -> str:
    arrays = [name for name in found if name not in ("spacing", "origin")]
    named = [name for name in names if name in arrays] or (arrays if len(arrays) == 1 else [])
    if not named:
        _fail(path, f"holds the arrays {', '.join(arrays) or 'none'}; name one of them {' or '.join(names)}")
    return named[0]


def _require_finite(path: Path, values: npt.NDArray[Any]) -> None:
    if values.dtype.kind not in "iuf":
        _fail(path, "has voxels that are not single real numbers; give one grey volume")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        _fail(path, "has values that are not finite numbers (NaN or infinity)")


def _complete(image: sitk.Image, known: frozenset[str], other: _Read) -> None:
    """What an image's file does not tell of its grid it takes from the other of the pair."""
    for name in (_GRID - known) & other.known:
        getattr(image, f"Set{name}")(getattr(other.image, f"Get{name}")())


def _require_one_grid(path: Path, labels: sitk.Image, image: sitk.Image) -> None:
    way_out = "resample the labels on the grid of the image"
    if labels.GetSize() != image.GetSize():
        sizes = [" x ".join(map(str, one.GetSize())) for one in (labels, image)]
        _fail(path, f"is a label volume of {sizes[0]} voxels, its image of {sizes[1]}; {way_out}")
    ours, theirs = np.array(labels.GetSpacing()), np.array(image.GetSpacing())
    if (np.abs(ours - theirs) > EVEN * theirs).any():
        told = [" x ".join(f"{mm:.3g}" for mm in one) for one in (ours, theirs)]
        _fail(path, f"has voxels of {told[0]} mm, its image of {told[1]} mm (mixed spacing); {way_out}")
    off = np.abs(np.array(labels.GetOrigin()) - image.GetOrigin()).max()
    turned = np.abs(np.array(labels.GetDirection()) - image.GetDirection()).max()
    if off > theirs.min() / 2 or turned > EVEN:
        how = f"{off:.3g} mm beside its image" if off > theirs.min() / 2 else "turned against its image"
        _fail(path, f"is a label volume that lies {how} (other position); {way_out}")


def _whole(path: Path, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Labels in the smallest type that holds them."""
    if values.dtype.kind == "f" and (values != np.rint(values)).any():
        _fail(path, "has label values that are not whole numbers; threshold them, or resample with nearest neighbour")
    if values.min() < 0 or values.max() > 65535:
        _fail(path, f"has label values from {values.min():g} to {values.max():g}; they may go from 0, background, to 65535")
    return values.astype(np.min_scalar_type(int(values.max())))

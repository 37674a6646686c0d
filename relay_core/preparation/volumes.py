"""Read a volume and its labels from NIfTI, NRRD, MetaImage, npz or DICOM, and check that they fit.

Every failure is a `DataError` with one `Problem`, whose file is a bare file name.
Legend: S slices, from the feet to the head; H rows, from front to back; W columns, from the patient's right to left (LPS).
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from relay_core.errors import DataError, ImageError, Problem
from relay_core.imaging import EVEN, Grid, floats, is_litter, read_dicom, read_nifti, tells_rescaling
from relay_core.preparation import dicom_labels

SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".npz", ".dcm")
_GRID = frozenset({"Spacing", "Origin", "Direction"})
_UNDECODABLE = "cannot be decoded (truncated, not a volume, or its data file is missing)"


@dataclass(frozen=True)
class Volume:
    """A volume, its labels and its spacing, turned to LPS."""

    values: npt.NDArray[Any]
    """Voxel values (S, H, W) of any real type."""
    labels: npt.NDArray[Any] | None
    """Label ids (S, H, W), unsigned integers, 0 for background; None: there are no labels."""
    spacing: tuple[float, float, float] | None
    """Millimetres from slice to slice, row to row, column to column; None where no file gives them."""


@dataclass(frozen=True)
class _Read:
    """An image as read from its file."""

    image: sitk.Image
    known: frozenset[str]
    """The names in `_GRID` whose values the file gives."""
    grid: Grid | None = None
    """Of a NIfTI file or a DICOM series."""
    frame_of_reference: str | None = None
    """FrameOfReferenceUID of a DICOM series."""


def suffix_of(path: Path) -> str | None:
    """Return the supported suffix of a file name (`.nii.gz` is one), or None."""
    return next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), None)


def stem_of(path: Path) -> str:
    """Return the name of a volume's file or folder without its suffix."""
    return path.name if path.is_dir() else path.name[: len(path.name) - len(suffix_of(path) or "")]


def files_of(path: Path) -> list[Path]:
    """List all files that a volume is read from: those of a series, or those with its stem (`.mhd` and `.raw`)."""
    if path.is_dir():
        inside = (file for file in path.rglob("*") if file.is_file() and not is_litter(file.name))
        return sorted(file for file in inside if not file.name.startswith("."))
    return sorted(file for file in path.parent.iterdir() if file.name.startswith(f"{stem_of(path)}.") and file.is_file())


def read_volume(image: Path, labels: Path | None, *, rescaled: bool = False, structures: Sequence[str] = ()) -> Volume:
    """Read a study's volume and labels, turned to LPS.

    Args:
        image: the volume's file, or the folder of a DICOM series.
        labels: the labels' file or folder; None: there are no labels.
        rescaled: whether DICOM files must say how their values are rescaled, as CT files do.
        structures: of labels in a DICOM SEG or RT structure set the names that become 1, 2, ...; see `dicom_labels`.

    Raises:
        DataError: if a volume cannot be read, or the labels lie on another grid than the image.
    """
    image_read = _read(image, ("volume", "image"), rescaled)
    if labels is not None and (drawn := _drawn(labels)) is not None:
        return _with_drawn_labels(image_read, labels, drawn, structures)
    label_read = None if labels is None else _read_labels(labels, image_read.grid)
    own, theirs = image_read.grid, None if label_read is None else label_read.grid
    if own is not None and theirs is not None and own.affine is None and theirs.affine is not None:
        image_read = _read(image, ("volume", "image"), rescaled, theirs)  # the labels alone say how both are stored
    if label_read is not None:
        _copy_missing_grid(image_read.image, image_read.known, label_read)
        _copy_missing_grid(label_read.image, label_read.known, image_read)
    known_grid = image_read.known | (label_read.known if label_read else frozenset())
    oriented = sitk.DICOMOrient(image_read.image, "LPS")
    columns, rows, slices = oriented.GetSpacing()
    spacing = (slices, rows, columns) if "Spacing" in known_grid else None
    values: npt.NDArray[Any] = sitk.GetArrayFromImage(oriented)
    if label_read is None or labels is None:
        return Volume(values, None, spacing)
    oriented_labels = sitk.DICOMOrient(label_read.image, "LPS")
    _require_one_grid(labels, oriented_labels, oriented)
    return Volume(values, _as_whole_numbers(labels, sitk.GetArrayFromImage(oriented_labels)), spacing)


def _drawn(labels: Path) -> bytes | None:
    """The content of a DICOM SEG or RT structure set; None where labels are a volume."""
    files = files_of(labels) if labels.is_dir() else [labels]
    if len(files) != 1 or (labels.is_file() and suffix_of(labels) != ".dcm"):
        return None
    content = files[0].read_bytes()
    return content if content[128:132] == b"DICM" and dicom_labels.kind_of(content) else None


def _with_drawn_labels(image: _Read, path: Path, content: bytes, structures: Sequence[str]) -> Volume:
    """An image with the labels that were drawn on it in DICOM."""
    if not {"Origin", "Direction", "Spacing"} <= image.known:
        _fail(path, "labels: are drawn in the patient, and the image does not say where it lies")
    oriented = sitk.DICOMOrient(image.image, "LPS")
    try:
        labels = dicom_labels.read_labels(content, oriented, image.frame_of_reference, structures)
    except ImageError as error:
        _fail(path, f"labels: {error}")
    columns, rows, slices = oriented.GetSpacing()
    return Volume(sitk.GetArrayFromImage(oriented), labels, (slices, rows, columns))


def _fail(path: Path, message: str) -> NoReturn:
    raise DataError("a volume cannot be used", [Problem(path.name, message)])


def _read_labels(path: Path, image: Grid | None) -> _Read:
    try:
        return _read(path, ("volume", "label"), False, image)
    except DataError as error:  # the labels' file may have the image's name, so say which it is
        _fail(path, f"labels: {error.problems[0].message}")


def _read(path: Path, names: tuple[str, ...], rescaled: bool, like: Grid | None = None) -> _Read:
    try:
        if path.is_dir() or suffix_of(path) == ".dcm":
            return _read_series(path, rescaled)
        if suffix_of(path) == ".npz":
            return _read_npz(path, names)
        if (suffix_of(path) or "").startswith(".nii"):
            nifti = read_nifti(path, like)
            return _placed(nifti.values, nifti.grid, nifti.spacing)
        volume = _read_itk(path)
    except ImageError as error:
        _fail(path, str(error))
    if volume.GetDimension() != 3 or volume.GetNumberOfComponentsPerPixel() != 1:
        size = " x ".join(map(str, volume.GetSize()))
        _fail(path, f"is {size} with {volume.GetNumberOfComponentsPerPixel()} values a voxel; give one grey volume")
    _require_finite(path, sitk.GetArrayViewFromImage(volume))
    return _Read(volume, _GRID)


def _placed(values: npt.NDArray[Any], grid: Grid, spacing: tuple[float | None, float, float] | None) -> _Read:
    """Make an image of voxels (S, H, W) in LPS that lies where their grid says."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(values))
    sized = spacing is not None and spacing[0] is not None
    if spacing is not None and spacing[0] is not None:
        image.SetSpacing([float(spacing[2]), float(spacing[1]), float(spacing[0])])
    if grid.affine is not None:
        sizes = np.linalg.norm(grid.affine[:3, :3], axis=0)
        if not sized:
            image.SetSpacing(sizes.tolist())
        image.SetDirection(_orthogonal(grid.affine[:3, :3] / sizes).ravel().tolist())
        image.SetOrigin(grid.affine[:3, 3].tolist())
    said = {"Spacing"} if sized else set()
    return _Read(image, frozenset(said | ({"Origin", "Direction"} if grid.affine is not None else set())), grid)


def _orthogonal(axes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The nearest axes at exactly right angles, which SimpleITK insists on."""
    left, _, right = np.linalg.svd(axes)
    return np.asarray(left @ right)


def _read_itk(path: Path) -> sitk.Image:
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        return sitk.ReadImage(str(path))
    except RuntimeError:
        _fail(path, _UNDECODABLE)


def _read_series(folder: Path, rescaled: bool) -> _Read:
    files = files_of(folder) if folder.is_dir() else [folder]
    if not files:
        _fail(folder, "is empty; put the DICOM files of one series there, or take the folder away")
    contents = []
    for file in files:
        contents.append(file.read_bytes())
        if contents[-1][128:132] != b"DICM":
            _fail(folder, f"holds {file.name}, which is not DICOM; keep one series alone there")
    try:
        series = read_dicom(contents)
    except ImageError as error:
        _fail(folder, str(error).replace("archive", "folder"))  # `read_dicom` words its errors for uploads
    if series.values.ndim != 3:
        _fail(folder, "is in colour; give one grey volume")
    if rescaled and not all(tells_rescaling(header) for header in series.headers):
        _fail(folder, "has no RescaleSlope and RescaleIntercept: its values are not HU; --intercept -1024 adds that number")
    standing = series.grid.turned(series.values.transpose(2, 1, 0))
    placed = _placed(standing, series.grid, series.grid.turned_sizes(series.spacing))
    frame = series.headers[0].get("FrameOfReferenceUID")
    return replace(placed, frame_of_reference=str(frame) if frame else None)


def _read_npz(path: Path, names: tuple[str, ...]) -> _Read:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            contents = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, TypeError, AttributeError, EOFError, KeyError, zipfile.BadZipFile, zlib.error):
        _fail(path, "cannot be decoded (truncated, or not an npz file of plain arrays)")
    values = contents[_array_name(path, contents, names)]
    if values.ndim != 3 or values.dtype.kind not in "biuf" or 0 in values.shape:
        _fail(path, f"has an array of {values.shape} {values.dtype}; give numbers in slices, rows and columns")
    if values.dtype in (bool, np.float16):
        values = values.astype(np.uint8 if values.dtype == bool else np.float32)
    _require_finite(path, values)
    image, known = sitk.GetImageFromArray(np.ascontiguousarray(values, values.dtype.newbyteorder("="))), set()
    for name in ("spacing", "origin"):
        if name in contents:
            try:
                numbers = floats(contents[name], 3)
            except (TypeError, ValueError):
                _fail(path, f"has a {name} that is not three numbers (of slices, rows, columns, in mm)")
            if name == "spacing" and numbers.min() <= 0:
                _fail(path, "has a spacing that is not above 0")
            getattr(image, f"Set{name.capitalize()}")(numbers[::-1].tolist())
            known.add(name.capitalize())
    return _Read(image, frozenset(known))


def _array_name(path: Path, contents: Mapping[str, Any], names: tuple[str, ...]) -> str:
    array_names = [name for name in contents if name not in ("spacing", "origin")]
    matching = [name for name in names if name in array_names] or (array_names if len(array_names) == 1 else [])
    if not matching:
        _fail(path, f"holds the arrays {', '.join(array_names) or 'none'}; name one of them {' or '.join(names)}")
    return matching[0]


def _require_finite(path: Path, values: npt.NDArray[Any]) -> None:
    if values.dtype.kind not in "iuf":
        _fail(path, "has voxels that are not single real numbers; give one grey volume")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        _fail(path, "has values that are not finite numbers (NaN or infinity)")


def _copy_missing_grid(image: sitk.Image, known: frozenset[str], source: _Read) -> None:
    """Copy spacing, origin and direction that an image's file does not give from the other volume of the pair."""
    for name in (_GRID - known) & source.known:
        getattr(image, f"Set{name}")(getattr(source.image, f"Get{name}")())


def _require_one_grid(path: Path, labels: sitk.Image, image: sitk.Image) -> None:
    remedy = "resample the labels on the grid of the image"
    if labels.GetSize() != image.GetSize():
        sizes = [" x ".join(map(str, volume.GetSize())) for volume in (labels, image)]
        _fail(path, f"is a label volume of {sizes[0]} voxels, its image of {sizes[1]}; {remedy}")
    label_mm, image_mm = np.array(labels.GetSpacing()), np.array(image.GetSpacing())
    if (np.abs(label_mm - image_mm) > EVEN * image_mm).any():
        spacings = [" x ".join(f"{mm:.3g}" for mm in axes) for axes in (label_mm, image_mm)]
        _fail(path, f"has voxels of {spacings[0]} mm, its image of {spacings[1]} mm (mixed spacing); {remedy}")
    offset = np.abs(np.array(labels.GetOrigin()) - image.GetOrigin()).max()
    direction_error = np.abs(np.array(labels.GetDirection()) - image.GetDirection()).max()
    if offset > image_mm.min() / 2 or direction_error > EVEN:
        how = f"{offset:.3g} mm beside its image" if offset > image_mm.min() / 2 else "turned against its image"
        _fail(path, f"is a label volume that lies {how} (other position); {remedy}")


def _as_whole_numbers(path: Path, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the labels in the smallest unsigned type that holds them; fail unless they are whole numbers 0..65535."""
    if values.dtype.kind == "f" and (values != np.rint(values)).any():
        _fail(path, "has label values that are not whole numbers; threshold them, or resample with nearest neighbour")
    if values.min() < 0 or values.max() > 65535:
        _fail(path, f"has label values from {values.min():g} to {values.max():g}; they may go from 0, background, to 65535")
    return values.astype(np.min_scalar_type(int(values.max())))

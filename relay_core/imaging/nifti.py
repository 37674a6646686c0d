"""NIfTI-1 and NIfTI-2 by nibabel: every refusal says its true reason."""

from __future__ import annotations

import gzip
import io
import math
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel import orientations
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from relay_core.errors import ImageError
from relay_core.imaging.grid import Affine, Grid
from relay_core.imaging.limits import MAX_BYTES, check_size

RIGHT_ANGLE = 1e-2
"""Largest cosine between two axes that counts as a right angle."""
_UNITS = {1: 1000.0, 2: 1.0, 3: 0.001}
"""Code of `xyzt_units` -> millimetres; where the file does not say, it is millimetres by custom."""
nib.imageglobals.logger.setLevel("CRITICAL")  # it prints what it mends in headers


@dataclass(frozen=True)
class Nifti:
    """A NIfTI image or volume in LPS."""

    values: npt.NDArray[Any]
    """(S, H, W), scaled as the header says, finite."""
    spacing: tuple[float, float, float] | None
    """Millimetres from slice to slice, row to row, column to column; None where the file does not say."""
    grid: Grid


def read_nifti(path: Path, like: Grid | None = None) -> Nifti:
    """Read a NIfTI file.

    Args:
        path: the file, compressed or not, whatever its name says.
        like: the grid of the image that this mask belongs to: where the mask's own orientation is not said, it is taken to
            be stored as its image is.

    Raises:
        ImageError: the true reason: truncated, too large, of other dimensions or voxels than are read, sheared, forms that
            contradict each other, or values that are not finite.
    """
    with _opened(path) as image:
        grid = _placed(image, like)
        values = _values(image).reshape(_spatial(grid.stored))
    return Nifti(grid.turned(values), _spacing(path, image.header, grid), grid)


def read_grid(path: Path) -> Grid:
    """Read where the voxels of a NIfTI file lie, without the voxels. Raises ImageError as `read_nifti`."""
    with _opened(path) as image:
        return _placed(image, None)


def _placed(image: Any, like: Grid | None) -> Grid:
    """The grid of an image whose header was checked for what is read here."""
    header, stored = image.header, tuple(int(n) for n in image.shape)
    shape = _spatial(stored)
    kind = header.get_data_dtype()
    if kind.names is not None or kind.kind not in "iuf":
        raise ImageError("holds voxels that are not single real numbers (colour or complex); give grey values")
    check_size(shape[2], shape[1], shape[0])
    if math.prod(shape) * kind.itemsize > MAX_BYTES:
        raise ImageError(f"has more than {MAX_BYTES >> 20} MiB of voxels, decompressed")
    affine = _affine(header)
    if affine is not None:
        return Grid.placed(stored, affine, header)
    if like is not None and _spatial(like.stored) == shape:
        return Grid(stored, like.turn, like.affine, header)
    return Grid(stored, None, None, header)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The image with its values not read yet; the file is open within the block."""
    with ExitStack() as stack:
        try:
            image = _parsed(stack.enter_context(_unpacked(path)))
        except (OSError, EOFError, zlib.error, ValueError, ArithmeticError):
            raise ImageError("is truncated or damaged within its NIfTI header") from None
        yield image


def _unpacked(path: Path) -> Any:
    """The file, open for reading, decompressed where its first bytes say gzip: nibabel would go by the name."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return (gzip.open if packed else open)(path, "rb")


def _parsed(content: Any) -> Any:
    for kind in (nib.Nifti1Image, nib.Nifti2Image):
        try:
            holder = nib.FileHolder(fileobj=content)
            return kind.from_file_map({"image": holder, "header": holder})
        except (ImageFileError, HeaderDataError, WrapStructError):
            content.seek(0)
    raise ImageError("is no NIfTI file, or its header is damaged")


def _spatial(stored: tuple[int, ...]) -> tuple[int, int, int]:
    """The lengths of x, y and z; axes of length 1 behind them are passed over."""
    axes = list(stored)
    while len(axes) > 3 and axes[-1] == 1:
        axes.pop()
    if not 1 <= len(axes) <= 3 or min(axes) < 1:
        raise ImageError(f"has {len(axes)} dimensions ({' x '.join(map(str, axes))}); give one image or one volume")
    x, y, z = (*axes, 1, 1)[:3]
    return x, y, z


def _values(image: Any) -> npt.NDArray[Any]:
    try:
        values = np.asanyarray(image.dataobj)
    except (OSError, EOFError, ValueError, ArithmeticError, zlib.error):
        raise ImageError("is truncated or damaged: it holds fewer voxels than its header says") from None
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ImageError("has values that are not finite numbers (NaN or infinity); replace them by the background's")
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _affine(header: Any) -> Affine | None:
    """Voxel as stored -> millimetres in right, anterior, superior; None where neither form is set.

    The sform counts where both are set, as in most readers. The two may differ (a registered image), but not in which way
    an axis runs.
    """
    forms: dict[str, Affine] = {}
    for name in ("sform", "qform"):
        if int(header[f"{name}_code"]) <= 0:
            continue
        try:
            form = np.array(getattr(header, f"get_{name}")(), dtype=np.float64)
        except (HeaderDataError, ValueError, ArithmeticError):
            raise ImageError(f"has a {name} that cannot be read") from None
        if not np.isfinite(form).all() or abs(np.linalg.det(form[:3, :3])) < 1e-12:
            raise ImageError(f"has a {name} that gives its voxels no place (not finite, or flat)")
        forms[name] = form
    if not forms:
        return None
    if len(forms) == 2:
        ways = {name: "".join(orientations.aff2axcodes(form)) for name, form in forms.items()}
        if ways["sform"] != ways["qform"]:
            raise ImageError(
                f"contradicts itself: by its sform the axes run {ways['sform']}, by its qform {ways['qform']}; set one right"
            )
    affine = next(iter(forms.values()))
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    if np.abs(axes.T @ axes - np.eye(3)).max() > RIGHT_ANGLE:
        raise ImageError("has axes that are not at right angles (sheared, tilted gantry); resample it on a straight grid")
    affine[:3] *= _millimetres(header)
    return affine


def _millimetres(header: Any) -> float:
    return _UNITS.get(int(header["xyzt_units"]) & 7, 1.0)


def _spacing(path: Path, header: Any, grid: Grid) -> tuple[float, float, float] | None:
    """Voxel sizes after the turn; None where they come from a pixdim of 0, which nibabel reads as 1."""
    if int(header["sform_code"]) <= 0 and _says_no_size(path):
        return None
    if grid.affine is not None:
        columns, rows, slices = (float(mm) for mm in np.linalg.norm(grid.affine[:3, :3], axis=0))
        return slices, rows, columns
    x, y, z = (abs(float(mm)) * _millimetres(header) for mm in header["pixdim"][1:4])
    return z, y, x


def _says_no_size(path: Path) -> bool:
    """Whether a voxel size in the file itself is 0."""
    with _unpacked(path) as file:
        start = io.BytesIO(file.read(540))
    first = start.getvalue()[:4]
    kind = nib.Nifti2Header if 540 in (int.from_bytes(first, "little"), int.from_bytes(first, "big")) else nib.Nifti1Header
    return bool((kind.from_fileobj(start, check=False)["pixdim"][1:4] == 0).any())

"""Read 2-D images and masks from PNG, JPEG, TIFF and NIfTI files, and write masks.

Every failure is a `DataError` with one `Problem`, whose file is the bare file name; no decoder's own text gets out.

What a decoder lets pass is checked here: SimpleITK reads truncated JPEG and NIfTI files without an error, so Pillow
decodes PNG, JPEG and TIFF, and NIfTI files must be as long as their header says. Pillow in turn cuts 16-bit colour down
to 8 bits, so SimpleITK reads the pixels of everything above 8 bits.
"""

from __future__ import annotations

import gzip
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
from PIL import Image

from relay_core.errors import DataError, Problem

Spacing = tuple[float, float]
"""Millimetres of one pixel: along a column (from row to row), then along a row."""

PILLOW_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
NIFTI_SUFFIXES = (".nii.gz", ".nii")
SUFFIXES = PILLOW_SUFFIXES + NIFTI_SUFFIXES

MAX_NIFTI = 1 << 32
"""Bytes of a NIfTI file, decompressed, beyond which it is not read."""
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_UNDECODABLE = "cannot be decoded (truncated or not an image)"


def suffix_of(path: Path) -> str | None:
    """Return the supported suffix of a file name in lower case (`.nii.gz` is one suffix), or None."""
    return next((s for s in SUFFIXES if path.name.lower().endswith(s)), None)


def stem_of(path: Path) -> str:
    """Return the file name without its supported suffix."""
    suffix = suffix_of(path)
    return path.name[: -len(suffix)] if suffix else path.name


def read_image(path: Path, channels: int = 3) -> tuple[npt.NDArray[Any], Spacing | None]:
    """Read an image.

    8-bit PNG, JPEG and TIFF files stay uint8, 0 to 255. All others become float32, 0 to 1: unsigned 16 bits by
    value / 65535; NIfTI, signed and floating-point images by the minimum and maximum of the slice (a constant one is
    0; NaN in NIfTI counts as 0). Transparency is dropped. Colour becomes grey by luma, grey becomes colour by
    repetition.

    Shape:
        (channels, H, W), uint8 or float32; and the spacing in mm, None where the format does not tell.

    Raises:
        DataError: the file cannot be read, is not 2-D, or has values that are not finite.
    """
    pixels, spacing = _read_pixels(path)
    if pixels.dtype != np.uint8 or spacing is not None:
        pixels = _unit_range(pixels, path, full_scale=spacing is None)
    if pixels.ndim == 2:
        return np.ascontiguousarray(np.broadcast_to(pixels, (channels, *pixels.shape))), spacing
    if channels == 1:
        grey = pixels.astype(np.float32) @ _LUMA
        return (np.rint(grey).astype(np.uint8) if pixels.dtype == np.uint8 else grey)[None], spacing
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)), spacing


def read_mask(path: Path) -> npt.NDArray[Any]:
    """Read the values of a mask as they stand in the file (a bilevel file gives 0 and 255).

    Shape:
        (H, W), uint8, uint16 or int64.

    Raises:
        DataError: the file cannot be read, is not 2-D, has colours that are not grey, or values that are not whole numbers.
    """
    pixels, _ = _read_pixels(path)
    if pixels.ndim == 3:
        if (pixels != pixels[..., :1]).any():
            _fail(path, "is a colour mask; a mask must be grey, or RGB with three equal channels")
        pixels = np.ascontiguousarray(pixels[..., 0])
    if pixels.dtype in (np.uint8, np.uint16):
        return pixels
    whole = np.nan_to_num(pixels, nan=0.5, posinf=0.5, neginf=0.5)
    if (whole != np.rint(whole)).any():
        _fail(path, "has mask values that are not whole numbers")
    return whole.astype(np.int64)


def write_mask(path: Path, array: npt.NDArray[Any], spacing: Spacing | None = None, *, like: Path | None = None) -> None:
    """Write class ids or mask values (H, W), at least 0, as grey PNG or NIfTI, 8 bits where they fit, else 16.

    Args:
        path: file to write; its name ends in `.png`, `.nii` or `.nii.gz`.
        array: the values, in rows and columns of the original image.
        spacing: mm of a pixel, row then column, for NIfTI; PNG cannot hold it.
        like: a NIfTI image of the same size whose position and orientation are taken over, for NIfTI.

    Raises:
        DataError: the name has another suffix, or a mask cannot hold the values.
    """
    suffix = suffix_of(path)
    if suffix not in (".png", *NIFTI_SUFFIXES):
        _fail(path, "a mask is written as .png, .nii or .nii.gz")
    if array.ndim != 2 or (array.size and (array.min() < 0 or array.max() > 65535)):
        _fail(path, "a mask must have rows and columns, and values from 0 to 65535")
    values = array.astype(np.uint8 if not array.size or array.max() <= 255 else np.uint16)
    if suffix == ".png":
        Image.fromarray(values).save(path)
        return
    import SimpleITK as sitk

    reference = _itk_read(like) if like is not None and suffix_of(like) in NIFTI_SUFFIXES else None
    if reference is not None:
        image = sitk.GetImageFromArray(values.reshape(reference.GetSize()[::-1]))
        image.CopyInformation(reference)
    else:
        image = sitk.GetImageFromArray(values)
        if spacing is not None:
            image.SetSpacing((spacing[1], spacing[0]))
    sitk.WriteImage(image, str(path))


def write_volume(path: Path, slices: npt.NDArray[np.uint8], spacing: Spacing | None = None) -> None:
    """Write class ids (D, H, W) as one NIfTI volume.

    Args:
        path: file to write; its name ends in `.nii` or `.nii.gz`.
        slices: class ids, slice by slice.
        spacing: mm of a pixel, row then column; the distance of the slices is unknown and stays 1.
    """
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(slices)
    if spacing is not None:
        image.SetSpacing((spacing[1], spacing[0], 1.0))
    sitk.WriteImage(image, str(path))


def _fail(path: Path, message: str) -> NoReturn:
    """Raise a DataError with one problem of one file."""
    raise DataError("a file cannot be used", [Problem(path.name, message)])


def _read_pixels(path: Path) -> tuple[npt.NDArray[Any], Spacing | None]:
    """Read the pixels of a file, (H, W) or (H, W, 3), and their spacing, which only NIfTI tells."""
    suffix = suffix_of(path)
    if suffix is None:
        _fail(path, f"is of an unsupported type; use {', '.join(SUFFIXES)}")
    if not path.is_file():
        _fail(path, "is missing")
    return _read_nifti(path) if suffix in NIFTI_SUFFIXES else (_read_pillow(path), None)


def _read_pillow(path: Path) -> npt.NDArray[Any]:
    try:
        with Image.open(path) as image:
            pages = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
            deep = pages == 1 and _bits_per_channel(image, path) > 8
            if pages == 1:
                image.load()
            if pages == 1 and not deep:
                return _eight_bits(image)
    except Image.DecompressionBombError:
        _fail(path, "has too many pixels")
    except Exception:  # decoders raise OSError, SyntaxError, ValueError, struct.error and more on damaged files
        _fail(path, _UNDECODABLE)
    if not deep:
        _fail(path, f"has {pages} pages; give 2-D images, one a file")
    return _itk_array(path, _itk_read(path))


def _bits_per_channel(image: Image.Image, path: Path) -> int:
    if image.format == "PNG":
        with path.open("rb") as file:
            return file.read(25)[24]
    if image.format == "TIFF":
        bits = getattr(image, "tag_v2", {}).get(258, 1)
        return int(max(bits)) if isinstance(bits, tuple) else int(bits)
    return 8


def _eight_bits(image: Image.Image) -> npt.NDArray[np.uint8]:
    if image.mode in ("1", "L", "LA"):
        return np.asarray(image.getchannel(0) if image.mode == "LA" else image.convert("L"))
    return np.asarray(image.convert("RGBA" if image.mode in ("RGBA", "P", "PA") else "RGB"))[..., :3]


def _itk_read(path: Path) -> Any:
    """Read a file as a SimpleITK image; raise DataError where it cannot be decoded."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        return sitk.ReadImage(str(path))
    except RuntimeError:
        _fail(path, _UNDECODABLE)


def _itk_array(path: Path, image: Any) -> npt.NDArray[Any]:
    """Return the pixels, (H, W) or (H, W, 3), of a SimpleITK image whose other axes have length 1."""
    import SimpleITK as sitk

    pixels: npt.NDArray[Any] = sitk.GetArrayFromImage(image)
    channels = image.GetNumberOfComponentsPerPixel()
    if channels == 2 or channels > 4:
        _fail(path, f"has {channels} channels; give grey or RGB")
    size = image.GetSize()[::-1]
    shape = size if len(size) == 2 else _plane_shape(path, size)
    return pixels.reshape(*shape, channels)[..., :3] if channels > 1 else pixels.reshape(shape)


def _plane_shape(path: Path, size: tuple[int, ...]) -> tuple[int, int]:
    """Return the lengths of the two axes that `_plane_axes` keeps."""
    kept = _plane_axes(path, size)
    return size[kept[0]], size[kept[1]]


def _plane_axes(path: Path, size: tuple[int, ...]) -> list[int]:
    """Drop axes of length 1, the last ones in the file first, until two are left; return these. Raises DataError."""
    kept = list(range(len(size)))
    for axis in range(len(size)):
        if len(kept) > 2 and size[axis] == 1:
            kept.remove(axis)
    if len(kept) != 2:
        _fail(path, f"is a volume of {' x '.join(map(str, size[::-1]))}; give 2-D slices, one a file")
    return kept


def _read_nifti(path: Path) -> tuple[npt.NDArray[Any], Spacing]:
    nifti_header(path)
    image = _itk_read(path)
    size, spacing = image.GetSize()[::-1], image.GetSpacing()[::-1]
    rows, columns = _plane_axes(path, size)
    return _itk_array(path, image), (float(spacing[rows]), float(spacing[columns]))


@dataclass(frozen=True)
class NiftiHeader:
    """The part of a NIfTI file's header that describes its voxels."""

    size: tuple[int, ...]
    """Number of voxels along x, y, z, ..."""
    code: int
    """Code of the voxels' type; 16 and 64 are float32 and float64."""
    order: str
    """Byte order: `<` is little-endian, `>` big-endian."""
    start: int
    """Offset of the first voxel in bytes."""
    needed: int
    """Number of bytes that the whole file must have, decompressed."""


def nifti_header(path: Path) -> NiftiHeader:
    """Read the header of a NIfTI file, and check that the file is as long as it says; compressed ones are read as a stream.

    Raises:
        DataError: the file is not NIfTI, is truncated, or has more than `MAX_NIFTI` bytes.
    """
    try:
        with path.open("rb") as raw:
            compressed = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path) if compressed else path.open("rb") as file:
            head = file.read(540)
            header = _parse_nifti(head)
            complete = 0 < header.needed <= MAX_NIFTI and _has_bytes(file, header.needed - len(head))
    except Exception:  # gzip, zlib and struct each raise errors of their own
        _fail(path, _UNDECODABLE)
    if header.needed > MAX_NIFTI:
        _fail(path, "has too many voxels")
    if not complete:
        _fail(path, _UNDECODABLE)
    return header


def _parse_nifti(head: bytes) -> NiftiHeader:
    """Parse the header of a NIfTI-1 or NIfTI-2 file; raise ValueError or struct.error where it is not one."""
    order = "<" if struct.unpack_from("<i", head)[0] in (348, 540) else ">"
    if struct.unpack_from(f"{order}i", head)[0] == 348:
        dim, (code, bits) = struct.unpack_from(f"{order}8h", head, 40), struct.unpack_from(f"{order}2h", head, 70)
        start = int(struct.unpack_from(f"{order}f", head, 108)[0])
    else:
        dim, (code, bits) = struct.unpack_from(f"{order}8q", head, 16), struct.unpack_from(f"{order}2h", head, 12)
        start = struct.unpack_from(f"{order}q", head, 168)[0]
    size = tuple(max(n, 1) for n in dim[1 : dim[0] + 1])
    if start < 348 or bits < 1:
        raise ValueError
    return NiftiHeader(size, code, order, start, start + math.prod(size) * bits // 8)


def _has_bytes(file: Any, count: int) -> bool:
    """Whether `count` more bytes can be read from a file."""
    while count > 0 and (chunk := file.read(min(count, 1 << 20))):
        count -= len(chunk)
    return count <= 0


def _unit_range(pixels: npt.NDArray[Any], path: Path, *, full_scale: bool) -> npt.NDArray[np.float32]:
    """Scale pixels to 0..1: with `full_scale` unsigned 16 bits by 65535, all others by their minimum and maximum."""
    if full_scale and pixels.dtype == np.uint16:
        return pixels.astype(np.float32) / np.float32(65535)
    values = pixels.astype(np.float64)
    if not np.isfinite(values).all():
        _fail(path, "has values that are not finite numbers")
    low, high = values.min(), values.max()
    return ((values - low) / (high - low) if high > low else np.zeros_like(values)).astype(np.float32)

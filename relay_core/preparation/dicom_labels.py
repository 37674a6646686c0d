"""Read labels from DICOM segmentations (SEG) and RT structure sets onto the grid of their image.

Legend: S slices, H rows, W columns of an image in LPS.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import SimpleITK as sitk

from relay_core.errors import ImageError

KINDS = ("SEG", "RTSTRUCT")
OFF_SLICE = 0.3
"""Share of the distance of slices by which a contour may lie beside its slice."""
Labels = npt.NDArray[np.uint8]


def kind_of(content: bytes) -> str | None:
    """Return `SEG` or `RTSTRUCT` where a DICOM file is one of these; else None."""
    try:
        header = pydicom.dcmread(io.BytesIO(content), specific_tags=["Modality"], stop_before_pixels=True)
    except Exception:  # pydicom raises errors of many types on damaged files
        return None
    return str(header.get("Modality")) if header.get("Modality") in KINDS else None


def read_labels(content: bytes, image: sitk.Image, frame_of_reference: str | None, structures: Sequence[str]) -> Labels:
    """Read a SEG or an RT structure set.

    Args:
        content: the DICOM file.
        image: the image in LPS, whose grid the labels are brought to.
        frame_of_reference: FrameOfReferenceUID of the image; None: it is no DICOM, and only the places are compared.
        structures: names of the segments or structures that become labels 1, 2, ... in this order, of which the later one
            wins where two overlap; empty: all, in the order of the file, and none may overlap.

    Shape:
        (S, H, W).

    Raises:
        ImageError: the file is damaged, lies elsewhere than the image, lacks a structure, or structures overlap.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings quote values
            dataset = pydicom.dcmread(io.BytesIO(content))
            found = list(_segments(dataset) if dataset.Modality == "SEG" else _regions(dataset))
            names = [name for name, _ in found]
            own = _frame_of_reference(dataset)
            if frame_of_reference and own and own != frame_of_reference:
                raise ImageError("is drawn on another image: its FrameOfReferenceUID is not the image's")
            chosen = _chosen(names, structures)
            if len(chosen) > 255:
                raise ImageError(f"has {len(chosen)} structures; choose up to 255 by --structures")
            masks = _segment_masks if dataset.Modality == "SEG" else _region_masks
            return _joined(list(masks(dataset, image, [found[i] for i in chosen])), bool(structures))
    except ImageError:
        raise
    except Exception as error:  # pydicom and highdicom raise errors of many types, which quote values
        raise ImageError("is a DICOM SEG or RT structure set that cannot be read (damaged, or of a rare kind)") from error


def _chosen(names: Sequence[str], structures: Sequence[str]) -> list[int]:
    if not names:
        raise ImageError("holds no structure")
    for name in structures:
        if names.count(name) != 1:
            how = "no structure" if name not in names else "more than one structure"
            raise ImageError(f"has {how} called {name!r}; it has {', '.join(map(repr, names[:20]))}")
    return [names.index(name) for name in structures] or list(range(len(names)))


def _joined(masks: list[tuple[str, npt.NDArray[np.bool_]]], later_wins: bool) -> Labels:
    labels = np.zeros(masks[0][1].shape, np.uint8)
    for number, (name, mask) in enumerate(masks, 1):
        if not later_wins and (under := labels[mask]).any():
            first = masks[int(under[under > 0][0]) - 1][0]
            raise ImageError(f"has structures that overlap ({first!r} and {name!r}); --structures names those wanted, in "
                             "order, and the later one wins")  # fmt: skip
        labels[mask] = number
    return labels


def _frame_of_reference(dataset: pydicom.Dataset) -> str | None:
    referenced = dataset.get("ReferencedFrameOfReferenceSequence") or []
    uid = dataset.get("FrameOfReferenceUID") or (referenced[0].get("FrameOfReferenceUID") if referenced else None)
    return str(uid) if uid else None


def _segments(dataset: pydicom.Dataset) -> Iterator[tuple[str, Any]]:
    if dataset.get("SegmentationType") not in ("BINARY", "LABELMAP"):
        raise ImageError(f"is a {dataset.get('SegmentationType')} segmentation; save it as BINARY")
    for item in dataset.SegmentSequence:
        if int(item.SegmentNumber) > 0:
            yield str(item.SegmentLabel), int(item.SegmentNumber)


def _segment_masks(
    dataset: pydicom.Dataset, image: sitk.Image, segments: Sequence[tuple[str, Any]]
) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    """Bring each segment to the image's grid: the same voxels, in whatever order, with slices that are empty left out."""
    import highdicom

    segmentation = highdicom.seg.Segmentation.from_dataset(dataset, copy=False)
    columns, rows, slices = image.GetSize()
    grid = highdicom.VolumeGeometry(_affine(image)[:, [2, 1, 0, 3]], (slices, rows, columns), coordinate_system="PATIENT")
    for name, number in segments:
        volume = segmentation.get_volume(segment_numbers=[number], combine_segments=True, relabel=True,
                                         allow_missing_positions=True)  # fmt: skip
        try:
            matched = volume.match_geometry(grid, tol=0.05)
        except RuntimeError:
            raise ImageError(
                "is a segmentation on another grid than its image; resample it on the grid of the image"
            ) from None
        if np.count_nonzero(matched.array) != np.count_nonzero(volume.array):
            raise ImageError(f"is a segmentation of another part of the body: {name!r} lies outside its image")
        yield name, np.asarray(matched.array) > 0


def _regions(dataset: pydicom.Dataset) -> Iterator[tuple[str, Any]]:
    contours = {int(item.ReferencedROINumber): item.get("ContourSequence") or [] for item in dataset.ROIContourSequence}
    for item in dataset.StructureSetROISequence:
        yield str(item.ROIName), contours.get(int(item.ROINumber), [])


def _region_masks(
    dataset: pydicom.Dataset, image: sitk.Image, regions: Sequence[tuple[str, Any]]
) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    """Fill contours: a voxel belongs to a region where its centre lies inside an odd number of the slice's contours."""
    from matplotlib.path import Path

    to_voxel, shape = np.linalg.inv(_affine(image)), image.GetSize()[::-1]
    for name, contours in regions:
        mask = np.zeros(shape, bool)
        for contour in contours:
            if contour.ContourGeometricType not in ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR"):
                continue  # points and lines enclose nothing
            points = np.asarray(contour.ContourData, float).reshape(-1, 3)
            places = (points @ to_voxel[:3, :3].T + to_voxel[:3, 3])[:, ::-1]  # slice, row, column
            across = int(np.ptp(places, axis=0).argmin())  # the image may have been scanned along any of its axes
            number = round(float(places[:, across].mean()))
            if not 0 <= number < shape[across] or np.abs(places[:, across] - number).max() > OFF_SLICE:
                raise ImageError(f"has contours of {name!r} that do not lie in the slices of the image")
            plane = np.moveaxis(mask, across, 0)[number]
            centres = np.stack(list(np.indices(plane.shape)), axis=-1).reshape(-1, 2)
            inside = Path(np.delete(places, across, axis=1)).contains_points(centres, radius=1e-9)
            plane ^= inside.reshape(plane.shape)
        yield name, mask


def _affine(image: sitk.Image) -> npt.NDArray[np.float64]:
    """(column, row, slice) -> LPS millimetres."""
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return affine

"""Where voxels lie: from storage order to the one orientation that networks see, and masks back again.

Legend: S slices from the feet to the head, H rows from front to back, W columns from the patient's right to left (LPS).
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel import orientations

Affine = npt.NDArray[np.float64]
"""(4, 4): voxel indices -> millimetres."""
Sizes = tuple[float | None, float, float]
"""Millimetres from slice to slice (None: not known), row to row, column to column."""
SAME_DIRECTION = 1e-2
"""Largest difference of two directions, and share of a voxel's size, by which grids may differ and be the same."""
FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])
"""From right, anterior, superior, nibabel's world, to left, posterior, superior, DICOM's, and back."""


@dataclass(frozen=True)
class Grid:
    """The voxels of a file: how they are turned to LPS, where they lie, and how a mask on them is written.

    What the file does not say stays unknown: then nothing is turned.
    """

    stored: tuple[int, ...]
    """Shape as stored, (x, y, z) and any axes of length 1 behind."""
    turn: npt.NDArray[np.float64] | None
    """nibabel's orientation transform from storage to LPS; None: the orientation is not known, or is to be kept."""
    affine: Affine | None
    """Voxel (column, row, slice) after the turn -> LPS millimetres; None: not known."""
    header: Any
    """nibabel's header that a mask is written with: forms, their codes, voxel sizes and units as in the source."""

    @classmethod
    def of_stack(
        cls, shape: tuple[int, int, int], affine: Affine | None, spacing: tuple[float, float, float] | None
    ) -> Grid:
        """The grid of slices that are no NIfTI file, such as a DICOM series.

        Args:
            shape: (S, H, W) in the order of the stack.
            affine: (column, row, slice) of the stack -> LPS millimetres; None: not known.
            spacing: millimetres from slice to slice, row to row, column to column; only used without `affine`.
        """
        stored = shape[::-1]
        header = nib.Nifti1Header()
        header.set_data_shape(stored)
        header.set_xyzt_units("mm")
        if affine is None:
            header.set_zooms(spacing[::-1] if spacing is not None else (1.0, 1.0, 1.0))
            return cls(stored, None, None, header)
        header.set_sform(FLIP @ affine, 1)
        header.set_qform(FLIP @ affine, 1)
        return cls.placed(stored, FLIP @ affine, header) if shape[0] > 1 else cls(stored, None, affine, header)

    @classmethod
    def placed(cls, stored: tuple[int, ...], affine: Affine, header: Any) -> Grid:
        """The grid of voxels whose place is known: `affine` leads from storage to right, anterior, superior millimetres."""
        turn = orientations.ornt_transform(orientations.io_orientation(affine), orientations.axcodes2ornt("LPS"))
        x, y, z = (*stored, 1, 1)[:3]
        return cls(stored, turn, FLIP @ affine @ orientations.inv_ornt_aff(turn, (x, y, z)), header)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(S, H, W) after the turn."""
        x, y, z = (*self.stored, 1, 1)[:3]
        slices, rows, columns = self._turned_axes()
        return (x, y, z)[slices], (x, y, z)[rows], (x, y, z)[columns]

    def _turned_axes(self) -> tuple[int, int, int]:
        """Which axis of the storage order (x, y, z) becomes S, which H and which W."""
        if self.turn is None:
            return 2, 1, 0
        targets = [int(target) for target, _ in self.turn]
        return targets.index(2), targets.index(1), targets.index(0)

    def turned(self, stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Bring voxels as stored, (x, y, z), to (S, H, W)."""
        standing = stored if self.turn is None else orientations.apply_orientation(stored, self.turn)
        return standing.transpose(2, 1, 0)

    def turned_sizes(self, sizes: Sizes | None) -> Sizes | None:
        """Bring millimetres (slice, row, column) of the stack as stored to (S, H, W); None where one is not known.

        Nothing is turned, and the slices' distance may stay None, where the orientation is not known.
        """
        if sizes is None or self.turn is None:
            return sizes
        if sizes[0] is None:
            return None
        by_axis = sizes[2], sizes[1], sizes[0]
        slices, rows, columns = self._turned_axes()
        return by_axis[slices], by_axis[rows], by_axis[columns]

    def restored(self, mask: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Bring a mask, (S, H, W), to the storage order of the source: (x, y, z)."""
        standing = mask.transpose(2, 1, 0)
        if self.turn is None:
            return standing
        return orientations.apply_orientation(standing, self.turn_back)

    @property
    def turn_back(self) -> npt.NDArray[np.float64]:
        """The orientation transform from LPS to storage: the inverse of `turn`."""
        assert self.turn is not None
        back = np.empty_like(self.turn)
        for axis, (target, flip) in enumerate(self.turn):
            back[int(target)] = axis, flip
        return back

    def to_nifti(self, mask: npt.NDArray[Any]) -> bytes:
        """A mask of `shape`, axes of length 1 left out or not, as `.nii.gz`; qform and sform are the source's."""
        if [n for n in mask.shape if n > 1] != [n for n in self.shape if n > 1]:
            raise ValueError(f"a mask of {mask.shape} does not fit voxels of {self.shape}")
        header = self.header.copy()
        header.extensions.clear()  # they may hold a patient's data
        stored = np.ascontiguousarray(self.restored(mask.reshape(self.shape)).reshape(self.stored))
        header.set_data_dtype(stored.dtype)
        header.set_data_shape(stored.shape)
        header.set_slope_inter(1, 0)
        header["cal_max"] = header["cal_min"] = 0
        kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
        return gzip.compress(kind(stored, None, header=header).to_bytes(), 6, mtime=0)

    def disagreement(self, image: Grid) -> str | None:
        """How this grid of a mask lies against that of its image, in words; None where both are one, or one is not known."""
        if self.affine is None or image.affine is None:
            return None
        ours, theirs = (np.linalg.norm(affine[:3, :3], axis=0) for affine in (self.affine, image.affine))
        if (np.abs(ours - theirs) > SAME_DIRECTION * theirs).any():
            sizes = [" x ".join(f"{mm:.3g}" for mm in voxel) for voxel in (ours, theirs)]
            return f"has voxels of {sizes[0]} mm, its image of {sizes[1]} mm"
        if np.abs(self.affine[:3, :3] / ours - image.affine[:3, :3] / theirs).max() > SAME_DIRECTION:
            return "is turned against its image"
        off = float(np.abs(self.affine[:3, 3] - image.affine[:3, 3]).max())
        return f"lies {off:.3g} mm beside its image" if off > theirs.min() / 2 else None

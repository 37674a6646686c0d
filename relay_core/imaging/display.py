"""How measured values of DICOM are shown: window, its function, VOI LUT, MONOCHROME1 (PS3.3 C.11.2, C.7.6.3.1.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import numpy.typing as npt

from relay_core.errors import ImageError
from relay_core.imaging import placement

if TYPE_CHECKING:
    import pydicom

Function = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]


@dataclass(frozen=True)
class Display:
    """From measured values to shades, 0 black to 1 white."""

    window: tuple[float, float] | None = None
    """Centre and width; None: 8-bit values by 255, others from each slice's smallest to its largest."""
    function: Function = "LINEAR"
    """Of the window."""
    lookup: tuple[float, npt.NDArray[np.float32]] | None = None
    """The first value that a VOI LUT maps, and its shades; it goes before a window."""
    inverted: bool = False
    """Whether the largest value is black."""

    @classmethod
    def between(cls, low: float, high: float) -> Display:
        """The linear display of which `low` is black and `high` is white."""
        return cls(((low + high + 1) / 2, high - low + 1))

    def shades(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Slices (n, ...) of measured values as shades."""
        if self.lookup is not None:
            first, table = self.lookup
            shown: npt.NDArray[Any] = table[np.clip(np.rint(values - first), 0, len(table) - 1).astype(np.intp)]
        elif self.window is not None:
            shown = self._windowed(values)
        elif values.dtype == np.uint8:
            shown = values / np.float32(255)
        else:
            shown = np.stack([stretch(slice_) for slice_ in values])
        return np.asarray(1 - shown if self.inverted else shown, np.float32)

    def _windowed(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        assert self.window is not None
        centre, width = self.window
        if self.function == "SIGMOID":
            return np.asarray(1 / (1 + np.exp(-4 * (values - np.float32(centre)) / np.float32(width))), np.float32)
        if self.function == "LINEAR":
            centre, width = centre - 0.5, max(width - 1, 1e-6)
        return np.clip((values - np.float32(centre)) / np.float32(width) + np.float32(0.5), 0, 1)


def stretch(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Scale a slice from its smallest value, 0, to its largest, 1; a constant slice is 0."""
    values = values.astype(np.float64)
    low, high = values.min(), values.max()
    return ((values - low) / (high - low) if high > low else np.zeros_like(values)).astype(np.float32)


def display_of(header: pydicom.Dataset, frame: int = 0) -> Display:
    """What a header says of how a frame is shown: of several windows or LUTs the first.

    Raises:
        ImageError: a function of the window that is not known.
        ValueError, AttributeError, ...: values that are none.
    """
    inverted = header.PhotometricInterpretation == "MONOCHROME1"
    holder = header if "WindowCenter" in header or "VOILUTSequence" in header else placement.group(
        header, "FrameVOILUTSequence", frame
    )  # fmt: skip
    if holder is None:
        return Display(inverted=inverted)
    if holder.get("VOILUTSequence"):
        return Display(lookup=_lookup(holder), inverted=inverted)
    if holder.get("WindowCenter") is None or holder.get("WindowWidth") is None:
        return Display(inverted=inverted)
    centres, widths = placement.floats(holder.WindowCenter), placement.floats(holder.WindowWidth)
    function = str(holder.get("VOILUTFunction") or "LINEAR")
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise ImageError(f"the DICOM file's VOILUTFunction is {function[:20]}, which is not known")
    if not len(centres) or not len(widths) or widths[0] < (1 if function == "LINEAR" else 1e-9):
        return Display(inverted=inverted)
    return Display((float(centres[0]), float(widths[0])), cast(Function, function), inverted=inverted)


def _lookup(holder: pydicom.Dataset) -> tuple[float, npt.NDArray[np.float32]]:
    from pydicom.pixels import apply_voi

    count, first, bits = holder.VOILUTSequence[0].LUTDescriptor[:3]
    count, first = int(count) or 1 << 16, int(first)
    table = apply_voi(np.arange(first, first + count), holder).astype(np.float32)
    return float(first), table / np.float32((1 << int(bits)) - 1)

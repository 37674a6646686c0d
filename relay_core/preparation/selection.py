"""Choose which slices of a study are kept."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from relay_core.errors import RelayError

MODES = {"area": 30.0, "share": 0.5, "threshold": 1.0, "all": None}
"""Mode of selection -> the value of `keep` where it is not given."""


@dataclass(frozen=True)
class Selection:
    """The options by which slices are chosen.

    Raises:
        RelayError: if the mode is unknown, or `keep` or `negatives` does not fit it.
    """

    mode: str = "area"
    """area: the `keep` slices of largest labelled area; share: the share `keep` of the labelled slices, the largest first;
    threshold: the slices with at least `keep` labelled pixels; all: every slice, labelled or not."""
    keep: float | None = None
    """Slices, share or pixels to keep, by mode; None: 30 slices, a share of 0.5, or 1 pixel."""
    negatives: int = 0
    """Number of slices without a labelled pixel that are kept too, evenly spaced."""

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise RelayError(f"--select {self.mode}: choose {', '.join(MODES)}")
        if self.negatives < 0:
            raise RelayError(f"--negatives {self.negatives}: give a number of slices, 0 or more")
        if self.keep is None or self.mode == "all":
            return
        if self.mode == "share" and not 0 < self.keep <= 1:
            raise RelayError(f"--keep {self.keep:g}: --select share keeps a share above 0 and up to 1")
        if self.mode != "share" and not (self.keep >= 1 and self.keep == int(self.keep)):
            unit = "slices" if self.mode == "area" else "pixels"
            raise RelayError(f"--keep {self.keep:g}: --select {self.mode} takes a number of {unit}, 1 or more")

    @property
    def limit(self) -> float | None:
        """The value of `keep`, or its default for the mode; None in the mode `all`."""
        return MODES[self.mode] if self.keep is None or self.mode == "all" else self.keep

    def choose(self, areas: npt.ArrayLike) -> list[int]:
        """Return the sorted indices of the kept slices; of equal areas the first slice wins.

        Args:
            areas: number of labelled pixels of each slice, (S,).
        """
        sizes = np.asarray(areas)
        keep = self.limit
        if keep is None:
            return list(range(len(sizes)))
        labelled, unlabelled = np.flatnonzero(sizes > 0), np.flatnonzero(sizes == 0)
        ranked = labelled[np.argsort(-sizes[labelled].astype(np.int64), kind="stable")]
        if self.mode == "threshold":
            kept = ranked[sizes[ranked] >= keep]
        else:
            kept = ranked[: int(keep) if self.mode == "area" else math.ceil(round(keep * len(ranked), 6))]
        return sorted([*kept.tolist(), *_spread(unlabelled, self.negatives).tolist()])


def _spread(indices: npt.NDArray[np.intp], count: int) -> npt.NDArray[np.intp]:
    """Take `count` of the `indices`, evenly spread: the middle one of each of `count` equal parts."""
    if count >= len(indices):
        return indices
    return indices[((np.arange(count) + 0.5) * len(indices) / max(count, 1)).astype(int)]

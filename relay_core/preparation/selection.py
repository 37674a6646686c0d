"""Which slices of a study are kept."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from relay_core.errors import RelayError

MODES = {"area": 30.0, "share": 0.5, "threshold": 1.0, "all": None}
"""Ways of choosing, and what `keep` is where it is not given."""


@dataclass(frozen=True)
class Selection:
    """How slices are chosen.

    Raises:
        RelayError: an unknown mode, or a `keep` or `negatives` that it cannot use.
    """

    mode: str = "area"
    """area: the `keep` slices of largest labelled area; share: this share of the labelled slices, the largest first;
    threshold: those with at least so many labelled pixels; all: every slice, labelled or not."""
    keep: float | None = None
    """None: 30 slices, a share of 0.5, 1 pixel."""
    negatives: int = 0
    """Slices without a labelled pixel to keep too, evenly spaced."""

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
            what = "slices" if self.mode == "area" else "pixels"
            raise RelayError(f"--keep {self.keep:g}: --select {self.mode} takes a number of {what}, 1 or more")

    @property
    def limit(self) -> float | None:
        """`keep`, or what stands for it."""
        return MODES[self.mode] if self.keep is None or self.mode == "all" else self.keep

    def choose(self, areas: npt.ArrayLike) -> list[int]:
        """Choose by the number of labelled pixels of each slice, (S,); of equal areas the first. Returns sorted indices."""
        sizes = np.asarray(areas)
        keep = self.limit
        if keep is None:
            return list(range(len(sizes)))
        labelled, free = np.flatnonzero(sizes > 0), np.flatnonzero(sizes == 0)
        ranked = labelled[np.argsort(-sizes[labelled].astype(np.int64), kind="stable")]
        if self.mode == "threshold":
            kept = ranked[sizes[ranked] >= keep]
        else:
            kept = ranked[: int(keep) if self.mode == "area" else math.ceil(round(keep * len(ranked), 6))]
        return sorted([*kept.tolist(), *_spread(free, self.negatives).tolist()])


def _spread(found: npt.NDArray[np.intp], count: int) -> npt.NDArray[np.intp]:
    """So many of `found`, one from the middle of each of as many even parts."""
    if count >= len(found):
        return found
    return found[((np.arange(count) + 0.5) * len(found) / max(count, 1)).astype(int)]

"""95 % confidence intervals of a mean."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

_BLOCK = 1 << 21
"""Most sample indices drawn at once, which bounds the memory of a bootstrap over a large test set."""


def _finite(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not np.isfinite(array).all():
        raise ValueError("an interval needs a flat sequence of finite numbers")
    return array


def t_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return Student's t interval of the mean: mean -+ t(0.975, n - 1) * s / sqrt(n).

    Not clipped to the range of the score: near 1 the upper end of a Dice may exceed 1.

    Shape: values (n,). Returns (low, high), or None for n < 2.
    Raises ValueError for anything but a flat sequence of finite numbers.
    """
    array = _finite(values)
    if array.size < 2:
        return None
    half = float(stdtrit(array.size - 1, 0.975)) * float(array.std(ddof=1)) / array.size**0.5
    mean = float(array.mean())
    return mean - half, mean + half


def bootstrap_interval(values: Sequence[float], draws: int = 5000, seed: int = 0) -> tuple[float, float] | None:
    """Return the percentile bootstrap interval of the mean (Efron 1979).

    Its ends are the 2.5 % and 97.5 % quantiles of `draws` resampled means.

    The same values in the same order, draws and seed always give the same interval.

    Shape: values (n,). Returns (low, high), or None for n < 2.
    Raises ValueError for draws < 1 or anything but a flat sequence of finite numbers.
    """
    array = _finite(values)
    if draws < 1:
        raise ValueError(f"draws must be at least 1, not {draws}")
    if array.size < 2:
        return None
    low, high = np.quantile(_resampled_means(array, draws, np.random.default_rng(seed)), [0.025, 0.975])
    return float(low), float(high)


def _resampled_means(array: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    block = max(1, _BLOCK // array.size)
    means = [
        array[rng.integers(0, array.size, (min(block, draws - done), array.size))].mean(axis=1)
        for done in range(0, draws, block)
    ]
    return np.concatenate(means)


def stratified_interval(strata: Sequence[Sequence[float]], draws: int = 5000, seed: int = 0) -> tuple[float, float] | None:
    """Return the percentile bootstrap interval of the mean of the strata's means, each resampled within itself.

    So every stratum (a site, say) counts alike, however many values it has. None where one has fewer than 2 values, whose
    spread is not known. Raises ValueError for no stratum, or draws < 1.
    """
    arrays = [_finite(values) for values in strata]
    if draws < 1 or not arrays:
        raise ValueError("an interval needs one draw or more, and one stratum or more")
    if any(array.size < 2 for array in arrays):
        return None
    rng = np.random.default_rng(seed)
    low, high = np.quantile(np.mean([_resampled_means(array, draws, rng) for array in arrays], axis=0), [0.025, 0.975])
    return float(low), float(high)


def signed_rank(differences: Sequence[float]) -> float:
    """Return the two-sided p of Wilcoxon's signed-rank test (scipy's) of differences around 0; 1 if all are 0."""
    from scipy.stats import wilcoxon

    array = _finite(differences)
    return float(wilcoxon(array).pvalue) if array.any() else 1.0


def intervals(values: Sequence[float]) -> dict[str, list[float] | None]:
    """Return both intervals as lists, by `t` and `bootstrap`, safe for JSON; None each for fewer than 2 values."""
    by_method = {"t": t_interval(values), "bootstrap": bootstrap_interval(values)}
    return {name: None if pair is None else list(pair) for name, pair in by_method.items()}

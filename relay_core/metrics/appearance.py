"""What single images and label maps look like, as one number each: what a person would compare two sites' images by."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.ndimage import label as components
from scipy.ndimage import laplace

Numbers = npt.NDArray[np.float64]


def image_statistics(images: npt.NDArray[np.floating]) -> dict[str, Numbers]:
    """Return statistics of single images by name, each an array (N,).

    `brightness`: mean of the grey values. `contrast`: their standard deviation (RMS contrast; Peli 1990,
    doi:10.1364/JOSAA.7.002032). `red`, `green`, `blue`: mean of each channel, of colour images alone. `sharpness`: variance
    of the Laplacian of the grey image (LAPV; Pertuz 2013, doi:10.1016/j.patcog.2012.11.011); it grows with noise too, and
    only images of one size can be compared by it.

    Args:
        images: (N, C, H, W) with values in 0..1; grey is the mean of the channels.
    """
    values = np.asarray(images, np.float64)
    grey = values.mean(axis=1)
    colours = dict(zip(("red", "green", "blue"), values.mean(axis=(2, 3)).T, strict=True)) if values.shape[1] == 3 else {}
    return {
        "brightness": grey.mean(axis=(1, 2)),
        "contrast": grey.std(axis=(1, 2)),
        **colours,
        "sharpness": np.array([laplace(each, mode="nearest").var() for each in grey]),
    }


def map_statistics(maps: npt.NDArray[np.integer], of_class: int) -> dict[str, Numbers]:
    """Return statistics of a class in single label maps (N, H, W) of class ids, each an array (N,).

    `area`: share of the image that the class covers. `pieces`: number of its connected parts (8 neighbours). Both are 0
    where the class is not there.
    """
    masks = maps == of_class
    pieces = [components(mask, np.ones((3, 3)))[1] for mask in masks]
    return {"area": masks.mean(axis=(1, 2)), "pieces": np.array(pieces, np.float64)}

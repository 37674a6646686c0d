from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Writer = Callable[..., None]


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def colours(seed: int, height: int = 12, width: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def fundus(tmp_path: Path) -> Path:
    """Two training pairs with a grey and an RGB mask, one test pair."""
    disc = np.full((12, 12), 255, dtype=np.uint8)
    disc[2:10, 2:10], disc[5:7, 5:7] = 128, 0
    base = tmp_path / "Domain1"
    for seed, (split, name) in enumerate([("train", "b"), ("train", "a"), ("test", "c")]):
        save(base / split / "ROIs" / "image" / f"{name}.png", colours(seed))
        mask = np.stack([disc] * 3, axis=-1) if name == "b" else disc
        save(base / split / "ROIs" / "mask" / f"{name}.png", mask)
    return base


@pytest.fixture
def polyps(tmp_path: Path) -> Path:
    """Ten pairs of five patients, p0 to p4, each with the images _0 and _1; masks 0 / 255."""
    base = tmp_path / "polyps"
    for patient in range(5):
        for number in range(2):
            name = f"p{patient}_{number}.png"
            mask = np.zeros((12, 12), dtype=np.uint8)
            mask[: patient + 2] = 255
            save(base / "image" / name, colours(10 * patient + number))
            save(base / "mask" / name, mask)
    return base

"""Make synthetic fundus-like sites in DoFE's layout: optic discs, cups and vessels, each site in a style of its own."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from relay_core.data.phantom_styles import MAX_SITES, Span, Style, style_of
from relay_core.errors import DataError

Array = npt.NDArray[np.float64]

_DISC, _CUP, _BACKGROUND = 128, 0, 255


def make_phantoms(
    out: Path,
    sites: int,
    train: int = 60,
    test: int = 30,
    size: int = 128,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write `out/Domain<k>/{train,test}/ROIs/{image,mask}/*.png`: RGB images, grey masks 255 / 128 disc / 0 cup.

    The same arguments give the same bytes. A site does not depend on the number of sites, and an image does not depend
    on the number of images. `out` appears complete or not at all.

    Args:
        out: folder to make; it may exist only if it is empty.
        sites: number of sites, 1 to 32.
        train: number of training images of each site, at least 1.
        test: number of test images of each site, at least 1.
        size: side of the images in pixels, at least 16.
        seed: seed of everything random, at least 0.
        progress: called with the number of images written so far and the number of all images.

    Returns:
        The folders of the sites, in order.

    Raises:
        DataError: if `out` is not an empty folder, or a number is out of range.
    """
    if not 1 <= sites <= MAX_SITES:
        raise DataError(f"phantom sites must be 1 to {MAX_SITES}, got {sites}")
    if train < 1 or test < 1 or size < 16 or seed < 0:
        raise DataError("phantoms need train and test of at least 1, size of at least 16 and seed of at least 0")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out.name} is there already and not an empty folder; name another one")
    target = out.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        done, total = 0, sites * (train + test)
        for site, (split, count) in itertools.product(range(1, sites + 1), (("train", train), ("test", test))):
            rois = temporary / target.name / f"Domain{site}" / split / "ROIs"
            for _ in _write_split(rois, style_of(site, seed), count, size, [seed, site, int(split == "test")]):
                done += 1
                if progress is not None:
                    progress(done, total)
        if target.exists():
            target.rmdir()
        (temporary / target.name).rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return [out / f"Domain{site}" for site in range(1, sites + 1)]


def _write_split(rois: Path, style: Style, count: int, size: int, seed: list[int]) -> Iterator[None]:
    """Write pairs and yield after each; each has random numbers of its own, so that `count` changes none of them."""
    (rois / "image").mkdir(parents=True)
    (rois / "mask").mkdir()
    for number in range(count):
        image, mask = render(style, size, np.random.default_rng([*seed, number]))
        Image.fromarray(image).save(rois / "image" / f"{number:04d}.png")
        Image.fromarray(mask).save(rois / "mask" / f"{number:04d}.png")
        yield


def render(style: Style, size: int, rng: np.random.Generator) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Draw one image (size, size, 3) and its mask (size, size), both uint8."""
    rows, columns = (np.mgrid[:size, :size] + 0.5) / size
    eye = _Eye.draw(style, rows, columns, rng)
    mask = np.full((size, size), _BACKGROUND, dtype=np.uint8)
    mask[(eye.halo if style.habit == "wide" else eye.disc) < 0] = _DISC
    mask[(eye.core if style.habit == "core" else eye.cup) < 0] = _CUP

    image = np.ones((size, size, 3)) * _jittered(style.background, style.jitter, rng)
    image += _texture(style, rows, columns, rng)[..., None] * rng.uniform(0.8, 1.2, 3)
    clutter = _clutter(style, eye, rng)
    for colour, distance in (*clutter, (style.halo, eye.halo), (style.rim, eye.disc), (style.cup, eye.cup),
                             (style.core, eye.core)):  # fmt: skip
        weight = _coverage(distance, 0.008)[..., None]
        image = image * (1 - weight) + weight * _jittered(colour, style.jitter, rng)
    weight = 0.75 * _vessels(style, eye, rng)[..., None]
    image = image * (1 - weight) + weight * np.array(style.vessel)
    image *= _illumination(style, rows, columns, rng)[..., None]
    image = ndimage.gaussian_filter(image, (style.blur * size, style.blur * size, 0))
    image += rng.normal(0, style.noise, image.shape)
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8), mask


@dataclass(frozen=True)
class _Eye:
    """The geometry of one image, in shares of its side.

    `disc`, `cup`, `halo` and `core` are signed distances (size, size) to the outlines, negative inside; `rho` and `phi`
    (size, size) are polar coordinates about the disc's `centre` (row, column).
    """

    disc: Array
    cup: Array
    halo: Array
    core: Array
    radius: float
    centre: tuple[float, float]
    rho: Array
    phi: Array

    @classmethod
    def draw(cls, style: Style, rows: Array, columns: Array, rng: np.random.Generator) -> _Eye:
        row, column = _pick(style.centre[0], rng), _pick(style.centre[1], rng)
        radius, share = _pick(style.radius, rng), _pick(style.cup_share, rng)
        rho, phi = np.hypot(rows - row, columns - column), np.arctan2(rows - row, columns - column)
        outline = radius * _outline_factor(phi, style.stretch, rng)
        slack = 0.35 * radius * (1 - share)  # the cup sits off the disc's centre but never leaves the disc
        cup_row, cup_column = row + rng.uniform(-slack, slack), column + rng.uniform(-slack, slack)
        cup_rho, cup_phi = np.hypot(rows - cup_row, columns - cup_column), np.arctan2(rows - cup_row, columns - cup_column)
        cup_outline = radius * share * _outline_factor(cup_phi, style.stretch, rng)
        return cls(
            disc=rho - outline,
            cup=cup_rho - cup_outline,
            halo=rho - outline * (1 + _pick(style.halo_width, rng)),
            core=cup_rho - cup_outline * _pick(style.core_share, rng),
            radius=radius,
            centre=(row, column),
            rho=rho,
            phi=phi,
        )


def _pick(span: Span, rng: np.random.Generator) -> float:
    return float(rng.uniform(*span))


def _jittered(colour: tuple[float, ...], jitter: float, rng: np.random.Generator) -> Array:
    """Vary the brightness of a colour more than its hue, so that colours that must differ still differ afterwards."""
    return np.array(colour) * rng.uniform(1 - jitter, 1 + jitter) + rng.uniform(-jitter, jitter, 3) / 3


def _outline_factor(phi: Array, stretch: Span, rng: np.random.Generator) -> Array:
    """Draw the outline of a slightly irregular ellipse, as a factor of its mean radius at each angle `phi`."""
    phases = rng.uniform(0, 2 * np.pi, 2)
    return 1 + _pick(stretch, rng) * np.cos(2 * (phi - phases[0])) + rng.uniform(0, 0.025) * np.cos(3 * (phi - phases[1]))


def _coverage(distance: Array, softness: float) -> Array:
    return np.clip(0.5 - distance / softness, 0, 1)


def _vessels(style: Style, eye: _Eye, rng: np.random.Generator) -> Array:
    """Draw vessels that leave the disc's centre, bend and grow thin; return their coverage (size, size) in 0..1."""
    count = int(rng.integers(style.vessels[0], style.vessels[1] + 1))
    start, bend, wave, phase, width = (
        rng.uniform(low, high, (count, 1, 1))
        for low, high in ((0, 2 * np.pi), (-1.2, 1.2), (0.05, 0.2), (0, 2 * np.pi), (0.6, 1.3))
    )
    path = start + bend * eye.rho + wave * np.sin(9 * eye.rho + phase)
    offset = eye.rho * np.abs(np.sin(eye.phi - path))
    forward = np.cos(eye.phi - path) > 0
    half_width = style.vessel_width * width * np.clip(1.1 - eye.rho, 0.35, 1) / 2
    coverage = np.clip((half_width - offset) / 0.006 + 0.5, 0, 1) * forward * np.clip(half_width / 0.004, 0, 1)
    return np.asarray((coverage * np.clip(eye.rho / (0.3 * eye.radius), 0, 1)).max(axis=0))


def _texture(style: Style, rows: Array, columns: Array, rng: np.random.Generator) -> Array:
    """Draw the zero-mean pattern (size, size) of the background with the style's strength."""
    size, scale = len(rows), style.texture_scale
    cloud = ndimage.gaussian_filter(rng.normal(size=rows.shape), scale * size, mode="wrap")
    cloud /= cloud.std() + 1e-9
    if style.texture == "mottled":
        return style.texture_strength * cloud
    turn = rng.uniform(-0.4, 0.4) + np.pi / 4
    along, across = (rows * np.cos(turn) + columns * np.sin(turn)), (columns * np.cos(turn) - rows * np.sin(turn))
    along, across = along + 0.25 * scale * cloud, across + 0.25 * scale * np.roll(cloud, size // 3, 0)
    phase = rng.uniform(0, 2 * np.pi, 2)
    if style.texture == "stripes":
        return style.texture_strength * np.sin(2 * np.pi * along / scale + phase[0])
    if style.texture == "tiles":
        tiles = np.sin(np.pi * along / scale + phase[0]) * np.sin(np.pi * across / scale + phase[1])
        return style.texture_strength * np.tanh(4 * tiles)
    grains = ndimage.gaussian_filter(rng.normal(size=rows.shape), 0.012 * size)
    return style.texture_strength * grains / (grains.std() + 1e-9)


def _clutter(style: Style, eye: _Eye, rng: np.random.Generator) -> list[tuple[tuple[float, ...], Array]]:
    """Draw the unlabelled decoy and exudates, which lie under the disc: for each its colour and signed distance."""
    spots: list[tuple[tuple[float, ...], Array]] = []
    clearance = eye.radius * 1.5
    if style.decoy:
        # on the far side of the image, where it can never be taken for the disc's own rim
        towards = np.arctan2(0.5 - eye.centre[0], 0.5 - eye.centre[1]) + rng.uniform(-0.5, 0.5)
        radius = rng.uniform(0.5, 0.7) * eye.radius
        spots.append((style.rim, _circle(eye, towards, clearance + radius + rng.uniform(0, 0.1), radius)))
    bright = tuple(np.clip(np.array(style.background) + 0.45, 0, 1))
    for _ in range(int(rng.integers(style.exudates[0], style.exudates[1] + 1))):
        angle, distance, radius = rng.uniform(0, 2 * np.pi), clearance + rng.uniform(0.02, 0.4), rng.uniform(0.008, 0.025)
        spots.append((bright, _circle(eye, angle, distance, radius)))
    return spots


def _circle(eye: _Eye, angle: float, distance: float, radius: float) -> Array:
    """Return the signed distance to a circle whose centre lies `distance` from the disc's in the direction `angle`."""
    squared = eye.rho**2 + distance**2 - 2 * distance * eye.rho * np.cos(eye.phi - angle)
    return np.sqrt(np.maximum(squared, 0)) - radius


def _illumination(style: Style, rows: Array, columns: Array, rng: np.random.Generator) -> Any:
    angle = rng.uniform(0, 2 * np.pi)
    slope = (rows - 0.5) * np.sin(angle) + (columns - 0.5) * np.cos(angle)
    falloff = style.vignette * np.clip(np.hypot(rows - 0.5, columns - 0.5) * 2 - 0.55, 0, None)
    return (1 + style.light * slope) * np.clip(1 - falloff, 0, 1)

"""Define how synthetic sites differ: each site has one `Style`.

Lengths are shares of the image's side; colours are RGB, 0 to 1. The sites disagree on purpose about what a cup looks
like (brighter or darker than the rim) and about what counts as disc and cup, so that a network that learned one site
is wrong at another however its training images were augmented. Within a site everything labelled is visible.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Colour = tuple[float, float, float]
Span = tuple[float, float]
Texture = Literal["mottled", "stripes", "tiles", "speckle"]
Habit = Literal["plain", "wide", "core"]

MAX_SITES = 32

_LUMA = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class Style:
    """The appearance, framing and labelling habit of one site; a `Span` is a range that each image draws from."""

    background: Colour
    rim: Colour
    cup: Colour
    halo: Colour
    """Colour of the ring around the disc."""
    core: Colour
    """Colour of the middle of the cup."""
    vessel: Colour
    habit: Habit = "plain"
    """Labelling habit. plain: disc and cup as seen; wide: the halo counts as disc; core: only the core counts as cup."""
    halo_width: Span = (0.0, 0.0)
    """Width of the halo, as a share of the disc's radius."""
    core_share: Span = (0.0, 0.0)
    """Core's radius, as a share of the cup's radius."""
    radius: Span = (0.24, 0.32)
    """Disc's radius."""
    cup_share: Span = (0.5, 0.64)
    """Cup's radius, as a share of the disc's radius."""
    stretch: Span = (0.02, 0.1)
    """Elongation of disc and cup, as a share of their radius."""
    centre: tuple[Span, Span] = ((0.44, 0.56), (0.44, 0.56))
    """Position of the disc's centre: row, column."""
    vessels: tuple[int, int] = (4, 8)
    vessel_width: float = 0.014
    texture: Texture = "mottled"
    texture_strength: float = 0.05
    texture_scale: float = 0.08
    exudates: tuple[int, int] = (0, 0)
    """Number of small bright spots outside the disc, never labelled."""
    decoy: bool = False
    """Whether there is a round spot of the rim's colour without a cup, never labelled."""
    blur: float = 0.006
    noise: float = 0.015
    light: float = 0.1
    """Change of brightness from one side of the image to the other, as a share."""
    vignette: float = 0.0
    jitter: float = 0.05
    """Variation of the colours from image to image, as a share."""


_CURATED = (
    # 1: ordinary colour fundus, cup brighter than rim
    Style(
        background=(0.68, 0.27, 0.10),
        halo=(0.70, 0.33, 0.14),
        rim=(0.90, 0.56, 0.22),
        cup=(0.98, 0.86, 0.55),
        core=(0.99, 0.88, 0.60),
        vessel=(0.42, 0.08, 0.05),
        exudates=(0, 3),
    ),
    # 2: dim red-free camera, small disc low in the frame, cup DARKER than rim, bright exudates, noise
    Style(
        background=(0.13, 0.20, 0.15),
        halo=(0.17, 0.25, 0.18),
        rim=(0.52, 0.66, 0.40),
        cup=(0.20, 0.36, 0.42),
        core=(0.18, 0.33, 0.40),
        vessel=(0.05, 0.09, 0.07),
        radius=(0.22, 0.27),
        cup_share=(0.56, 0.68),
        centre=((0.52, 0.68), (0.36, 0.64)),
        texture="speckle",
        texture_strength=0.03,
        exudates=(4, 9),
        noise=0.05,
        light=0.25,
    ),
    # 3: pale tessellated eyes, zoomed in, disc DARKER than background, only the core of the cup is called cup
    Style(
        background=(0.80, 0.70, 0.60),
        halo=(0.76, 0.66, 0.57),
        rim=(0.52, 0.36, 0.40),
        cup=(0.70, 0.58, 0.44),
        core=(0.96, 0.90, 0.74),
        vessel=(0.45, 0.20, 0.24),
        habit="core",
        core_share=(0.62, 0.72),
        radius=(0.36, 0.43),
        cup_share=(0.62, 0.72),
        texture="stripes",
        texture_strength=0.10,
        texture_scale=0.09,
        blur=0.014,
    ),
    # 4: magenta film, disc at the left edge and partly out of view, cup darker, a decoy disc, the halo is called disc
    Style(
        background=(0.36, 0.08, 0.26),
        halo=(0.60, 0.22, 0.42),
        rim=(0.88, 0.62, 0.84),
        cup=(0.46, 0.24, 0.66),
        core=(0.42, 0.20, 0.62),
        vessel=(0.20, 0.02, 0.16),
        habit="wide",
        halo_width=(0.22, 0.34),
        radius=(0.20, 0.26),
        cup_share=(0.56, 0.66),
        centre=((0.36, 0.64), (0.14, 0.30)),
        texture="tiles",
        texture_strength=0.05,
        decoy=True,
        noise=0.03,
    ),
    # 5: blue-grey angiography: bright vessels, dark disc with a bright cup, strong vignette
    Style(
        background=(0.40, 0.47, 0.58),
        halo=(0.44, 0.51, 0.61),
        rim=(0.14, 0.17, 0.28),
        cup=(0.52, 0.66, 0.78),
        core=(0.55, 0.70, 0.80),
        vessel=(0.86, 0.90, 0.92),
        radius=(0.26, 0.36),
        centre=((0.40, 0.60), (0.56, 0.72)),
        texture="mottled",
        texture_strength=0.06,
        vessels=(6, 10),
        vignette=0.45,
        light=0.2,
    ),
    # 6: overexposed yellow, large halo that is NOT disc, cup darker, stripes, disc in the upper right
    Style(
        background=(0.86, 0.78, 0.34),
        halo=(0.98, 0.94, 0.74),
        rim=(0.66, 0.46, 0.14),
        cup=(0.36, 0.24, 0.10),
        core=(0.34, 0.22, 0.10),
        vessel=(0.60, 0.30, 0.10),
        halo_width=(0.25, 0.4),
        radius=(0.22, 0.28),
        cup_share=(0.54, 0.66),
        centre=((0.28, 0.42), (0.56, 0.70)),
        texture="stripes",
        texture_strength=0.07,
        texture_scale=0.05,
        exudates=(2, 5),
        noise=0.03,
    ),
    # 7: violet ultra-wide colours, everything blurred, the halo is called disc, a bright core inside a dark cup
    Style(
        background=(0.22, 0.16, 0.44),
        halo=(0.44, 0.30, 0.62),
        rim=(0.70, 0.52, 0.70),
        cup=(0.28, 0.40, 0.50),
        core=(0.62, 0.80, 0.74),
        vessel=(0.10, 0.04, 0.26),
        habit="wide",
        halo_width=(0.25, 0.35),
        core_share=(0.4, 0.5),
        radius=(0.24, 0.30),
        cup_share=(0.58, 0.7),
        texture="mottled",
        texture_strength=0.08,
        blur=0.02,
        light=0.25,
    ),
    # 8: brown high contrast, decoy and exudates, only the core is called cup, the core is the darkest thing
    Style(
        background=(0.34, 0.20, 0.12),
        halo=(0.38, 0.24, 0.15),
        rim=(0.62, 0.60, 0.46),
        cup=(0.92, 0.92, 0.84),
        core=(0.40, 0.26, 0.30),
        vessel=(0.16, 0.05, 0.05),
        habit="core",
        core_share=(0.6, 0.7),
        radius=(0.28, 0.36),
        cup_share=(0.66, 0.76),
        centre=((0.36, 0.50), (0.34, 0.48)),
        texture="tiles",
        texture_strength=0.06,
        exudates=(2, 6),
        decoy=True,
        noise=0.035,
    ),
)


def style_of(site: int, seed: int) -> Style:
    """Return the style of site 1, 2, ...: the first eight are made by hand, later ones at random from seed and site."""
    return _CURATED[site - 1] if site <= len(_CURATED) else _random_style(np.random.default_rng([seed, site, 99]), site)


def _random_style(rng: np.random.Generator, site: int) -> Style:
    # cycling through the habits and both orders of brightness keeps any number of sites balanced
    habit: Habit = ("plain", "wide", "core")[site % 3]
    cup_sign = 1 if site % 2 else -1
    background, halo, rim, cup, core, vessel = _random_colours(rng, cup_sign)
    row, column = rng.uniform(0.3, 0.7, 2) if habit != "core" else rng.uniform(0.42, 0.58, 2)
    least_radius = rng.uniform(0.28, 0.36) if habit == "core" else rng.uniform(0.22, 0.3)
    texture: Texture = ("mottled", "stripes", "tiles", "speckle")[int(rng.integers(4))]
    return Style(
        background=background,
        halo=halo,
        rim=rim,
        cup=cup,
        core=core,
        vessel=vessel,
        habit=habit,
        halo_width=(0.24, 0.36) if habit == "wide" or rng.random() < 0.4 else (0.0, 0.0),
        core_share=(0.6, 0.72) if habit == "core" else (0.0, 0.0),
        radius=(least_radius, least_radius + 0.06),
        cup_share=(0.64, 0.74) if habit == "core" else (0.54, 0.66),
        centre=((row - 0.07, row + 0.07), (column - 0.07, column + 0.07)),
        texture=texture,
        texture_strength=float(rng.uniform(0.03, 0.08)),
        texture_scale=float(rng.uniform(0.05, 0.1)),
        exudates=(2, 6) if rng.random() < 0.4 else (0, 0),
        decoy=bool(rng.random() < 0.3),
        blur=float(rng.uniform(0.004, 0.016)),
        noise=float(rng.uniform(0.01, 0.045)),
        light=float(rng.uniform(0.05, 0.25)),
        vignette=float(rng.choice([0.0, 0.4])),
    )


def _random_colours(rng: np.random.Generator, cup_sign: int) -> tuple[Colour, ...]:
    """Draw colours of background, halo, rim, cup, core and vessel until neighbouring regions are visibly different."""
    while True:
        background, rim, cup = rng.uniform(0.05, 0.95, (3, 3))
        halo, core = (background + rim) / 2 + rng.uniform(-0.12, 0.12, 3), rng.uniform(0.05, 0.98, 3)
        vessel = np.clip(background + rng.choice([-1, 1]) * 0.3, 0, 1)
        lumas = [float(c @ _LUMA) for c in (background, halo, rim, cup, core)]
        steps = np.abs(np.diff(lumas))
        distinct = (steps > [0.1, 0.1, 0.18, 0.15]).all() and abs(lumas[0] - lumas[2]) > 0.22
        if distinct and (lumas[3] - lumas[2]) * cup_sign > 0.18:
            colours = (background, halo, rim, cup, core, vessel)
            return tuple((float(r), float(g), float(b)) for r, g, b in np.clip(colours, 0, 1))

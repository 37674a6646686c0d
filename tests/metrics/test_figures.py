"""Figures really are PNG files, and show what they should."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from relay_core.imaging.drawing import overlay, palette
from relay_core.metrics import ScoreMatrix, heat_map, sample_grid


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize(
    ("rows", "columns", "metric", "values"),
    [
        (["A", "B"], ["A", "B"], "dice", [[0.9, 0.1], [None, 0.8]]),
        (["joint"], ["A long site name here", "B"], "hd95", [[3.0, 100.0]]),
        (["A"], ["A"], "dice", [[None]]),
        (["A"], ["A"], "dice", [[0.5]]),
        ([f"s{i}" for i in range(12)], [f"s{i}" for i in range(12)], "x", [[-1.0] * 12] * 12),
    ],
)
def test_heat_map_of_any_shape(tmp_path, rows, columns, metric, values):
    heat_map(ScoreMatrix(rows, columns, metric, values), tmp_path / "m.png")
    shown = pixels(tmp_path / "m.png")
    assert min(shown.shape[:2]) > 200
    assert len(np.unique(shown.reshape(-1, 3), axis=0)) > 20
    framed = bool((shown == (213, 94, 0)).all(axis=-1).any())
    assert framed == (set(rows) <= set(columns))
    assert [path.name for path in tmp_path.iterdir()] == ["m.png"]


def test_heat_map_is_the_same_every_time(tmp_path):
    matrix = ScoreMatrix(["A"], ["A"], "dice", [[0.5]])
    for name in ("a.png", "b.png"):
        heat_map(matrix, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_palette_is_distinct_and_grows_at_its_end():
    colours = palette(20)
    assert colours.shape == (20, 3)
    assert colours.dtype == np.uint8
    assert len(np.unique(colours, axis=0)) == 20
    assert palette(0).shape == (0, 3)
    assert (palette(3) == colours[:3]).all()


def test_overlay_tints_inside_borders_outright_and_leaves_the_background():
    ids = np.zeros((7, 7), dtype=int)
    ids[1:6, 1:6] = 1
    shown = overlay(np.zeros((1, 7, 7)), ids, opacity=0.5)
    assert shown.shape == (7, 7, 3)
    assert shown.dtype == np.uint8
    assert shown[0, 0].tolist() == [128, 128, 128]
    assert shown[1, 1].tolist() == palette(2)[1].tolist()
    assert shown[3, 3].tolist() == np.rint(palette(2)[1] * 0.5 + 64).tolist()


def test_overlay_clips_and_survives_nan():
    image = np.full((3, 2, 2), 5.0)
    image[:, 0, 0] = np.nan
    assert overlay(image, np.zeros((2, 2))).tolist() == [[[0] * 3, [255] * 3], [[255] * 3, [255] * 3]]


@pytest.mark.parametrize(
    ("image", "ids"),
    [
        (np.zeros((2, 4, 4)), np.zeros((4, 4), int)),
        (np.zeros((4, 4)), np.zeros((4, 4), int)),
        (np.zeros((1, 4, 4)), np.zeros((4, 5), int)),
        (np.zeros((1, 4, 4)), np.full((4, 4), -1)),
    ],
)
def test_overlay_refuses_other_shapes(image, ids):
    with pytest.raises(ValueError, match="must be"):
        overlay(image, ids)


def test_sample_grid_of_tensors_and_arrays(tmp_path):
    labels = torch.zeros(3, 16, 20, dtype=torch.uint8)
    labels[:, 4:12, 4:12] = 2
    colour = (torch.zeros(3, 3, 16, 20, dtype=torch.bfloat16, requires_grad=True), labels, labels.long())
    grey = (np.zeros((2, 1, 8, 8), np.float32), np.ones((2, 8, 8), int), None)
    sample_grid([("Größe", *colour), ("pseudo", *grey)], tmp_path / "g.png", num_classes=3, scale=2)
    shown = pixels(tmp_path / "g.png")
    assert shown.shape[1] >= 3 * 3 * 2 * 20
    assert shown.shape[0] >= 2 * 16 + 2 * 8
    for colour_of_class in palette(3)[1:]:
        assert (shown == colour_of_class).all(axis=-1).any()
    assert [path.name for path in tmp_path.iterdir()] == ["g.png"]


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [("x", np.zeros((0, 1, 4, 4)), np.zeros((0, 4, 4), int), None)],
        [("x", np.zeros((1, 4, 4)), np.zeros((4, 4), int), None)],
        [("x", np.zeros((1, 1, 4, 4)), np.zeros((1, 4, 4), int), np.zeros((2, 4, 4), int))],
    ],
)
def test_a_bad_grid_leaves_no_file(tmp_path, rows):
    with pytest.raises(ValueError, match="row"):
        sample_grid(rows, tmp_path / "g.png", 2)
    assert list(tmp_path.iterdir()) == []

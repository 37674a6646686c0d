"""Statistics of single images and label maps, against values that are known without them."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from relay_core.metrics import image_statistics, map_statistics


def test_statistics_of_images_that_are_known():
    plain, halves = np.full((3, 8, 8), 0.25), np.zeros((3, 8, 8))
    plain[1], halves[:, :, 4:] = 0.75, 1.0
    found = image_statistics(np.stack([plain, halves]))
    assert found["brightness"] == pytest.approx([1.25 / 3, 0.5])
    assert found["contrast"] == pytest.approx([0, 0.5])
    assert [found[name].tolist() for name in ("red", "green", "blue")] == [[0.25, 0.5], [0.75, 0.5], [0.25, 0.5]]
    assert found["sharpness"] == pytest.approx([0, 2 / 8])  # 1 and -1 beside the edge, 0 elsewhere
    assert set(image_statistics(np.zeros((2, 1, 8, 8)))) == {"brightness", "contrast", "sharpness"}


def test_a_blurred_image_is_less_sharp():
    noise = np.random.default_rng(0).integers(0, 255, (32, 32), np.uint8)
    blurred = np.asarray(Image.fromarray(noise).filter(ImageFilter.GaussianBlur(1)))
    sharp, soft = image_statistics(np.stack([noise, blurred])[:, None] / 255)["sharpness"]
    assert soft < sharp / 10


def test_statistics_of_a_class_in_maps():
    maps = np.zeros((2, 10, 10), int)
    maps[0, :5, :4], maps[0, 8, 8], maps[0, 9, 9], maps[0, 9, 0] = 2, 2, 2, 1
    found = map_statistics(maps, 2)
    assert found["area"].tolist() == [0.22, 0]
    assert found["pieces"].tolist() == [2, 0], "corners touch"

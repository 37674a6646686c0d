"""Images that are not square: the square that a network sees, and the way back to the image's own pixels."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from relay_core.imaging import axes, shrink, shrink_mask

WIDE = np.zeros((1, 1, 40, 80), np.float32) + 0.5
WIDE[..., 60:] = 1.0  # the right quarter is white


def test_stretch_is_torchs_own_resizing_with_antialiasing():
    image = np.random.default_rng(0).random((2, 3, 50, 70), np.float32)
    expected = F.interpolate(torch.from_numpy(image), (32, 32), mode="bilinear", antialias=True, align_corners=False)
    np.testing.assert_allclose(shrink(image, 32), expected.numpy(), atol=1e-5)


def test_pad_keeps_the_aspect_ratio_and_adds_black():
    square = shrink(WIDE, 16, "pad")[0, 0]
    assert not square[:4].any()  # half as high as wide
    assert not square[12:].any()
    np.testing.assert_allclose(square[4:12, :11], 0.5, atol=1e-6)
    np.testing.assert_allclose(square[4:12, 13:], 1.0, atol=1e-6)


def test_crop_keeps_the_middle():
    square = shrink(WIDE, 16, "crop")[0, 0]  # columns 20 to 60 of 80
    np.testing.assert_allclose(square[:, :15], 0.5, atol=1e-6)
    assert square.min() > 0.49


@pytest.mark.parametrize("shape", [(40, 80), (80, 40), (33, 34), (7, 64), (64, 64), (5, 9)])
@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
def test_a_mask_lies_where_its_image_does_and_goes_back_to_its_place(shape, fit):
    side, (height, width) = 64, shape
    ids = np.zeros(shape, np.uint8)
    ids[height // 4 : -(height // 4) or None, width // 4 : -(width // 4) or None] = 1
    mask = shrink_mask(ids, side, fit)
    image = shrink(ids[None, None].astype(np.float32), side, fit)[0, 0]
    assert mask.shape == (side, side)
    sure = np.abs(image - 0.5) > 0.49
    np.testing.assert_array_equal(mask[sure], image[sure] > 0.5)
    rows, columns = (axis.enlarging() for axis in axes(height, width, side, fit))
    back = rows @ mask.astype(np.float32) @ columns.T
    seen = (rows.sum(axis=1) > 0)[:, None] & (columns.sum(axis=1) > 0)
    assert seen.all() == (fit != "crop" or abs(height - width) <= 1)
    disagreeing = ((back > 0.5) != ids)[seen].mean()
    assert disagreeing <= (
        0.08 if min(shape) < 8 or max(shape) > side else 0.02
    )  # at the outline alone, which is half a pixel


def test_what_the_square_leaves_out_gets_nothing():
    rows, columns = (axis.enlarging() for axis in axes(40, 80, 16, "crop"))
    assert (rows.sum(axis=1) > 0.99).all()
    assert not columns[:20].any()
    assert not columns[60:].any()
    assert (columns.sum(axis=1)[20:60] > 0.99).all()

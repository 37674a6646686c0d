"""All slices of a study on one sheet, and what was found there on another one."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from relay_core.imaging import Study, contact_sheets, overlay, palette, read_study
from relay_core.imaging.sheets import PIXELS, SIDE
from tests.imaging import dicoms
from tests.imaging.test_study import COLOUR, VOLUME, nifti, png


def opened(text):
    return Image.open(io.BytesIO(base64.b64decode(text)))


def cells(drawn, text, slices):
    """The slices of a sheet, cut out as the docstring says."""
    sheet, width, height = np.asarray(opened(text)), drawn["width"], drawn["height"]
    corners = [(i // drawn["columns"] * height, i % drawn["columns"] * width) for i in range(slices)]
    return [sheet[top : top + height, left : left + width] for top, left in corners]


def ids_of(study):
    ids = np.zeros((len(study), *study.pixels.shape[2:]), np.uint8)
    ids[:, 2:9, 3:11] = 1
    ids[:, 4:7, 5:8] = 2
    return ids


def test_a_picture_is_itself_and_with_its_layer_the_overlay():
    study = read_study(png(COLOUR), 3)
    ids = ids_of(study)
    drawn = contact_sheets(study, ids, 3)
    assert (drawn["width"], drawn["height"], drawn["columns"], drawn["fullest"]) == (30, 20, 1, 1)
    assert (np.asarray(opened(drawn["image"])) == COLOUR).all()
    assert drawn["colours"] == ["#{:02x}{:02x}{:02x}".format(*colour) for colour in palette(3)[1:]]
    found = opened(drawn["found"])
    assert ((np.asarray(found)[..., 3] > 0) == (ids[0] > 0)).all(), "the background is seen through"
    laid = Image.alpha_composite(opened(drawn["image"]).convert("RGBA"), found).convert("RGB")
    wanted = overlay(study.batch(0, 1)[0] * 2 - 1, ids[0])
    assert np.abs(np.asarray(laid).astype(int) - wanted).max() <= 1
    assert (np.asarray(laid)[2, 5] == palette(3)[1]).all(), "a border"


def test_every_slice_of_a_volume_stands_in_its_cell(tmp_path):
    study = read_study(nifti(VOLUME, tmp_path, spacing=(1, 1, 4)), 1)
    ids = np.zeros(study.pixels[:, 0].shape, np.uint8)
    for i in range(5):
        ids[i, 2 + i, 3 : 4 + i] = 1
    ids[3, 7:10, 3:9] = 2
    drawn = contact_sheets(study, ids, 3)
    assert (drawn["width"], drawn["height"], drawn["fullest"]) == (16, 12, 4)
    assert opened(drawn["image"]).mode == "L"
    for i, (shown, found) in enumerate(zip(cells(drawn, drawn["image"], 5), cells(drawn, drawn["found"], 5), strict=True)):
        assert (shown == np.rint(study.batch(i, i + 1)[0, 0] * 255)).all()
        assert ((found[..., 3] > 0) == (ids[i] > 0)).all()
        assert (found[2 + i, 3, :3] == palette(3)[1]).all()
    assert contact_sheets(study, np.zeros_like(ids), 3)["fullest"] == 3, "nothing was found: the middle"
    assert contact_sheets(study, None, 3)["found"] is None


def test_pixels_are_square_where_the_spacing_is_known():
    study = read_study(dicoms.one(VOLUME[0]), 1)  # rows 0.75 mm apart, columns 0.5 mm
    drawn = contact_sheets(study, ids_of(study), 3)
    assert (drawn["width"], drawn["height"]) == (16, 18)
    (shown,), plain = cells(drawn, drawn["image"], 1), np.rint(study.batch(0, 1)[0, 0] * 255)
    assert (shown[[0, -1]] == plain[[0, -1]]).all()


@pytest.mark.parametrize("size", [(1, 700, 2100), (90, 300, 200), (300, 1, 40), (3, 1100, 2), (1, 1, 1)])
def test_large_studies_are_reduced_and_nothing_found_is_lost(size):
    pixels = np.zeros((size[0], 1, *size[1:]), np.uint8)
    pixels[:, :, : size[1] // 2] = 255
    ids = np.zeros((size[0], *size[1:]), np.uint8)
    ids[-1, -1, -1] = 2  # one pixel of all
    drawn = contact_sheets(Study("picture", pixels, None, size[0] > 1), ids, 3)
    width, height = drawn["width"], drawn["height"]
    assert max(width, height) <= SIDE
    assert size[0] * width * height <= PIXELS
    assert max(opened(drawn["image"]).size) <= 5000
    assert drawn["fullest"] == size[0]
    assert (cells(drawn, drawn["found"], size[0])[-1][-1, -1, :3] == palette(3)[2]).all()
    shown = cells(drawn, drawn["image"], size[0])[-1]
    assert (shown[0, 0], shown[-1, -1]) == ((255, 0) if size[1] > 1 else (0, 0))


def test_a_sheet_is_no_larger_than_a_phone_can_show(monkeypatch):
    monkeypatch.setattr("relay_core.imaging.sheets.PIXELS", 1 << 14)
    pixels = np.broadcast_to(np.arange(100, dtype=np.uint8)[:, None, None, None], (100, 1, 64, 64))
    drawn = contact_sheets(Study("picture", pixels, None, True), None, 2)
    assert (drawn["width"], drawn["height"], drawn["columns"]) == (13, 13, 10)
    assert [int(cell.mean()) for cell in cells(drawn, drawn["image"], 100)] == list(range(100))

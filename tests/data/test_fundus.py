import shutil

import numpy as np
import pytest

from relay_core.config.datasets import FundusKwargs
from relay_core.data import load_site, preflight
from relay_core.errors import DataError
from tests.data.conftest import colours, save

KWARGS = FundusKwargs(task_id=1, task_name="Domain1")


def problems(folder) -> dict[str, str]:
    with pytest.raises(DataError) as caught:
        preflight("fundus", KWARGS, folder)
    return {p.file: p.message for p in caught.value.problems}


def test_report(fundus):
    report = preflight("fundus", KWARGS, fundus)
    assert report.counts == {"train": 2, "test": 1}
    assert report.subjects == {"train": 2, "test": 1}
    assert report.sizes == {(12, 12): 3}
    assert report.class_shares["train"] == pytest.approx([80 / 144, 60 / 144, 4 / 144])
    assert report.duplicates == []


def test_grey_and_rgb_masks_mean_the_same_and_names_are_sorted(fundus):
    site = load_site("fundus", KWARGS, folder=fundus, split="train", resolution=12)
    assert (site.names, site.site, site.split, len(site)) == (["a", "b"], "Domain1", "train", 2)
    _, labels = site.batch([0, 1])
    assert (labels[0] == labels[1]).all()
    assert [int(labels[0, r, r]) for r in (0, 3, 5)] == [0, 1, 2]


def test_the_layout_without_rois(fundus):
    for split in ("train", "test"):
        for kind in ("image", "mask"):
            (fundus / split / "ROIs" / kind).rename(fundus / split / kind)
    assert preflight("fundus", KWARGS, fundus).counts == {"train": 2, "test": 1}


def test_values_may_stray_a_little_but_no_further(fundus):
    mask = fundus / "train" / "ROIs" / "mask" / "a.png"
    save(mask, np.array([[239, 144], [112, 16]], np.uint8).repeat(6, 0).repeat(6, 1))
    _, labels = load_site("fundus", KWARGS, folder=fundus, split="train", resolution=12).batch([0])
    assert labels[0, ::6, ::6].tolist() == [[0, 1], [1, 2]]
    save(mask, np.full((12, 12), 60, np.uint8))
    assert problems(fundus) == {
        "train/ROIs/mask/a.png": "has unknown mask value 60; expected 255 background, 128 disc, 0 cup"
    }


def test_every_bad_file_is_named(fundus):
    rois = fundus / "train" / "ROIs"
    (rois / "mask" / "a.png").unlink()
    save(rois / "mask" / "extra.png", np.zeros((12, 12), np.uint8))
    (rois / "image" / "b.png").write_bytes((rois / "image" / "b.png").read_bytes()[:200])
    (rois / "image" / "notes.bmp").write_bytes(b"BM")
    (rois / "image" / ".DS_Store").write_bytes(b"x")
    save(fundus / "test" / "ROIs" / "mask" / "c.png", np.zeros((12, 14), np.uint8))
    found = problems(fundus)
    assert set(found) == {
        "train/ROIs/image/a.png", "train/ROIs/mask/extra.png", "train/ROIs/image/b.png", "train/ROIs/image/notes.bmp",
        "test/ROIs/mask/c.png",
    }  # fmt: skip
    assert found["test/ROIs/mask/c.png"] == "is 14x12 pixels (width x height), its image is 12x12"
    assert "truncated" in found["train/ROIs/image/b.png"]
    assert "without an image" in found["train/ROIs/mask/extra.png"]
    with pytest.raises(DataError) as caught:
        load_site("fundus", KWARGS, folder=fundus, split="train", resolution=8)
    assert {p.file for p in caught.value.problems} == {file for file in found if file.startswith("train")}


def test_a_long_list_is_cut_in_the_text_only(fundus):
    for number in range(60):
        save(fundus / "train" / "ROIs" / "image" / f"x{number}.png", colours(number))
    with pytest.raises(DataError, match="and 10 more") as caught:
        preflight("fundus", KWARGS, fundus)
    assert len(caught.value.problems) == 60
    assert len(str(caught.value).splitlines()) == 52


def test_missing_and_empty_folders_say_what_was_expected(fundus, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder, words in [(tmp_path / "nowhere", "is not there"), (tmp_path / "empty", "is empty")]:
        with pytest.raises(DataError, match=rf"{words}.*\{{train,test\}}/ROIs") as caught:
            preflight("fundus", KWARGS, folder)
        assert len(str(caught.value).splitlines()) == 1
    shutil.rmtree(fundus / "test")
    with pytest.raises(DataError, match="has no folder test/ROIs/image"):
        preflight("fundus", KWARGS, fundus)
    assert len(load_site("fundus", KWARGS, folder=fundus, split="train", resolution=8)) == 2


def test_an_empty_split_is_an_error(fundus):
    for kind in ("image", "mask"):
        (fundus / "test" / "ROIs" / kind / "c.png").unlink()
    with pytest.raises(DataError, match="no test images"):
        preflight("fundus", KWARGS, fundus)


def test_images_in_train_and_in_test_are_reported(fundus):
    shutil.copy(fundus / "train/ROIs/image/a.png", fundus / "test/ROIs/image/c.png")
    report = preflight("fundus", KWARGS, fundus)
    assert report.duplicates == [("train/ROIs/image/a.png", "test/ROIs/image/c.png")]

import shutil

import pytest

from relay_core.config.datasets import FolderKwargs, FundusKwargs
from relay_core.data import preflight, survey
from relay_core.errors import DataError, Problem
from tests.data.conftest import colours, save

POLYPS = FolderKwargs(num_classes=2, mask_values={0: 0, 255: 1}, test_share=0)


def test_files_with_the_same_pixels_are_grouped_split_by_split(polyps):
    shutil.copy(polyps / "image/p0_0.png", polyps / "image/p3_1.png")
    (polyps / "image/p4_0.png").unlink()
    save(polyps / "image/p4_0.tif", colours(0))  # the pixels of p0_0.png, other bytes
    shutil.copy(polyps / "image/p1_0.png", polyps / "image/p1_1.png")
    report = preflight("folder", POLYPS, polyps)
    assert report.repeats == {
        "train": [
            ("image/p0_0.png", "image/p3_1.png", "image/p4_0.tif"),
            ("image/p1_0.png", "image/p1_1.png"),
        ]
    }
    assert report.duplicates == []


def test_the_same_image_in_both_splits_is_no_repeat(fundus):
    shutil.copy(fundus / "train/ROIs/image/a.png", fundus / "test/ROIs/image/c.png")
    report = preflight("fundus", FundusKwargs(), fundus)
    assert report.repeats == {"train": [], "test": []}
    shutil.copy(fundus / "train/ROIs/image/a.png", fundus / "train/ROIs/image/b.png")
    report = preflight("fundus", FundusKwargs(), fundus)
    assert report.repeats["train"] == [("train/ROIs/image/a.png", "train/ROIs/image/b.png")]
    assert report.duplicates == [("train/ROIs/image/a.png", "test/ROIs/image/c.png")]


def test_bad_files_do_not_hide_the_rest(polyps):
    (polyps / "image/p0_0.png").write_bytes(b"no image")
    (polyps / "mask/p0_1.png").unlink()
    shutil.copy(polyps / "image/p1_0.png", polyps / "image/p1_1.png")
    done = []
    found = survey("folder", POLYPS, polyps, lambda *numbers: done.append(numbers))
    assert done == [(n, 9) for n in range(1, 10)]
    assert [problem.file for problem in found.problems] == ["image/p0_1.png", "image/p0_0.png"]
    assert all(isinstance(problem, Problem) for problem in found.problems)
    assert found.report.counts == {"train": 9}
    assert found.report.sizes == {(12, 12): 8}
    assert sum(found.report.class_shares["train"]) == pytest.approx(1)
    assert found.report.repeats == {"train": [("image/p1_0.png", "image/p1_1.png")]}
    assert len(found.usable["train"]) == 8
    with pytest.raises(DataError, match="polyps cannot be used: 2 problems") as caught:
        found.require_usable()
    assert caught.value.problems == found.problems


def test_a_problem_of_both_splits_is_named_once(polyps):
    (polyps / "image/notes.bmp").write_bytes(b"BM")
    found = survey("folder", POLYPS.model_copy(update={"test_share": 0.4}), polyps)
    assert [problem.file for problem in found.problems] == ["image/notes.bmp"]
    with pytest.raises(DataError, match="1 problem\n"):
        found.require_usable()


def test_no_folder_is_no_survey(tmp_path):
    with pytest.raises(DataError, match="is not there"):
        survey("folder", POLYPS, tmp_path / "none")

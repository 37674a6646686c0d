"""Whole hospitals: files, table, report; going on, stopping, processes."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk

from relay_core.errors import DataError, RelayError, Stopped
from relay_core.preparation.run import prepare
from relay_core.preparation.selection import Selection
from relay_core.preparation.slicing import Mediastinum, Slices
from tests.imaging import dicoms
from tests.preparation.phantoms import LUNGS, SHAPE, chest, hospital, pixels, table, tree, tumour, write

FEW = Mediastinum(Selection("area", 2), crop=False)


@pytest.fixture
def ct(tmp_path):
    return hospital(tmp_path)


def run(ct, out, task=FEW, **options):
    return prepare(*ct, out, task, workers=1, **options)


def test_hu_come_back_and_the_table_names_the_slices(ct, tmp_path):
    out = tmp_path / "out"
    made = run(ct, out, Mediastinum(Selection("area", 2), margin=0))
    assert (made.studies, made.made, made.slices, made.positive) == (2, 2, 4, 4)
    rows = table(out)
    assert list(rows[0]) == ["instance_id", "study_id", "img_file", "label_file", "positive", "position", "spacing_slice",
                             "spacing_row", "spacing_column", "hu_min"]  # fmt: skip
    first = ["a_0012", "a", "images/a_0012.png", "labels/a_0012.png", "1", "12", "5", "3", "3", "-160"]
    assert list(rows[0].values()) == first
    assert [row["instance_id"] for row in rows] == ["a_0012", "a_0013", "b_0012", "b_0013"]
    part = slice(*LUNGS[1]), slice(*LUNGS[2])
    image, label = pixels(out / "images/a_0013.png"), pixels(out / "labels/a_0013.png")
    assert (image.dtype, label.dtype) == (np.uint16, np.uint8)
    np.testing.assert_array_equal(image.astype(int) - 160, np.maximum(chest()[13][part], -160))
    np.testing.assert_array_equal(label, tumour()[13][part])


def test_lower_hu_are_kept_where_they_are_asked_for(ct, tmp_path):
    run(ct, tmp_path / "out", Mediastinum(Selection("area", 1), hu_min=-1024, crop=False))
    image = pixels(tmp_path / "out/images/a_0013.png")
    np.testing.assert_array_equal(image.astype(int) - 1024, chest()[13])


def test_negatives_and_studies_without_a_tumour(ct, tmp_path):
    write(ct[1] / "b.nii.gz", np.zeros(SHAPE, np.uint8))
    made = run(ct, tmp_path / "out", Mediastinum(Selection("threshold", 45, negatives=2)))
    assert (made.slices, made.positive) == (6, 2)
    kept = [(row["study_id"], int(row["position"]), row["positive"]) for row in table(tmp_path / "out")]
    assert kept == [("a", 5, "0"), ("a", 12, "1"), ("a", 13, "1"), ("a", 18, "0"), ("b", 7, "0"), ("b", 17, "0")]
    assert not pixels(tmp_path / "out/labels/b_0007.png").any()
    assert "nothing is labelled" in (tmp_path / "out/report.md").read_text()


def test_a_crop_never_cuts_tumour_off(ct, tmp_path):
    labels = tumour()
    labels[1, 90, 90] = 1
    write(ct[1] / "a.nii.gz", labels)
    run(ct, tmp_path / "out", Mediastinum(Selection("threshold"), margin=0))
    assert sum(pixels(path).sum() for path in (tmp_path / "out/labels").glob("a_*")) == labels.sum()
    assert pixels(tmp_path / "out/labels/a_0001.png").shape == (61, 73)
    lines = (tmp_path / "out/report.md").read_text().splitlines()
    assert "1..19 x 30..90 x 18..90" in next(line for line in lines if line.startswith("| a |"))
    assert "grown" in next(line for line in lines if line.startswith("| a |"))
    assert "grown" not in next(line for line in lines if line.startswith("| b |"))


def test_the_report_tells_and_shows(ct, tmp_path):
    run(ct, tmp_path / "out", Mediastinum(Selection("area", 2)))
    text = (tmp_path / "out/report.md").read_text()
    volume = f"{round(tumour().sum() * 45 / 1000, 2):g}"
    assert f"| a | 24 x 96 x 96 | 5 x 3 x 3 | 2..21 x 26..70 x 14..82 | 2 / 20 | 6 | {volume} |  |" in text
    assert "![a](report/a.png)" in text
    assert str(tmp_path) not in text
    assert pixels(tmp_path / "out/report/a.png").shape[:2] == (320, 648)


def test_dicom_and_npz_and_a_direction_that_is_not_lps(tmp_path):
    ct = hospital(tmp_path, ["a"], ".nrrd")
    (ct[0] / "b").mkdir()
    for i, file in enumerate(dicoms.stack(chest() + np.int16(1024), RescaleIntercept=-1024, PixelSpacing=[3, 3], gap=5.0)):
        (ct[0] / "b" / f"{i}.dcm").write_bytes(file)
    write(ct[1] / "b.npz", tumour(), spacing=None)
    turned = (-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0)  # RAS: columns to the right, rows to the front
    write(ct[0] / "c.mha", np.ascontiguousarray(chest()[:, ::-1, ::-1]), direction=turned)
    write(ct[1] / "c.mhd", np.ascontiguousarray(tumour()[:, ::-1, ::-1]), direction=turned)
    write(ct[0] / "d.npz", chest())
    write(ct[1] / "d.nii", tumour())
    run(ct, tmp_path / "out")
    first = [pixels(tmp_path / f"out/{kind}/a_0013.png") for kind in ("images", "labels")]
    for study in "bcd":
        for one, kind in zip(first, ("images", "labels"), strict=True):
            np.testing.assert_array_equal(pixels(tmp_path / f"out/{kind}/{study}_0013.png"), one)
    assert {row["spacing_slice"] for row in table(tmp_path / "out")} == {"5"}


def test_a_second_call_makes_nothing_again(ct, tmp_path):
    out = tmp_path / "out"
    run(ct, out)
    before = tree(out)
    assert run(ct, out).made == 0
    after = tree(out)
    assert before.keys() == after.keys()
    assert all(after[name] == before[name] for name in before if name not in ("meta.txt", "report.md"))
    assert all(after[name][0] == before[name][0] for name in before)


def test_changed_files_options_and_lost_slices_are_made_again(ct, tmp_path):
    out = tmp_path / "out"
    run(ct, out)
    os.utime(ct[1] / "b.nii.gz", ns=(0, 0))
    assert run(ct, out).made == 1
    (out / "images/a_0012.png").unlink()
    assert run(ct, out).made == 1
    assert run(ct, out, Mediastinum(Selection("area", 1), crop=False)).made == 2
    assert sorted(path.name for path in (out / "images").iterdir()) == ["a_0013.png", "b_0013.png"]
    write(ct[0] / "c.nii.gz", chest())
    write(ct[1] / "c.nii.gz", tumour())
    made = run(ct, out, Mediastinum(Selection("area", 1), crop=False))
    assert (made.studies, made.made) == (3, 1)


def test_what_a_kill_leaves_is_mended(ct, tmp_path):
    whole, out = tmp_path / "whole" / "out", tmp_path / "out"
    run(ct, whole)
    run(ct, out, Mediastinum(Selection("area", 6), crop=False))
    record = out / ".prepared/b.json"  # killed while the slices of b were moved into place
    record.write_text(json.dumps({**json.loads(record.read_text()), "inputs": None}))
    (out / ".prepared/a.json").write_text("{")
    for path in list((out / "images").glob("a_*")) + list((out / "labels").glob("a_*")):
        path.unlink()
    (out / "images/b_0008.png").unlink()
    (out / ".prepared/b.making/images").mkdir(parents=True)
    (out / ".prepared/b.making/images/b_0009.png").write_bytes(b"half")
    (out / ".writing-meta.txt-0123").write_bytes(b"half")
    run(ct, out)
    assert {n: c for n, (c, _) in tree(out).items()} == {n: c for n, (c, _) in tree(whole).items()}


def test_a_process_that_is_killed_can_be_followed_by_another(ct, tmp_path):
    out = tmp_path / "out"
    code = """
import os, sys
from pathlib import Path
from relay_core.preparation import records, run, selection, slicing
move = records._move
def killed(made, out, files):
    if "b_0012" in files[0]:
        (made / files[0]).replace(out / files[0])
        os._exit(9)
    move(made, out, files)
records._move = killed
ct, seg, out = map(Path, sys.argv[1:])
run.prepare(ct, seg, out, slicing.Mediastinum(selection.Selection("area", 2), crop=False), workers=1)
"""
    assert subprocess.run([sys.executable, "-c", code, *map(str, (*ct, out))], check=False).returncode == 9
    assert not (out / "meta.txt").exists(), "a table would name files that are not there"
    assert run(ct, out).made == 1
    assert len(table(out)) == 4
    assert not list(out.rglob("*.making"))


def test_two_processes_make_the_same_files(ct, tmp_path):
    run(ct, tmp_path / "one" / "out")
    told = []
    prepare(*ct, tmp_path / "two" / "out", FEW, workers=2, tell=lambda *numbers: told.append(numbers))
    one, two = tree(tmp_path / "one"), tree(tmp_path / "two")
    assert {name: content for name, (content, _) in one.items()} == {name: content for name, (content, _) in two.items()}
    assert told == [(0, 2), (1, 2), (2, 2)]


@pytest.mark.parametrize("workers", [1, 2])
def test_it_stops_between_studies_and_goes_on(tmp_path, workers):
    ct, out, told = hospital(tmp_path, "abcd"), tmp_path / "out", []
    with pytest.raises(Stopped, match="of 4 studies"):
        prepare(*ct, out, FEW, workers=workers, tell=lambda done, _: told.append(done), stop=lambda: told[-1] >= 1)
    assert 1 <= told[-1] < 4
    assert not (out / "meta.txt").exists()
    assert run(ct, out).made == 4 - told[-1]
    assert len(table(out)) == 8


def test_a_study_that_fails_leaves_nothing_and_the_others_stay(ct, tmp_path):
    out = tmp_path / "out"
    run(ct, out)
    write(ct[0] / "b.nii.gz", chest()[1:])
    with pytest.raises(DataError, match="1 are prepared") as caught:
        run(ct, out)
    assert [problem.file for problem in caught.value.problems] == ["b.nii.gz"]
    assert {row["study_id"] for row in table(out)} == {"a"}
    assert not list(out.rglob("b*"))
    (ct[1] / "a.nii.gz").unlink()
    with pytest.raises(DataError, match="0 are prepared"):
        run(ct, out)
    assert not list(out.rglob("[ab]*.*"))
    assert not (out / "meta.txt").exists()


def test_ids_of_another_hospital_are_refused_and_prefixed(ct, tmp_path):
    run(ct, tmp_path / "first")
    with pytest.raises(DataError, match="duplicate study ids over sites") as caught:
        run(ct, tmp_path / "second")
    assert "first" in str(caught.value)
    assert "--prefix" in str(caught.value)
    assert len(caught.value.problems) == 2
    run(ct, tmp_path / "second", prefix="second_")
    assert table(tmp_path / "second")[0]["img_file"] == "images/second_a_0012.png"
    assert run(ct, tmp_path / "first").made == 0


def test_folders_that_hold_something_else_are_refused(ct, tmp_path):
    out = tmp_path / "out"
    run(ct, out)
    before = tree(out)
    with pytest.raises(RelayError, match="layout mediastinum"):
        run(ct, out, Slices())
    with pytest.raises(RelayError, match="study a, made with other options"):
        run(ct, out, prefix="x_")
    with pytest.raises(RelayError, match="only read"):
        run(ct, ct[0] / "out")
    with pytest.raises(RelayError, match="only read"):
        run(ct, ct[1])
    assert tree(out) == before


def test_where_nothing_is_kept_it_says_so(ct, tmp_path):
    with pytest.raises(DataError, match="no slice was kept"):
        run(ct, tmp_path / "out", Mediastinum(Selection("threshold", 1000), crop=False))


def test_it_loads_no_torch():
    code = "import sys, relay_core.cli.prepare; print('SimpleITK' in sys.modules or 'numpy' in sys.modules)\n"
    code += "import relay_core.preparation.run; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"]


def test_a_full_disk_leaves_nothing_that_a_later_call_does_not_mend(ct, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(sitk, "DICOMOrient", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            run(ct, out)
    assert not list(tmp_path.glob("out/*.*"))
    assert run(ct, out).made == 2
    shutil.rmtree(out / ".prepared")
    assert run(ct, out).made == 2

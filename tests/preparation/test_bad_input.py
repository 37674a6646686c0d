"""Every bad input is one clear error that names the study or file, and the way out."""

import shutil

import numpy as np
import pytest

from relay_core.errors import DataError
from relay_core.preparation.run import prepare
from relay_core.preparation.selection import Selection
from relay_core.preparation.slicing import Mediastinum, Slices
from relay_core.texts import markdown
from tests.imaging import dicoms
from tests.preparation.phantoms import SPACING, chest, hospital, table, tumour, write
from tests.reference import FOLDER

REAL = FOLDER.parent / "data" / "formats" / "dicom_pydicom"
FEW = Mediastinum(Selection("area", 1), crop=False)


@pytest.fixture
def ct(tmp_path):
    """A good study a; the tests add a bad one, x."""
    return hospital(tmp_path, ["a"])


def refused(ct, tmp_path, *words, file="x", task=FEW):
    """One problem, of `file`, that says all of `words`; the good study is prepared."""
    with pytest.raises(DataError) as caught:
        prepare(*ct, tmp_path / "out", task, workers=1)
    (problem,) = caught.value.problems
    assert problem.file == file, problem
    for word in words:
        assert word in problem.message
    assert str(tmp_path) not in str(caught.value)
    assert {row["study_id"] for row in table(tmp_path / "out")} == {"a"}
    assert markdown(str(problem)) in (tmp_path / "out/report.md").read_text()


def series(folder, volume, **options):
    folder.mkdir(parents=True)
    for i, file in enumerate(dicoms.stack(volume, **{"PixelSpacing": [3, 3], "gap": 5.0, **options})):
        (folder / f"{i:03d}").write_bytes(file)


def test_no_labels_and_no_image(ct, tmp_path):
    write(ct[0] / "x.nrrd", chest())
    refused(ct, tmp_path, "no label volume", "take this away", file="x.nrrd")
    (ct[0] / "x.nrrd").rename(ct[1] / "x.nrrd")
    refused(ct, tmp_path, "no image volume", "take this away", file="x.nrrd")


def test_labels_of_another_grid(ct, tmp_path):
    write(ct[0] / "x.nii.gz", chest())
    for labels, options, words in (
        (tumour()[1:], {}, ("96 x 96 x 23 voxels", "96 x 96 x 24", "resample")),
        (tumour(), {"spacing": (5.0, 3.0, 2.5)}, ("mixed spacing", "2.5 x 3 x 5 mm", "3 x 3 x 5 mm", "resample")),
        (tumour(), {"origin": (0.0, 0.0, 4.0)}, ("4 mm beside its image", "position")),
        (tumour(), {"direction": (0.8, -0.6, 0, 0.6, 0.8, 0, 0, 0, 1)}, ("turned",)),
    ):
        write(ct[1] / "x.nii.gz", labels, **options)
        refused(ct, tmp_path, *words, file="x.nii.gz")
    write(ct[1] / "x.nii.gz", tumour(), spacing=(5.0, 3.001, 3.0), origin=(0.0, 0.5, 0.0))
    prepare(*ct, tmp_path / "out", FEW, workers=1)


def test_an_uneven_series(ct, tmp_path):
    write(ct[1] / "x.npz", tumour(), spacing=None)
    series(ct[0] / "x", chest(), at=[5.0 * i + 5 * (i > 11) for i in range(24)])
    refused(ct, tmp_path, "unevenly", "10 mm between slices 12 and 13")


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real files of ../shared")
def test_a_real_series_that_is_no_stack(ct, tmp_path):
    shutil.copytree(REAL / "MR700", ct[0] / "x")
    write(ct[1] / "x.nii", tumour())
    refused(ct, tmp_path, "no stack")


def test_values_that_are_not_hu(ct, tmp_path):
    write(ct[1] / "x.npz", tumour(), spacing=None)
    series(ct[0] / "x", chest() + np.int16(1024), RescaleSlope=None, RescaleIntercept=None)
    refused(ct, tmp_path, "RescaleSlope", "not HU", "--intercept -1024")
    shutil.rmtree(ct[0] / "x")
    write(ct[0] / "x.nii.gz", chest() + np.int16(1024))
    refused(ct, tmp_path, "its smallest value is 24", "not in HU", "--intercept -1024")


def test_an_intercept_is_added(tmp_path):
    folder = tmp_path / "ct"
    series(folder / "x", chest() + np.int16(1024), RescaleSlope=None, RescaleIntercept=None)
    write(folder / "y.npz", (chest() + 1024).astype(np.uint16))
    for study in "xy":
        write(tmp_path / f"seg/{study}.npz", tumour())
    prepare(folder, tmp_path / "seg", tmp_path / "out", Mediastinum(FEW.selection, crop=False, intercept=-1024), workers=1)
    ct = hospital(tmp_path / "right", ["z"])
    prepare(*ct, tmp_path / "right/out", FEW, workers=1)
    expected = (tmp_path / "right/out/images/z_0013.png").read_bytes()
    for study in "xy":
        assert (tmp_path / f"out/images/{study}_0013.png").read_bytes() == expected


def test_two_volumes_of_one_study(ct, tmp_path):
    write(ct[0] / "x.nii", chest())
    write(ct[0] / "x.nrrd", chest())
    write(ct[1] / "x.nii", tumour())
    refused(ct, tmp_path, "x.nii, x.nrrd", "leave one", file="x.nrrd")


def test_no_lungs(ct, tmp_path):
    volume = chest()
    volume[volume == -800] = 40
    write(ct[0] / "x.nii.gz", volume)
    write(ct[1] / "x.nii.gz", tumour())
    refused(ct, tmp_path, "no lungs", "--no-crop", task=Mediastinum(FEW.selection))
    prepare(*ct, tmp_path / "whole", FEW, prefix="w_", workers=1)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha", ".mhd", ".npz"])
def test_truncated_files(ct, tmp_path, suffix):
    path = write(ct[0] / f"x{suffix}", chest())
    write(ct[1] / "x.nii", tumour())
    broken = path.with_suffix(".raw") if suffix == ".mhd" else path
    content = broken.read_bytes()
    for share in (0.0, 0.5, 0.95):
        broken.write_bytes(content[: int(len(content) * share)])
        refused(ct, tmp_path, "truncated" if share else "", file=path.name)
    broken.unlink()
    if suffix == ".mhd":
        refused(ct, tmp_path, "data file is missing", file=path.name)


def test_truncated_dicom(ct, tmp_path):
    series(ct[0] / "x", chest())
    write(ct[1] / "x.npz", tumour(), spacing=None)
    file = ct[0] / "x/007"
    file.write_bytes(file.read_bytes()[:-5000])
    refused(ct, tmp_path, "truncated")
    file.write_bytes(dicoms.one(chest()[7], (-10, 20, 40), number=8, PixelSpacing=[3, 2]))
    refused(ct, tmp_path, "mixed spacing", "PixelSpacing")
    file.write_bytes(b"hello")
    refused(ct, tmp_path, "007", "not DICOM")
    shutil.copy(ct[0] / "x/003", file)
    refused(ct, tmp_path, "unevenly")


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha", ".npz"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite(ct, tmp_path, suffix, bad):
    volume = chest().astype(np.float32)
    volume[3, 4, 5] = bad
    write(ct[0] / f"x{suffix}", volume)
    write(ct[1] / "x.nii", tumour())
    refused(ct, tmp_path, "not finite", file=f"x{suffix}")


def test_labels_that_are_none(ct, tmp_path):
    write(ct[0] / "x.nii.gz", chest())
    for labels, word in (
        (tumour().astype(np.float32) * 0.5, "not whole numbers"), (tumour().astype(np.int16) * -1, "from -1 to 0"),
        (tumour().astype(np.float32) * 1e30, "to 1e+30"),
    ):  # fmt: skip
        write(ct[1] / "x.nii.gz", labels)
        refused(ct, tmp_path, word, file="x.nii.gz")
    (ct[1] / "x.nii.gz").write_bytes((ct[1] / "x.nii.gz").read_bytes()[:-200])
    refused(ct, tmp_path, "labels: ", "truncated", file="x.nii.gz")
    write(ct[1] / "x.nii.gz", tumour().astype(np.float64) * 300)
    prepare(*ct, tmp_path / "out", FEW, workers=1)


def test_arrays_that_are_no_volume(ct, tmp_path):
    write(ct[1] / "x.nii", tumour())
    path = ct[0] / "x.npz"
    for arrays, word in (
        ({"p": chest(), "q": chest()}, "them volume or image"), ({}, "none"), ({"volume": chest()[0]}, "(96, 96)"),
        ({"volume": chest().astype(object)}, "plain arrays"), ({"volume": chest().astype(str)}, "give numbers"),
        ({"volume": chest(), "spacing": (1, 2)}, "spacing that is not three"),
        ({"volume": chest(), "spacing": (1, 0, 2)}, "above 0"),
    ):  # fmt: skip
        np.savez(path, **arrays)
        refused(ct, tmp_path, word, file="x.npz")
    with path.open("wb") as file:
        np.save(file, chest())
    refused(ct, tmp_path, "not an npz file", file="x.npz")
    np.savez(path, image=chest(), label=chest() > 0, spacing=SPACING)
    prepare(*ct, tmp_path / "out", FEW, workers=1)
    np.savez(path, volume=chest(), spacing=(4, 3, 3))
    refused(ct, tmp_path, "mixed spacing", file="x.nii")


def test_volumes_of_other_dimensions(ct, tmp_path):
    write(ct[1] / "x.nii", tumour())
    write(ct[0] / "x.mha", chest()[0], spacing=(3.0, 3.0))
    refused(ct, tmp_path, "96 x 96", "one grey volume", file="x.mha")
    (ct[0] / "x.mha").unlink()
    write(ct[0] / "x.nrrd", np.zeros((4, 5, 6, 3), np.float32), spacing=(1.0, 3.0, 3.0))
    refused(ct, tmp_path, "grey volume", file="x.nrrd")


@pytest.mark.parametrize("name", ["x y", "é", "-x", "x" * 101])
def test_names_that_are_not_safe(ct, tmp_path, name):
    for folder, values in zip(ct, (chest(), tumour()), strict=True):
        write(folder / "x.nii.gz", values).rename(folder / f"{name}.nii.gz")
    refused(ct, tmp_path, "rename it", file=f"{name}.nii.gz")


def test_folders_that_are_empty_or_missing(ct, tmp_path):
    (ct[0] / "x").mkdir()
    write(ct[1] / "x.nii", tumour())
    refused(ct, tmp_path, "is empty", "DICOM")
    (tmp_path / "none").mkdir()
    for folder in ("none", "gone"):
        with pytest.raises(DataError, match="folder"):
            prepare(tmp_path / folder, ct[1], tmp_path / "other", FEW)
        with pytest.raises(DataError, match="folder"):
            prepare(ct[0], tmp_path / folder, tmp_path / "other", FEW)
    assert not (tmp_path / "other").exists()


def test_files_of_other_kinds(ct, tmp_path):
    (ct[0] / "x.nii.bz2").write_bytes(b"")
    (ct[0] / "notes.txt").write_text("kept")
    (ct[0] / ".hidden").write_text("kept")
    refused(ct, tmp_path, "unsupported type", ".nrrd", file="x.nii.bz2")
    (ct[0] / "x.nii.bz2").rename(ct[0] / "x.nii")
    (ct[0] / "x.nii").write_bytes(b"\x89PNG\r\n\x1a\n")
    write(ct[1] / "x.nii", tumour())
    refused(ct, tmp_path, "", file="x.nii")


def test_a_failing_slice_set_names_its_study(tmp_path):
    write(tmp_path / "mr/x.nii", np.zeros((2, 3, 4), np.int16))
    write(tmp_path / "mr/y.nii", np.full((2, 3, 4), np.nan, np.float32))
    with pytest.raises(DataError, match=r"y\.nii: .*not finite"):
        prepare(tmp_path / "mr", None, tmp_path / "out", Slices(), workers=1)
    assert (tmp_path / "out/image/x_0000.png").is_file()

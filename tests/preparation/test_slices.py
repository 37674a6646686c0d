"""Any volume as 8-bit slices: window, layouts, axes."""

import numpy as np
import pytest

from relay_core.config.datasets import FolderKwargs
from relay_core.data import load_site
from relay_core.errors import DataError, RelayError
from relay_core.preparation.run import prepare
from relay_core.preparation.selection import Selection
from relay_core.preparation.slicing import Slices
from tests.preparation.phantoms import pixels, write
from tests.reference import FOLDER

REAL = FOLDER.parent / "data" / "formats" / "nrrd_pyradiomics"
RAMP = np.arange(6 * 8 * 10, dtype=np.int16).reshape(6, 8, 10)


@pytest.fixture
def volumes(tmp_path):
    labels = np.zeros(RAMP.shape, np.uint8)
    labels[2, 3:6, 4] = 3
    labels[4, 3, 4] = 7
    write(tmp_path / "mr/x.nii.gz", RAMP)
    write(tmp_path / "seg/x.nii.gz", labels)
    return tmp_path / "mr", tmp_path / "seg", labels


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix in (".png", ".jpg"))


def test_values_by_a_window_and_labels_as_they_are(volumes, tmp_path):
    images, seg, labels = volumes
    made = prepare(images, seg, tmp_path / "out", Slices(window=(100, 355)), workers=1)
    assert (made.slices, made.positive) == (6, 2)
    for i in range(6):
        image, mask = (pixels(tmp_path / f"out/{kind}/x_000{i}.png") for kind in ("image", "mask"))
        assert (image.dtype, mask.dtype) == (np.uint8, np.uint8)
        np.testing.assert_array_equal(image, np.clip(RAMP[i] - 100, 0, 255))
        np.testing.assert_array_equal(mask, labels[i])


def test_the_window_is_that_of_the_volume_by_default(volumes, tmp_path):
    prepare(volumes[0], None, tmp_path / "out", Slices(), workers=1)
    low, high = np.percentile(RAMP, (0.5, 99.5))
    expected = np.rint(np.clip((RAMP[3] - low) / (high - low), 0, 1) * 255)
    np.testing.assert_allclose(pixels(tmp_path / "out/image/x_0003.png"), expected, atol=1)
    assert not (tmp_path / "out/mask").exists()
    assert not (tmp_path / "out/meta.txt").exists()


def test_the_layout_midline(volumes, tmp_path):
    images, seg, labels = volumes
    prepare(images, seg, tmp_path / "out", Slices(Selection("area", 1, negatives=1), layout="midline"), workers=1)
    assert names(tmp_path / "out") == [".report/x.png", "x/0002.jpg", "x/0003.jpg", "x/mask_0002.png", "x/mask_0003.png"]
    np.testing.assert_array_equal(pixels(tmp_path / "out/x/mask_0002.png"), labels[2] > 0)
    low, high = np.percentile(RAMP, (0.5, 99.5))
    shown = np.clip((RAMP[2] - low) / (high - low), 0, 1) * 255
    assert np.abs(pixels(tmp_path / "out/x/0002.jpg") - shown).max() < 12
    assert "![x](.report/x.png)" in (tmp_path / "out/report.md").read_text()
    prepare(images, None, tmp_path / "none", Slices(layout="midline", every=4), workers=1)
    assert names(tmp_path / "none") == [".report/x.png", "x/0000.jpg", "x/0004.jpg"]


def test_every_nth_slice_comes_before_the_choice(volumes, tmp_path):
    made = prepare(*volumes[:2], tmp_path / "out", Slices(Selection("area", 9), every=4), workers=1)
    assert (made.slices, made.positive) == (1, 1)
    assert names(tmp_path / "out/mask") == ["x_0004.png"]


@pytest.mark.parametrize("turned", [False, True])
def test_slices_stand_as_they_are_looked_at(tmp_path, turned):
    """Head and front up, the patient's right side left; the same for a volume that is stored the other way round."""
    body = RAMP // 2
    stored, direction = (body[::-1, ::-1, ::-1], np.diag([-1.0, -1, -1])) if turned else (body, np.eye(3))
    write(tmp_path / "mr/x.nrrd", np.ascontiguousarray(stored), direction=direction.ravel().tolist())
    expected = {"axial": body[1], "coronal": body[::-1, 1, :], "sagittal": body[::-1, :, 1]}
    for axis, slices in (("axial", 6), ("coronal", 8), ("sagittal", 10)):
        made = prepare(tmp_path / "mr", None, tmp_path / axis, Slices(axis=axis, window=(0, 255)), workers=1)
        assert made.slices == slices
        np.testing.assert_array_equal(pixels(tmp_path / axis / "image/x_0001.png"), expected[axis])
    assert "| 8 x 6 x 10 | 3 x 5 x 3 |" in (tmp_path / "coronal/report.md").read_text()


def test_labels_that_a_mask_cannot_hold_are_refused(volumes, tmp_path):
    write(volumes[1] / "x.nii.gz", volumes[2].astype(np.int16) * 100)
    with pytest.raises(DataError, match=r"x: .*700.*renumber"):
        prepare(*volumes[:2], tmp_path / "out", Slices(), workers=1)
    prepare(*volumes[:2], tmp_path / "midline", Slices(layout="midline"), workers=1)


def test_a_constant_volume_is_black(tmp_path):
    write(tmp_path / "mr/x.npz", np.full((2, 4, 4), 7.0), spacing=None)
    prepare(tmp_path / "mr", None, tmp_path / "out", Slices(), workers=1)
    assert not pixels(tmp_path / "out/image/x_0000.png").any()
    assert "one value almost everywhere; its spacing is not known" in (tmp_path / "out/report.md").read_text()


@pytest.mark.parametrize(
    "options", [{"layout": "fundus"}, {"axis": "x"}, {"window": (2.0, 1.0)}, {"window": (0, float("nan"))}, {"every": 0}]
)
def test_options_that_mean_nothing_are_refused(options):
    with pytest.raises(RelayError, match=f"--{next(iter(options))}"):
        Slices(**options)


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real volumes of ../shared")
def test_real_magnetic_resonance(tmp_path):
    studies = ("brain1", "brain2", "breast1")
    for kind in ("image", "label"):
        (tmp_path / kind).mkdir()
        for study in studies:
            (tmp_path / kind / f"{study}.nrrd").symlink_to(REAL / f"{study}_{kind}.nrrd")
    images, labels = tmp_path / "image", tmp_path / "label"
    made = prepare(images, labels, tmp_path / "out", Slices(Selection("threshold", negatives=2)), workers=1)
    assert made.studies == 3
    assert made.slices == made.positive + 6
    total = {study: sum(pixels(p).sum() for p in (tmp_path / "out/mask").glob(f"{study}_*")) for study in studies}
    assert total == {"brain1": 4137, "brain2": 453, "breast1": 143}
    assert "| brain2 | 23 x 256 x 256 | 6.5 x 0.7812 x 0.7812 |" in (tmp_path / "out/report.md").read_text()
    kwargs = FolderKwargs(num_classes=2, patient_pattern=r"^(.*)_\d+$", test_share=0.34)
    sides = {
        split: load_site("folder", kwargs, folder=tmp_path / "out", split=split, resolution=32)
        for split in ("train", "test")
    }
    assert sum(map(len, sides.values())) == made.slices
    prepare(images, labels, tmp_path / "midline", Slices(Selection("area", 3), layout="midline"), workers=1)
    for study in studies:
        files = names(tmp_path / "midline" / study)
        assert len(files) == 6
        assert all(pixels(tmp_path / "midline" / study / name).max() == 1 for name in files if name.startswith("mask_"))

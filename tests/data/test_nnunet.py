"""nnU-Net's raw data sets, as they stand."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch

from relay_core.config import NnunetKwargs
from relay_core.data import load_site, preflight
from relay_core.errors import DataError, RunFileError
from tests.cli.test_cli import relay

SHAPE = (6, 20, 24)
"""Slices, rows, columns in LPS."""


def volume(case, channel=0):
    """(S, H, W) in LPS; a bright ball whose place and slices differ from case to case."""
    rng = np.random.default_rng(10 * case + channel)
    s, h, w = np.indices(SHAPE)
    ball = (np.abs(s - 3) < 2) & ((h - 8 - case) ** 2 + (w - 10) ** 2 < 20)
    values = np.where(ball, 300 + 100 * channel, -100) + rng.integers(0, 50, SHAPE)
    return values.astype(np.int16), ball.astype(np.uint8)


def write(path, values, mirrored=False):
    """Store (S, H, W) in LPS as RAS, or as LPS."""
    stored = values.transpose(2, 1, 0)
    affine = np.diag([-0.5, -0.75, 2.0, 1])
    if mirrored:
        stored, affine = stored[::-1, ::-1], np.diag([0.5, 0.75, 2.0, 1])
        affine[:2, 3] = -0.5 * (SHAPE[2] - 1), -0.75 * (SHAPE[1] - 1)
    nib.save(nib.Nifti1Image(np.ascontiguousarray(stored), affine), path)


@pytest.fixture
def site(tmp_path):
    folder = tmp_path / "Dataset001_Balls"
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    for case in range(5):
        for channel in range(3):
            write(folder / f"imagesTr/ball_{case:03d}_{channel:04d}.nii.gz", volume(case, channel)[0], mirrored=case % 2)
        write(folder / f"labelsTr/ball_{case:03d}.nii.gz", volume(case)[1])
    (folder / "imagesTr/._ball_000_0000.nii.gz").write_bytes(b"litter")
    describe(folder)
    return folder


def describe(folder, **more):
    said = {"channel_names": {"0": "CT", "1": "T1", "2": "T2"}, "labels": {"background": 0, "ball": 1}, "numTraining": 5,
            "file_ending": ".nii.gz", **more}  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps({key: value for key, value in said.items() if value is not None}))


def load(folder, split="train", size=24, **kwargs):
    return load_site("nnunet", NnunetKwargs(**kwargs), folder=folder, split=split, resolution=size)


def test_labelled_slices_are_read_in_one_orientation(site):
    data, test = load(site), load(site, "test")
    assert (len(data), len(test)) == (4 * 3, 1 * 3)
    assert set(data.subjects) | set(test.subjects) == {f"ball_{case:03d}" for case in range(5)}
    assert not set(data.subjects) & set(test.subjects)
    for held in (data, test):
        images, labels = held.batch(range(len(held)))
        assert images.shape == (len(held), 1, 24, 24)
        bright = images[:, 0] > 0
        assert float((bright == (labels == 1)).float().mean()) > 0.97, "image and mask lie over each other"
    assert data.names[0].endswith("_0000-0002")
    assert data.originals[0].spacing == pytest.approx((0.75, 0.5))


@pytest.mark.parametrize(
    ("axis", "slices", "size"), [("axial", 6, (20, 24)), ("coronal", 20, (6, 24)), ("sagittal", 24, (6, 20))]
)
def test_any_axis_and_all_slices(site, axis, slices, size):
    data = load(site, axis=axis, select="all", window=(-100, 500))
    assert len(data) == 4 * slices
    assert (data.originals[0].height, data.originals[0].width) == size
    assert len(load(site, axis=axis, select="all", every=2)) == 4 * slices / 2
    images, labels = data.batch(range(len(data)))
    assert float(((images[:, 0] > 0) == (labels == 1)).float().mean()) > 0.9


def test_three_channels_are_an_image_and_a_window_is_heeded(site):
    images, labels = load(site, channels=[0, 1, 2], img_channels=3, window=(-100, 500)).unit_batch([0])
    inside = images[0][:, labels[0] == 1].mean(dim=1)
    assert inside.tolist() == pytest.approx([0.7, 0.87, 0.99], abs=0.06)
    assert NnunetKwargs(window=(-100, 500)).value_window == (-100, 500)
    one, _ = load(site, channels=[1], img_channels=3, window=(-100, 500)).unit_batch([0])
    assert (one[0, 0] == one[0, 2]).all()


@pytest.mark.parametrize("window", [None, (-100, 500)])
def test_a_served_model_sees_what_it_saw_in_training(site, window):
    from relay_core.imaging import read_study

    data = load(site, select="all", size=24, window=window)
    case = data.subjects[0]
    study = read_study((site / f"imagesTr/{case}_0000.nii.gz").read_bytes(), 1, window)
    served = torch.from_numpy(study.batch(0, 6))
    learned = [data._decoder.read(pair)[0] for pair in data._pairs if pair.subject == case]
    torch.testing.assert_close(served, torch.from_numpy(np.stack(learned)))
    for kwargs in ({"axis": "coronal"}, {"channels": [0, 1, 2], "img_channels": 3}):
        assert NnunetKwargs(**kwargs).served_otherwise


def test_a_slice_can_be_classified(site):
    data = load(site, task="classification", class_by="positive", select="all")
    assert data.batch(range(len(data)))[1].sum() == 4 * 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: (f / "labelsTr/ball_001.nii.gz").unlink(), "ball_001: lacks labelsTr/ball_001.*"),
        (lambda f: (f / "imagesTr/ball_002_0000.nii.gz").unlink(), "lacks imagesTr/ball_002_0000.*"),
        (lambda f: (f / "dataset.json").unlink(), "has no dataset.json"),
        (lambda f: (f / "dataset.json").write_text("[]"), "does not say channel_names and labels"),
        (lambda f: describe(f, labels={"background": 0, "whole": [1, 2], "core": 2}), "regions (whole)"),
        (lambda f: describe(f, labels={"background": 0, "a": 1, "ignore": 2}), "ignore label"),
        (lambda f: describe(f, labels={"background": 0, "a": 1, "b": 2}), "set num_classes: 3"),
        (lambda f: describe(f, channel_names={"1": "T1"}), "dataset.json has 1 (T1)"),
        (lambda f: write(f / "labelsTr/ball_000.nii.gz", volume(0)[1] * 3), "unknown mask value 3"),
        (lambda f: write(f / "labelsTr/ball_000.nii.gz", volume(0)[1][:5]), "is a label volume of 24 x 20 x 5"),
    ],
)
def test_what_does_not_fit_is_named(site, change, words):
    change(site)
    with pytest.raises(DataError) as caught:
        preflight("nnunet", NnunetKwargs(), site)
    assert words in str(caught.value)


def test_the_first_version_of_the_description(site):
    describe(site, channel_names=None, modality={"0": "CT"}, labels={"0": "background", "1": "ball"})
    assert len(load(site)) == 12


@pytest.mark.parametrize(
    "kwargs", [{"channels": [0, 1]}, {"channels": [0, 0, 1], "img_channels": 3}, {"channels": [0, 1, 2]}, {"window": (2, 1)}]
)
def test_settings_that_contradict_themselves(kwargs):
    from pydantic import ValidationError

    with pytest.raises((ValidationError, RunFileError)):
        NnunetKwargs(**kwargs)


def test_from_the_command_line(site):
    found = json.loads(relay("preflight", "nnunet", site, "--json").stdout.splitlines()[-1])
    assert found["counts"] == {"train": 12, "test": 3}

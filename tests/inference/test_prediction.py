"""Masks as files, measurements, and whether an image looks like the training images."""

import io
import json

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch
from PIL import Image

from relay_core.bundle import manifest
from relay_core.errors import ImageError
from relay_core.imaging import masks, out_of_distribution
from relay_core.imaging.drawing import palette
from relay_core.imaging.study import read_study
from relay_core.inference.measurements import HEADER, cup_to_disc, measure, rows
from relay_core.inference.prediction import predict
from relay_core.inference.served import ServedSolver
from tests.imaging import dicoms
from tests.imaging.test_study import COLOUR, GREY, SHARED, VOLUME, lies, nifti, png, real

NAMES = ("background", "optic disc", "optic cup")


def ids_like(study, seed=0):
    found = np.zeros((len(study), *study.pixels.shape[2:]), np.uint8)
    found[:, 2:9, 3:11] = 1
    found[:, 4:7, 5:8] = 2
    found[0] = np.roll(found[0], seed, axis=1)
    return found


def sums(ids, confidence):
    return np.bincount(ids.ravel(), confidence.ravel(), 3)


def same_geometry(image, study):
    """The mask, brought to LPS, lies where the study's voxels lie."""
    if study.grid.turn is not None and image.GetDimension() == 3:
        image = sitk.DICOMOrient(image, "LPS")
    assert image.GetSize()[: image.GetDimension()] == study.grid.shape[::-1][: image.GetDimension()]
    if image.GetDimension() == 3:
        for ours, ask in zip(lies(study)[1:], ("GetSpacing", "GetDirection", "GetOrigin"), strict=True):
            np.testing.assert_allclose(getattr(image, ask)(), ours, atol=1e-5)
    return image


def read_nifti(content, tmp_path):
    (tmp_path / "mask.nii.gz").write_bytes(content)
    return sitk.ReadImage(str(tmp_path / "mask.nii.gz"))


def test_png_pixels_are_class_ids_in_the_overlays_colours():
    study = read_study(png(COLOUR), 3)
    ids = ids_like(study)
    with Image.open(io.BytesIO(masks.to_png(ids[0], 3))) as image:
        assert image.mode == "P"
        assert (np.asarray(image) == ids[0]).all()
        assert (np.asarray(image.convert("RGB"))[5, 6] == palette(3)[2]).all()
    with Image.open(io.BytesIO(masks.to_overlay(study, ids))) as image:
        shown = np.asarray(image)
    assert (shown[0] == COLOUR[0]).all()
    assert (shown[2, 5] == palette(3)[1]).all(), "a border"


@pytest.mark.parametrize("source", ["series", "oblique", "frames", "slice", "nifti", "flat"])
def test_nifti_has_the_sources_geometry(tmp_path, source):
    content = {
        "series": lambda: dicoms.packed(dicoms.stack(VOLUME)),
        "oblique": lambda: dicoms.packed(dicoms.stack(VOLUME, dicoms.OBLIQUE)),
        "frames": lambda: dicoms.enhanced(np.abs(VOLUME).astype(np.uint16)), "slice": lambda: dicoms.one(VOLUME[0]),
        "nifti": lambda: nifti(VOLUME, tmp_path), "flat": lambda: nifti(VOLUME[0], tmp_path, "flat.nii"),
    }[source]()  # fmt: skip
    study = read_study(content, 1)
    ids = ids_like(study)
    image = read_nifti(masks.to_nifti(study, ids), tmp_path)
    image = same_geometry(image, study)
    assert (sitk.GetArrayFromImage(image).reshape(ids.shape) == ids).all()
    with pytest.raises(ImageError, match="no geometry"):
        masks.to_nifti(read_study(png(GREY), 1), ids)


@pytest.mark.parametrize("source", ["series", "oblique", "slice", "frames"])
def test_seg_references_its_source_and_lies_where_it_lies(tmp_path, source):
    files = {
        "series": lambda: dicoms.stack(VOLUME), "oblique": lambda: dicoms.stack(VOLUME, dicoms.OBLIQUE),
        "slice": lambda: [dicoms.one(VOLUME[0])], "frames": lambda: [dicoms.enhanced(np.abs(VOLUME).astype(np.uint16))],
    }[source]()  # fmt: skip
    study = read_study(dicoms.packed(files) if len(files) > 1 else files[0], 1)
    ids = ids_like(study, 1)
    made = highdicom.seg.segread(io.BytesIO(masks.to_seg(study, ids, NAMES, "fundus", "3")))
    assert [made.get_segment_description(n).segment_label for n in (1, 2)] == ["optic disc", "optic cup"]
    assert made.StudyInstanceUID == dicoms.STUDY
    assert made.FrameOfReferenceUID == dicoms.FRAME
    assert made.PatientID == "P-4711", "it belongs to the patient's study"
    uids = {pydicom.dcmread(io.BytesIO(file)).SOPInstanceUID for file in files}
    assert {uid for _, _, uid in made.get_source_image_uids()} == uids
    volume = made.get_volume(combine_segments=True)
    found = sitk.GetImageFromArray(np.asarray(volume.array).astype(np.uint8))
    inverse = np.linalg.inv(volume.affine)
    places = np.argwhere(ids)
    for k, j, i in (places[0], places[len(places) // 2], places[-1]):
        point = (study.grid.affine @ [i, j, k, 1])[:3]
        place = np.rint(inverse @ [*point, 1])[:3].astype(int)
        assert volume.array[tuple(place)] == ids[k, j, i]
    assert (np.asarray(found.GetSize()) >= 1).all()


def test_a_seg_that_cannot_be_is_refused_without_the_patient():
    study = read_study(dicoms.one(VOLUME[0]), 1)
    ids = ids_like(study)
    empty = highdicom.seg.segread(io.BytesIO(masks.to_seg(study, np.zeros_like(ids), NAMES, "m", "1")))
    assert not empty.pixel_array.any(), "that nothing was found is a finding"
    with pytest.raises(ImageError, match="references DICOM"):
        masks.to_seg(read_study(png(GREY), 1), ids, NAMES, "m", "1")
    bare = read_study(dicoms.one(VOLUME[0], StudyInstanceUID=None), 1)
    with pytest.raises(ImageError, match="has no StudyInstanceUID") as caught:
        masks.to_seg(bare, ids, NAMES, "m", "1")
    assert "MUSTERMANN" not in str(caught.value)


def test_areas_and_volumes_are_in_millimetres_where_they_are_known(tmp_path):
    study = read_study(dicoms.packed(dicoms.stack(VOLUME)), 1)
    ids = ids_like(study)
    sure = np.where(ids == 1, 0.75, 0.5).astype(np.float32)
    found = measure(study, ids, sums(ids, sure), NAMES)
    disc, cup = found["classes"]
    assert (disc["name"], disc["pixels"], disc["volume_mm3"]) == ("optic disc", 5 * 47, 5 * 47 * 2.5 * 0.75 * 0.5)
    assert (disc["confidence"], cup["confidence"]) == (0.75, 0.5)
    assert found["mean_confidence"] == pytest.approx(float(sure.mean()), abs=1e-4)
    assert "cup_to_disc" not in found, "a ratio of areas says nothing of a volume"
    flat = measure(read_study(dicoms.one(VOLUME[0]), 1), ids[:1], sums(ids[:1], sure[:1]), NAMES)
    assert flat["classes"][1]["area_mm2"] == 9 * 0.75 * 0.5
    picture = measure(read_study(png(GREY[:12, :16].copy()), 1), ids[:1], sums(ids[:1], sure[:1]), NAMES)
    assert (picture["spacing_mm"], picture["classes"][0]["area_mm2"]) == (None, None)
    nothing = measure(read_study(png(GREY), 1), np.zeros((1, 20, 30), np.uint8), np.array([600.0, 0, 0]), NAMES)
    assert [entry["confidence"] for entry in nothing["classes"]] == [None, None]
    assert nothing["cup_to_disc"] == {"vertical": None, "horizontal": None, "area": None}
    table = list(rows("a.png", found, 0.5))
    assert [len(line) for line in table] == [len(HEADER)] * 2


def test_cup_to_disc_is_of_extents_and_the_disc_includes_the_cup():
    ids = np.zeros((40, 40), np.uint8)
    ids[5:25, 10:20] = 1
    ids[10:20, 12:16] = 2
    assert cup_to_disc(ids, NAMES) == {"vertical": 0.5, "horizontal": 0.4, "area": 0.2}
    ids[20:30, 12:16] = 2  # the cup reaches below: the disc is there too
    assert cup_to_disc(ids, NAMES)["vertical"] == 0.8
    assert cup_to_disc(ids, ("background", "tumour", "other")) is None


def test_the_graphs_numbers_are_those_of_training():
    images = np.random.default_rng(0).random((3, 3, 16, 16), dtype=np.float32)
    network = ServedSolver(torch.nn.Conv2d(3, 2, 1), 16, (-1.0, 1.0))
    np.testing.assert_allclose(
        network(torch.from_numpy(images))[4].detach(), out_of_distribution.image_features(images), atol=1e-6
    )


def test_other_images_score_higher_than_the_training_sites_own():
    random = np.random.default_rng(0)

    def site(mean, count=60):
        return np.clip(random.normal(mean, 0.1, (count, 1, 16, 16)) + random.normal(0, 0.02, (count, 1, 1, 1)), 0, 1)

    known = {
        "north": out_of_distribution.feature_statistics([site(0.3), site(0.3)]),
        "south": out_of_distribution.feature_statistics([site(0.7)]),
    }
    assert manifest._are_looks(json.loads(json.dumps(known))), "a bundle carries them"
    usual = [
        out_of_distribution.ood_score(out_of_distribution.image_features(image[None]), known) for image in site(0.7, 100)
    ]
    assert {where for _, where in usual} == {"south"}
    assert sum(score > out_of_distribution.WARN for score, _ in usual) <= 1
    for strange in (1 - site(0.3, 1) * 0.2, site(0.5, 1), random.random((1, 1, 16, 16)), np.zeros((1, 1, 16, 16))):
        assert (
            out_of_distribution.ood_score(out_of_distribution.image_features(strange), known)[0] > out_of_distribution.WARN
        )
    assert out_of_distribution.ood_score(out_of_distribution.image_features(np.zeros((1, 3, 16, 16))), known) is None, (
        "of another number of channels"
    )
    assert out_of_distribution.ood_score(out_of_distribution.image_features(np.zeros((1, 1, 16, 16))), {}) is None


@pytest.mark.parametrize(
    "change",
    [
        {"sd": [1.0]},
        {"limit": 0},
        {"limit": 0.9},
        {"mean": [10**400] * 3},
        {"images": 1 << 60},
        {"limit": float("nan")},
        {"images": 0},
        {"mean": "x"},
        {"mean": [True] * 3},
        {"more": 1},
    ],
)
def test_unsound_looks_are_noticed(change):
    known = {"images": 3, "mean": [0.1, 0.2, 0.3], "sd": [0.1, 0.2, 0.3], "limit": 1.5}
    assert manifest._are_looks({"A": known})
    assert not manifest._are_looks({"A": {**known, **change}})


def test_a_volume_is_predicted_slice_by_slice():
    sizes = []

    def run(images, outputs):
        sizes.append(len(images))
        assert outputs == ("mask", "confidence", "looks")
        return [(images[:, 0] > 0.5).astype(np.uint8), images[:, 0], out_of_distribution.image_features(images)]

    volume = np.random.default_rng(3).integers(0, 1000, (70, 12, 16)).astype(np.int16)
    study = read_study(dicoms.packed(dicoms.stack(volume)), 1)
    made = predict(study, run, ("background", "bright"), {})
    assert sizes == [32, 32, 6]
    assert (made.ids == (study.batch(0, 70)[:, 0] > 0.5)).all()
    assert made.found["unlike"] is None
    assert "nobody checked" in made.found["warnings"][0]


@real
@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm"])
def test_masks_of_real_slices_lie_where_the_slices_lie(tmp_path, name):
    content = (SHARED / "data/formats/dicom_pydicom" / name).read_bytes()
    study = read_study(content, 1)
    ids = ids_like(study)
    same_geometry(read_nifti(masks.to_nifti(study, ids), tmp_path), study)
    made = highdicom.seg.segread(io.BytesIO(masks.to_seg(study, ids, NAMES, "fundus", "1")))
    source = pydicom.dcmread(io.BytesIO(content))
    assert made.FrameOfReferenceUID == source.FrameOfReferenceUID
    assert {uid for _, _, uid in made.get_source_image_uids()} == {source.SOPInstanceUID}
    affine = made.get_volume().affine
    np.testing.assert_allclose(affine[:3, 3], source.ImagePositionPatient, atol=1e-4)


def test_what_is_small_is_not_nothing():
    from relay_core.imaging import Study
    from relay_core.inference.measurements import measure

    pixels = np.zeros((1, 1, 8, 8), np.uint8)
    ids = np.zeros((1, 8, 8), np.uint8)
    ids[0, 2, 3] = 1
    found = measure(Study("nifti", pixels, (None, 0.0002, 0.0003), False), ids, np.array([60.0, 1e-7]), ("b", "cell"))
    assert found["classes"][0]["area_mm2"] == pytest.approx(6e-8)
    assert found["classes"][0]["confidence"] == pytest.approx(1e-7)
    stack = measure(Study("nifti", pixels, (0.001, 0.0002, 0.0003), True), ids, np.array([60.0, 1]), ("b", "cell"))
    assert stack["classes"][0]["volume_mm3"] == pytest.approx(6e-11)

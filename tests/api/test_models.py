"""Versions of a model, what is in production, and predictions for people."""

import base64
import io
import json
import zipfile
from dataclasses import replace

import highdicom
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from relay_core.inference.onnx_model import OnnxModel
from services.site.sweep import sweep
from tests.api.kit import ok, refused, running
from tests.imaging import dicoms
from tests.imaging.test_study import COLOUR, VOLUME, nifti, png


@pytest.fixture(scope="module")
def clinic(tmp_path_factory, exported):
    """A site with the toy in production, as `fundus`."""
    with running(tmp_path_factory.mktemp("clinic"), None) as site:
        ok(site.promote("fundus", site.model(exported, "fundus").version))
        yield site


def test_versions_are_listed_and_shown(site, exported):
    first = site.model(exported)
    second = site.model(exported, first.name)
    assert (first.version, second.version) == (1, 2)
    listed = ok(site.viewer.get("/api/v1/models", params={"name": first.name}))["items"]
    assert [entry["version"] for entry in listed] == [2, 1]
    shown = ok(site.viewer.get(f"/api/v1/models/{first.name}/versions/1"))
    assert shown == listed[1]
    assert (shown["facts"]["classes"], shown["production"]) == (["background", "optic disc", "optic cup"], False)
    assert shown["size"] == len(exported.content)
    assert shown["proof"]["parity"][0]["max_abs_difference"] < 1e-4
    answer = site.operator.get(f"/api/v1/models/{first.name}/versions/1/download")
    assert answer.content == exported.content
    assert OnnxModel(answer.content, "cpu").facts.sites == ("Domain1", "Domain2")
    for path in (f"{first.name}/versions/3", "nothing", f"{first.name}/versions/3/download", "nothing/versions/1"):
        refused(site.operator.get(f"/api/v1/models/{path}"), 404, "not_found")


def test_a_promotion_is_seen_by_both_who_decide(site, exported):
    name = site.model(exported).name
    site.model(exported, name, dice=0.9)
    path = f"/api/v1/models/{name}"
    answer = site.viewer.get(path)
    assert (ok(answer)["version"], answer.headers["etag"]) == (None, '"0"')
    refused(site.viewer.post(f"{path}/promote", json={"version": 1}, headers={"If-Match": '"0"'}), 403, "forbidden")
    refused(site.operator.post(f"{path}/promote", json={"version": 1}), 428, "precondition_required")
    made = ok(site.operator.post(f"{path}/promote", json={"version": 1}, headers={"If-Match": '"0"'}))
    assert (made["number"], made["version"], made["reason"]) == (1, 1, None)
    late = site.operator.post(f"{path}/promote", json={"version": 2}, headers={"If-Match": '"0"'})
    assert refused(late, 412, "precondition_failed")
    assert late.headers["etag"] == '"1"'
    refused(site.promote(name, 1), 409, "conflict")
    refused(site.promote(name, 9), 404, "not_found")
    assert ok(site.viewer.get(f"{path}/versions/1"))["production"] is True
    assert len(site.audited("model.promote", ok_id(site, name, 1))) == 1


def ok_id(site, name, version):
    from sqlalchemy import select

    from services.site.db.models import Model

    with site.database.read() as session:
        return session.scalars(select(Model.id).where(Model.name == name, Model.version == version)).one()


def test_a_worse_model_needs_a_reason_and_a_rollback_gives_one(site, exported):
    name = site.model(exported, dice=0.95).name
    site.model(exported, name, dice=0.90)
    site.model(exported, name, dice=0.97)
    ok(site.promote(name, 1))
    compared = ok(site.viewer.get(f"/api/v1/models/{name}/versions/2/comparison"))
    assert compared["worse"] == ["Domain1", "Domain2"]
    assert compared["sites"][0] == {"site": "Domain1", "current": 0.95, "new": 0.9, "difference": -0.05}
    for reason in ({}, {"reason": "  "}):
        problem = refused(site.promote(name, 2, **reason), 422, "reason_missing")
        assert problem["comparison"] == compared
    made = ok(site.promote(name, 2, reason="the first one fails on our camera"))
    assert (made["version"], made["comparison"]) == (2, compared)
    ok(site.promote(name, 3))
    path = f"/api/v1/models/{name}"
    refused(
        site.operator.post(f"{path}/rollback", json={"reason": " "}, headers={"If-Match": '"3"'}), 422, "invalid_request"
    )
    back = ok(site.operator.post(f"{path}/rollback", json={"reason": "wrong cups"}, headers={"If-Match": '"3"'}))
    assert (back["number"], back["version"], back["reason"]) == (4, 2, "wrong cups")
    assert len(site.audited("model.rollback", ok_id(site, name, 2))) == 1
    first = site.model(exported).name
    refused(
        site.operator.post(f"/api/v1/models/{first}/rollback", json={"reason": "x"}, headers={"If-Match": '"0"'}),
        409,
        "conflict",
    )
    ok(site.promote(first, 1))
    refused(
        site.operator.post(f"/api/v1/models/{first}/rollback", json={"reason": "x"}, headers={"If-Match": '"1"'}),
        409,
        "conflict",
    )


def test_a_test_set_that_is_missing_counts_as_worse(site, exported):
    name = site.model(exported).name
    fewer = replace(exported, proof={**exported.proof, "tests": {"Domain1": exported.proof["tests"]["Domain1"]}})
    site.model(fewer, name)
    ok(site.promote(name, 1))
    assert ok(site.viewer.get(f"/api/v1/models/{name}/versions/2/comparison"))["worse"] == ["Domain2"]
    refused(site.promote(name, 2), 422, "reason_missing")


def test_a_version_is_deleted_unless_it_serves(site, exported):
    name = site.model(exported).name
    for _ in range(2):
        site.model(exported, name)
    ok(site.promote(name, 1))
    ok(site.promote(name, 2))
    for version in (1, 2):
        refused(site.operator.delete(f"/api/v1/models/{name}/versions/{version}"), 409, "in_use")
    ok(site.operator.delete(f"/api/v1/models/{name}/versions/3"), 204)
    refused(site.viewer.get(f"/api/v1/models/{name}/versions/3"), 404, "not_found")
    sweep(site.database, site.settings, grace=-1)
    assert site.operator.get(f"/api/v1/models/{name}/versions/1/download").content == exported.content


def test_a_number_is_not_used_again(site, exported):
    name = site.model(exported).name
    site.model(exported, name)
    ok(site.operator.delete(f"/api/v1/models/{name}/versions/2"), 204)
    assert site.model(exported, name).version == 3
    refused(site.operator.post(
        "/api/v1/jobs", json={"kind": "export_onnx", "checkpoint_id": site.checkpoint().id, "name": "stats"},
        headers={"Idempotency-Key": name},
    ), 422, "invalid_request")  # fmt: skip


def predict(site, content, **params):
    return site.viewer.post("/api/v1/models/fundus/predict", content=content, params=params)


def test_a_picture_gives_measurements_a_mask_and_an_overlay(clinic, exported):
    content = exported.image()
    answer = predict(clinic, content)
    found = ok(answer)
    assert (found["model"], found["version"], found["width"], found["height"]) == ("fundus", 1, 32, 32)
    assert answer.headers["x-relay-model"] == "fundus/1"
    assert answer.headers["x-relay-provider"] == found["provider"]
    assert found["warnings"] == []
    assert found["unlike"]["most_like"] == "Domain1"
    mask, overlay = predict(clinic, content, output="mask"), predict(clinic, content, output="overlay")
    assert mask.headers["content-type"] == overlay.headers["content-type"] == "image/png"
    with Image.open(io.BytesIO(mask.content)) as image:
        ids = np.asarray(image)
    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).transpose(2, 0, 1)[None] / np.float32(255)
    assert (ids == OnnxModel(exported.content, "cpu")(pixels, ("mask",))[0][0]).all()
    assert {entry["id"]: entry["pixels"] for entry in found["classes"]} == {i: int((ids == i).sum()) for i in (1, 2)}
    assert Image.open(io.BytesIO(overlay.content)).size == (32, 32)
    with zipfile.ZipFile(io.BytesIO(predict(clinic, content, output="all").content)) as archive:
        assert sorted(archive.namelist()) == ["mask.png", "measurements.json", "overlay.png"]
        assert json.loads(archive.read("measurements.json")) == found
    assert ok(predict(clinic, content, version=1)) == found


def test_an_image_unlike_the_sites_comes_with_a_warning(clinic, exported):
    pixels = np.asarray(Image.open(io.BytesIO(exported.image())).convert("RGB"))
    answer = predict(clinic, png(255 - pixels))
    found = ok(answer)
    assert found["unlike"]["score"] > found["unlike"]["warn_above"]
    assert "unlike those of the training sites" in found["warnings"][0]
    assert answer.headers["x-relay-warning"] == found["warnings"][0]


def test_volumes_come_back_with_their_geometry(clinic, tmp_path):
    zipped = dicoms.packed(dicoms.stack(VOLUME, dicoms.OBLIQUE))
    frames = dicoms.enhanced(np.abs(VOLUME).astype(np.uint16))
    # the zipped stack is nearly coronal: from the feet to the head it has as many slices as its images have rows
    for content, slices in ((zipped, VOLUME.shape[1]), (nifti(VOLUME, tmp_path), 5), (frames, 5)):
        found = ok(predict(clinic, content))
        assert (found["slices"], "cup_to_disc" in found) == (slices, False)
        voxel = np.prod(found["spacing_mm"])
        for entry in found["classes"]:
            assert entry["volume_mm3"] == pytest.approx(entry["pixels"] * voxel, rel=1e-3)
        answer = predict(clinic, content, output="nifti")
        assert answer.headers["content-type"] == "application/gzip"
        (tmp_path / "m.nii.gz").write_bytes(answer.content)
        mask = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "m.nii.gz")))
        assert [int((mask == i).sum()) for i in (1, 2)] == [entry["pixels"] for entry in found["classes"]]
        assert "single PNG" in refused(predict(clinic, content, output="mask"), 422, "image_invalid")["detail"]
    answer = predict(clinic, zipped, output="seg")
    assert answer.headers["content-type"] == "application/dicom"
    assert len(highdicom.seg.segread(io.BytesIO(answer.content)).get_source_image_uids()) == 5
    with zipfile.ZipFile(io.BytesIO(predict(clinic, zipped, output="all").content)) as archive:
        names = archive.namelist()
    assert {"mask.dcm", "mask.nii.gz", "measurements.json", "overlay-0001.png", "overlay-0005.png"} <= set(names)


def test_any_image_is_shown_slice_by_slice(clinic, exported, tmp_path):
    zipped = dicoms.packed(dicoms.stack(VOLUME))
    with Image.open(io.BytesIO(exported.image())) as image:
        eye = np.asarray(image.convert("RGB"))
    for content, slices in (
        (exported.image(), 1), (dicoms.one(eye, photometric="RGB"), 1), (zipped, 5), (nifti(VOLUME, tmp_path), 5),
    ):  # fmt: skip
        answer = predict(clinic, content, output="pictures")
        assert answer.headers["content-type"] == "application/json"
        found = ok(answer)
        drawn = found.pop("pictures")
        assert found == ok(predict(clinic, content)), "the measurements are those of every answer"
        image, layer = (Image.open(io.BytesIO(base64.b64decode(drawn[part]))) for part in ("image", "found"))
        rows = -(-slices // drawn["columns"])
        assert image.size == layer.size == (drawn["columns"] * drawn["width"], rows * drawn["height"])
        assert len(drawn["colours"]) == len(found["classes"])
        if content == exported.image():
            assert (np.asarray(image) == eye).all()
            with Image.open(io.BytesIO(predict(clinic, content, output="mask").content)) as mask:
                assert ((np.asarray(layer)[..., 3] > 0) == (np.asarray(mask) > 0)).all()


def test_bad_images_are_told_and_the_service_stays_up(clinic, exported, tmp_path):
    for content, status, code in (
        (b"", 400, "bad_request"),
        (b"hello", 422, "image_invalid"),
        (png(COLOUR)[:300], 422, "image_invalid"),
        (dicoms.one(VOLUME[0])[:-100], 422, "image_invalid"),
        (dicoms.packed(dicoms.stack(VOLUME), "../{}.dcm"), 422, "image_invalid"),
        (dicoms.packed(dicoms.stack(VOLUME, at=[0, 1, 2, 4, 5])), 422, "image_invalid"),
    ):
        problem = refused(predict(clinic, content), status, code)
        assert "MUSTERMANN" not in json.dumps(problem)
    ok(predict(clinic, exported.image()))
    refused(clinic.viewer.post("/api/v1/models/nothing/predict", content=exported.image()), 404, "not_found")
    refused(predict(clinic, exported.image(), version=9), 404, "not_found")
    refused(predict(clinic, exported.image(), output="heat"), 422, "invalid_request")
    refused(clinic.anonymous.post("/api/v1/models/fundus/predict", content=exported.image()), 401, "unauthenticated")
    log = (clinic.settings.home / "api.log").read_text()
    for word in ("MUSTERMANN", "P-4711", "20260101", dicoms.STUDY, dicoms.SERIES):
        assert word not in log
        assert word not in clinic.anonymous.get("/metrics").text
    assert '"ERROR"' not in log
    left = [path for path in clinic.settings.home.rglob("*") if path.is_file()]
    assert not any(b"MUSTERMANN" in path.read_bytes() for path in left), "nothing of an image is kept"


def test_an_image_over_the_cap_is_refused(tmp_path, exported):
    with running(tmp_path, None, RELAY_SERVE_MAX_MIB="1") as site:
        ok(site.promote("fundus", site.model(exported, "fundus").version))
        refused(predict(site, b"\0" * (1 << 20 | 1)), 413, "too_large")
        ok(predict(site, exported.image()))
        answer = site.operator.post("/api/v1/models/fundus/promote", content=b"0" * (3 << 20), headers={"If-Match": '"1"'})
        refused(answer, 413, "too_large")


def classifies(site, classifier, name=None, accuracy=1.0):
    """The next version of a classifier, with this accuracy on its tests."""
    tests = {where: {**found, "accuracy": accuracy} for where, found in classifier.proof["tests"].items()}
    return site.model(replace(classifier, proof={**classifier.proof, "tests": tests}), name, dice=0.0)


def window(path):
    """A slice of the toy as a grey picture, through the window of HU that it was trained with."""
    with Image.open(path) as image:
        return png(np.rint(np.asarray(image, np.float32) / 400 * 255).clip(0, 255).astype(np.uint8))


def test_a_classifier_says_a_class_and_has_nothing_else(small_site, classifier, tmp_path):
    site = small_site
    name = classifies(site, classifier).name
    ok(site.promote(name, 1))
    path, images = f"/api/v1/models/{name}/predict", sorted((classifier.toy.data / "Domain2/images").iterdir())
    for image, best in ((images[0], 0), (images[1], 1)):
        content = window(image)
        answer = site.viewer.post(path, content=content)
        found = ok(answer)
        assert (found["model"], found["width"], found["height"], found["slices"]) == (name, 20, 24, 1)
        assert (found["class"], found["class_name"]) == (best, ("negative", "positive")[best])
        pixels = np.asarray(Image.open(io.BytesIO(content)), np.float32)[None, None] / 255
        (wanted,) = OnnxModel(classifier.content, "cpu")(pixels, ("probabilities",))[0]
        assert [entry["probability"] for entry in found["probabilities"]] == [pytest.approx(p, abs=1e-3) for p in wanted]
        assert found["confidence"] == found["probabilities"][best]["probability"]
        assert (found["unlike"]["score"] <= 1.5, found["warnings"]) == (True, [])
        hu = np.asarray(Image.open(image)).astype(np.int16)
        shown = {"RescaleIntercept": -160, "WindowCenter": -600, "WindowWidth": 1500}  # lungs; it learned from soft tissue
        scanned = ok(site.viewer.post(path, content=dicoms.one(hu, **shown)))
        assert scanned["confidence"] == pytest.approx(found["confidence"], abs=1e-3)
        assert (scanned["class"], scanned["warnings"]) == (best, [])
    answer = site.viewer.post(path, content=png(np.full((24, 20), 255, np.uint8)))
    assert ok(answer)["warnings"] == [answer.headers["x-relay-warning"]]
    assert answer.headers["x-relay-warning"].endswith("do not rely on the class")
    for output in ("measurements", "mask", "overlay", "nifti", "seg", "all"):
        problem = refused(site.viewer.post(path, content=content, params={"output": output}), 422, "invalid_request")
        assert f"{name} is a classifier" in problem["detail"]
    drawn = ok(site.viewer.post(path, content=content, params={"output": "pictures"}))["pictures"]
    with Image.open(io.BytesIO(base64.b64decode(drawn["image"]))) as image:
        assert (np.asarray(image) == np.asarray(Image.open(io.BytesIO(content)))).all()
    assert drawn["found"] is None, "a class lies nowhere"
    volume = ok(site.viewer.post(path, content=nifti(VOLUME, tmp_path)))
    assert volume["slices"] == 5
    assert sum(entry["probability"] for entry in volume["probabilities"]) == pytest.approx(1, abs=1e-3)


def test_classifiers_are_compared_by_accuracy(small_site, exported, classifier):
    site = small_site
    name = classifies(site, classifier, accuracy=0.9).name
    classifies(site, classifier, name, accuracy=0.8)
    ok(site.promote(name, 1))
    path = f"/api/v1/models/{name}/versions"
    compared = ok(site.viewer.get(f"{path}/2/comparison"))
    assert (compared["metric"], compared["worse"]) == ("accuracy", ["Domain1", "Domain2"])
    assert compared["sites"][0] == {"site": "Domain1", "current": 0.9, "new": 0.8, "difference": -0.1}
    refused(site.promote(name, 2), 422, "reason_missing")
    site.model(exported, name, dice=0.99)
    compared = ok(site.viewer.get(f"{path}/3/comparison"))
    assert (compared["metric"], compared["worse"]) == ("dice", ["Domain1", "Domain2"]), "Dice is no accuracy"
    assert [row["difference"] for row in compared["sites"]] == [None, None]


def test_an_evaluation_without_dice_shows_its_first_metric(small_site):
    from services.site.db.models import Evaluation

    site = small_site
    row = site.evaluation(site.checkpoint())
    with site.database.write() as session:
        session.get_one(Evaluation, row.id).matrices = {"f1": {}, "accuracy": {}}
        site.attach(row.id, "accuracy.csv", b"after,Domain2\n", "text/csv", session)
    path = f"/api/v1/evaluations/{row.id}/matrix"
    assert site.viewer.get(f"{path}.csv").text == "after,Domain2\n"
    refused(site.viewer.get(f"{path}.png"), 404, "not_found")
    assert site.viewer.get(f"{path}.csv", params={"metric": "dice_per_sample"}).text == "after,Domain1\n"

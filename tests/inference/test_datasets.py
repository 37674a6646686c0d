"""A whole data set predicted: resumed, with bad files, with another checkpoint; and the export from the command line."""

import csv
import gzip
import io
import json
import shutil
import zipfile

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from relay_core.cli.describe import proof_text
from relay_core.config.datasets import FundusKwargs, MediastinumKwargs
from relay_core.engine.checkpoint import find
from relay_core.errors import DataError, ExportError, RelayError, Stopped
from relay_core.export.checkpoint import export_checkpoint
from relay_core.imaging.study import read_study
from relay_core.inference import datasets
from relay_core.inference.files import predict_files
from relay_core.inference.onnx_model import OnnxModel
from relay_core.inference.prediction import predict
from tests.cli.test_cli import refused, relay

CPU = torch.device("cpu")


@pytest.fixture
def site(exported, tmp_path):
    """A copy of a site's images that a test may spoil."""
    shutil.copytree(exported.toy.data / "Domain1", tmp_path / "Domain1")
    return tmp_path / "Domain1"


def run(exported, site, out, task="task_2", stop=lambda: False):
    told = []
    checkpoint = find(exported.toy.folder / "out" / task, print)
    found = datasets.predict_dataset(
        checkpoint, "fundus", FundusKwargs(), site, out, CPU, lambda done, total: told.append((done, total)), stop
    )
    return found, told


def table(out):
    return list(csv.DictReader(io.StringIO((out / "measurements.csv").read_text())))


def test_nifti_gets_nifti_though_it_does_not_say_its_voxel_size(exported, site, tmp_path):
    image = sorted((site / "train/ROIs/image").iterdir())[0]
    with Image.open(image) as opened:
        grey = np.asarray(opened.convert("L")).T
    nifti = nib.Nifti1Image(np.ascontiguousarray(grey), None)
    nifti.header["pixdim"][1:4] = 0
    image.with_suffix(".nii").write_bytes(nifti.to_bytes())
    image.unlink()
    run(exported, site, tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "out/masks.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".nii.gz")]
        assert names == [f"train/ROIs/image/{image.stem}.nii.gz"]
        mask = nib.Nifti1Image.from_bytes(gzip.decompress(archive.read(names[0])))
    assert mask.shape == grey.shape


def test_masks_and_measurements_are_those_of_the_served_model(exported, site, tmp_path):
    found, told = run(exported, site, tmp_path / "out")
    assert (found, told[-1]) == (datasets.Predicted(13, 0, ()), (13, 13))
    session = OnnxModel(exported.content, "cpu")
    with zipfile.ZipFile(tmp_path / "out/masks.zip") as archive:
        assert len(archive.namelist()) == 13
        for name in archive.namelist():
            made = predict(read_study((site / name).read_bytes(), 3), session, session.facts.classes, session.facts.looks)
            with Image.open(io.BytesIO(archive.read(name))) as image:
                assert (np.asarray(image) != made.ids[0]).mean() < 0.01
            rows = [row for row in table(tmp_path / "out") if row["file"] == name]
            assert [row["name"] for row in rows] == ["optic disc", "optic cup"]
            assert abs(int(rows[0]["pixels"]) - made.found["classes"][0]["pixels"]) <= 10
            assert float(rows[0]["unlike"]) == pytest.approx(made.unlike, abs=0.01)


def test_it_goes_on_where_it_was_stopped(exported, site, tmp_path):
    asked = iter(range(100))
    with pytest.raises(Stopped, match="after 5 of 13"):
        run(exported, site, tmp_path / "out", stop=lambda: next(asked) >= 5)
    assert not (tmp_path / "out/masks.zip").exists()
    masks = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/masks").iterdir()}
    assert len(masks) == 5
    with (tmp_path / "out/done.jsonl").open("a") as journal:
        journal.write('{"file": "half')  # as a kill leaves it
    found, _ = run(exported, site, tmp_path / "out")
    assert found.images == 13
    assert {path: path.stat().st_mtime_ns for path in masks} == masks, "what was done is not done again"
    run(exported, site, tmp_path / "whole")
    assert table(tmp_path / "out") == table(tmp_path / "whole")
    run(exported, site, tmp_path / "out", task="task_1")
    assert table(tmp_path / "out") != table(tmp_path / "whole"), "another checkpoint's masks are not kept"


def test_bad_images_are_all_named_and_the_others_done(exported, site, tmp_path):
    images = sorted((site / "test/ROIs/image").iterdir())
    images[0].write_bytes(images[0].read_bytes()[:200])
    images[2].write_bytes(b"")
    found, _ = run(exported, site, tmp_path / "out")
    assert (found.images, [problem.file for problem in found.problems]) == (
        11, [f"test/ROIs/image/{images[i].name}" for i in (0, 2)],
    )  # fmt: skip
    assert len({row["file"] for row in table(tmp_path / "out")}) == 11


def test_images_that_come_later_do_not_move_the_others_masks(exported, site, tmp_path):
    image, mask = site / "train/ROIs/image", site / "train/ROIs/mask"
    taken = [(folder / "0000.png").rename(tmp_path / f"{folder.name}.png") for folder in (image, mask)]
    run(exported, site, tmp_path / "out")
    for path, folder in zip(taken, (image, mask), strict=True):
        path.rename(folder / "0000.png")
    for uid in ("1.2.840.55", "1.2.840.56"):
        shutil.copy(image / "0001.png", image / f"{uid}.png")
        shutil.copy(mask / "0001.png", mask / f"{uid}.png")
    run(exported, site, tmp_path / "out")
    run(exported, site, tmp_path / "anew")
    with zipfile.ZipFile(tmp_path / "out/masks.zip") as ours, zipfile.ZipFile(tmp_path / "anew/masks.zip") as theirs:
        assert ours.namelist() == theirs.namelist()
        assert len(set(ours.namelist())) == 15
        for name in ours.namelist():
            assert ours.read(name) == theirs.read(name)


def test_from_the_command_line(exported, tmp_path):
    toy = exported.toy
    options = ["--run", toy.folder / "run.yaml", "--data-root", toy.data, "--out", tmp_path / "m.onnx"]
    said = json.loads(relay("export-onnx", exported.checkpoint, *options, "--json").stdout)
    assert said["proof"]["tests"] == exported.proof["tests"]
    assert json.loads((tmp_path / "m.onnx.json").read_text()) == said["proof"]
    assert OnnxModel((tmp_path / "m.onnx").read_bytes(), "cpu").facts.checkpoint == said["facts"]["checkpoint"]
    options[3], options[-1] = tmp_path, tmp_path / "n.onnx"
    assert refused(relay("export-onnx", exported.checkpoint, *options, check=False), 4, "--data-root")
    with pytest.raises(ExportError, match="fp32, fp16, int8"):
        export_checkpoint(find(exported.checkpoint, print), toy.run(), toy.data, tmp_path / "n.onnx", "fp8")
    assert not (tmp_path / "n.onnx").exists()
    done = relay("predict-dataset", exported.checkpoint, "fundus", toy.data / "Domain1", "--out", tmp_path / "p")
    assert "wrote 13 " in done.stdout


SLICES = MediastinumKwargs(task="classification", class_by="positive", img_channels=1)
COLUMNS = ["file", "class", "name", "confidence", "probability of negative", "probability of positive", "unlike"]


def test_a_classifier_writes_a_line_an_image_and_no_masks(classifier, tmp_path):
    checkpoint, folder, out = find(classifier.checkpoint, print), classifier.toy.data / "Domain1", tmp_path / "out"
    asked = iter(range(100))
    given = (checkpoint, "mediastinum-tumor", SLICES, folder, out, CPU, lambda done, total: None)
    with pytest.raises(Stopped, match="after 5 of 20"):
        datasets.predict_dataset(*given, lambda: next(asked) >= 5)
    with (out / "done.jsonl").open() as journal:
        assert len(journal.readlines()) == 5
    found = datasets.predict_dataset(*given, lambda: False)
    assert (found.images, found.problems) == (20, ())
    assert sorted(path.name for path in out.iterdir()) == ["done.jsonl", "measurements.csv"]
    rows = table(out)
    assert list(rows[0]) == COLUMNS
    truth = {f"images/{i:02}.png": i % 2 for i in range(20)}
    assert {row["file"]: int(row["class"]) for row in rows} == truth
    for row in rows:
        assert row["name"] == ("positive" if row["class"] == "1" else "negative")
        assert row["confidence"] == row[f"probability of {row['name']}"]
        assert float(row["unlike"]) <= 1.5


def test_classes_of_files_are_those_of_the_served_model(classifier, tmp_path):
    checkpoint = find(classifier.checkpoint, print)
    images = sorted((classifier.toy.data / "Domain1/images").iterdir())[:4]
    written = predict_files(checkpoint, images, tmp_path / "out", "png", None, CPU)
    assert written == [tmp_path / "out/classes.csv"]
    rows = list(csv.DictReader(io.StringIO(written[0].read_text())))
    assert (list(rows[0]), [row["file"] for row in rows]) == (COLUMNS, [path.name for path in images])
    session = OnnxModel(classifier.content, "cpu")
    for row, path in zip(rows, images, strict=True):
        shown = (np.asarray(Image.open(path), np.float32) / 400).clip(0, 1)  # the window of HU that it was trained with
        probabilities, (best,) = session(shown[None, None], ("probabilities", "class"))
        assert int(row["class"]) == best
        assert float(row["probability of positive"]) == pytest.approx(probabilities[0, 1], abs=1e-3)
    for kind, pattern in (("nifti", None), ("png", "^(0)")):
        with pytest.raises(RelayError, match="is a classifier: it has no masks"):
            predict_files(checkpoint, images, tmp_path / "none", kind, pattern, CPU)
    (tmp_path / "bad.png").write_bytes(images[0].read_bytes()[:100])
    with pytest.raises(DataError, match=r"1 of 2 images cannot be read; nothing was written"):
        predict_files(checkpoint, [images[0], tmp_path / "bad.png"], tmp_path / "none", "png", None, CPU)
    assert not (tmp_path / "none").exists()


def test_a_proof_is_told_in_a_line(exported, classifier):
    assert (
        proof_text(classifier.proof["tests"])
        == "balanced accuracy Domain1 1.000 (1.000 in torch), Domain2 1.000 (1.000 in torch)"
    )
    assert proof_text(exported.proof["tests"]).startswith("Dice Domain1 0.")

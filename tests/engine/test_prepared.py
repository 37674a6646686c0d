"""From volumes to matrices: prepare, train, evaluate."""

import json

import pytest
import torch

from relay_core.engine import RelayRun
from relay_core.engine.checkpoint import newest
from relay_core.engine.evaluate import load_solver
from relay_core.engine.relay_run import generated_rows
from relay_core.engine.scoring import evaluate_checkpoint
from relay_core.metrics import metrics_of
from relay_core.preparation.run import prepare
from relay_core.preparation.selection import Selection
from relay_core.preparation.slicing import Mediastinum, Slices
from tests.preparation.phantoms import SPACING, hospital, table
from tests.preparation.test_slices import REAL

CPU = torch.device("cpu")
GREY = {"img_channels": 1, "label_num_classes": 2, "solver_kwargs": {"in_channels": 1, "num_classes": 2}}
FEW = {"num_mimgs": 24e-6}
"""Three steps a site: at the second the later ones are with replay."""


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory):
    """Two hospitals of three studies each, three slices with and three without a tumour a study."""
    folder = tmp_path_factory.mktemp("hospitals")
    for number, studies in ((1, "abc"), (2, "def")):
        volumes = hospital(folder / f"volumes{number}", studies)
        made = prepare(*volumes, folder / f"Domain{number}", Mediastinum(Selection("area", 3, negatives=3)), workers=1)
        assert (made.slices, made.positive) == (18, 9)
    return folder


def test_volumes_of_two_hospitals_become_a_relay_of_segmentations(toy, hospitals):
    data = {"name": "mediastinum-tumor", "kwargs": {"test_share": 0.34, "negatives_per_positive": 0.5}}
    run = toy.run(dataset=data, model={"kwargs": GREY}, train=FEW)
    play = RelayRun(run, toy.folder / "out", hospitals, CPU)
    matrices = play()
    assert list(matrices) == [metric.name for metric in metrics_of("segmentation")]
    assert all((m.rows, m.columns) == (["Domain1", "Domain2"],) * 2 for m in matrices.values())
    assert matrices["hd95"].unit == "mm"
    assert "mm" in (toy.folder / "out/evaluation/hd95.md").read_text()
    for number, name in enumerate(("Domain1", "Domain2"), start=1):
        test = play.tests[name]
        height, width = test.originals[0].height, test.originals[0].width
        assert test.spacing == [pytest.approx((SPACING[1] * height / 16, SPACING[2] * width / 16))] * 6
        last = newest(toy.folder / f"out/task_{number}", print)
        assert (last.meta["images"], last.meta["step"]) == (9, 3)
        scores = json.loads((toy.folder / f"out/task_{number}/scores.json").read_text())["scores"]
        assert list(scores) == ["Domain1", "Domain2"]
        assert [sample["num_images"] for row in scores.values() for sample in row["samples"]] == [6, 6]
        assert {sample["subject"] for sample in scores[name]["samples"]} == {*test.subjects}
        for picture in ("samples.png", "predictions.png"):
            assert (toy.folder / f"out/task_{number}" / picture).stat().st_size > 0
    train = {row["study_id"] for row in table(hospitals / "Domain1")} - {*play.tests["Domain1"].subjects}
    assert len(train) == 2


def test_the_same_slices_become_a_relay_of_classifications(toy, hospitals):
    task = {"task": "classification"}
    data = {"name": "mediastinum-tumor", "kwargs": {**task, "class_by": "positive", "test_share": 0.34}}
    run = toy.run(dataset=data, model={"kwargs": GREY | task}, train={**FEW, "loss": {"name": "cross_entropy"}})
    matrices = RelayRun(run, toy.folder / "out", hospitals, CPU)()
    assert list(matrices) == [metric.name for metric in metrics_of("classification")]
    assert all(0 <= value <= 1 for matrix in matrices.values() for row in matrix.values for value in row)
    last = newest(toy.folder / "out/task_2", print)
    assert not any("label" in name for name in last.tensors), "a class needs no generator"
    solver, settings = load_solver(last, CPU)
    assert solver(torch.zeros(3, 1, 16, 16)).shape == (3, 2)
    scores, _ = evaluate_checkpoint(last, run, hospitals, CPU, None)
    for number, name in enumerate(("Domain1", "Domain2")):
        row = scores[name]
        assert {metric: row[metric] for metric in matrices} == {m: matrices[m].values[1][number] for m in matrices}
        (study,) = row["samples"]
        assert (study["num_images"], row["num_samples"], row["num_images"]) == (6, 1, 6)
        assert sum(study["probabilities"]) == pytest.approx(1)
        assert study["subject"] in {r["study_id"] for r in table(hospitals / name)}
    drawn = {name: (images, labels) for name, images, labels, _ in generated_rows(settings, last, CPU)}
    assert list(drawn) == ["Domain1"], "no generator learned the last site"
    for images, labels in drawn.values():
        assert images.shape == (8, 1, 16, 16)
        assert labels.shape == (8,)
        assert {*labels.tolist()} <= {0, 1}
    out = toy.folder / "out"
    for name in ("evaluation/auroc.png", "evaluation/accuracy_subjects.csv", "task_2/samples.png", "task_2/predictions.png"):
        assert (out / name).stat().st_size > 0


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real volumes of ../shared")
@pytest.mark.parametrize("layout", ["midline", "folder"])
def test_real_volumes_train_in_either_layout(toy, layout):
    studies = ("brain2", "breast1")
    for kind in ("image", "label"):
        (toy.folder / kind).mkdir()
        for study in studies:
            (toy.folder / kind / f"{study}.nrrd").symlink_to(REAL / f"{study}_{kind}.nrrd")
    task = Slices(Selection("area", 4, negatives=2), layout=layout)
    made = prepare(toy.folder / "image", toy.folder / "label", toy.folder / "data/Domain1", task, workers=1)
    assert made.studies == 2
    assert made.slices == made.positive + 4
    kwargs = {"test_share": 0.5, "img_channels": 1, "num_classes": 2}
    kwargs |= {"patient_pattern": r"^(.*)_\d+$"} if layout == "folder" else {}
    settings = {"dataset": {"name": layout, "kwargs": kwargs}, "model": {"kwargs": GREY}, "train": {"num_mimgs": 16e-6}}
    run = toy.run(sites=1, strategy={"name": "baseline"}, **settings)
    matrices = RelayRun(run, toy.folder / "out", toy.folder / "data", CPU)()
    last = newest(toy.folder / "out/task_1", print)
    assert last.meta["step"] == 2
    scores, _ = evaluate_checkpoint(last, run, toy.folder / "data", CPU, None)
    assert matrices["dice"].values == [[scores["Domain1"]["dice"]]]
    (study,) = scores["Domain1"]["samples"]
    assert study["subject"] in studies
    assert last.meta["images"] + study["num_images"] == made.slices

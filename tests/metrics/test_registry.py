"""One registry of metrics: what is scored is in it, lengths of different units are kept apart, names say what they are."""

import json

import pytest
import torch

from relay_core.experiments.report import Outcome, report_markdown
from relay_core.metrics import (
    METRICS,
    ClassificationScores,
    ScoreMatrix,
    SegmentationScores,
    headline,
    metrics_of,
    score_matrices,
    task_of,
)


def segmentation(spacing):
    scores = SegmentationScores(3)
    ids = torch.zeros(2, 8, 8, dtype=torch.long)
    ids[:, 2:5, 2:5] = 1
    ids[:, 6:, 6:] = 2
    scores.update(ids.roll(1, dims=2), ids, ["a", "b"], [spacing, spacing])
    return scores.compute()


def classification():
    scores = ClassificationScores(2)
    scores.update(torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]), torch.tensor([0, 0, 0]), ["a", "b", "c"])
    scores.update(torch.tensor([[0.6, 0.4]]), torch.tensor([1]), ["d"])
    return scores.compute()


@pytest.mark.parametrize(("scores", "task"), [(segmentation(None), "segmentation"), (classification(), "classification")])
def test_every_score_of_a_task_is_registered_and_every_registered_one_is_scored(scores, task):
    assert task_of(scores) == task
    beside = {"num_samples", "num_images", "balanced_accuracy", "ci95", "samples"}
    details = {"dice_per_class", "hd95_unit", "recall_per_class"}
    assert {metric.name for metric in metrics_of(task)} == scores.keys() - beside - details
    assert all(metric.name == name for name, metric in METRICS.items())
    assert set(scores["ci95"]) <= set(METRICS)


def test_accuracy_says_that_it_is_balanced():
    """Three images of class 0, two of them right, and one of class 1, wrong."""
    scores = classification()
    assert scores["accuracy"] == scores["balanced_accuracy"] == pytest.approx((2 / 3 + 0) / 2)
    assert scores["accuracy_images"] == pytest.approx(2 / 4)
    assert headline(scores) == ("balanced accuracy", scores["accuracy"])
    assert "Balanced" in METRICS["accuracy"].title
    assert headline(segmentation(None))[0] == "Dice"


def test_millimetres_and_pixels_are_kept_apart():
    rows = {
        "north": {"north": segmentation((2.0, 2.0)), "south": segmentation(None)},
        "south": {"north": segmentation((2.0, 2.0)), "south": segmentation(None)},
    }
    found = score_matrices(rows, ["north", "south"], "segmentation", start={n: rows["north"][n] for n in ("north", "south")})
    assert {"hd95_mm", "hd95_px"} <= found.keys()
    assert "hd95" not in found
    millimetres, pixels = found["hd95_mm"], found["hd95_px"]
    assert (millimetres.columns, millimetres.unit, pixels.columns, pixels.unit) == (["north"], "mm", ["south"], "px")
    assert millimetres.average() == pytest.approx(2 * pixels.average())
    assert millimetres.title == "95 % Hausdorff distance [mm]"
    assert millimetres.start == [millimetres.values[0][0]]
    assert found["dice"].columns == ["north", "south"]
    alike = score_matrices({"north": {"north": segmentation(None), "south": segmentation(None)}}, ["north", "south"],
                           "segmentation")  # fmt: skip
    assert (alike["hd95"].unit, alike["hd95"].columns) == ("px", ["north", "south"])


def test_a_site_that_scores_a_set_in_another_unit_leaves_a_gap():
    rows = {"north": {"north": segmentation((2.0, 2.0))}, "south": {"north": segmentation(None)}}
    found = score_matrices(rows, ["north"], "segmentation")
    assert [row[0] is None for row in found["hd95_mm"].values] == [False, True]
    assert [row[0] is None for row in found["hd95_px"].values] == [True, False]


def test_runs_of_different_units_have_no_mean():
    def outcome(seed, unit, value):
        main = ScoreMatrix(["a"], ["a"], "dice_per_sample", [[0.9]])
        distance = ScoreMatrix(["a"], ["a"], "hd95", [[value]], unit=unit)
        return Outcome("relay", seed, {"dice_per_sample": main, "hd95": distance}, 1.0)

    text = report_markdown([outcome(0, "mm", 4.0), outcome(1, "px", 20.0)], "mixed")
    assert "12.00" not in text
    assert "| relay | \N{EN DASH} | \N{EN DASH} |" in text
    alike = report_markdown([outcome(0, "mm", 4.0), outcome(1, "mm", 20.0)], "alike")
    assert "| relay | 12.00 ± 11.31 |" in alike


@pytest.mark.parametrize(
    ("metric", "better", "text"), [("hd95", False, "3.14"), ("auroc", True, "3.142"), ("own", True, "3.142")]
)
def test_direction_and_digits_come_from_the_registry(metric, better, text):
    matrix = ScoreMatrix(["a"], ["a"], metric, [[3.14159]])
    assert matrix.lower_is_better is not better
    assert matrix.text(3.14159) == text
    plain = json.loads(matrix.to_json())
    assert (plain["higher_is_better"], plain["title"]) == (better, matrix.title)
    assert ScoreMatrix.from_json(matrix.to_json()) == matrix


def test_the_mean_of_seen_sites_is_of_those_that_were_seen():
    """A and C are in mm, B in pixels: after B a matrix of mm has seen A alone."""
    rows = {name: {test: segmentation((2.0, 2.0) if test in "AC" else None) for test in "ABC"} for name in "ABC"}
    for name, row in rows.items():
        row["C"]["hd95"] = 100.0 if name != "C" else row["C"]["hd95"]
    found = score_matrices(rows, list("ABC"), "segmentation")
    near = found["hd95_mm"].values[0][0]
    assert found["hd95_mm"].average_seen() == pytest.approx([near, near, near])
    assert found["hd95_px"].average_seen()[0] is None
    assert found["hd95_px"].average_seen()[1:] == pytest.approx([found["hd95_px"].values[0][0]] * 2)

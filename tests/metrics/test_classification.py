"""Scores of a classifier against numbers worked out by hand and by brute force."""

import json

import numpy as np
import pytest
import torch

from relay_core.metrics import ClassificationScores, metrics_of, task_of

NAMES = [metric.name for metric in metrics_of("classification")]


def scored(probabilities, targets, subjects=None, batch=None):
    probabilities, targets = torch.tensor(probabilities), torch.tensor(targets)
    subjects = subjects or [f"s{i}" for i in range(len(targets))]
    scores = ClassificationScores(probabilities.shape[1])
    for start in range(0, len(targets), batch or len(targets)):
        part = slice(start, start + (batch or len(targets)))
        scores.update(probabilities[part], targets[part], subjects[part])
    return scores.compute()


def certain(predicted, classes):
    """Probabilities that are 0.8 for the predicted class."""
    table = np.full((len(predicted), classes), 0.2 / (classes - 1), np.float32)
    table[np.arange(len(predicted)), predicted] = 0.8
    return table.tolist()


def drawn(count, classes, seed):
    """Targets, and probabilities that lean to them; rounded, so that some are equal."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, classes, count)
    odds = rng.integers(1, 6, (count, classes)).astype(np.float64)
    odds[np.arange(count), targets] += 2
    return odds / odds.sum(1, keepdims=True), targets


def area(scores, positive):
    """Share of the pairs of a positive and a negative image that are in the right order; a tie is half."""
    pairs = [(p, n) for p in scores[positive] for n in scores[~positive]]
    return sum((p > n) + 0.5 * (p == n) for p, n in pairs) / len(pairs)


def test_written_out():
    result = scored(certain([0, 0, 0, 1, 1, 2, 0, 1], 3), [0, 0, 0, 0, 1, 1, 2, 2])
    assert result["recall_per_class"] == [0.75, 0.5, 0.0]
    assert result["accuracy"] == pytest.approx((0.75 + 0.5 + 0) / 3)
    assert result["accuracy_images"] == 4 / 8
    assert result["f1"] == pytest.approx((2 * 3 / (4 + 4) + 2 * 1 / (2 + 3) + 0) / 3)
    assert (result["num_images"], result["num_samples"]) == (8, 8)


@pytest.mark.parametrize("classes", [2, 4])
def test_the_area_is_the_share_of_pairs_in_order(classes):
    probabilities, targets = drawn(60, classes, classes)
    areas = [area(probabilities[:, c], targets == c) for c in range(classes)]
    assert 0.5 < min(areas) < 1
    assert scored(probabilities.tolist(), targets.tolist())["auroc"] == pytest.approx(np.mean(areas))


def test_a_subject_is_judged_by_the_mean_of_its_images():
    probabilities = [[0.9, 0.1], [0.4, 0.6], [0.4, 0.6], [0.2, 0.8], [0.45, 0.55], [0.9, 0.1]]
    result = scored(probabilities, [0, 0, 0, 1, 1, 1], ["a", "a", "a", "b", "c", "c"])
    assert result["samples"] == [
        {"subject": "a", "num_images": 3, "target": 0, "predicted": 0, "right": True, "probabilities": [0.566667, 0.433333]},
        {"subject": "b", "num_images": 1, "target": 1, "predicted": 1, "right": True, "probabilities": [0.2, 0.8]},
        {"subject": "c", "num_images": 2, "target": 1, "predicted": 0, "right": False, "probabilities": [0.675, 0.325]},
    ]
    assert result["accuracy_subjects"] == pytest.approx(2 / 3)
    assert result["accuracy_images"] == 3 / 6
    assert result["num_samples"] == 3


def test_a_subject_has_the_class_of_most_of_its_images():
    result = scored(certain([1, 1, 1], 2), [1, 0, 1], ["a", "a", "a"])
    assert (result["samples"][0]["target"], result["accuracy_subjects"]) == (1, 1.0)


def test_a_test_set_of_one_class():
    """Where the class is the site, each site's own test set is one: wrong guesses are no further class of it."""
    result = scored(certain([0, 0, 1, 2], 3), [0, 0, 0, 0])
    assert result["accuracy"] == result["accuracy_images"] == 0.5
    assert result["recall_per_class"] == [0.5, None, None]
    assert result["auroc"] is None
    assert result["f1"] == pytest.approx((2 * 2 / (4 + 2) + 0 + 0) / 3)


def test_a_class_that_is_absent_does_not_count():
    probabilities, targets = drawn(40, 2, 0)
    absent = np.concatenate([probabilities, np.zeros((40, 1))], axis=1).tolist()
    two, three = scored(probabilities.tolist(), targets.tolist()), scored(absent, targets.tolist())
    assert three["recall_per_class"] == [*two["recall_per_class"], None]
    for name in NAMES:
        assert three[name] == pytest.approx(two[name]), name


def test_perfect_and_a_single_image():
    assert {scored(certain([0, 1, 2], 3), [0, 1, 2])[name] for name in NAMES} == {1.0}
    alone = scored([[0.3, 0.7]], [1])
    assert alone["ci95"] == {name: {"t": None, "bootstrap": None} for name in ("accuracy_images", "accuracy_subjects")}


@pytest.mark.parametrize("targets", [[0, 1, 1, 1], [1, 1, 1, 1]])
def test_json_holds_it_and_names_its_metrics(targets):
    result = scored(certain([0, 0, 1, 1], 3), targets, ["a", "b", "b", "b"])
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert task_of(result) == "classification"
    assert set(NAMES) <= result.keys()


def test_neither_batches_nor_their_order_matter():
    probabilities, targets = drawn(30, 3, 5)
    subjects = [f"s{i % 7}" for i in range(30)]
    whole = scored(probabilities.tolist(), targets.tolist(), subjects)
    assert scored(probabilities.tolist(), targets.tolist(), subjects, batch=4) == whole
    order = np.random.default_rng(1).permutation(30)
    shuffled = scored(probabilities[order].tolist(), targets[order].tolist(), [subjects[i] for i in order], batch=7)
    for name in NAMES:
        assert shuffled[name] == pytest.approx(whole[name]), name
    assert sorted(shuffled["samples"], key=lambda s: s["subject"]) == whole["samples"]


def test_intervals_are_over_images_and_over_subjects():
    probabilities, targets = drawn(40, 2, 3)
    result = scored(probabilities.tolist(), targets.tolist(), [f"s{i // 4}" for i in range(40)])
    right = (probabilities.argmax(1) == targets).astype(float)
    low, high = result["ci95"]["accuracy_images"]["t"]
    assert high - low == pytest.approx(2 * 2.0227 * right.std(ddof=1) / 40**0.5, rel=1e-4)
    subjects = np.array([sample["right"] for sample in result["samples"]], float)
    low, high = result["ci95"]["accuracy_subjects"]["t"]
    assert high - low == pytest.approx(2 * 2.2622 * subjects.std(ddof=1) / 10**0.5, rel=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probabilities": torch.ones(2, 3) / 3}, r"\(2, 2\) and targets \(2,\), not \(2, 3\)"),
        ({"probabilities": torch.ones(1, 2) / 2}, "2 images"),
        ({"target_ids": torch.zeros(2, 4, 4, dtype=torch.long)}, r"\(2, 4, 4\)"),
        ({"subjects": ["a"]}, "1 images"),
        ({"target_ids": torch.tensor([0, 2])}, r"outside 0 \.\.\. 1"),
        ({"target_ids": torch.tensor([-1, 0])}, "outside"),
    ],
)
def test_a_bad_batch_is_refused_whole(change, message):
    scores = ClassificationScores(2)
    batch = {"probabilities": torch.ones(2, 2) / 2, "target_ids": torch.tensor([0, 1]), "subjects": ["a", "b"]} | change
    with pytest.raises(ValueError, match=message):
        scores.update(**batch)
    with pytest.raises(ValueError, match="empty"):
        scores.compute()

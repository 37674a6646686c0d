"""Scores against brute force in numpy and against torchmetrics."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torchmetrics.segmentation import DiceScore

from relay_core.metrics import SegmentationScores
from relay_core.metrics.segmentation import EMPTY_DISTANCE, hausdorff95


def border(mask: np.ndarray) -> list[tuple[int, int]]:
    height, width = mask.shape

    def inside(y: int, x: int) -> bool:
        return 0 <= y < height and 0 <= x < width and bool(mask[y, x])

    return [
        (y, x)
        for y in range(height)
        for x in range(width)
        if mask[y, x] and not all(inside(*p) for p in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)))
    ]


def brute_hausdorff95(a: np.ndarray, b: np.ndarray, spacing: tuple[float, float]) -> float:
    if not a.any() and not b.any():
        return 0.0
    if not a.any() or not b.any():
        return 100.0
    directed = []
    for here, there in ((border(a), border(b)), (border(b), border(a))):
        nearest = [min(math.hypot((y - v) * spacing[0], (x - u) * spacing[1]) for v, u in there) for y, x in here]
        directed.append(np.percentile(nearest, 95))
    return max(directed)


def brute_dice(prediction: np.ndarray, target: np.ndarray, label: int) -> float:
    a, b = prediction == label, target == label
    return 2 * np.sum(a & b) / (a.sum() + b.sum()) if a.any() or b.any() else 1.0


def blobs(count: int, classes: int = 3, size: int = 12, seed: int = 0) -> torch.Tensor:
    """Random ids in blocks, so that masks have an inside."""
    coarse = torch.randint(0, classes, (count, size // 3, size // 3), generator=torch.Generator().manual_seed(seed))
    return coarse.repeat_interleave(3, dim=1).repeat_interleave(3, dim=2)


def scored(prediction: torch.Tensor, target: torch.Tensor, subjects=None, spacing=None, classes: int = 3) -> dict:
    scores = SegmentationScores(classes)
    names = subjects or [f"s{index}" for index in range(len(target))]
    scores.update(prediction, target, names, spacing or [None] * len(target))
    return scores.compute()


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 2.0), (3.0, 0.7)])
@pytest.mark.parametrize("seed", range(4))
def test_hausdorff95_equals_brute_force(spacing, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.random((9, 14)) < 0.3, rng.random((9, 14)) < 0.6
    assert hausdorff95(a, b, spacing) == pytest.approx(brute_hausdorff95(a, b, spacing))
    assert hausdorff95(a, b, spacing) == hausdorff95(b, a, spacing)
    solid = np.zeros((9, 14), bool)
    solid[1:8, 3:] = True
    assert hausdorff95(solid, a, spacing) == pytest.approx(brute_hausdorff95(solid, a, spacing))
    c, d = (ids.numpy() == 1 for ids in blobs(2, classes=2, size=15, seed=seed))
    assert hausdorff95(c, d, spacing) == pytest.approx(brute_hausdorff95(c, d, spacing))


def test_hausdorff95_of_empty_masks_and_of_a_shift():
    mask, empty = np.zeros((8, 8), bool), np.zeros((8, 8), bool)
    mask[2:4, 2:4] = True
    assert hausdorff95(empty, empty) == 0
    assert hausdorff95(mask, empty) == hausdorff95(empty, mask, (0.1, 0.1)) == EMPTY_DISTANCE == 100
    assert hausdorff95(mask, mask) == 0
    point, other = np.zeros((8, 8), bool), np.zeros((8, 8), bool)
    point[1, 1], other[4, 5] = True, True
    assert hausdorff95(point, other) == 5
    assert hausdorff95(point, other, (2.0, 0.5)) == pytest.approx(math.hypot(6, 2))


def test_all_scores_equal_brute_force():
    prediction, target = blobs(5, seed=1), blobs(5, seed=2)
    steps = [(0.5, 1.5)] * 5
    result = scored(prediction, target, spacing=steps)
    p, t = prediction.numpy(), target.numpy()
    recalls = [np.mean(p[t == label] == label) for label in range(3)]
    assert result["accuracy"] == pytest.approx(np.mean(recalls))
    assert result["dice_per_class"] == pytest.approx([brute_dice(p, t, 1), brute_dice(p, t, 2)])
    assert result["dice"] == pytest.approx(np.mean(result["dice_per_class"]))
    for index, sample in enumerate(result["samples"]):
        assert sample["subject"] == f"s{index}"
        assert sample["dice_per_class"] == pytest.approx([brute_dice(p[index], t[index], label) for label in (1, 2)])
        distances = [brute_hausdorff95(p[index] == label, t[index] == label, (0.5, 1.5)) for label in (1, 2)]
        assert sample["hd95_per_class"] == pytest.approx(distances)
        assert sample["hd95"] == pytest.approx(np.mean(distances))
    assert result["dice_per_sample"] == pytest.approx(np.mean([s["dice"] for s in result["samples"]]))
    assert result["hd95"] == pytest.approx(np.mean([s["hd95"] for s in result["samples"]]))
    assert result["hd95_unit"] == "mm"
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_dice_over_all_pixels_equals_torchmetrics():
    prediction, target = blobs(6, classes=4, seed=3), blobs(6, classes=4, seed=4)
    theirs = DiceScore(4, include_background=False, average="none", aggregation_level="global", input_format="index")
    theirs.update(prediction, target)
    assert scored(prediction, target, classes=4)["dice_per_class"] == pytest.approx(theirs.compute().flatten().tolist())


def test_batches_and_dtypes_do_not_matter():
    prediction, target = blobs(6, seed=5), blobs(6, seed=6)
    parts = SegmentationScores(3)
    for index in range(6):
        chosen = slice(index, index + 1)
        parts.update(prediction[chosen].to(torch.uint8), target[chosen].int(), [f"s{index}"], [None])
    assert parts.compute() == scored(prediction, target)


def test_a_class_in_neither_counts_as_found_in_a_sample_and_not_at_all_over_the_set():
    ids = torch.zeros(2, 6, 6, dtype=torch.long)
    ids[0, 1:4, 1:4] = 1
    result = scored(ids, ids)
    assert [sample["dice_per_class"] for sample in result["samples"]] == [[1.0, 1.0], [1.0, 1.0]]
    assert result["hd95"] == 0
    assert result["dice_per_class"] == [1.0, None]
    assert result["dice"] == 1.0
    nothing = scored(torch.zeros_like(ids), torch.zeros_like(ids))
    assert nothing["dice"] is None
    assert nothing["dice_per_sample"] == 1.0
    assert nothing["accuracy"] == 1.0


def test_a_class_in_one_only():
    target = torch.zeros(1, 6, 6, dtype=torch.long)
    target[0, 1:4, 1:4] = 1
    sample = scored(torch.zeros_like(target), target, spacing=[(0.2, 0.2)])["samples"][0]
    assert sample["dice_per_class"] == [0.0, 1.0]
    assert sample["hd95_per_class"] == [100.0, 0.0]


def test_slices_of_a_subject_are_one_sample():
    prediction, target = blobs(4, seed=7), blobs(4, seed=8)
    prediction[3], target[3] = 0, 0  # a slice without foreground is left out of the distance
    result = scored(prediction, target, ["a", "b", "a", "a"], [(1.0, 2.0)] * 4)
    assert [(s["subject"], s["num_images"]) for s in result["samples"]] == [("a", 3), ("b", 1)]
    stack, first = [0, 2, 3], result["samples"][0]
    p, t = prediction.numpy(), target.numpy()
    for label in (1, 2):
        assert first["dice_per_class"][label - 1] == pytest.approx(brute_dice(p[stack], t[stack], label))
        slices = [brute_hausdorff95(p[i] == label, t[i] == label, (1.0, 2.0)) for i in (0, 2)]
        assert first["hd95_per_class"][label - 1] == pytest.approx(np.mean(slices))


def test_one_image_without_spacing_turns_all_distances_to_pixels():
    prediction, target = blobs(3, seed=9), blobs(3, seed=10)
    mixed = scored(prediction, target, spacing=[(2.0, 2.0), None, (2.0, 2.0)])
    assert mixed == scored(prediction, target)
    assert mixed["hd95_unit"] == "px"
    assert scored(prediction, target, spacing=[(2.0, 2.0)] * 3)["hd95"] == pytest.approx(2 * mixed["hd95"])


def test_a_single_sample_has_no_interval():
    result = scored(blobs(1), blobs(1, seed=1))
    assert result["ci95"]["hd95"] == result["ci95"]["dice_per_sample"] == {"t": None, "bootstrap": None}


def test_intervals_hold_the_mean():
    result = scored(blobs(8, seed=11), blobs(8, seed=12))
    for name in ("dice_per_sample", "hd95"):
        for low, high in result["ci95"][name].values():
            assert low <= result[name] <= high


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pred_ids": torch.zeros(2, 4, 5, dtype=torch.long)}, "must both be"),
        ({"pred_ids": torch.zeros(2, 4, 4)}, "integer"),
        ({"target_ids": torch.full((2, 4, 4), 3)}, r"outside 0 \.\.\. 2"),
        ({"target_ids": torch.full((2, 4, 4), -1)}, "outside"),
        ({"subjects": ["a"]}, "1 subjects"),
        ({"spacing": [None]}, "1 spacings"),
        ({"spacing": [None, (0.0, 1.0)]}, "positive"),
        ({"spacing": [None, (float("nan"), 1.0)]}, "positive"),
    ],
)
def test_a_bad_batch_is_refused_whole(change, message):
    ids = torch.zeros(2, 4, 4, dtype=torch.long)
    scores = SegmentationScores(3)
    batch = {"pred_ids": ids, "target_ids": ids, "subjects": ["a", "b"], "spacing": [None, None]} | change
    with pytest.raises(ValueError, match=message):
        scores.update(**batch)
    with pytest.raises(ValueError, match="empty"):
        scores.compute()


def test_num_classes_counts_the_background():
    with pytest.raises(ValueError, match="background"):
        SegmentationScores(1)

"""Real images, where they lie beside the repository."""

from pathlib import Path

import pytest

from relay_core.config.datasets import FolderKwargs, FundusKwargs
from relay_core.data import load_site, preflight

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data"
pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason="needs the shared folder of real images beside the repository")


def test_optic_disc_and_cup():
    folder = REAL / "fundus_disc_cup" / "Domain1"
    report = preflight("fundus", FundusKwargs(), folder)
    assert report.counts == {"train": 50, "test": 51}
    assert report.duplicates == []
    assert min(report.class_shares["test"]) > 0.1
    data = load_site("fundus", FundusKwargs(), folder=folder, split="train", resolution=32)
    images, labels = data.batch([0, 49])
    assert images.shape == (2, 3, 32, 32)
    assert labels.unique().tolist() == [0, 1, 2]
    grey, (row, column) = images[0].mean(0), (labels[0] == 2).nonzero().float().mean(0).long().tolist()
    assert grey[row, column] > grey[labels[0] == 0].mean(), "the cup is the bright middle"


def test_polyps():
    kwargs = FolderKwargs(num_classes=2, mask_values={0: 0, 255: 1}, task_name="ETIS")
    data = load_site("folder", kwargs, folder=REAL / "polyp" / "ETIS_Larib", split="test", resolution=32)
    assert (len(data), data.site) == (4, "ETIS")
    assert data.batch(range(4))[1].unique().tolist() == [0, 1]


def test_white_blood_cells_by_class():
    kwargs = FolderKwargs(
        task="classification", num_classes=4, class_names=["neutrophil", "lymphocyte", "monocyte", "eosinophil"],
        ignore_classes=["basophil"], split_file="../table.csv", task_name="cellavision",
    )  # fmt: skip
    report = preflight("folder", kwargs, REAL / "wbc" / "cellavision")
    assert sum(report.counts.values()) == 97
    assert all(share > 0 for share in report.class_shares["train"])

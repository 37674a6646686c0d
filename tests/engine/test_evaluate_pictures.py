"""Which test images a picture of predictions shows."""

from __future__ import annotations

import torch

from relay_core.data import load_site
from relay_core.engine.evaluate import prediction_rows
from tests.conftest import Toy


class Nothing(torch.nn.Module):
    """Sees background everywhere."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(images), 3, *images.shape[2:])


def test_the_worst_images_come_first(toy: Toy) -> None:
    site = toy.run().site(1)
    data = load_site(
        site.dataset.name, site.data, folder=site.data_folder(toy.data, toy.folder), split="test", resolution=16
    )
    samples = [
        {"subject": name, "dice": dice} for name, dice in zip(data.subjects, (0.9, 0.2, None, 0.5, 0.95), strict=True)
    ]
    tests, cpu = {"Domain1": data}, torch.device("cpu")
    ((_, images, labels, _),) = prediction_rows(Nothing(), tests, cpu, count=3, scores={"Domain1": {"samples": samples}})
    expected_images, expected_labels = data.batch([2, 1, 3])
    assert torch.equal(images, expected_images)
    assert torch.equal(labels, expected_labels)
    ((_, images, _, _),) = prediction_rows(Nothing(), tests, cpu, count=2)
    assert torch.equal(images, data.batch([0, 1])[0])

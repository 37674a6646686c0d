"""A network at its own resolution gives what the exported graph gives at the image's own size."""

import numpy as np
import pytest
import torch

from relay_core.imaging import shrink
from relay_core.inference.resolution import at_resolution
from relay_core.inference.served import ServedSolver, resize


def solver():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Tanh(), torch.nn.Conv2d(8, 4, 3, padding=1))


@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
@pytest.mark.parametrize("size", [(512, 512), (20, 24), (32, 32), (31, 200), (1, 7), (333, 12)])
def test_masks_and_confidence_are_those_of_the_whole_graph(size, fit):
    network = ServedSolver(solver(), 32, (-1, 1), fit=fit).eval()
    images = np.random.default_rng(1).random((3, 3, *size)).astype(np.float32)

    def run(batch, outputs):
        assert batch.shape[2:] == (32, 32)
        with torch.no_grad():
            logits, _, _, _, looks = network(torch.from_numpy(batch))
        return [{"logits": logits.numpy(), "looks": looks.numpy()}[name] for name in outputs]

    with torch.no_grad():
        _, probabilities, confidence, mask, looks = (out.numpy() for out in network(torch.from_numpy(images)))
    found = dict(
        zip(
            ("looks", "mask", "confidence"),
            at_resolution(run, 32, fit)(images, ("looks", "mask", "confidence")),
            strict=True,
        )
    )
    np.testing.assert_allclose(found["confidence"], confidence, atol=1e-5)
    np.testing.assert_allclose(found["looks"], looks, atol=1e-5)
    two = np.sort(probabilities, axis=1)[:, -2:]
    clear = two[:, 1] - two[:, 0] > 1e-5
    assert clear.mean() > (0.99 if fit != "crop" else 0.99 * min(size) / max(size))  # beyond the square all are alike
    assert (found["mask"] == mask)[clear].all()
    np.testing.assert_allclose(shrink(images, 32, fit), resize(torch.from_numpy(images), 32, fit).numpy(), atol=1e-5)


def test_a_wide_slice_of_many_classes_is_decided_in_blocks(monkeypatch):
    from relay_core.inference import resolution

    logits = np.random.default_rng(2).normal(size=(2, 5, 8, 8)).astype(np.float32)
    run = at_resolution(lambda images, outputs: [logits], 8)
    images = np.zeros((2, 1, 40, 50), np.float32)
    whole = run(images, ("mask", "confidence"))
    monkeypatch.setattr(resolution, "_VALUES", 1)
    in_blocks = run(images, ("mask", "confidence"))
    np.testing.assert_array_equal(in_blocks[0], whole[0])
    np.testing.assert_allclose(in_blocks[1], whole[1], atol=1e-6)  # vectors of another length round otherwise


def test_a_classifier_is_passed_on():
    def run(images, outputs):
        assert (images.shape, outputs) == ((2, 1, 8, 8), ("probabilities", "looks"))
        return [1, 2]

    assert at_resolution(run, 8)(np.zeros((2, 1, 40, 50), np.float32), ("probabilities", "looks")) == [1, 2]

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from relay_core.config.datasets import FolderKwargs, FundusKwargs
from relay_core.data import load_site, pairs, site
from relay_core.errors import DataError
from tests.data.conftest import save

BINARY = {"num_classes": 2, "mask_values": {0: 0, 255: 1}}


def test_batches_have_shape_type_and_range(fundus):
    data = load_site("fundus", FundusKwargs(out_range=(0, 1), img_channels=1), folder=fundus, split="train", resolution=8)
    images, labels = data.batch(torch.tensor([1, 0, 1]))
    assert (images.shape, images.dtype) == ((3, 1, 8, 8), torch.float32)
    assert (labels.shape, labels.dtype) == ((3, 8, 8), torch.int64)
    assert 0 <= images.min() < images.max() <= 1
    assert (images[0] == images[2]).all()
    again, _ = data.batch([1, 0, 1])
    assert (again == images).all(), "a batch must not touch what is stored"
    assert data.batch([])[0].shape == (0, 1, 8, 8)
    for wrong in ([2], [-1]):
        with pytest.raises(IndexError):
            data.batch(wrong)


def test_values_reach_out_range_exactly(tmp_path):
    for name, value in (("a", 0), ("b", 255)):
        save(tmp_path / "image" / f"{name}.png", np.full((9, 9), value, np.uint8))
        save(tmp_path / "mask" / f"{name}.png", np.zeros((9, 9), np.uint8))
    data = load_site("folder", FolderKwargs(test_share=0), folder=tmp_path, split="train", resolution=5)
    images, _ = data.batch([0, 1])
    assert (images[0] == -1).all()
    assert (images[1] == 1).all()


def test_img_size_goes_before_the_models_resolution(fundus):
    data = load_site("fundus", FundusKwargs(img_size=6), folder=fundus, split="test", resolution=8)
    assert data.size == 6
    assert data.batch([0])[0].shape == (1, 3, 6, 6)


def test_in_memory_equals_lazy(polyps, monkeypatch):
    sitk.WriteImage(sitk.GetImageFromArray(np.random.default_rng(0).normal(size=(12, 12))), str(polyps / "image/p9.nii"))
    save(polyps / "mask" / "p9.png", np.zeros((12, 12), np.uint8))
    kwargs = FolderKwargs(**BINARY, test_share=0)
    kept = load_site("folder", kwargs, folder=polyps, split="train", resolution=8)
    monkeypatch.setattr(site, "IN_MEMORY_BYTES", 1000)
    lazy = load_site("folder", kwargs, folder=polyps, split="train", resolution=8)
    assert (kept.in_memory, lazy.in_memory) == (True, False)
    index = [3, 10, 0, 3]
    for one, other in zip(kept.batch(index), lazy.batch(index), strict=True):
        assert torch.equal(one, other)
    assert lazy.batch([])[1].shape == (0, 8, 8)
    (polyps / "image" / "p0_0.png").unlink()
    with pytest.raises(DataError, match=r"image/p0_0.png: is missing"):
        lazy.batch([0])


def test_spacing_and_original_size_of_a_resized_slice(tmp_path):
    for kind, value in (("image", 7), ("mask", 1)):
        (tmp_path / kind).mkdir()
        array = np.zeros((1, 12, 24), np.int16)
        array[0, :6] = value
        slice_ = sitk.GetImageFromArray(array)
        slice_.SetSpacing((0.5, 0.8, 3.0))
        sitk.WriteImage(slice_, str(tmp_path / kind / "s.nii.gz"))
    kwargs = FolderKwargs(test_share=0, num_classes=2, img_channels=1)
    data = load_site("folder", kwargs, folder=tmp_path, split="train", resolution=8)
    assert data.names == ["s"]
    assert data.spacing[0] == pytest.approx((0.8 * 12 / 8, 0.5 * 24 / 8))
    original = data.originals[0]
    assert (original.height, original.width, original.image) == (12, 24, tmp_path / "image" / "s.nii.gz")
    assert original.spacing == pytest.approx((0.8, 0.5))
    images, labels = data.batch([0])
    assert (labels[0] == (torch.arange(8) < 4).long()[:, None]).all()
    assert (images[0, 0, 0, 0], images[0, 0, 7, 7]) == (1, -1)


@pytest.mark.parametrize(("fit", "step"), [("pad", 3), ("crop", 1.5)])
def test_a_slice_that_keeps_its_aspect_ratio_has_the_same_scale_both_ways(tmp_path, fit, step):
    for kind, value in (("image", 200), ("mask", 1)):
        (tmp_path / kind).mkdir()
        array = np.full((1, 12, 24), value, np.uint8)
        array[..., :12] = 0
        sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / kind / "s.nii.gz"))  # pixels of 1 mm
    kwargs = FolderKwargs(test_share=0, num_classes=2, img_channels=1, fit=fit)
    data = load_site("folder", kwargs, folder=tmp_path, split="train", resolution=8)
    images, labels = data.batch([0])
    assert data.spacing[0] == pytest.approx((step, step))
    right, rows = torch.arange(8) >= 4, torch.arange(8)
    within = (rows >= 2) & (rows < 6) if fit == "pad" else rows >= 0
    assert torch.equal(labels[0].bool(), within[:, None] & right)
    assert (images[0, 0][~within] == -1).all()  # black
    assert (images[0, 0][within][:, 5:] > 0.4).all()


def test_unknown_spacing_is_none(fundus):
    assert load_site("fundus", FundusKwargs(), folder=fundus, split="train", resolution=8).spacing == [None, None]


def test_images_are_antialiased_and_masks_are_not(tmp_path):
    checks = (np.indices((32, 32)).sum(0) % 2 * 255).astype(np.uint8)
    save(tmp_path / "image" / "a.png", checks)
    save(tmp_path / "mask" / "a.png", checks)
    data = load_site("folder", FolderKwargs(**BINARY, test_share=0), folder=tmp_path, split="train", resolution=8)
    images, labels = data.batch([0])
    assert images.abs().max() < 0.1, "a fine checkerboard is grey from afar"
    assert set(labels.unique().tolist()) <= {0, 1}


def test_replicas_do_not_change_the_length(fundus):
    data = load_site("fundus", FundusKwargs(num_replica=5), folder=fundus, split="train", resolution=8)
    assert (data.replicas, len(data)) == (5, 2)


def test_a_file_in_the_data_is_decoded_once_on_loading(fundus, monkeypatch):
    seen = []
    read = pairs.read_image
    monkeypatch.setattr(pairs, "read_image", lambda path, channels: (seen.append(path.name), read(path, channels))[1])
    data = load_site("fundus", FundusKwargs(), folder=fundus, split="train", resolution=8)
    data.batch([0, 1])
    assert sorted(seen) == ["a.png", "b.png"]

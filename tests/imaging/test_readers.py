from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from relay_core.errors import DataError
from relay_core.imaging import read_image, read_mask, write_mask

RAMP = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
COLOUR = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def write_nifti(path: Path, array: np.ndarray, spacing: tuple[float, ...]) -> Path:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    sitk.WriteImage(image, str(path))
    return path


def reason(path: Path, read=read_image) -> str:
    with pytest.raises(DataError) as caught:
        read(path)
    (problem,) = caught.value.problems
    assert problem.file == path.name
    return problem.message


@pytest.mark.parametrize("name", ["a.png", "a.tif", "A.PNG"])
def test_colour_stays_8_bit_and_moves_channels_first(tmp_path, name):
    Image.fromarray(COLOUR).save(tmp_path / name)
    pixels, spacing = read_image(tmp_path / name)
    assert pixels.dtype == np.uint8
    assert spacing is None
    assert (pixels == COLOUR.transpose(2, 0, 1)).all()


@pytest.mark.parametrize(("mode", "suffix"), [("RGBA", "png"), ("P", "png"), ("LA", "png"), ("L", "jpg"), ("1", "png")])
def test_every_mode_gives_the_channels_asked_for(tmp_path, mode, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(COLOUR).convert(mode).save(path)
    assert read_image(path, 3)[0].shape == (3, 32, 32)
    assert read_image(path, 1)[0].shape == (1, 32, 32)
    assert read_image(path, 1)[0].dtype == np.uint8


def test_transparency_is_dropped(tmp_path):
    rgba = np.dstack([COLOUR, np.zeros((32, 32), dtype=np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png")[0] == COLOUR.transpose(2, 0, 1)).all()


def test_16_bit_is_scaled_by_the_full_range(tmp_path):
    grey = np.array([[0, 65535], [32768, 256]], dtype=np.uint16)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    sitk.WriteImage(sitk.GetImageFromArray(np.dstack([grey] * 3), isVector=True), str(tmp_path / "rgb.png"))
    for name in ("grey.png", "rgb.png"):
        pixels, _ = read_image(tmp_path / name)
        assert pixels.dtype == np.float32
        np.testing.assert_allclose(pixels, np.stack([grey / 65535] * 3), rtol=1e-6)


def test_nifti_slice_uses_its_own_range_and_has_spacing(tmp_path):
    values = np.linspace(-1000, 400, 20, dtype=np.float32).reshape(1, 4, 5)
    pixels, spacing = read_image(write_nifti(tmp_path / "a.nii.gz", values, (0.5, 0.75, 3.0)), 1)
    assert spacing == pytest.approx((0.75, 0.5))
    np.testing.assert_allclose(pixels, (values + 1000) / 1400, atol=1e-6)


def test_nifti_slice_along_another_axis(tmp_path):
    pixels, spacing = read_image(write_nifti(tmp_path / "a.nii", np.ones((4, 1, 5), np.int16), (0.5, 9.0, 2.0)), 1)
    assert pixels.shape == (1, 4, 5)
    assert not pixels.any(), "a constant slice is 0"
    assert spacing == pytest.approx((2.0, 0.5))


def test_nifti_volume_is_refused(tmp_path):
    path = write_nifti(tmp_path / "a.nii", np.zeros((3, 4, 5), np.int16), (1.0, 1.0, 1.0))
    assert reason(path).startswith("is a volume of 5 x 4 x 3; give 2-D slices, one a file")


def test_values_that_are_not_finite(tmp_path):
    values = np.array([[0, np.nan, 2]], np.float32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert "not finite" in reason(tmp_path / "a.tif")
    assert "not finite" in reason(write_nifti(tmp_path / "a.nii", values, (1.0, 1.0)))


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.nii", "a.nii.gz"])
@pytest.mark.parametrize("keep", [0, 5, 0.5, 0.9])
def test_a_truncated_file_is_refused_without_noise(tmp_path, capfd, name, keep):
    path = tmp_path / name
    if ".nii" in name:
        write_nifti(path, COLOUR[..., 0].astype(np.float32), (1.0, 1.0))
    else:
        Image.fromarray(COLOUR).save(path)
    raw = path.read_bytes()
    path.write_bytes(raw[: keep if isinstance(keep, int) else int(len(raw) * keep)])
    assert any(words in reason(path) for words in ("truncated or damaged", "header is damaged"))
    assert capfd.readouterr() == ("", "")


def test_missing_and_unsupported_files(tmp_path):
    assert reason(tmp_path / "a.png") == "is missing"
    (tmp_path / "a.bmp").write_bytes(b"BM")
    assert "unsupported type" in reason(tmp_path / "a.bmp")


def test_pages_are_refused(tmp_path):
    first = Image.fromarray(RAMP)
    first.save(tmp_path / "a.tif", save_all=True, append_images=[first])
    assert reason(tmp_path / "a.tif") == "has 2 pages; give 2-D images, one a file"


def test_mask_values_stand_as_in_the_file(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "grey.png")
    Image.fromarray(np.dstack([RAMP] * 3)).save(tmp_path / "rgb.png")
    Image.fromarray(RAMP.astype(np.uint16) * 200).save(tmp_path / "deep.png")
    Image.fromarray(RAMP > 100).save(tmp_path / "bilevel.png")
    assert (read_mask(tmp_path / "grey.png") == RAMP).all()
    assert (read_mask(tmp_path / "rgb.png") == RAMP).all()
    assert (read_mask(tmp_path / "deep.png") == RAMP.astype(int) * 200).all()
    assert (read_mask(tmp_path / "bilevel.png") == (RAMP > 100) * 255).all()


def test_colour_and_fractional_masks_are_refused(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    assert "three equal channels" in reason(tmp_path / "a.png", read_mask)
    write_nifti(tmp_path / "a.nii", np.array([[0.0, 0.5]], np.float32), (1.0, 1.0))
    assert "not whole numbers" in reason(tmp_path / "a.nii", read_mask)


@pytest.mark.parametrize("name", ["a.png", "a.nii.gz"])
@pytest.mark.parametrize("top", [2, 300])
def test_a_written_mask_reads_back(tmp_path, name, top):
    mask = np.array([[0, 1, top], [top, 0, 0]])
    write_mask(tmp_path / name, mask, (0.5, 0.25))
    assert (read_mask(tmp_path / name) == mask).all()
    if name != "a.png":
        assert read_image(tmp_path / name)[1] == pytest.approx((0.5, 0.25))


def test_a_written_mask_takes_over_position_and_orientation(tmp_path):
    image = sitk.GetImageFromArray(np.zeros((1, 2, 3), np.int16))
    image.SetOrigin((10.0, -20.0, 5.0))
    image.SetSpacing((0.5, 0.25, 3.0))
    image.SetDirection((0, 1, 0, -1, 0, 0, 0, 0, 1))
    sitk.WriteImage(image, str(tmp_path / "image.nii"))
    assert read_image(tmp_path / "image.nii")[0].shape == (3, 3, 2), "turned to LPS"
    with pytest.raises(ValueError, match="does not fit"):
        write_mask(tmp_path / "mask.nii", np.ones((2, 3), int), like=tmp_path / "image.nii")
    write_mask(tmp_path / "mask.nii", np.ones((3, 2), int), like=tmp_path / "image.nii")
    mask, image = (sitk.ReadImage(str(tmp_path / n)) for n in ("mask.nii", "image.nii"))
    assert (mask.GetSize(), mask.GetOrigin(), mask.GetDirection(), mask.GetSpacing()) == (
        image.GetSize(), image.GetOrigin(), image.GetDirection(), image.GetSpacing(),
    )  # fmt: skip


def test_masks_that_cannot_be_written(tmp_path):
    for name, values in [("a.jpg", [[0]]), ("a.png", [[-1]]), ("a.png", [[70000]]), ("a.png", [0])]:
        with pytest.raises(DataError):
            write_mask(tmp_path / name, np.array(values))
    assert not list(tmp_path.iterdir())

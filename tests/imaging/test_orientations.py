"""A mask lies at the same place in the patient, however its file stores the voxels; a picture is the same picture."""

import gzip
import io
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import tifffile
from nibabel import orientations
from PIL import Image

from relay_core.errors import DataError, ImageError
from relay_core.imaging import masks, read_image, read_mask, read_study
from relay_core.imaging.pictures import read_picture
from relay_core.inference.prediction import predict
from tests.imaging import dicoms

SHAPE, SIZES = (6, 8, 10), (2.5, 0.75, 0.5)
"""Of the phantom in LPS: slices, rows, columns; and their millimetres."""
NAMES = ("background", "dark", "bright")


def phantom():
    """(S, H, W) in LPS, like none of its mirror images."""
    random = np.random.default_rng(0)
    return (np.arange(np.prod(SHAPE)).reshape(SHAPE) + random.integers(0, 40, SHAPE)).astype(np.int16)


def network(images, outputs):
    """A segmenter that would notice an image that is turned: its threshold rises along rows and columns."""
    _, channels, height, width = images.shape
    ramp = np.arange(width) / width * 0.3 + np.arange(height)[:, None] / height * 0.2
    ids = (images.mean(axis=1) > 0.3 + ramp).astype(np.uint8) + (images.mean(axis=1) > 0.5 + ramp)
    made = {"mask": ids.astype(np.uint8), "confidence": np.ones(ids.shape, np.float32),
            "looks": np.zeros((len(images), channels * 3), np.float32)}  # fmt: skip
    return [made[name] for name in outputs]


def predicted(content, channels=1):
    study = read_study(content, channels)
    return study, predict(study, network, NAMES, {}).ids


def stored(values, axes, flips):
    """The phantom's NIfTI image with its axes permuted and flipped, and its affine with them."""
    standing = values.transpose(2, 1, 0)  # x, y, z in LPS
    affine = np.diag([-SIZES[2], -SIZES[1], SIZES[0], 1.0])
    affine[:3, 3] = (11.0, -7.0, 3.0)
    turn = np.array([[axes.index(i), flips[axes.index(i)]] for i in range(3)], dtype=float)
    return nib.Nifti1Image(
        np.ascontiguousarray(orientations.apply_orientation(standing, turn)),
        affine @ orientations.inv_ornt_aff(turn, standing.shape),
    )


ORDERS = [(axes, flips) for axes in permutations(range(3)) for flips in product((1, -1), repeat=3)]


def test_there_are_48_storage_orders():
    assert len(ORDERS) == 48


@pytest.mark.parametrize(("axes", "flips"), ORDERS)
def test_a_nifti_volume_has_one_mask_in_every_storage_order(axes, flips):
    _, expected = predicted(nib.Nifti1Image(phantom().transpose(2, 1, 0), np.diag([-0.5, -0.75, 2.5, 1])).to_bytes())
    image = stored(phantom(), axes, flips)
    for kind in (nib.Nifti1Image, nib.Nifti2Image):
        study, ids = predicted(kind(image.dataobj, image.affine).to_bytes())
        assert (study.pixels[:, 0] == phantom()).all()
        assert study.spacing == pytest.approx(SIZES)
        assert (ids == expected).all()
        back = nib.Nifti1Image.from_bytes(gzip.decompress(masks.to_nifti(study, ids))) if kind is nib.Nifti1Image else None
        if back is not None:
            np.testing.assert_allclose(back.affine, image.affine, atol=1e-5)
            canonical = nib.as_closest_canonical(back)  # RAS: an independent way to one orientation
            assert (np.asarray(canonical.dataobj)[::-1, ::-1].transpose(2, 1, 0) == expected).all()


def slices_of(axes, flips):
    """DICOM slices of the phantom, stacked along any axis, rows and columns along the others, each in either direction."""
    s, h, w = (axes.index(i) for i in range(3))  # the LPS axis (S, H, W) that is stacked, that rows and columns run along
    order = [s, h, w]
    values = phantom().transpose(order)
    directions = np.array([[0, 0, 1.0], [0, 1.0, 0], [1.0, 0, 0]])[order]  # x, y, z of S, H, W
    sizes = np.array(SIZES)[order]
    origin = np.zeros(3)
    for axis, flip in enumerate(flips):
        if flip < 0:
            values = np.flip(values, axis)
            origin = origin + directions[axis] * sizes[axis] * (values.shape[axis] - 1)
            directions[axis] = -directions[axis]
    return values, origin, directions, sizes


@pytest.mark.parametrize(("axes", "flips"), ORDERS)
def test_a_dicom_series_has_one_mask_in_every_storage_order(axes, flips):
    _, expected = predicted(nib.Nifti1Image(phantom().transpose(2, 1, 0), np.diag([-0.5, -0.75, 2.5, 1])).to_bytes())
    values, origin, directions, sizes = slices_of(axes, flips)
    orientation = [*directions[2], *directions[1]]  # along a row, along a column
    files = [
        dicoms.one(np.ascontiguousarray(slice_), origin + directions[0] * sizes[0] * i, orientation, i + 1,
                   PixelSpacing=[float(sizes[1]), float(sizes[2])])
        for i, slice_ in enumerate(values)
    ]  # fmt: skip
    shuffled = [files[i] for i in np.random.default_rng(1).permutation(len(files))]
    study, ids = predicted(dicoms.packed(shuffled))
    assert (study.pixels[:, 0] == phantom()).all()
    assert study.spacing == pytest.approx(SIZES)
    assert (ids == expected).all()
    back = nib.as_closest_canonical(nib.Nifti1Image.from_bytes(gzip.decompress(masks.to_nifti(study, ids))))
    assert (np.asarray(back.dataobj)[::-1, ::-1].transpose(2, 1, 0) == expected).all()
    in_frames = study.in_frame_order(ids)
    for header, mask in zip(study.sources, in_frames, strict=True):  # each source's mask lies on its own pixels
        i = next(
            k for k, file in enumerate(files) if pydicom.dcmread(io.BytesIO(file)).SOPInstanceUID == header.SOPInstanceUID
        )
        assert mask.shape == values[i].shape


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [0, 3, 1, 4, 2, 5]])
def test_an_enhanced_file_has_one_mask_in_every_order_of_its_frames(order):
    values = phantom().astype(np.uint16)
    study, expected = predicted(dicoms.enhanced(values))
    turned, ids = predicted(dicoms.enhanced(values[order], at=[2.5 * i for i in order]))
    assert (turned.pixels == study.pixels).all()
    assert (ids == expected).all()
    assert (turned.in_frame_order(ids) == expected[order]).all()


def encodings(folder: Path):
    """One picture in every encoding that is claimed to be read, and how far its values may be off."""
    grey = (np.add.outer(np.arange(24) * 4, np.arange(32) * 5)).astype(np.uint8)
    image, deep = Image.fromarray(grey), Image.fromarray(grey.astype(np.uint16) * 257)
    save = {
        "a.png": (image, {}), "b.png": (deep, {}), "c.png": (image.convert("LA"), {}), "d.png": (image.convert("RGB"), {}),
        "e.png": (image.convert("RGBA"), {}), "f.png": (image.convert("P"), {}), "g.tif": (image, {}), "h.tif": (deep, {}),
        "i.tif": (image, {"compression": "tiff_lzw"}), "j.tif": (image, {"compression": "tiff_adobe_deflate"}),
        "l.tif": (image, {"big_tiff": True}),
        "m.jpg": (image, {"quality": 100}), "n.jpg": (image.convert("RGB"), {"quality": 100, "subsampling": 0}),
        "o.tif": (Image.fromarray((grey / 255).astype(np.float32)), {}),
    }  # fmt: skip
    for name, (picture, options) in save.items():
        picture.save(folder / name, **options)
        yield folder / name, grey / 255, 0.02 if name.endswith("jpg") else 1e-6


def test_one_picture_in_every_encoding_gives_the_same_values(tmp_path):
    for path, expected, tolerance in encodings(tmp_path):
        pixels, _ = read_image(path, 1)
        shown = pixels / 255 if pixels.dtype == np.uint8 else pixels
        if path.name == "o.tif":  # floating point: from its smallest to its largest value
            low, high = expected.min(), expected.max()
        else:
            low, high = 0.0, 1.0
        assert np.abs(shown[0] - (expected - low) / (high - low)).max() <= tolerance, path.name
        study = read_study(path.read_bytes(), 1)
        np.testing.assert_allclose(study.batch(0, 1)[0], shown, atol=1e-6, err_msg=path.name)


@pytest.mark.parametrize("suffix", ["jpg", "tif", "png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_upright_whatever_its_orientation_says(tmp_path, suffix, orientation):
    upright = np.add.outer(np.arange(24) * 4, np.arange(32) * 3).astype(np.uint8)
    turn = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: np.transpose,
            6: lambda a: np.rot90(a, 1), 7: lambda a: np.rot90(a, 2).T, 8: lambda a: np.rot90(a, -1)}  # fmt: skip
    kinds = [np.uint8] if suffix == "jpg" else [np.uint8, np.uint16]
    for kind in kinds:
        image = Image.fromarray(
            np.ascontiguousarray(turn[orientation](upright.astype(kind) * (257 if kind is np.uint16 else 1)))
        )
        exif = Image.Exif()
        exif[274] = orientation
        path = tmp_path / f"a.{suffix}"
        image.save(path, exif=exif, **({"quality": 100} if suffix == "jpg" else {}))
        pixels, _ = read_image(path, 1)
        shown = pixels[0] if kind is np.uint8 else np.rint(pixels[0] * 255)
        assert shown.shape == upright.shape
        assert np.abs(shown.astype(int) - upright).max() <= (3 if suffix == "jpg" else 0)


def test_white_is_zero_at_every_depth(tmp_path):
    values = np.arange(64).reshape(8, 8)
    for kind, top in ((np.uint8, 255), (np.uint16, 65535)):
        scale = top // 255
        tifffile.imwrite(tmp_path / "a.tif", (top - values * scale).astype(kind), photometric="miniswhite")
        assert (read_picture(tmp_path / "a.tif").values == values * scale).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda h: (h.set_sform(np.diag([-1, -1, 1, 1.0]), 2), h.set_qform(np.eye(4), 1)), "contradicts itself"),
        (lambda h: h.set_sform(np.array([[1, 0.3, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), 1), "right angles"),
        (lambda h: h.set_sform(np.diag([0, 1, 1, 1.0]), 1), "no place"),
    ],
)  # fmt: skip
def test_a_geometry_that_is_none_is_refused_with_its_reason(change, words):
    image = nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.eye(4))
    change(image.header)
    with pytest.raises(ImageError, match=words):
        read_study(nib.Nifti1Image(image.dataobj, None, image.header).to_bytes(), 1)


def test_both_forms_of_a_registered_image_go_into_its_mask():
    image = nib.Nifti1Image(phantom().transpose(2, 1, 0), np.diag([-0.5, -0.75, 2.5, 1]))
    angle = np.deg2rad(10)
    turned = np.eye(4)
    turned[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    image.header.set_sform(turned @ image.affine, 2)
    image.header.set_qform(image.affine, 1)
    study, ids = predicted(nib.Nifti1Image(image.dataobj, None, image.header).to_bytes())
    back = nib.Nifti1Image.from_bytes(gzip.decompress(masks.to_nifti(study, ids))).header
    for name in ("get_sform", "get_qform"):
        np.testing.assert_allclose(getattr(back, name)(), getattr(image.header, name)(), atol=1e-5)
    assert (int(back["sform_code"]), int(back["qform_code"])) == (2, 1)


def test_lengths_in_other_units_are_millimetres():
    image = nib.Nifti1Image(phantom().transpose(2, 1, 0), np.diag([-0.0005, -0.00075, 0.0025, 1]))
    image.header.set_xyzt_units("meter")
    assert read_study(image.to_bytes(), 1).spacing == pytest.approx(SIZES)


def flat(folder, name, values, affine):
    nib.save(nib.Nifti1Image(values[..., None], affine), folder / name)
    return folder / name


def test_a_mask_must_lie_on_the_grid_of_its_image(tmp_path):
    values = np.arange(48, dtype=np.int16).reshape(8, 6)
    ras, lps = np.diag([0.5, 0.75, 2, 1]), np.diag([-0.5, -0.75, 2, 1])
    moved = lps.copy()
    moved[:2, 3] = (3.5, 3.75)
    image = flat(tmp_path, "image.nii.gz", values, ras)
    same = flat(tmp_path, "same.nii.gz", values[::-1, ::-1], moved)
    assert (read_mask(same, image) == read_mask(image, image)).all(), "stored the other way round, and turned"
    unplaced = nib.Nifti1Image(values[..., None], None)
    unplaced.header["sform_code"] = unplaced.header["qform_code"] = 0
    nib.save(unplaced, tmp_path / "unplaced.nii.gz")
    assert (read_mask(tmp_path / "unplaced.nii.gz", image) == read_mask(image, image)).all(), "stored as its image is"
    for name, affine, words in (
        ("mirrored.nii.gz", lps, "mm beside its image"), ("coarse.nii.gz", np.diag([1, 1, 2, 1]), "has voxels of"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=words):
            read_mask(flat(tmp_path, name, values, affine), image)

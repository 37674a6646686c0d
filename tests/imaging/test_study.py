"""What a clinician's system sends, and what becomes of it."""

import gzip
import io
import struct
import zipfile
import zlib

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from PIL import Image

from relay_core.errors import ImageError
from relay_core.imaging.dicom_pixels import coded_size
from relay_core.imaging.limits import MAX_PIXELS
from relay_core.imaging.readers import read_image
from relay_core.imaging.study import read_study
from tests.imaging import dicoms
from tests.reference import FOLDER

GREY = (np.arange(30 * 20) % 251).astype(np.uint8).reshape(20, 30)
COLOUR = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
VOLUME = np.random.default_rng(1).integers(-200, 800, (5, 12, 16)).astype(np.int16)
SHARED = FOLDER.parent
real = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real images of ../shared")


def png(values, **options):
    content = io.BytesIO()
    Image.fromarray(values).save(content, format="PNG", **options)
    return content.getvalue()


def nifti(values, tmp_path, name="a.nii.gz", spacing=(0.5, 0.75, 2.0), direction=None):
    image = sitk.GetImageFromArray(values, isVector=False)
    image.SetSpacing(spacing[: values.ndim])
    if direction:
        image.SetDirection(direction)
    sitk.WriteImage(image, str(tmp_path / name))
    return (tmp_path / name).read_bytes()


def refused(content, *words, channels=3, window=None):
    with pytest.raises(ImageError) as caught:
        read_study(content, channels, window)
    for word in words:
        assert word in str(caught.value)
    assert "MUSTERMANN" not in str(caught.value)
    assert "4711" not in str(caught.value)
    return True


def saved(dataset):
    content = io.BytesIO()
    dataset.save_as(content)
    return content.getvalue()


def lies(study):
    """Size, spacing, direction and origin of a study's voxels, as SimpleITK names them."""
    affine = study.grid.affine
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    return study.grid.shape[::-1], sizes, (affine[:3, :3] / sizes).ravel(), affine[:3, 3]


def spread(values):
    low, high = float(values.min()), float(values.max())
    return (values.astype(float) - low) / (high - low)


def test_pictures_come_as_they_came_in_training():
    for content in (png(COLOUR), png(COLOUR, optimize=True)):
        study = read_study(content, 3)
        assert (study.kind, study.volume, study.spacing, len(study)) == ("picture", False, None, 1)
        np.testing.assert_allclose(study.batch(0, 1)[0], COLOUR.transpose(2, 0, 1) / 255, atol=1e-7)
    assert (read_study(png(GREY), 3).pixels == GREY).all()
    assert read_study(png(GREY), 1).pixels.shape == (1, 1, 20, 30)
    assert read_study(png(np.repeat(GREY[..., None], 3, axis=2)), 1).pixels.shape == (1, 1, 20, 30)
    deep = read_study(png(GREY.astype(np.uint16) * 257), 1).batch(0, 1)[0, 0]
    np.testing.assert_allclose(deep, GREY / 255, atol=1e-6)
    for kind in ("JPEG", "TIFF"):
        content = io.BytesIO()
        Image.fromarray(GREY).save(content, format=kind, quality=100)
        assert np.abs(read_study(content.getvalue(), 1).pixels[0, 0].astype(int) - GREY).max() <= (
            3 if kind == "JPEG" else 0
        )


def test_a_nifti_volume_comes_slice_by_slice_with_its_geometry(tmp_path):
    oblique = (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0)
    study = read_study(nifti(VOLUME, tmp_path, direction=oblique), 1)
    assert (study.kind, study.volume, study.spacing, len(study)) == ("nifti", True, pytest.approx((2.0, 0.75, 0.5)), 5)
    np.testing.assert_allclose(study.batch(1, 3)[:, 0], [spread(VOLUME[1]), spread(VOLUME[2])], atol=1e-6)
    np.testing.assert_allclose(lies(study)[2], oblique, atol=1e-6)
    flat = read_study(nifti(VOLUME[0], tmp_path, "b.nii"), 3)
    assert (flat.volume, flat.spacing, flat.pixels.shape) == (False, (None, 0.75, 0.5), (1, 3, 12, 16))
    single = read_study(nifti(VOLUME[:1], tmp_path), 1)
    assert (single.volume, single.spacing) == (False, (None, 0.75, 0.5))


def test_a_dicom_slice_comes_by_its_window():
    values = np.array([[0, 100], [200, 1000]], np.int16)
    study = read_study(dicoms.one(values, RescaleSlope=2, RescaleIntercept=-100, WindowCenter=100.5, WindowWidth=201), 1)
    np.testing.assert_allclose(study.batch(0, 1)[0, 0], [[0.0, 0.5], [1.0, 1.0]], atol=1e-6)
    assert (study.spacing, study.volume) == ((2.0, 0.75, 0.5), False)
    plain = read_study(dicoms.one(values), 1).batch(0, 1)[0, 0]
    np.testing.assert_allclose(plain, spread(values), atol=1e-6)
    turned = read_study(dicoms.one(values, photometric="MONOCHROME1"), 1).batch(0, 1)[0, 0]
    np.testing.assert_allclose(turned, 1 - plain, atol=1e-6)
    assert (read_study(dicoms.one(GREY), 1).pixels[0, 0] == GREY).all()
    assert (read_study(dicoms.one(COLOUR, photometric="RGB"), 3).pixels[0] == COLOUR.transpose(2, 0, 1)).all()


def test_hu_comes_by_the_window_of_the_training_however_the_file_wants_to_be_shown(tmp_path):
    hu = np.array([[-1000, -160], [40, 240], [0, 3000]], np.int16)
    wanted = [[0, 0], [0.5, 1], [0.4, 1]]
    lung = {"WindowCenter": -600, "WindowWidth": 1500, "RescaleIntercept": -1024}
    single = dicoms.one(hu + 1024, **lung)
    turned = dicoms.one(hu + 1024, photometric="MONOCHROME1", **lung)
    for content in (single, turned, nifti(hu, tmp_path)):
        study = read_study(content, 1, (-160.0, 240.0))
        np.testing.assert_allclose(study.batch(0, 1)[0, 0], wanted, atol=1e-6)
    assert read_study(png(GREY), 1, (-160.0, 240.0)).batch(0, 1).max() == pytest.approx(GREY.max() / 255)
    unscaled = dicoms.one(hu, RescaleSlope=None, RescaleIntercept=None)
    assert refused(unscaled, "no RescaleSlope", channels=1, window=(-160.0, 240.0))
    assert refused(dicoms.one(COLOUR, photometric="RGB"), "in colour", window=(-160.0, 240.0))


@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 1, 0), dicoms.OBLIQUE])
def test_a_series_is_put_in_order_and_keeps_its_geometry(tmp_path, orientation):
    files = dicoms.stack(VOLUME, orientation)
    study = read_study(dicoms.packed([files[i] for i in (3, 0, 4, 1, 2)]), 1)
    axial = orientation == (1, 0, 0, 0, 1, 0)
    assert (study.volume, study.spacing) == (True, (2.5, 0.75, 0.5) if axial else (0.75, 2.5, 0.5))
    for i in range(5 if axial else 0):
        np.testing.assert_allclose(study.batch(i, i + 1)[0, 0], spread(VOLUME[i]), atol=1e-6)
    for i, file in enumerate(files):
        (tmp_path / f"{i}.dcm").write_bytes(file)
    theirs = sitk.DICOMOrient(sitk.ReadImage([str(tmp_path / f"{i}.dcm") for i in range(5)]), "LPS")
    for ours, ask in zip(lies(study), ("GetSize", "GetSpacing", "GetDirection", "GetOrigin"), strict=True):
        np.testing.assert_allclose(ours, getattr(theirs, ask)(), atol=1e-6)
    assert (study.pixels[:, 0] == sitk.GetArrayFromImage(theirs)).all()


def test_a_multi_frame_file_is_a_volume():
    volume = np.random.default_rng(2).integers(0, 200, (4, 12, 16)).astype(np.uint16)
    study = read_study(dicoms.enhanced(volume), 1)
    assert (len(study), study.volume, study.spacing) == (4, True, (2.5, 0.75, 0.5))
    np.testing.assert_allclose(study.batch(0, 4)[:, 0], np.clip((volume - 99.5) / 199 + 0.5, 0, 1), atol=1e-6)
    np.testing.assert_allclose(lies(study)[3], (-10.0, 20.0, 5.0))
    assert refused(dicoms.enhanced(volume, at=[0, 2.5, 6, 8.5]), "3.5 mm between slices 2 and 3", "2.5 mm elsewhere")
    back = read_study(dicoms.enhanced(volume, at=[7.5, 5, 2.5, 0]), 1)
    np.testing.assert_allclose(back.batch(0, 4), study.batch(0, 4)[::-1]), "from the feet to the head"
    assert back.order == (3, 2, 1, 0)


def test_stacks_that_are_none_are_refused():
    pack = dicoms.packed
    assert refused(pack(dicoms.stack(VOLUME, at=[0, 2.5, 5, 10, 12.5])), "unevenly", "5 mm between slices 3 and 4", "2.5 mm")
    assert refused(pack(dicoms.stack(VOLUME, at=[0, 0, 0, 0, 0])), "one position")
    assert refused(pack(dicoms.stack(VOLUME, at=[0, 2.5, 2.5, 5, 7.5])), "unevenly", "0 mm")
    files = dicoms.stack(VOLUME)
    assert refused(pack([*files[:4], dicoms.one(VOLUME[4], (0, 0, 10), dicoms.OBLIQUE)]), "turned against file 1")
    assert refused(pack([*files[:4], dicoms.one(VOLUME[4], SeriesInstanceUID="1.2.3")]), "not one series", "file 5")
    assert refused(pack([*files[:4], dicoms.one(VOLUME[4][:6])]), "another Rows")
    assert refused(pack(dicoms.stack(VOLUME, ImagePositionPatient=None)), "their order is unknown")
    sheared = [dicoms.one(values, (i, 0, 2.5 * i), number=i) for i, values in enumerate(VOLUME)]
    assert refused(pack(sheared), "straight behind each other")
    assert refused(pack([dicoms.enhanced(np.abs(VOLUME).astype(np.uint16)), files[0]]), "multi-frame")


def test_what_is_no_image_or_a_broken_one_is_refused(tmp_path):
    assert refused(b"", "no kind")
    assert refused(b"hello", "no kind")
    assert refused(png(COLOUR)[:200], "truncated or damaged")
    whole = dicoms.one(VOLUME[0])
    for cut in (140, 400, len(whole) // 2):
        assert refused(whole[:cut], "damaged")
    with_more = pydicom.dcmread(io.BytesIO(whole))
    with_more.Rows = 13
    assert refused(saved(with_more), "truncated", "fewer pixels")
    assert refused(dicoms.one(GREY, photometric="PALETTE COLOR"), "PALETTE COLOR")
    assert refused(dicoms.one(VOLUME[0], ImageType=["ORIGINAL", "PRIMARY", "MOSAIC"]), "mosaic", "NIfTI")
    content = nifti(VOLUME, tmp_path, "a.nii")
    assert refused(content[:500], "truncated")
    assert refused(gzip.compress(content)[:-30], "truncated or damaged")
    assert refused(nifti(np.zeros((2, 3, 4, 5), np.int16), tmp_path, spacing=(1, 1, 1, 1)), "4 dimensions", "5 x 4 x 3 x 2")
    for bad in (np.nan, np.inf):
        values = VOLUME.astype(np.float32)
        values[2, 3, 4] = bad
        for name in ("n.nii", "n.nii.gz"):
            assert refused(nifti(values, tmp_path, name), "not finite")
        assert refused(nifti(values.astype(np.float64), tmp_path), "not finite")


def test_colour_becomes_grey_as_in_training(tmp_path):
    (tmp_path / "a.png").write_bytes(png(COLOUR))
    expected = read_image(tmp_path / "a.png", 1)[0]
    for content in (png(COLOUR), dicoms.one(COLOUR, photometric="RGB")):
        assert (read_study(content, 1).pixels[0] == expected).all()


def test_bombs_are_refused_before_they_burst(tmp_path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 40000, 40000, 8, 2, 0, 0, 0))
    assert refused(
        head + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b""), "too many pixels", str(MAX_PIXELS)
    )
    large = pydicom.dcmread(io.BytesIO(dicoms.one(GREY)))
    large.Rows = large.Columns = 60000
    assert refused(saved(large), "60000 x 60000")
    header = bytearray(nifti(VOLUME, tmp_path, "a.nii")[:352])
    struct.pack_into("<8h", header, 40, 3, 30000, 30000, 30000, 1, 1, 1, 1)
    assert refused(gzip.compress(bytes(header)), "30000 x 30000 pixels")
    bomb = gzip.compress(nifti(VOLUME, tmp_path, "a.nii") + b"\0" * (200 << 20), 9)
    assert len(read_study(bomb, 1)) == 5  # what follows the voxels is not read
    assert refused(dicoms.packed([b"\0" * 300 + b"x"] * 3), "file 1 of 3", "not DICOM")
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.dcm", b"\0" * (600 << 20))
    assert refused(content.getvalue(), "more than")


def test_long_thin_images_and_many_entries_are_refused(tmp_path):
    assert refused(png(np.zeros((1, 20000), np.uint8)), "a side may have")
    assert refused(dicoms.one(np.zeros((20000, 1), np.int16)), "a side may have")
    assert refused(dicoms.packed([b""] * 5000), "more than 4096")
    same = {"SeriesInstanceUID": dicoms.SERIES}
    files = [dicoms.one(np.zeros((4, 4), np.int16), (0, 0, i), number=i, **same) for i in range(3)]
    large = [pydicom.dcmread(io.BytesIO(file)) for file in files]
    for dataset in large:
        dataset.Rows, dataset.Columns = 8192, 4096
        dataset.PixelData = b""
    assert refused(dicoms.packed([saved(dataset) for dataset in large]), "truncated")


def test_headers_that_lie_are_refused_without_their_values(tmp_path):
    values = VOLUME[0]
    for change in (
        {"ImageOrientationPatient": [0.0] * 6}, {"ImageOrientationPatient": [1.0, 0, 0, 1.0, 0, 0]},
        {"ImageOrientationPatient": [1.0, 0, 0]}, {"ImagePositionPatient": [1.0, 2.0]}, {"SliceThickness": [1.0, 2.0]},
        {"PixelSpacing": [1.0]}, {"WindowCenter": [], "WindowWidth": 5},
    ):  # fmt: skip
        content = dicoms.one(values)
        dataset = pydicom.dcmread(io.BytesIO(content))
        for name, value in change.items():
            setattr(dataset, name, value)
        if "WindowCenter" in change:
            assert len(read_study(saved(dataset), 1)) == 1
        else:
            assert refused(saved(dataset), "DICOM")
    text = dicoms.one(values).replace(b"2.0 ", b"DOE ", 1)
    assert b"DOE" in text
    with pytest.raises(ImageError) as caught:
        read_study(text, 1)
    assert "DOE" not in str(caught.value)
    raw = bytearray(nifti(VOLUME, tmp_path, "a.nii"))
    struct.pack_into("<f", raw, 108, -500.0)
    assert refused(bytes(raw), "header is damaged")
    struct.pack_into("<f", raw, 108, 352.0)
    struct.pack_into("<h", raw, 70, 32)
    assert refused(bytes(raw), "")


def test_frames_of_different_scales_and_files_deflated_as_a_whole_are_refused():
    content = dicoms.enhanced(np.abs(VOLUME).astype(np.uint16))
    dataset = pydicom.dcmread(io.BytesIO(content))
    shared = dataset.SharedFunctionalGroupsSequence[0]
    for i, frame in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        scale = pydicom.Dataset()
        scale.RescaleIntercept, scale.RescaleSlope, scale.RescaleType = 0, 1 + i, "US"
        frame.PixelValueTransformationSequence = [scale]
    del shared.PixelValueTransformationSequence
    assert refused(saved(dataset), "rescaled differently")
    whole = pydicom.dcmread(io.BytesIO(dicoms.one(VOLUME[0])))
    whole.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    assert refused(saved(whole), "Deflated", "not read here")


def test_a_coded_size_is_read_from_the_frame_itself():
    content = io.BytesIO()
    Image.fromarray(GREY).save(content, format="JPEG")
    assert coded_size(content.getvalue()) == (20, 30)
    j2k = b"\xff\x4f\xff\x51" + struct.pack(">HH4I", 47, 0, 30, 20, 0, 0)
    assert coded_size(j2k) == (20, 30)
    assert coded_size(b"\0\0") is None


@pytest.mark.parametrize("name", ["../{}.dcm", "/etc/{}.dcm", "a/../../{}.dcm", "..\\{}.dcm", "C:\\{}.dcm"])
def test_an_archive_that_leaves_itself_is_refused(name):
    assert refused(dicoms.packed(dicoms.stack(VOLUME), name), "outside itself")


def test_archives_that_are_none_are_refused():
    whole = dicoms.packed(dicoms.stack(VOLUME))
    assert refused(whole[: len(whole) // 2], "cannot be read")
    assert refused(dicoms.packed([b"x"] * 5000), "more than 4096 files")
    extra = dicoms.packed([b"x"], "__MACOSX/{}.dcm")
    content = io.BytesIO(whole)
    with zipfile.ZipFile(content, "a") as archive, zipfile.ZipFile(io.BytesIO(extra)) as other:
        archive.writestr("__MACOSX/0.dcm", other.read("__MACOSX/0.dcm"))
        archive.writestr("DICOMDIR", b"x")
    assert len(read_study(content.getvalue(), 1)) == 5


@real
@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm"])
def test_real_slices_have_the_geometry_that_simpleitk_sees(name):
    path = SHARED / "data/formats/dicom_pydicom" / name
    study, theirs = read_study(path.read_bytes(), 1), sitk.ReadImage(str(path))
    for ours, ask in zip(lies(study), ("GetSize", "GetSpacing", "GetDirection", "GetOrigin"), strict=True):
        np.testing.assert_allclose(
            ours[:2] if ask == "GetSpacing" else ours, getattr(theirs, ask)()[: 2 if ask == "GetSpacing" else 9], atol=1e-6
        )
    values = sitk.GetArrayFromImage(theirs)[0].astype(float)
    shown = study.batch(0, 1)[0, 0]
    assert np.corrcoef(values.ravel(), shown.ravel())[0, 1] > 0.8
    assert (np.argsort(values.ravel())[:1] == np.argmin(values)).all()


@real
def test_real_files_that_are_no_stack_are_refused():
    folder = SHARED / "data/formats"
    series = [path.read_bytes() for path in sorted((folder / "dicom_pydicom/MR700").iterdir())]
    assert refused(dicoms.packed(series), "no stack", "turned against file 1")
    mosaic = next((folder / "dicom_dcm_qa/axasc35").glob("MR*"))
    assert refused(mosaic.read_bytes(), "Siemens mosaic", "NIfTI")
    assert refused((folder / "dicom_dcm_qa/axasc35/6_ax_asc_35sl.nii").read_bytes(), "64 x 64 x 35 x 2")

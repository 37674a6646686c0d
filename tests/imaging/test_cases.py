"""Files that were read wrongly or refused for no true reason once: each stands for a kind (see the README beside them)."""

import io

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image

from relay_core.config import FolderKwargs
from relay_core.data import preflight
from relay_core.errors import DataError, ImageError
from relay_core.imaging import masks, read_image
from relay_core.preparation.volumes import read_volume
from tests.imaging.test_orientations import NAMES, predicted
from tests.imaging.test_study import SHARED

CASES = SHARED / "cases/imaging/in"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="../shared/cases is not here")


def case(name, channels=3):
    return predicted((CASES / name).read_bytes(), channels)


def refusal(name):
    with pytest.raises(ImageError) as caught:
        case(name)
    return str(caught.value)


def test_a_volume_in_two_storage_orders_has_one_mask_in_the_patient():
    (lps, one), (ras, other) = case("vol_LPS.nii.gz"), case("vol_RAS.nii.gz")
    assert (one == other).all()
    standing = [
        nib.as_closest_canonical(nib.Nifti1Image.from_bytes(gunzip(masks.to_nifti(s, m))))
        for s, m in ((lps, one), (ras, other))
    ]
    assert (np.asarray(standing[0].dataobj) == np.asarray(standing[1].dataobj)).all()


def gunzip(content):
    import gzip

    return gzip.decompress(content)


def test_an_axis_of_length_1_is_none_here_and_in_training():
    study, ids = case("slice_x1z.nii.gz", 1)
    assert (study.volume, ids.shape, study.spacing) == (False, (1, 128, 128), (None, 0.5, 0.5))
    np.testing.assert_allclose(study.batch(0, 1)[0], read_image(CASES / "slice_x1z.nii.gz", 1)[0], atol=1e-6)
    back = nib.Nifti1Image.from_bytes(gunzip(masks.to_nifti(study, ids)))
    assert back.shape == (128, 1, 128)


def test_a_mirrored_mask_is_refused():
    kwargs = FolderKwargs(num_classes=3, mask_values={0: 0, 128: 1, 255: 2}, test_share=0.34)
    with pytest.raises(DataError, match=r"p0.nii.gz: lies 63.5 mm beside its image"):
        preflight("folder", kwargs, CASES / "train/nifti_mask_turned")


@pytest.mark.parametrize("name", ["exif6_square", "palette_mask"])
def test_a_site_of_such_files_trains_on_labels_that_lie_on_its_images(name):
    """Upright as its image, its indices: each pair decodes, and what is brighter or darker lies under the mask."""
    from relay_core.data.folder import FolderLayout
    from relay_core.data.site import Decoder

    values = {0: 0, 128: 1, 255: 2} if name != "palette_mask" else {0: 0, 1: 1, 2: 2}
    masks_there = sorted((CASES / "train" / name / "mask").iterdir())
    kwargs = FolderKwargs(num_classes=3, mask_values=values, test_share=0.34)
    try:
        report = preflight("folder", kwargs, CASES / "train" / name)
    except DataError as error:  # which values mean what is not said beside the case
        pytest.fail(f"{masks_there[0].name}: {error}")
    assert sum(report.counts.values()) == len(masks_there)
    layout = FolderLayout()
    decoder = Decoder(layout, kwargs, CASES / "train" / name, None)
    for pair in layout.list_pairs(CASES / "train" / name, kwargs, "train").pairs:
        pixels, ids, _ = decoder.read(pair)
        shown = pixels.mean(axis=0).astype(float)
        assert abs(shown[ids == 2].mean() - shown[ids == 0].mean()) > 0.1 * shown.max()


def test_pictures_are_upright_at_every_depth():
    _, upright = case("rect.png")
    for name in ("rect_exif6.jpg", "rect_orient6_8bit.tif"):
        study, ids = case(name)
        assert study.pixels.shape[2:] == (96, 128)
        assert (ids != upright).mean() < 0.02, name


def test_stacks_that_are_none_are_refused_with_the_true_reason():
    assert "mixed spacing: file 4" in refusal("series_mixed_spacing.zip")
    assert "mixed spacing: frame 3" in refusal("enhanced_mixed_spacing.dcm")
    assert "file 4 has another StudyInstanceUID" in refusal("series_two_patients.zip")


def test_interleaved_frames_are_put_in_order_and_their_mask_back():
    (study, ids), (reference, expected) = case("enhanced_interleaved.dcm"), case("enhanced_ref.dcm")
    assert (study.order, reference.order) == ((0, 2, 1, 3), (0, 1, 2, 3))
    assert (study.in_frame_order(ids) == expected).all(), "the frames hold the same pixels, at other places"
    made = pydicom.dcmread(io.BytesIO(masks.to_seg(study, ids, NAMES, "m", "1")))
    assert made.Modality == "SEG"


@pytest.mark.parametrize("name", ["seg_japanese.dcm", "ref_grey.dcm"])
def test_a_seg_of_any_character_set(name):
    study, ids = case(name)
    made = pydicom.dcmread(io.BytesIO(masks.to_seg(study, ids, NAMES, "m", "1")))
    assert made.StudyInstanceUID == study.sources[0].StudyInstanceUID


@pytest.mark.parametrize(
    ("name", "reference", "share"),
    [
        ("voi_lut.dcm", "ref_grey.png", 0.0), ("modality_lut.dcm", "ref_grey.png", 0.0),
        ("jfif_said_rgb.dcm", "ref.png", 0.03),
        ("miniswhite_16bit.tif", "miniswhite_8bit.tif", 0.0), ("miniswhite_8bit.tif", "ref_grey.png", 0.0),
        ("big.tif", "ref.png", 0.0),
    ],
)  # fmt: skip
def test_what_the_pixels_mean_is_heeded(name, reference, share):
    (_, ids), (_, expected) = case(name), case(reference)
    assert (ids != expected).mean() <= share


def test_sizes_are_null_or_at_the_patient_where_nobody_calibrated_them():
    dx, _ = case("uncalibrated_dx.dcm")
    assert dx.spacing[1:] == pytest.approx((0.1 / 1.5, 0.1 / 1.5))
    assert case("pixdim_0.nii.gz")[0].spacing is None


def test_a_mask_has_both_forms_of_its_source():
    study, ids = case("sform2_qform1.nii.gz")
    source, back = (
        nib.load(CASES / "sform2_qform1.nii.gz").header,
        nib.Nifti1Image.from_bytes(gunzip(masks.to_nifti(study, ids))).header,
    )
    for name in ("sform", "qform"):
        assert back[f"{name}_code"] == source[f"{name}_code"]
        np.testing.assert_allclose(getattr(back, f"get_{name}")(), getattr(source, f"get_{name}")(), atol=1e-5)


def test_what_is_read_or_refused_for_a_true_reason():
    assert case("nearly_orthogonal.nii.gz")[0].volume
    assert "right angles" in refusal("sheared.nii.gz")
    assert "16 bits, grey with transparency" in refusal("grey_alpha_16bit.png")


@pytest.mark.parametrize("name", ["zip_dicomdir_lower.zip", "zip_name_ends_DICOMDIR.zip"])
def test_an_index_is_passed_over_by_its_whole_name(name):
    assert len(case(name)[0]) == 4


def test_padding_is_left_out_of_the_window():
    plain, padded = (read_volume(CASES / name / "s1", None).values for name in ("ct_plain", "ct_padded"))
    assert (padded.min(), padded.max()) == (plain.min(), plain.max())


def test_a_mask_of_ours_reads_back_as_its_class_ids(tmp_path):
    from relay_core.imaging import read_mask

    study, ids = case("ref.png")
    (tmp_path / "mask.png").write_bytes(masks.to_png(ids[0], 3))
    with Image.open(tmp_path / "mask.png") as image:
        assert image.mode == "P"
    assert (read_mask(tmp_path / "mask.png") == ids[0]).all()
    assert study.pixels.shape[2:] == ids.shape[1:]

"""The files that pydicom and nibabel are tested with: read as another reader reads them, or refused for a true reason."""

import io
import warnings
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.pixels import apply_modality_lut

from relay_core.errors import ImageError
from relay_core.imaging.dicom import read_dicom
from relay_core.imaging.study import read_study

DICOM = sorted(Path(pydicom.__file__).parent.glob("data/test_files/**/*.dcm"))
NIFTI = sorted(Path(nibabel.__file__).parent.glob("tests/data/*.nii*"))
NO_IMAGE = ("holds no pixels", "is a dose", "is a segmentation", "without its preamble", "Siemens mosaic")
UNREAD = ("transfer syntax", "more than 8 bits", "PALETTE COLOR", "JP2 file", "dimensions", "not finite")
DAMAGED = {
    "JPEG2000-embedded-sequence-delimiter.dcm": "another size",
    "MR_truncated.dcm": "truncated: it has fewer pixels",
    "meta_missing_tsyntax.dcm": "does not say its transfer syntax",
    "nested_priv_SQ.dcm": "pixels and no Rows",
    "no_meta.dcm": "of no kind",
}
pytestmark = pytest.mark.skipif(
    len(DICOM) < 70 or len(NIFTI) < 8, reason="these builds of pydicom and nibabel have no test files"
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", [*DICOM, *NIFTI], ids=lambda path: path.name)
def test_a_file_is_read_as_others_read_it_or_refused_for_a_true_reason(path):
    content = path.read_bytes()
    reason, study = "", None
    try:
        study = read_study(content, 1)
    except ImageError as error:
        reason = str(error)
    if study is None:
        known = (DAMAGED[path.name],) if path.name in DAMAGED else NO_IMAGE + UNREAD
        assert any(words in reason for words in known), reason
        return
    assert path.name not in DAMAGED
    if study.kind == "nifti":
        other = sitk.GetArrayFromImage(sitk.DICOMOrient(sitk.ReadImage(str(path)), "LPS"))
        np.testing.assert_allclose(study.pixels[:, 0], other, rtol=1e-6)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(io.BytesIO(content))
        try:
            other = dataset.pixel_array
        except RuntimeError:
            return  # no plug-in of pydicom's here decodes it
    decoded = read_dicom([content])
    if decoded.values.ndim == 3:
        other = apply_modality_lut(other.astype(np.int64), dataset)
    other = np.asarray(other).reshape(decoded.values.shape)
    other = other[list(decoded.order)] if len(decoded.order) == len(other) else other
    same = np.abs(other - decoded.values.astype(float)) < 1e-3
    if (padding := dataset.get("PixelPaddingValue")) is not None:  # which counts as the darkest pixel
        same |= other == padding * dataset.get("RescaleSlope", 1) + dataset.get("RescaleIntercept", 0)
    assert same.all()

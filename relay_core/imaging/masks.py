"""Encode class ids as files: PNG with a palette, PNG overlay for people, NIfTI and DICOM SEG with the source's geometry.

Legend: S slices, H rows, W columns.
"""

from __future__ import annotations

import io
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

import relay_core
from relay_core.errors import ImageError
from relay_core.imaging.drawing import overlay, palette
from relay_core.imaging.study import Study

Ids = npt.NDArray[np.uint8]


def to_png(ids: Ids, num_classes: int) -> bytes:
    """Encode class ids (H, W) as a palette PNG: its pixels are the ids, its colours those of the overlay."""
    image = Image.fromarray(ids)
    image.putpalette(palette(max(num_classes, 1)).tobytes())
    return _png(image)


def to_overlay(study: Study, ids: Ids, number: int = 0) -> bytes:
    """Encode slice `number` of a study as PNG, with its classes drawn over it; `ids` are (S, H, W)."""
    return _png(Image.fromarray(overlay(study.batch(number, number + 1)[0] * 2 - 1, ids[number])))


def _png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, format="PNG")
    return content.getvalue()


def to_nifti(study: Study, ids: Ids) -> bytes:
    """Encode class ids (S, H, W) as `.nii.gz` with the source's spacing, origin and direction.

    Raises:
        ImageError: the source is a picture (PNG, JPEG or TIFF), which has no geometry.
    """
    import SimpleITK as sitk

    if study.geometry is None:
        raise ImageError("a PNG, JPEG or TIFF image has no geometry for NIfTI; ask for a PNG mask")
    image = sitk.GetImageFromArray(ids if study.geometry.GetDimension() == 3 else ids[0])
    image.CopyInformation(study.geometry)
    with tempfile.TemporaryDirectory(prefix="relay-") as folder:
        path = Path(folder) / "mask.nii.gz"
        sitk.WriteImage(image, str(path), True)
        return path.read_bytes()


def to_seg(study: Study, ids: Ids, names: Sequence[str], model: str, version: str) -> bytes:
    """Encode class ids (S, H, W) as a DICOM SEG that references the source; the background becomes no segment.

    Args:
        study: the segmented study, which was read from DICOM.
        ids: the mask.
        names: names of the classes, the background first.
        model: name of the model, written as that of the algorithm; cut to 64 characters.
        version: version of the model; cut to 64 characters.

    Raises:
        ImageError: the source is not DICOM, or lacks what a segmentation must copy from it.
    """
    if not study.sources:
        raise ImageError("a DICOM SEG references DICOM images, and the image is none; ask for NIfTI or PNG")
    import highdicom
    from pydicom.sr.codedict import codes
    from pydicom.uid import ExplicitVRLittleEndian

    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=model[:64], version=version[:64], family=codes.DCM.ArtificialIntelligence
    )
    segments = [
        highdicom.seg.SegmentDescription(
            segment_number=i, segment_label=name[:64],
            segmented_property_category=codes.SCT.AnatomicalStructure,
            segmented_property_type=highdicom.sr.CodedConcept(f"class{i}", "99RELAY", name[:64]),
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC, algorithm_identification=algorithm,
        )
        for i, name in enumerate(names) if i > 0
    ]  # fmt: skip
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings quote values of the source
            segmentation = highdicom.seg.Segmentation(
                source_images=list(study.sources), pixel_array=ids,
                segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY, segment_descriptions=segments,
                series_instance_uid=highdicom.UID(), series_number=9000, sop_instance_uid=highdicom.UID(),
                instance_number=1, manufacturer="relay learning", manufacturer_model_name=model[:64],
                software_versions=relay_core.__version__, device_serial_number="none",
                transfer_syntax_uid=ExplicitVRLittleEndian, content_label="RELAY",
            )  # fmt: skip
            content = io.BytesIO()
            segmentation.save_as(content)
    except Exception as error:  # highdicom raises errors of many types where the source lacks attributes
        raise ImageError(
            "the DICOM source lacks what a SEG must copy from it (patient, study, frame of reference); ask for NIfTI"
        ) from error
    return content.getvalue()

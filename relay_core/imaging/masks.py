"""Encode class ids as files: PNG with a palette, PNG overlay for people, NIfTI and DICOM SEG with the source's geometry.

Legend: S slices, H rows, W columns.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pydicom
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
    if study.grid is None:
        raise ImageError("a PNG, JPEG or TIFF image has no geometry for NIfTI; ask for a PNG mask")
    return study.grid.to_nifti(ids)


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
    sources = [_referable(header) for header in study.sources]
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
                source_images=sources, pixel_array=study.in_frame_order(ids),
                segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY, segment_descriptions=segments,
                series_instance_uid=highdicom.UID(), series_number=9000, sop_instance_uid=highdicom.UID(),
                instance_number=1, manufacturer="relay learning", manufacturer_model_name=model[:64],
                software_versions=relay_core.__version__, device_serial_number="none",
                transfer_syntax_uid=ExplicitVRLittleEndian, content_label="RELAY",
            )  # fmt: skip
            content = io.BytesIO()
            segmentation.save_as(content)
    except MemoryError:
        raise
    except Exception as error:  # highdicom raises errors of many types, which quote values of the source
        raise ImageError("highdicom cannot make a SEG of this DICOM source; ask for NIfTI") from error
    return content.getvalue()


_IDENTITY = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
"""What a SEG refers to its source by."""
_MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime", "AccessionNumber",
    "ReferringPhysicianName",
)  # fmt: skip
"""Attributes of type 2: a header must have them, and they may be empty, as de-identification leaves them."""


def _referable(header: pydicom.Dataset) -> pydicom.Dataset:
    """A copy of a header that highdicom accepts: empty attributes filled in, the first character set spelled out.

    Raises:
        ImageError: it lacks an attribute that a segmentation cannot do without; the message names it.
    """
    missing = [name for name in _IDENTITY if not header.get(name)]
    if missing:
        raise ImageError(f"the DICOM source has no {', '.join(missing)}, which a SEG refers to it by; ask for NIfTI")
    copy = pydicom.Dataset(header)
    copy.file_meta = header.file_meta
    for name in _MAY_BE_EMPTY:
        if name not in copy:
            setattr(copy, name, None)
    _share_what_every_frame_says(copy)
    sets = copy.get("SpecificCharacterSet")
    if isinstance(sets, pydicom.multival.MultiValue) and not sets[0]:
        copy.SpecificCharacterSet = ["ISO 2022 IR 6", *sets[1:]]
    elif "SpecificCharacterSet" in copy and not sets:
        del copy.SpecificCharacterSet
    return copy


def _share_what_every_frame_says(header: pydicom.Dataset) -> None:
    """Put measures and orientation of a multi-frame file, whose frames were found alike, where highdicom looks for them."""
    frames, shared = header.get("PerFrameFunctionalGroupsSequence"), header.get("SharedFunctionalGroupsSequence")
    if not frames or not shared:
        return
    joint = pydicom.Dataset(shared[0])
    for name in ("PixelMeasuresSequence", "PlaneOrientationSequence"):
        if not joint.get(name) and frames[0].get(name):
            setattr(joint, name, frames[0].get(name))
    header.SharedFunctionalGroupsSequence = [joint]

"""Answer what a clinician's system asks of a model about one upload: measurements, a mask in any form, or a class.

Loads neither torch nor ONNX Runtime: whoever calls runs the network.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from typing import Any

from relay_core.errors import ImageError
from relay_core.imaging import Study, contact_sheets, masks, read_study
from relay_core.inference.prediction import classify, predict
from relay_core.inference.questions import Answer, Question
from relay_core.inference.resolution import ModelCall, at_resolution


def answer(
    content: bytes, question: Question, run: ModelCall, decoded: Callable[[int, int, int], object] = lambda *size: None
) -> Answer:
    """Decode an upload, run the model over it, and encode what was asked for.

    Args:
        content: the bytes of the upload, see `imaging.read_study`.
        question: what is wanted of which model.
        run: the model, at its own resolution; asked for `logits` and `looks`, a classifier for `probabilities` and `looks`.
        decoded: called with slices, rows and columns of the study before the model runs.

    Raises:
        ImageError: the upload cannot be used, or the form that is wanted does not exist of it.
        ExportError: the model's probabilities are not finite.
    """
    study = read_study(content, question.channels, question.window)
    if question.form in ("mask", "overlay") and study.volume:
        raise ImageError(f"a volume of {len(study)} slices is no single PNG; ask for nifti, seg or all")
    decoded(len(study), *study.pixels.shape[2:])
    run = at_resolution(run, question.resolution, question.fit)
    facts: dict[str, Any] = {"model": question.model, "version": question.version, "provider": question.provider}
    if question.task == "classification":
        facts |= classify(study, run, question.classes, question.looks)
        if question.form == "pictures":
            facts["pictures"] = contact_sheets(study, None, len(question.classes))
        return Answer(json.dumps(facts).encode(), "application/json", tuple(facts["warnings"]))
    prediction = predict(study, run, question.classes, question.looks)
    facts |= prediction.found
    if question.form == "pictures":
        facts["pictures"] = contact_sheets(study, prediction.ids, len(question.classes))
    return Answer(*_encoded(study, prediction.ids, facts, question), tuple(facts["warnings"]))


def _encoded(study: Study, ids: Any, facts: dict[str, Any], question: Question) -> tuple[bytes, str]:
    """Return a mask in the form that is wanted, and its media type."""
    classes, version = question.classes, str(question.version)
    match question.form:
        case "measurements" | "pictures":
            return json.dumps(facts).encode(), "application/json"
        case "mask":
            return masks.to_png(ids[0], len(classes)), "image/png"
        case "overlay":
            return masks.to_overlay(study, ids), "image/png"
        case "nifti":
            return masks.to_nifti(study, ids), "application/gzip"
        case "seg":
            return masks.to_seg(study, ids, classes, question.model, version), "application/dicom"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for i in range(len(ids)):
            archive.writestr(f"overlay-{i + 1:04d}.png" if study.volume else "overlay.png", masks.to_overlay(study, ids, i))
        if not study.volume:
            archive.writestr("mask.png", masks.to_png(ids[0], len(classes)))
        if study.grid is not None:
            archive.writestr("mask.nii.gz", masks.to_nifti(study, ids))
        if study.sources:
            try:
                archive.writestr("mask.dcm", masks.to_seg(study, ids, classes, question.model, version))
            except ImageError as error:  # such as a photograph without a frame of reference: the others are of use
                facts = {**facts, "left_out": {"mask.dcm": str(error)}}
        archive.writestr("measurements.json", json.dumps(facts, indent=1).encode())
    return buffer.getvalue(), "application/zip"

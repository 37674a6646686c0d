"""Predict one large study with an exported model, to a file: what the service does as a job."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from relay_core.files import write_atomically
from relay_core.inference.isolation import Decoders
from relay_core.inference.onnx_model import OnnxModel
from relay_core.inference.questions import SUFFIXES, Form, Question


def predict_study(
    model: Path, upload: Path, out: Path, *, name: str, version: int, form: Form | None, device: str,
    progress: Callable[[int, int], object], decoders: Decoders,
) -> dict[str, Any]:  # fmt: skip
    """Predict a study, and write the answer to `out/prediction` with the suffix of its kind.

    Args:
        model: an ONNX file that this site exported.
        upload: PNG, JPEG, TIFF, NIfTI, DICOM, or a zip of a DICOM series.
        out: folder to write to, created if missing.
        name: what the model is called, for the answer.
        version: number of its version, for the answer.
        form: what is wanted of a segmentation; None: measurements.
        device: auto, cpu, cuda or cuda:N, for the network.
        progress: called with the number of slices done and their total.
        decoders: what decodes; they are closed at the end.

    Returns:
        Plain data: `path`, `slices`, `warnings`.

    Raises:
        ImageError, ImageTooLargeError: the study cannot be used.
        ExportError: the file is no exported model.
    """
    network = OnnxModel(model.read_bytes(), device)
    slices = 0

    def decoded(count: int, rows: int, columns: int) -> None:
        nonlocal slices
        slices = count
        progress(0, count)

    try:
        answer = decoders.answer(
            upload.read_bytes(), Question.about(network.facts, name, version, network.provider, form), network, decoded,
            lambda seen: progress(seen, slices),
        )  # fmt: skip
    finally:
        decoders.close()
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"prediction{SUFFIXES[answer.media_type]}"
    write_atomically(path, answer.body)
    return {"path": str(path), "slices": slices, "warnings": list(answer.warnings)}

"""Write a checkpoint as an ONNX model, with its proof beside it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast, get_args

from relay_core.config import RunFile
from relay_core.engine import Checkpoint, settings_of, site_data
from relay_core.errors import DataError, ExportError
from relay_core.files import write_atomically
from relay_core.inference import OnnxModel, Precision


def export_checkpoint(
    checkpoint: Checkpoint, run: RunFile, data_root: Path | None, out: Path, precision: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write a checkpoint's solver as ONNX, with its proof beside it; return the proof and the model's facts.

    Raises:
        ExportError: the precision is unknown, the strategy keeps real images, or the model does not give what the solver
            gives; nothing is written then.
        DataError: none of the run's test sets is on this machine.
    """
    from relay_core.export.onnx import export

    if precision not in get_args(Precision):
        raise ExportError(f"--precision {precision}: one of {', '.join(get_args(Precision))}")
    settings = settings_of(checkpoint)
    if checkpoint.meta.get("holds_real_images") or settings.facts.holds_real_images:
        raise ExportError(
            f"{checkpoint.path}: strategy {settings.strategy.name} keeps real images: nothing of its checkpoints is exported"
        )
    if (why := settings.data.served_otherwise) is not None:
        raise ExportError(f"{checkpoint.path} is not exported: {why}")
    tests = site_data(checkpoint, settings, run, data_root, "test")
    if not tests:
        raise DataError(f"none of the image folders of {run.path} is on this machine; give --data-root")
    training = site_data(checkpoint, settings, run, data_root, "train") if precision == "int8" else {}
    calibration = training.get(str(checkpoint.meta["site"])) or next(iter(training.values()), None)
    content, proof = export(checkpoint, tests, cast(Precision, precision), calibration)
    write_atomically(out, content)
    write_atomically(out.with_name(f"{out.name}.json"), json.dumps(asdict(proof), indent=1).encode())
    return asdict(proof), asdict(OnnxModel(content, "cpu").facts)

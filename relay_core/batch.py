"""Predict every image of a registered data set: masks, a table of measurements; goes on where it was stopped."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from relay_core.data.pairs import relative
from relay_core.data.preflight import listed
from relay_core.engine.checkpoint import Checkpoint
from relay_core.engine.evaluate import load_solver
from relay_core.errors import DataError, ImageError, Problem, Stopped
from relay_core.export.onnx import served
from relay_core.export.session import OUTPUTS
from relay_core.files import replace_with, write_atomically
from relay_core.imaging import masks
from relay_core.imaging.measure import HEADER, rows
from relay_core.imaging.prediction import Run, predict
from relay_core.imaging.study import read_study

DONE = "done.jsonl"
TABLE = "measurements.csv"
MASKS = "masks.zip"
STAGED = "masks"
"""Folder of single masks while more are to come."""


def torch_run(checkpoint: Checkpoint, device: torch.device) -> tuple[Run, list[str]]:
    """A checkpoint's solver as `imaging.prediction` calls a model, and the names of its classes."""
    solver, settings = load_solver(checkpoint, device)
    network = served(solver, settings).to(device)

    @torch.no_grad()
    def run(images: Any, outputs: Any) -> list[Any]:
        made = dict(zip(OUTPUTS, network(torch.from_numpy(images).to(device)), strict=True))
        return [made[name].cpu().numpy() for name in outputs]

    return run, settings.data.names()


def predict_dataset(
    checkpoint: Checkpoint, layout: str, kwargs: Any, folder: Path, out: Path, device: torch.device,
    progress: Callable[[int, int], object], stop: Callable[[], bool],
) -> dict[str, int]:  # fmt: skip
    """Predict all images of both splits of a site's data set.

    Writes `masks.zip`, a PNG of class ids an image (NIfTI for NIfTI), and `measurements.csv`. What an earlier call with the
    same checkpoint finished in `out` is kept.

    Args:
        checkpoint: whose solver predicts.
        layout: the data set's name.
        kwargs: its settings.
        folder: the site's folder.
        out: to write to.
        device: to compute on.
        progress: told images done and in all.
        stop: whether to leave.

    Returns:
        {images, unlike}: how many there were, and how many look unlike the training sites.

    Raises:
        DataError: images cannot be read; all are named, the others are done.
        Stopped: asked to stop; the next call goes on.
    """
    images = list(dict.fromkeys(pair.image for pair in listed(layout, kwargs, folder)))
    run, names = torch_run(checkpoint, device)
    looks, channels = checkpoint.meta.get("looks", {}), kwargs.img_channels
    (out / STAGED).mkdir(parents=True, exist_ok=True)
    done = {entry["file"]: entry for entry in _done(out / DONE, checkpoint.digest)}
    problems = []
    with (out / DONE).open("a", encoding="utf-8") as journal:
        for number, path in enumerate(images, 1):
            name = relative(path, folder)
            if name not in done:
                if stop():
                    raise Stopped(f"stopped after {number - 1} of {len(images)} images; the next call goes on from there")
                try:
                    study = read_study(path.read_bytes(), channels)
                except ImageError as error:
                    problems.append(Problem(name, str(error).removeprefix("the image ")))
                    continue
                made = predict(study, run, names, looks)
                nifti = study.geometry is not None
                mask = f"{number:06d}{'.nii.gz' if nifti else '.png'}"
                content = masks.to_nifti(study, made.ids) if nifti else masks.to_png(made.ids[0], len(names))
                write_atomically(out / STAGED / mask, content)
                entry = {"file": name, "mask": mask, "checkpoint": checkpoint.digest, "unlike": made.unlike,
                         "rows": list(rows(name, made.found, made.unlike)), "warnings": made.found["warnings"]}  # fmt: skip
                print(json.dumps(entry), file=journal, flush=True)
                done[name] = entry
            progress(number, len(images))
    found = [done[name] for path in images if (name := relative(path, folder)) in done]
    _write_table(out / TABLE, found)
    _write_zip(out / MASKS, out / STAGED, found)
    if problems:
        raise DataError(f"{len(problems)} of {len(images)} images cannot be read; the others are done", problems)
    return {"images": len(found), "unlike": sum(bool(entry["warnings"]) for entry in found)}


def _done(path: Path, checkpoint: str) -> Iterator[dict[str, Any]]:
    """Finished images; a half-written last line, and another checkpoint's, are passed over."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if entry["checkpoint"] == checkpoint and (path.parent / STAGED / entry["mask"]).is_file():
            yield entry


def _write_table(path: Path, found: list[dict[str, Any]]) -> None:
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(HEADER)
    for entry in found:
        table.writerows(entry["rows"])
    write_atomically(path, text.getvalue().encode())


def _write_zip(path: Path, staged: Path, found: list[dict[str, Any]]) -> None:
    """The masks under their images' names."""

    def write(temporary: Path) -> None:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            for entry in found:
                image = Path(entry["file"])
                suffix = "".join(Path(entry["mask"]).suffixes)
                archive.write(staged / entry["mask"], str(image.with_name(image.name.partition(".")[0] + suffix)))

    replace_with(path, write)

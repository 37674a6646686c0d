"""Predict every image of a registered data set: masks, a table of measurements or classes; goes on where it was stopped."""

from __future__ import annotations

import hashlib
import json
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from relay_core.data import image_reader, listed, relative
from relay_core.engine import Checkpoint
from relay_core.errors import DataError, Problem, Stopped
from relay_core.files import replace_with
from relay_core.imaging import Study, masks, out_of_distribution, stem_of, write_mask
from relay_core.inference.measurements import HEADER, class_header, class_row, rows, write_table
from relay_core.inference.prediction import ModelCall, classify, predict
from relay_core.inference.torch_model import torch_run

DONE = "done.jsonl"
TABLE = "measurements.csv"
MASKS = "masks.zip"
STAGED = "masks"
"""Folder of single masks while more are to come."""


@dataclass(frozen=True)
class Predicted:
    """What became of a data set."""

    images: int
    """That were predicted."""
    unlike: int
    """That look unlike those of the training sites."""
    problems: tuple[Problem, ...]
    """Of images that cannot be read: they are left out."""


def predict_dataset(
    checkpoint: Checkpoint, layout: str, kwargs: Any, folder: Path, out: Path, device: torch.device,
    progress: Callable[[int, int], object], stop: Callable[[], bool],
) -> Predicted:  # fmt: skip
    """Predict all images of both splits of a site's data set.

    Writes `masks.zip`, a PNG of class ids an image (NIfTI for NIfTI), and `measurements.csv`; of a classifier only the
    latter, a line an image. What an earlier call with the same checkpoint finished in `out` is kept.

    Args:
        checkpoint: whose solver predicts.
        layout: the data set's name.
        kwargs: its settings.
        folder: the site's folder.
        out: to write to.
        device: to compute on.
        progress: told images done and in all.
        stop: whether to leave.

    Raises:
        DataError: the folder as a whole cannot be read as this data set.
        Stopped: asked to stop; the next call goes on.
    """
    images = list(dict.fromkeys(pair.image for pair in listed(layout, kwargs, folder)))
    run, settings = torch_run(checkpoint, device)
    names, whole = settings.data.names(), settings.data.task == "classification"
    read = image_reader(layout, kwargs)
    made = _classed if whole else _masked
    (out if whole else out / STAGED).mkdir(parents=True, exist_ok=True)
    done = {entry["file"]: entry for entry in _done(out / DONE, checkpoint.digest)}
    problems = []
    with (out / DONE).open("a", encoding="utf-8") as journal:
        for number, path in enumerate(images, 1):
            name = relative(path, folder)
            if name not in done:
                if stop():
                    raise Stopped(f"stopped after {number - 1} of {len(images)} images; the next call goes on from there")
                try:
                    pixels, spacing = read(path)  # as in training
                except DataError as error:
                    problems += [Problem(name, problem.message) for problem in error.problems]
                    continue
                study = Study("picture", pixels[None], (None, *spacing) if spacing else None, False)
                entry = made(_Image(name, path, study), run, names, checkpoint, out / STAGED)
                print(json.dumps(entry), file=journal, flush=True)
                done[name] = entry
            progress(number, len(images))
    found = [done[name] for path in images if (name := relative(path, folder)) in done]
    write_table(out / TABLE, class_header(names) if whole else HEADER, [row for entry in found for row in entry["rows"]])
    if not whole:
        _write_zip(out / MASKS, out / STAGED, found)
    unlike = sum((entry["unlike"] or 0.0) > out_of_distribution.WARN for entry in found)
    return Predicted(len(found), unlike, tuple(problems))


@dataclass(frozen=True)
class _Image:
    name: str
    """In the data set."""
    path: Path
    study: Study


def _masked(image: _Image, run: ModelCall, names: Sequence[str], checkpoint: Checkpoint, staged: Path) -> dict[str, Any]:
    """Write an image's mask; its line of the journal."""
    nifti = image.study.spacing is not None
    made = predict(image.study, run, names, checkpoint.meta.get("looks", {}))
    mask = _staged(checkpoint.digest, image.name) + (".nii.gz" if nifti else ".png")
    replace_with(staged / mask, partial(_write_mask, made.ids[0], len(names), image.path if nifti else None))
    return {"file": image.name, "mask": mask, "checkpoint": checkpoint.digest, "unlike": made.unlike,
            "rows": list(rows(image.name, made.found, made.unlike))}  # fmt: skip


def _classed(image: _Image, run: ModelCall, names: Sequence[str], checkpoint: Checkpoint, staged: Path) -> dict[str, Any]:
    """The line of the journal of an image whose class is wanted: there is no mask."""
    found = classify(image.study, run, names, checkpoint.meta.get("looks", {}))
    unlike = found["unlike"]["score"] if found["unlike"] else None
    return {"file": image.name, "checkpoint": checkpoint.digest, "unlike": unlike, "rows": [class_row(image.name, found)]}


def _staged(checkpoint: str, name: str) -> str:
    """A file name of its own for each image and checkpoint."""
    return hashlib.sha256(f"{checkpoint}/{name}".encode()).hexdigest()[:32]


def _write_mask(ids: Any, num_classes: int, like: Path | None, temporary: Path) -> None:
    """A palette PNG, or NIfTI with the geometry of its image."""
    if like is None:
        temporary.write_bytes(masks.to_png(ids, num_classes))
        return
    with tempfile.TemporaryDirectory(prefix="relay-") as folder:  # a writer that goes by the suffix
        made = Path(folder) / "mask.nii.gz"
        write_mask(made, ids, like=like)
        temporary.write_bytes(made.read_bytes())


def _done(path: Path, checkpoint: str) -> Iterator[dict[str, Any]]:
    """Finished images; a half-written last line, and another checkpoint's, are passed over."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        staged = "mask" not in entry or (path.parent / STAGED / entry["mask"]).is_file()
        if entry["checkpoint"] == checkpoint and staged:
            yield entry


def _write_zip(path: Path, staged: Path, found: list[dict[str, Any]]) -> None:
    """The masks under their images' names."""

    def write(temporary: Path) -> None:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            for entry in found:
                image = Path(entry["file"])
                suffix = "".join(Path(entry["mask"]).suffixes)
                archive.write(staged / entry["mask"], str(image.with_name(stem_of(image) + suffix)))

    replace_with(path, write)

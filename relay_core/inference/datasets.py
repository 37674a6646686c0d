"""Predict every image of a registered data set: write masks, a table of measurements or classes; resume after a stop."""

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
from relay_core.imaging import NIFTI_SUFFIXES, Study, masks, out_of_distribution, stem_of, suffix_of, write_mask
from relay_core.inference.measurements import HEADER, class_header, class_row, rows, write_table
from relay_core.inference.prediction import classify, predict
from relay_core.inference.resolution import ModelCall
from relay_core.inference.torch_model import torch_run

DONE = "done.jsonl"
TABLE = "measurements.csv"
MASKS = "masks.zip"
STAGED = "masks"
"""Folder of the single masks, which `MASKS` is packed from when all images are done."""


@dataclass(frozen=True)
class Predicted:
    """The outcome of predicting a data set."""

    images: int
    """Number of images that were predicted."""
    unlike: int
    """Number of predicted images whose out-of-distribution score is above `out_of_distribution.WARN`."""
    problems: tuple[Problem, ...]
    """Problems of the images that cannot be read and were left out."""


def predict_dataset(
    checkpoint: Checkpoint, layout: str, kwargs: Any, folder: Path, out: Path, device: torch.device,
    progress: Callable[[int, int], object], stop: Callable[[], bool],
) -> Predicted:  # fmt: skip
    """Predict all images of both splits of a site's data set.

    A segmentation writes `masks.zip`, with a PNG of class ids for each image (NIfTI for NIfTI), and `measurements.csv`; a
    classifier writes only the latter, with one line for each image. What an earlier call with the same checkpoint finished
    in `out` is kept.

    Args:
        checkpoint: the checkpoint whose solver predicts.
        layout: name of the data set, a key of `DATASETS`.
        kwargs: settings of the data set.
        folder: the site's folder with the images.
        out: folder to write to, created if missing.
        device: device to compute on.
        progress: called after each image with the number of images done and their total.
        stop: asked before each image whether to stop.

    Raises:
        DataError: the folder as a whole cannot be read as this data set.
        Stopped: `stop` said so; the next call goes on from there.
    """
    images = list(dict.fromkeys(pair.image for pair in listed(layout, kwargs, folder)))
    run, settings = torch_run(checkpoint, device)
    names, classifies = settings.data.names(), settings.data.task == "classification"
    read = image_reader(layout, kwargs)
    predict_image = _predict_class if classifies else _predict_mask
    (out if classifies else out / STAGED).mkdir(parents=True, exist_ok=True)
    done = {entry["file"]: entry for entry in _finished_entries(out / DONE, checkpoint.digest)}
    problems = []
    with (out / DONE).open("a", encoding="utf-8") as journal:
        for number, path in enumerate(images, 1):
            name = relative(path, folder)
            if name not in done:
                if stop():
                    raise Stopped(f"stopped after {number - 1} of {len(images)} images; the next call goes on from there")
                try:
                    pixels, spacing = read(path)  # read as in training
                except DataError as error:
                    problems += [Problem(name, problem.message) for problem in error.problems]
                    continue
                study = Study("picture", pixels[None], (None, *spacing) if spacing else None, False)
                entry = predict_image(_Image(name, path, study), run, names, checkpoint, out / STAGED)
                print(json.dumps(entry), file=journal, flush=True)
                done[name] = entry
            progress(number, len(images))
    entries = [done[name] for path in images if (name := relative(path, folder)) in done]
    write_table(
        out / TABLE, class_header(names) if classifies else HEADER, [row for entry in entries for row in entry["rows"]]
    )
    if not classifies:
        _write_zip(out / MASKS, out / STAGED, entries)
    unlike = sum((entry["unlike"] or 0.0) > out_of_distribution.WARN for entry in entries)
    return Predicted(len(entries), unlike, tuple(problems))


@dataclass(frozen=True)
class _Image:
    """An image of the data set that has been read."""

    name: str
    """Path of the image relative to the site's folder."""
    path: Path
    study: Study


def _predict_mask(
    image: _Image, run: ModelCall, names: Sequence[str], checkpoint: Checkpoint, staged: Path
) -> dict[str, Any]:
    """Predict and write an image's mask; return the image's entry in the journal."""
    nifti = suffix_of(image.path) in NIFTI_SUFFIXES
    prediction = predict(image.study, run, names, checkpoint.meta.get("looks", {}))
    mask = _staged_stem(checkpoint.digest, image.name) + (".nii.gz" if nifti else ".png")
    replace_with(staged / mask, partial(_write_mask, prediction.ids[0], len(names), image.path if nifti else None))
    return {"file": image.name, "mask": mask, "checkpoint": checkpoint.digest, "unlike": prediction.unlike,
            "rows": list(rows(image.name, prediction.found, prediction.unlike))}  # fmt: skip


def _predict_class(
    image: _Image, run: ModelCall, names: Sequence[str], checkpoint: Checkpoint, staged: Path
) -> dict[str, Any]:
    """Predict an image's class; return the image's entry in the journal, which names no mask."""
    result = classify(image.study, run, names, checkpoint.meta.get("looks", {}))
    unlike = result["unlike"]["score"] if result["unlike"] else None
    return {"file": image.name, "checkpoint": checkpoint.digest, "unlike": unlike, "rows": [class_row(image.name, result)]}


def _staged_stem(checkpoint: str, name: str) -> str:
    """Return a file name, without suffix, that no other image or checkpoint has."""
    return hashlib.sha256(f"{checkpoint}/{name}".encode()).hexdigest()[:32]


def _write_mask(ids: Any, num_classes: int, like: Path | None, temporary: Path) -> None:
    """Write a mask as palette PNG, or as NIfTI with the geometry of the image `like`."""
    if like is None:
        temporary.write_bytes(masks.to_png(ids, num_classes))
        return
    with tempfile.TemporaryDirectory(prefix="relay-") as folder:  # write_mask goes by the file's suffix
        nifti = Path(folder) / "mask.nii.gz"
        write_mask(nifti, ids, like=like)
        temporary.write_bytes(nifti.read_bytes())


def _finished_entries(path: Path, checkpoint: str) -> Iterator[dict[str, Any]]:
    """Yield the journal's entries of finished images; skip a half-written last line and entries of other checkpoints."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        staged = "mask" not in entry or (path.parent / STAGED / entry["mask"]).is_file()
        if entry["checkpoint"] == checkpoint and staged:
            yield entry


def _write_zip(path: Path, staged: Path, entries: list[dict[str, Any]]) -> None:
    """Pack the masks into an archive, under their images' names."""

    def write(temporary: Path) -> None:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            for entry in entries:
                image = Path(entry["file"])
                suffix = "".join(Path(entry["mask"]).suffixes)
                archive.write(staged / entry["mask"], str(image.with_name(stem_of(image) + suffix)))

    replace_with(path, write)

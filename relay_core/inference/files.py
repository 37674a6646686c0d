"""Predict image files and folders of them: write masks, or a table of classes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from relay_core.data import image_reader
from relay_core.engine import Checkpoint
from relay_core.errors import DataError, Problem, RelayError
from relay_core.imaging import Spacing, Study, is_litter, stem_of, suffix_of, write_mask, write_volume
from relay_core.inference.measurements import class_header, class_row, write_table
from relay_core.inference.prediction import classify
from relay_core.inference.resolution import ModelCall
from relay_core.inference.torch_model import torch_run

Made = TypeVar("Made")


CLASSES = "classes.csv"


def predict_files(
    checkpoint: Checkpoint,
    inputs: Sequence[Path],
    out: Path,
    kind: str,
    subject_pattern: str | None,
    device: torch.device,
) -> list[Path]:
    """Write a mask of class ids for each image, or with `nifti` one volume for each subject; for a classifier `classes.csv`.

    Raises:
        RelayError: `kind` is unknown, a classifier is asked for masks, or `subject_pattern` is no regular expression.
        DataError: files cannot be read (all are named), or slices of a subject differ in size.
    """
    if kind not in ("png", "nifti"):
        raise RelayError(f"--format {kind}: use png or nifti")
    try:
        pattern = re.compile(subject_pattern) if subject_pattern else None
    except re.error as error:
        raise RelayError(f"--subject-pattern {subject_pattern}: not a regular expression: {error}") from None
    run, settings = torch_run(checkpoint, device)
    files = _image_files(inputs)
    read = image_reader(settings.dataset.name, settings.data)  # reads as in training
    if settings.data.task == "classification":
        if kind != "png" or pattern:
            raise RelayError(f"{checkpoint.path} is a classifier: it has no masks, so no --format and no --subject-pattern")
        return [_classify(files, read, run, settings.data.names(), checkpoint.meta.get("looks", {}), out / CLASSES)]
    masks = _for_each_file(files, lambda path: _predict_mask(run, *read(path)))
    if kind == "png":
        _refuse_to_replace_inputs(files, out)
        out.mkdir(parents=True, exist_ok=True)
        return [_write_png(out / f"{stem_of(path)}.png", mask) for path, (mask, _) in masks.items()]
    subjects: dict[str, list[Path]] = {}
    for path in files:
        match = pattern.search(stem_of(path)) if pattern else None
        name = (match.group(1) if match.groups() else match.group(0)) if match else stem_of(path)
        subjects.setdefault(name, []).append(path)
    for name, slices in subjects.items():
        shapes = {masks[path][0].shape for path in slices}
        if len(shapes) > 1:
            sizes = ", ".join(f"{h}x{w}" for h, w in sorted(shapes))
            raise DataError(f"subject {name}: its {len(slices)} slices differ in size ({sizes}); predict them apart")
    out.mkdir(parents=True, exist_ok=True)
    return [_write_nifti(out / f"{name}.nii.gz", slices, masks) for name, slices in subjects.items()]


def _refuse_to_replace_inputs(files: Sequence[Path], out: Path) -> None:
    """Raise RelayError where a mask would replace the image that it was made from."""
    for path in files:
        target = out / f"{stem_of(path)}.png"
        if target.exists() and target.samefile(path):
            raise RelayError(f"--out {out}: the masks would replace the images; choose another folder")


def _write_nifti(target: Path, slices: list[Path], masks: dict[Path, Any]) -> Path:
    mask, spacing = masks[slices[0]]
    if len(slices) == 1:
        write_mask(target, mask.numpy(), spacing, like=slices[0])
    else:
        write_volume(target, torch.stack([masks[path][0] for path in slices]).numpy(), spacing)
    return target


def _image_files(inputs: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    for path in inputs:
        inside = sorted(p for p in path.iterdir() if suffix_of(p) and not is_litter(p.name)) if path.is_dir() else [path]
        if not inside or not inside[0].exists():
            raise DataError(f"{path}: no image there")
        files += inside
    stems: dict[str, Path] = {}
    for path in files:
        if stem_of(path) in stems:
            raise DataError(f"{path} and {stems[stem_of(path)]} would both write {stem_of(path)}; predict them apart")
        stems[stem_of(path)] = path
    return files


def _for_each_file(files: Sequence[Path], make: Callable[[Path], Made]) -> dict[Path, Made]:
    """Return the result of `make` for each file; raise a DataError that names all files which cannot be read."""
    results, problems = {}, []
    for path in files:
        try:
            results[path] = make(path)
        except DataError as error:
            problems += list(error.problems) or [Problem(path.name, str(error))]
    if problems:
        raise DataError(f"{len(problems)} of {len(files)} images cannot be read; nothing was written", problems)
    return results


def _predict_mask(run: ModelCall, pixels: Any, spacing: Spacing | None) -> tuple[torch.Tensor, Spacing | None]:
    """Predict class ids (H, W) uint8 at the file's own size; return them with its pixel spacing."""
    (mask,) = run(_as_study(pixels).batch(0, 1), ("mask",))
    return torch.from_numpy(mask[0]), spacing


def _as_study(pixels: Any) -> Study:
    return Study("picture", pixels[None], None, False)


def _classify(files: Sequence[Path], read: Any, run: ModelCall, names: list[str], looks: Any, target: Path) -> Path:
    """Classify images, and write a table with one line for each."""
    results = _for_each_file(files, lambda path: classify(_as_study(read(path)[0]), run, names, looks))
    write_table(target, class_header(names), [class_row(path.name, result) for path, result in results.items()])
    return target


def _write_png(path: Path, mask: torch.Tensor) -> Path:
    write_mask(path, mask.numpy())
    return path

"""What the command line does with a trained checkpoint: score, predict, draw, describe."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

import torch

from relay_core.config import RunFile, SiteSettings
from relay_core.cuda import which
from relay_core.data import SiteData, has_test, load_site, write_mask, write_volume
from relay_core.data.pairs import Split
from relay_core.data.preflight import image_reader
from relay_core.engine.checkpoint import Checkpoint
from relay_core.engine.evaluate import (
    evaluate,
    load_solver,
    prediction_rows,
    settings_of,
    write_matrices,
    write_picture,
)
from relay_core.engine.relay_run import generated_rows
from relay_core.errors import CheckpointError, DataError, ExportError, Problem, RelayError, RunFileError
from relay_core.files import write_atomically
from relay_core.imaging.readers import Spacing
from relay_core.imaging.study import Study
from relay_core.inference.measurements import class_header, class_row
from relay_core.inference.onnx_model import Precision, Session
from relay_core.inference.outputs import OUTPUTS, SCORE
from relay_core.inference.prediction import Run, classify
from relay_core.inference.served import Served
from relay_core.metrics.matrix import metrics_of, table_row

Made = TypeVar("Made")
CLASSES = "classes.csv"
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".nii", ".nii.gz")


def evaluate_checkpoint(
    checkpoint: Checkpoint, run: RunFile, data_root: Path | None, device: torch.device, out: Path | None
) -> tuple[dict[str, Any], list[Path]]:
    """Scores of a checkpoint's solver by test site, for every test set of the run that is on this machine.

    With `out`, `scores.json` and `predictions.png` are written there; returns the scores and the files written.

    Raises:
        DataError: none of them is.
    """
    solver, trained = load_solver(checkpoint, device)
    tests = site_data(checkpoint, trained, run, data_root, "test")
    if not tests:
        raise DataError(f"none of the image folders of {run.path} is on this machine; give --data-root")
    scores = {name: evaluate(solver, data, device) for name, data in tests.items()}
    if out is None:
        return scores, []
    written = [out / "scores.json", out / "predictions.png"]
    write_atomically(written[0], json.dumps({"checkpoint": checkpoint.digest, "scores": scores}, indent=1).encode())
    write_picture(prediction_rows(solver, tests, device), written[1], trained.data.num_classes)
    write_matrices({str(checkpoint.meta["site"]): scores}, list(scores), out / "evaluation")
    return scores, [*written, *sorted((out / "evaluation").iterdir())]


def site_data(
    checkpoint: Checkpoint, trained: SiteSettings, run: RunFile, data_root: Path | None, split: Split
) -> dict[str, SiteData]:
    """The training or test images of every site of a run that are on this machine, as a checkpoint's solver wants them.

    Raises:
        RunFileError: the run has other classes or channels.
    """
    sites: dict[str, SiteData] = {}
    for settings in (run.site(i) for i in run.all_ids):
        folder = settings.data_folder(data_root, run.base)
        wanted, found = ((d.img_channels, d.num_classes, d.task) for d in (trained.data, settings.data))
        if wanted != found:
            raise RunFileError(
                f"{checkpoint.path} was trained on {wanted[0]} channels and {wanted[1]} classes ({wanted[2]}), "
                f"site {settings.name} of {run.path} has {found[0]} and {found[1]} ({found[2]})"
            )
        if folder.is_dir() and (split == "train" or has_test(settings.dataset.name, settings.data, folder)):
            sites[settings.name] = load_site(
                settings.dataset.name, settings.data, folder=folder, split=split, resolution=trained.resolution
            )
    return sites


def export_checkpoint(
    checkpoint: Checkpoint, run: RunFile, data_root: Path | None, out: Path, precision: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write a checkpoint's solver as ONNX, with its proof beside it; return the proof, and what the model says of itself.

    Raises:
        ExportError: an unknown precision, or the model does not give what the solver gives; nothing is written then.
        DataError: none of the run's test sets is on this machine.
    """
    from relay_core.export.onnx import export

    if precision not in get_args(Precision):
        raise ExportError(f"--precision {precision}: one of {', '.join(get_args(Precision))}")
    trained = settings_of(checkpoint)
    tests = site_data(checkpoint, trained, run, data_root, "test")
    if not tests:
        raise DataError(f"none of the image folders of {run.path} is on this machine; give --data-root")
    training = site_data(checkpoint, trained, run, data_root, "train") if precision == "int8" else {}
    calibration = training.get(str(checkpoint.meta["site"])) or next(iter(training.values()), None)
    content, proof = export(checkpoint, tests, cast(Precision, precision), calibration)
    write_atomically(out, content)
    write_atomically(out.with_name(f"{out.name}.json"), json.dumps(asdict(proof), indent=1).encode())
    return asdict(proof), asdict(Session(content, "cpu").facts)


def scores_table(scores: dict[str, Any]) -> str:
    """A Markdown table: test sites x metrics, the first with its 95 % interval (t) where it has one."""
    metrics = metrics_of(next(iter(scores.values())))
    lines = [table_row(["test site", "images", *metrics]), table_row(["---"] * (2 + len(metrics)))]
    for site, row in scores.items():
        cells = ["-" if row[name] is None else f"{row[name]:.3f}" for name in metrics]
        for i, name in enumerate(metrics):
            interval = row["ci95"].get(name, {}).get("t")
            if interval is not None and name != "hd95":
                cells[i] += f" ({interval[0]:.3f} to {interval[1]:.3f})"
            if name == "hd95":
                cells[i] += f" {row['hd95_unit']}"
        lines.append(table_row([site, str(row["num_images"]), *cells]))
    return "\n".join(lines)


def proof_text(tests: dict[str, dict[str, Any]]) -> str:
    """What a proof says of each test set, in a line: the score beside torch's."""
    name = next(name for name in SCORE.values() if all(name.lower() in row for row in tests.values()))
    key = name.lower()
    scores = (f"{site} {row[key]:.3f} ({row[f'{key}_torch']:.3f} in torch)" for site, row in tests.items())
    return f"{name} {', '.join(scores)}"


def torch_run(checkpoint: Checkpoint, device: torch.device) -> tuple[Run, SiteSettings]:
    """A checkpoint's solver as `imaging.prediction` calls a model, and the settings that it was trained with.

    Raises:
        CheckpointError: the settings in it are not valid here, or its tensors do not fit them.
    """
    solver, settings = load_solver(checkpoint, device)
    network = Served.of(solver, settings).to(device)
    names = OUTPUTS[network.task]

    @torch.no_grad()
    def run(images: Any, outputs: Any) -> list[Any]:
        made = dict(zip(names, network(torch.tensor(images, device=device)), strict=True))
        return [made[name].cpu().numpy() for name in outputs]

    return run, settings


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a CSV file."""
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(header)
    table.writerows(rows)
    write_atomically(path, text.getvalue().encode())


def predict_files(
    checkpoint: Checkpoint,
    inputs: Sequence[Path],
    out: Path,
    kind: str,
    subject_pattern: str | None,
    device: torch.device,
) -> list[Path]:
    """Write a mask of class ids for each image, or with `nifti` one volume for each subject; of a classifier `classes.csv`.

    Raises:
        RelayError: an unknown `kind`, one that a classifier does not have, or a pattern that is no regular expression.
        DataError: files that cannot be read (all are named), or slices of a subject that differ in size.
    """
    if kind not in ("png", "nifti"):
        raise RelayError(f"--format {kind}: use png or nifti")
    try:
        pattern = re.compile(subject_pattern) if subject_pattern else None
    except re.error as error:
        raise RelayError(f"--subject-pattern {subject_pattern}: not a regular expression: {error}") from None
    run, settings = torch_run(checkpoint, device)
    files = _image_files(inputs)
    read = image_reader(settings.dataset.name, settings.data)  # as in training
    if settings.data.task == "classification":
        if kind != "png" or pattern:
            raise RelayError(f"{checkpoint.path} is a classifier: it has no masks, so no --format and no --subject-pattern")
        return [_classify(files, read, run, settings.data.names(), checkpoint.meta.get("looks", {}), out / CLASSES)]
    masks = _each(files, lambda path: _predict(run, *read(path)))
    if kind == "png":
        _keep_inputs(files, out)
        out.mkdir(parents=True, exist_ok=True)
        return [_write_png(out / f"{_stem(path)}.png", mask) for path, (mask, _) in masks.items()]
    subjects: dict[str, list[Path]] = {}
    for path in files:
        found = pattern.search(_stem(path)) if pattern else None
        name = (found.group(1) if found.groups() else found.group(0)) if found else _stem(path)
        subjects.setdefault(name, []).append(path)
    for name, slices in subjects.items():
        shapes = {masks[path][0].shape for path in slices}
        if len(shapes) > 1:
            sizes = ", ".join(f"{h}x{w}" for h, w in sorted(shapes))
            raise DataError(f"subject {name}: its {len(slices)} slices differ in size ({sizes}); predict them apart")
    out.mkdir(parents=True, exist_ok=True)
    return [_write_nifti(out / f"{name}.nii.gz", slices, masks) for name, slices in subjects.items()]


def _keep_inputs(files: Sequence[Path], out: Path) -> None:
    """A mask must not replace the image that it was made from."""
    for path in files:
        target = out / f"{_stem(path)}.png"
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
        inside = sorted(p for p in path.iterdir() if p.name.lower().endswith(IMAGE_SUFFIXES)) if path.is_dir() else [path]
        if not inside or not inside[0].exists():
            raise DataError(f"{path}: no image there")
        files += inside
    stems: dict[str, Path] = {}
    for path in files:
        if _stem(path) in stems:
            raise DataError(f"{path} and {stems[_stem(path)]} would both write {_stem(path)}; predict them apart")
        stems[_stem(path)] = path
    return files


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").rpartition(".")[0] if path.name.lower().endswith(".nii.gz") else path.stem


def _each(files: Sequence[Path], make: Callable[[Path], Made]) -> dict[Path, Made]:
    """What is made of each file. Raises DataError that names all which cannot be read."""
    made, problems = {}, []
    for path in files:
        try:
            made[path] = make(path)
        except DataError as error:
            problems += list(error.problems) or [Problem(path.name, str(error))]
    if problems:
        raise DataError(f"{len(problems)} of {len(files)} images cannot be read; nothing was written", problems)
    return made


def _predict(run: Run, pixels: Any, spacing: Spacing | None) -> tuple[torch.Tensor, Spacing | None]:
    """Class ids (H, W) uint8 at the file's own size, and its pixel spacing."""
    (mask,) = run(_picture(pixels).batch(0, 1), ("mask",))
    return torch.from_numpy(mask[0]), spacing


def _picture(pixels: Any) -> Study:
    return Study("picture", pixels[None], None, False)


def _classify(files: Sequence[Path], read: Any, run: Run, names: list[str], looks: Any, target: Path) -> Path:
    """Write a line for each image."""
    found = _each(files, lambda path: classify(_picture(read(path)[0]), run, names, looks))
    write_table(target, class_header(names), [class_row(path.name, one) for path, one in found.items()])
    return target


def _write_png(path: Path, mask: torch.Tensor) -> Path:
    write_mask(path, mask.numpy())
    return path


def draw_samples(checkpoint: Checkpoint, out: Path, per_site: int, device: torch.device) -> None:
    """Write a grid of generated images and labels, a row for each site.

    Raises:
        CheckpointError: a checkpoint without generators.
    """
    settings = settings_of(checkpoint)
    rows = generated_rows(settings, checkpoint, device, per_site)
    if not rows:
        raise CheckpointError(f"{checkpoint.path}: trained by {checkpoint.meta['strategy']}, which has no generators")
    write_picture(rows, out, settings.data.num_classes)


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """JSON-able facts of a checkpoint, and with which ops its networks would run here."""
    meta, state = checkpoint.meta, checkpoint.meta["state"]
    networks = {}
    for name in checkpoint.networks:
        tensors = checkpoint.network(name).values()
        networks[name] = {
            "numbers": sum(t.numel() for t in tensors),
            "bytes": sum(t.numel() * t.element_size() for t in tensors),
        }
    return {
        "path": str(checkpoint.path),
        "digest": checkpoint.digest,
        "run": meta["run"],
        "site": meta["site"],
        "task_id": meta["task_id"],
        "strategy": meta["strategy"],
        "step": meta["step"],
        "images": meta["images"],
        "stage": state.get("stage"),
        "sites_before": state.get("previous", {}),
        "augmentation_p": {k: state[k]["ada"]["p"] for k in ("label", "img") if k in state},
        "networks": networks,
        "bytes": checkpoint.path.stat().st_size,
        "settings": meta["settings"],
        "ops": which("cuda" if torch.cuda.is_available() else "cpu"),
    }


def description_text(facts: dict[str, Any]) -> str:
    """`describe` for a person."""
    lines = [
        f"{facts['path']} ({facts['bytes'] / 2**20:.1f} MiB), digest verified",
        f"digest    {facts['digest']}",
        f"run       {facts['run']}",
        f"site      {facts['site']} (task {facts['task_id']}), {facts['images']} images, step {facts['step']}",
        f"strategy  {facts['strategy']}" + (f", stage {facts['stage']}" if facts["stage"] else ""),
    ]
    before = ", ".join(
        f"{name} (slot {slot['id']}, {slot['frequency']} images)" for name, slot in facts["sites_before"].items()
    )
    lines.append(f"before    {before or 'no site'}")
    lines += [f"network   {name:14} {n['numbers']:>12,} numbers" for name, n in facts["networks"].items()]
    lines.append(f"ops here  {facts['ops']}")
    return "\n".join(lines)

"""The command `relay prepare`, which turns volumes into slices. Heavy imports are late."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from relay_core.errors import RelayError

if TYPE_CHECKING:
    from relay_core.preparation import Mediastinum, Slices

prepare_app = typer.Typer(help="Turn volumes and their labels into the slices of a data set.", no_args_is_help=True)

ImagesArgument = Annotated[
    Path,
    typer.Argument(
        metavar="IMAGES",
        help="Folder with a volume a study: STUDY.nii.gz, .nii, .nrrd, .nhdr, .mha, .mhd, .npz, .dcm, or a folder of DICOM.",
    ),
]
OutArgument = Annotated[Path, typer.Argument(metavar="OUT", help="The hospital's folder, to write to.")]
KeepOption = Annotated[
    float | None, typer.Option(help="Slices (area, 30), share of labelled slices (share, 0.5) or pixels (threshold, 1).")
]
NegativesOption = Annotated[int, typer.Option(min=0, help="Unlabelled slices a study to keep too, evenly spaced.")]
PrefixOption = Annotated[str, typer.Option(help="Stands before study ids, where hospitals have the same ones.")]
WorkersOption = Annotated[int, typer.Option(min=0, help="Studies at a time; 0: one a core.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print data as JSON on standard output.")]
StructuresOption = Annotated[
    str | None,
    typer.Option(metavar="NAME,...", help="Segments of a DICOM SEG, or structures of an RTSTRUCT: labels 1, 2, ..."),
]
SELECT = "area: the largest; share: a share of the labelled; threshold: those of some size; all."


@prepare_app.command()
def mediastinum(
    images: ImagesArgument,
    labels: Annotated[Path, typer.Argument(metavar="LABELS", help="Folder with a label volume a study, of the same name.")],
    out: OutArgument,
    select: Annotated[str, typer.Option(help=SELECT)] = "area",
    keep: KeepOption = None,
    negatives: NegativesOption = 0,
    crop: Annotated[bool, typer.Option("--crop/--no-crop", help="Crop to the lungs.")] = True,
    margin: Annotated[float, typer.Option(min=0, help="Millimetres around the lungs.")] = 10.0,
    hu_min: Annotated[int, typer.Option(help="HU of the value 0; lower ones become it (-1024 keeps air).")] = -160,
    intercept: Annotated[float | None, typer.Option(help="Add this to all values, where they are not HU: -1024.")] = None,
    structures: StructuresOption = None,
    prefix: PrefixOption = "",
    workers: WorkersOption = 0,
    as_json: JsonOption = False,
) -> None:
    """CT volumes and tumour labels become 16-bit slices, masks and meta.txt; called again, it goes on."""
    from relay_core.preparation import Mediastinum, Selection

    task = Mediastinum(Selection(select, keep, negatives), hu_min, crop, margin, intercept, _names(structures))
    _run(images, labels, out, task, prefix, workers, as_json)


@prepare_app.command()
def slices(
    images: ImagesArgument,
    out: OutArgument,
    labels: Annotated[Path | None, typer.Option(help="Folder with a label volume a study; default: no masks.")] = None,
    layout: Annotated[str, typer.Option(help="folder (image/, mask/), or midline (a folder a study).")] = "folder",
    axis: Annotated[str, typer.Option(help="axial, coronal or sagittal.")] = "axial",
    window: Annotated[
        str | None,
        typer.Option(metavar="LOW,HIGH", help="Values of black and white; default: 0.5 and 99.5 percentile."),
    ] = None,
    every: Annotated[int, typer.Option(min=1, help="Look only at each so-many-th slice.")] = 1,
    select: Annotated[str, typer.Option(help=SELECT)] = "all",
    keep: KeepOption = None,
    negatives: NegativesOption = 0,
    structures: StructuresOption = None,
    prefix: PrefixOption = "",
    workers: WorkersOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Any volumes become 8-bit slices, and masks where there are labels; called again, it goes on."""
    from relay_core.preparation import Selection, Slices

    task = Slices(Selection(select, keep, negatives), layout, axis, _window(window), every, _names(structures))
    _run(images, labels, out, task, prefix, workers, as_json)


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip()) if text else ()


def _window(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise RelayError(f"--window {text}: give LOW,HIGH, two numbers, the smaller first") from None
    return low, high


def _run(
    images: Path, labels: Path | None, out: Path, task: Mediastinum | Slices, prefix: str, workers: int, as_json: bool
) -> None:
    from relay_core.cli.output import counting
    from relay_core.cli.training import stop_on_signal
    from relay_core.preparation import REPORT, prepare

    with stop_on_signal("stopping: what is done stays") as stop, counting("preparing", as_json) as tell:
        result = prepare(images, labels, out, task, prefix=prefix, workers=workers, tell=tell, stop=stop)
    summary = {
        "studies": result.studies,
        "made": result.made,
        "slices": result.slices,
        "positive": result.positive,
        "report": REPORT,
    }
    text = f"{result.studies} studies ({result.made} made now), {result.slices} slices in {out}; see {out / REPORT}"
    print(json.dumps(summary) if as_json else text)

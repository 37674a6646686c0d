"""The command `relay`. Heavy imports are late: `relay --help` answers at once."""

from __future__ import annotations

import json
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

import relay_core
from relay_core.cli import bundles, convert, privacy
from relay_core.cli.prepare import prepare_app
from relay_core.cli.release import release_app
from relay_core.cli.training import run_relay
from relay_core.errors import DataError, RelayError, Stopped

if TYPE_CHECKING:
    from relay_core.engine import Checkpoint

app = typer.Typer(
    name="relay",
    help="Relay learning: one model trained from hospital to hospital, without a network between them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Run file (YAML), or the name of a recipe.")]
CheckpointArgument = Annotated[
    Path, typer.Argument(metavar="CHECKPOINT", help="Checkpoint file, or the folder of a trained site.")
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print data as JSON on standard output.")]
DataRootOption = Annotated[
    Path | None, typer.Option(help="Folder that the sites' image folders lie in; default: the run file's root_path.")
]


def main() -> None:
    """Run the command; a known error is one message and an exit code of its own, never a traceback."""
    as_json = "--json" in sys.argv
    # Threads that wait for each other stay awake for some microseconds, then sleep. Without that (PASSIVE) a training takes
    # a sixth longer on a quiet machine; with much more, as is the default, twice as long where one core has other work (with
    # this much an eighth; benchmarks/NOTES.md). The variable is read when torch is loaded.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        _add_plugins()
        app()
    except RelayError as error:
        if as_json:
            print(json.dumps({"error": error.code, "message": str(error)}), flush=True)
        print(f"{'stopped' if isinstance(error, Stopped) else 'error'}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        sys.exit(1)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in ("relay_core", "services"):
            raise
        print(f"error: this command needs {error.name}: pip install 'relay-learning[train]'", file=sys.stderr)
        sys.exit(1)


def _add_plugins() -> None:
    """Add the commands of installed packages: entry points `relay_core.commands`, each a function of this app.

    One whose optional dependencies are not installed is left out.
    """
    for entry in metadata.entry_points(group="relay_core.commands"):
        try:
            entry.load()(app)
        except ImportError:
            continue


def _version(value: bool) -> None:
    if value:
        print(f"relay {relay_core.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    pass


@app.command()
def train(
    run: RunArgument,
    site: Annotated[int | None, typer.Option(help="Train this site alone (its task_id); default: the whole run.")] = None,
    data_root: DataRootOption = None,
    out: Annotated[Path, typer.Option(help="Folder for checkpoints, scores and pictures.")] = Path("runs/relay"),
    device: DeviceOption = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an earlier call stopped.")] = False,
    until: Annotated[
        Literal["end", "solver"],
        typer.Option(
            help="`solver`: stop when the solver is ready; --resume trains the generators, if they have steps left."
        ),
    ] = "end",
    seed: Annotated[int | None, typer.Option(help="Overrides random_seed.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override a key: train.batch_size=8. Repeatable.")] = None,
    grids: Annotated[
        int | None,
        typer.Option(
            min=1, help="Pictures of the replay, beside the site's own, along a training; train.sample_every_n_steps wins."
        ),
    ] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write TensorBoard files below OUT.")] = False,
    without_pretrained: Annotated[
        bool, typer.Option("--without-pretrained", help="Start from nothing where the run asks for ImageNet weights.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a run: all its sites in order on one machine, or one site of a real relay."""
    overrides = [*(set_ or []), *([f"random_seed={seed}"] if seed is not None else [])]
    matrices = run_relay(
        run,
        overrides,
        out,
        data_root,
        device=device,
        site=site,
        resume=resume,
        as_json=as_json,
        tensorboard=tensorboard,
        pretraining=not without_pretrained,
        until=until,
        grids=grids,
    )
    if not matrices:
        return
    if as_json:
        print(json.dumps({name: json.loads(matrix.to_json()) for name, matrix in matrices.items()}), flush=True)
    else:
        print(f"\n{next(iter(matrices.values())).to_markdown()}\nwritten to {out}")


@app.command()
def study(
    run: RunArgument,
    strategies: Annotated[
        str,
        typer.Option(
            help="Separated by commas; NAME-plain leaves augmentation out, 'ewc strategy.kwargs.strength=10' has a setting "
            "of its own. The first is compared with the others."
        ),
    ] = "relay,sequential,joint,local,si,owm,ewc,lwf,sequential-plain",
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Runs of each strategy.")] = 3,
    data_root: DataRootOption = None,
    out: Annotated[Path, typer.Option(help="Folder for runs and report.")] = Path("runs/study"),
    device: DeviceOption = "auto",
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override a key in every run. Repeatable.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare strategies on equal terms: same run file, budget and augmentation, several seeds. Called again, it goes on."""
    from relay_core.cli.training import run_comparison

    names = [name.strip() for name in strategies.split(",") if name.strip()]
    run_comparison(run, names, seeds, out, data_root, device=device, overrides=set_ or [], as_json=as_json)


@app.command()
def phantom(
    out: Annotated[Path, typer.Argument(help="Folder to write, in DoFE's layout.")],
    sites: Annotated[int, typer.Option(min=1, max=32, help="Number of sites.")] = 4,
    train_images: Annotated[int, typer.Option("--train", min=1, help="Training images a site.")] = 60,
    test_images: Annotated[int, typer.Option("--test", min=1, help="Test images a site.")] = 30,
    size: Annotated[int, typer.Option(min=32, max=1024, help="Side in pixels.")] = 128,
    seed: Annotated[int, typer.Option(help="Seed.")] = 0,
) -> None:
    """Write phantom fundus images of several sites that differ strongly."""
    from relay_core.data import make_phantoms

    folders = make_phantoms(out, sites, train_images, test_images, size, seed=seed)
    print(f"wrote {len(folders)} sites of {train_images} + {test_images} images to {out}")


@app.command()
def preflight(
    layout: Annotated[str, typer.Argument(metavar="NAME", help="Its name in a run file: fundus, folder, ...")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The site's folder.")],
    options: Annotated[str, typer.Option(metavar="JSON", help="The data set's kwargs, as in a run file.")] = "{}",
    previews: Annotated[Path | None, typer.Option(metavar="DIR", help="Also draw training images with their masks.")] = None,
    count: Annotated[int, typer.Option(min=1, max=999, help="Number of previews.")] = 8,
    as_json: JsonOption = False,
) -> None:
    """Check every file of a site's data set, and say what it holds."""
    from relay_core.cli.output import CountLines
    from relay_core.cli.survey import FEW_IMAGES, survey_json, survey_text
    from relay_core.config import dataset_options
    from relay_core.data import survey, write_previews

    kwargs = dataset_options(layout, options)
    result = (
        survey(layout, kwargs, folder, CountLines(sys.stdout, FEW_IMAGES)) if as_json else survey(layout, kwargs, folder)
    )
    names = write_previews(result, previews, count) if previews else []
    if as_json:
        print(json.dumps(survey_json(result, names)), flush=True)
        raise typer.Exit(DataError.exit_code if result.problems else 0)
    result.require_usable()
    print(survey_text(result) + (f"\nwrote {len(names)} previews to {previews}" if previews else ""))


def _checkpoint(path: Path) -> Checkpoint:
    from relay_core.engine import checkpoint

    return checkpoint.find(path, lambda message: print(f"warning: {message}", file=sys.stderr))


@app.command()
def evaluate(
    checkpoint: CheckpointArgument,
    run: Annotated[str, typer.Option(help="Run file or recipe that names the test sets.")],
    data_root: DataRootOption = None,
    out: Annotated[Path | None, typer.Option(help="Also write scores.json, predictions.png and worst.png here.")] = None,
    own_size: Annotated[
        bool, typer.Option(help="Score masks at each image's own size; default: at the size that the solver learned at.")
    ] = False,
    flips: Annotated[
        bool,
        typer.Option(
            "--flips",
            help="Average the answers over the four flips of each image, at four times the cost; a model that is exported, "
            "served or handed on answers without.",
        ),
    ] = False,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Score a checkpoint's solver on every test set of a run that is on this machine."""
    from relay_core.cli.describe import scores_table
    from relay_core.config import load_run
    from relay_core.engine import choose_device, evaluate_checkpoint

    chosen_device = choose_device(device)
    if out is not None and (own_size or flips):  # what is written are the scores of the model that goes on
        raise typer.BadParameter(
            f"{'--own-size' if own_size else '--flips'} writes nothing: leave --out out", param_hint="--out"
        )
    if own_size:
        from relay_core.inference import evaluate_at_own_size

        scores = evaluate_at_own_size(_checkpoint(checkpoint), load_run(run), data_root, chosen_device, flips)
        print(json.dumps(scores) if as_json else scores_table(scores))
        return
    scores, written = evaluate_checkpoint(_checkpoint(checkpoint), load_run(run), data_root, chosen_device, out, flips)
    for path in written if as_json else ():
        print(json.dumps({"event": "written", "path": str(path)}))
    print(json.dumps(scores) if as_json else scores_table(scores))


@app.command()
def predict(
    checkpoint: CheckpointArgument,
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images.")],
    out: Annotated[Path, typer.Option(help="Folder for the masks.")] = Path("predictions"),
    format_: Annotated[
        str, typer.Option("--format", help="png: one mask of class ids an image; nifti: one a subject.")
    ] = "png",
    subject_pattern: Annotated[
        str | None,
        typer.Option(help="Regular expression for the subject in a file's name; its slices become one volume."),
    ] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Write the solver's masks, at each image's own size; of a classifier `classes.csv`."""
    from relay_core.engine import choose_device
    from relay_core.inference import CLASSES, predict_files

    written = predict_files(_checkpoint(checkpoint), images, out, format_, subject_pattern, choose_device(device))
    text = f"wrote {written[0]}" if written[0].name == CLASSES else f"wrote {len(written)} masks to {out}"
    print(json.dumps([str(path) for path in written]) if as_json else text)


@app.command("export-onnx")
def export_onnx(
    checkpoint: CheckpointArgument,
    run: Annotated[str, typer.Option(help="Run file or recipe that names the test sets.")],
    data_root: DataRootOption = None,
    out: Annotated[Path, typer.Option(help="File to write; OUT.json says how it was proved.")] = Path("model.onnx"),
    precision: Annotated[str, typer.Option(help="fp32, fp16, or int8 (calibrated on the training images).")] = "fp32",
    as_json: JsonOption = False,
) -> None:
    """Write the solver as an ONNX model that was proved to give what the solver gives."""
    from relay_core.cli.describe import proof_text
    from relay_core.config import load_run
    from relay_core.export import export_checkpoint

    proof, facts = export_checkpoint(_checkpoint(checkpoint), load_run(run), data_root, out, precision)
    worst = max(case["max_abs_difference"] for case in proof["parity"])
    scores = proof_text(proof["tests"])
    text = f"wrote {out}, {proof['bytes'] / 1e6:.1f} MB, {precision}; logits within {worst:.1e}; {scores}"
    print(json.dumps({"proof": proof, "facts": facts}) if as_json else text)


@app.command("predict-dataset")
def predict_dataset(
    checkpoint: CheckpointArgument,
    layout: Annotated[str, typer.Argument(metavar="NAME", help="Its name in a run file: fundus, folder, ...")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The site's folder.")],
    options: Annotated[str, typer.Option(metavar="JSON", help="The data set's kwargs, as in a run file.")] = "{}",
    out: Annotated[Path, typer.Option(help="Folder for measurements.csv, and masks.zip of masks.")] = Path("predictions"),
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Predict every image of a site's data set, with a table of measurements; called again, it goes on."""
    from relay_core.cli.output import counting
    from relay_core.cli.training import stop_on_signal
    from relay_core.config import dataset_options
    from relay_core.engine import choose_device
    from relay_core.inference import predict_dataset as predict_all

    with stop_on_signal("stopping: what is done stays") as stop, counting("predicting", as_json) as tell:
        result = predict_all(
            _checkpoint(checkpoint), layout, dataset_options(layout, options), folder, out, choose_device(device), tell, stop
        )
    for problem in result.problems:
        print(f"left out: {problem}", file=sys.stderr)
    summary = {"images": result.images, "unlike": result.unlike, "left_out": len(result.problems)}
    text = f"wrote {result.images} predictions to {out}; {result.unlike} images look unlike those of the sites"
    print(json.dumps(summary) if as_json else text + (f"; {len(result.problems)} left out" if result.problems else ""))


@app.command("predict-study")
def predict_study(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="ONNX file that relay export-onnx wrote.")],
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="Image, NIfTI, DICOM, or a zip of a DICOM series.")],
    form: Annotated[str, typer.Option(help="measurements, mask, overlay, nifti, seg, all or pictures.")] = "measurements",
    name: Annotated[str, typer.Option(help="What the answer calls the model.")] = "model",
    version: Annotated[int, typer.Option(min=1, help="The model's version, for the answer.")] = 1,
    decode_memory: Annotated[int, typer.Option(min=256, help="MiB that decoding may take.")] = 3072,
    decode_seconds: Annotated[float, typer.Option(min=0.001, help="Seconds that decoding may take.")] = 60.0,
    out: Annotated[Path, typer.Option(help="Folder for the answer.")] = Path("prediction"),
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Predict one study with an exported model, as the service does; it is decoded in a process of its own."""
    from typing import get_args

    from relay_core.cli.output import counting
    from relay_core.inference import Decoders, Form
    from relay_core.inference import predict_study as predict_one

    forms = {form: form for form in get_args(Form)}
    if form not in forms:
        raise RelayError(f"--form {form}: one of {', '.join(forms)}")
    with counting("predicting", as_json) as tell:
        made = predict_one(
            model, study, out, name=name, version=version, form=forms[form], device=device, progress=tell,
            decoders=Decoders(decode_memory << 20, decode_seconds),
        )  # fmt: skip
    for warning in made["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    print(json.dumps(made) if as_json else f"wrote {made['path']}")


@app.command()
def samples(
    checkpoint: CheckpointArgument,
    out: Annotated[Path, typer.Option(help="PNG to write.")] = Path("samples.png"),
    per_site: Annotated[int, typer.Option(min=1, max=64, help="Pictures a site.")] = 8,
    nearest_of: Annotated[
        str | None,
        typer.Option(
            help="Run file that names the sites' images: below each picture the training image nearest to it, a patient's."
        ),
    ] = None,
    data_root: DataRootOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Draw generated images and labels for every site that a relay checkpoint remembers."""
    from relay_core.cli.describe import draw_samples
    from relay_core.config import load_run
    from relay_core.engine import choose_device

    if nearest_of is None and data_root is not None:
        raise typer.BadParameter("--data-root is where --nearest-of finds the sites' images: give both")
    run = None if nearest_of is None else load_run(nearest_of)
    draw_samples(_checkpoint(checkpoint), out, per_site, choose_device(device), run, data_root)
    print(json.dumps({"path": str(out)}) if as_json else f"wrote {out}")


@app.command()
def generated(
    checkpoint: CheckpointArgument,
    run: Annotated[str, typer.Option(help="Run file or recipe that names the sites' images.")],
    data_root: DataRootOption = None,
    features: Annotated[
        Path | None, typer.Option(help="ONNX file of a feature network; default: the checkpoint's own solver.")
    ] = None,
    count: Annotated[int, typer.Option(min=2, help="Most images of a site, real and generated.")] = 1000,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Score the replay of the sites that are here: FID, KID and coverage of images, variety and shapes of label maps."""
    from relay_core.config import load_run
    from relay_core.engine import choose_device
    from relay_core.experiments import score_generators, scores_text

    scores = score_generators(_checkpoint(checkpoint), load_run(run), data_root, features, count, choose_device(device))
    print(json.dumps(scores) if as_json else scores_text(scores))


@app.command()
def compare_sites(
    checkpoint: CheckpointArgument,
    run: Annotated[str, typer.Option(help="Run file or recipe that names the sites' images.")],
    data_root: DataRootOption = None,
    count: Annotated[int, typer.Option(min=5, help="Most images of a site, real and generated.")] = 300,
    out: Annotated[Path | None, typer.Option(help="JSON file to write: histograms, medians, distances.")] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Compare this site's images with those of the sites before: brightness, colour, sharpness, sizes, as distributions."""
    from relay_core.config import load_run
    from relay_core.engine import choose_device
    from relay_core.experiments import compare_sites as compare
    from relay_core.experiments import sites_text
    from relay_core.files import write_atomically

    found = compare(_checkpoint(checkpoint), load_run(run), data_root, count, choose_device(device))
    if out is not None:
        write_atomically(out, json.dumps(found).encode())
    if as_json:
        print(json.dumps(found if out is None else {"path": str(out)}))
    else:
        print(sites_text(found) + (f"\nwrote {out}" if out is not None else ""))


@app.command()
def inspect(checkpoint: CheckpointArgument, as_json: JsonOption = False) -> None:
    """Verify a checkpoint and say what is in it."""
    from relay_core.cli.describe import describe, description_text

    facts = describe(_checkpoint(checkpoint))
    print(json.dumps(facts) if as_json else description_text(facts))


@app.command()
def recipes() -> None:
    """List the run files that come with relay."""
    from relay_core.config import recipes as shipped

    for name, path in shipped().items():
        print(f"{name:28} {path.read_text().splitlines()[0].removeprefix('# ')}")


@app.command()
def catalogue() -> None:
    """Everything that a run file may name, with its settings, installed plug-ins too; Markdown."""
    from relay_core.cli.catalogue import catalogue as render

    print(render(), end="")


bundles.register(app)
privacy.register(app)
convert.register(app)
app.add_typer(prepare_app, name="prepare")
app.add_typer(release_app, name="release")

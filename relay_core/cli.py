"""The command `relay`. Heavy imports are late: `relay --help` answers at once."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import relay_core
from relay_core.errors import RelayError, RunFileError, Stopped
from relay_core.events import Emit, Stop

if TYPE_CHECKING:
    from relay_core.engine import Checkpoint
    from relay_core.metrics import ScoreMatrix

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
    try:
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


def _version(value: bool) -> None:
    if value:
        print(f"relay {relay_core.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    pass


@contextmanager
def _stop_on_signal() -> Iterator[Stop]:
    """A stop request on SIGTERM or SIGINT; the second SIGINT ends at once."""
    asked = False

    def handler(number: int, frame: Any) -> None:
        nonlocal asked
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked = True
        print("stopping: writing a checkpoint", file=sys.stderr, flush=True)

    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: asked
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def _sinks(out: Path, title: str, as_json: bool, tensorboard: bool) -> Iterator[Emit]:
    """Where a training's events go: the terminal or standard output, `events.jsonl`, TensorBoard."""
    from relay_core.terminal import EventLog, JsonLines, TensorBoard, Terminal, tee

    with ExitStack() as stack:
        sinks: list[Emit] = [EventLog(out / "events.jsonl")]
        sinks.append(JsonLines(sys.stdout) if as_json else stack.enter_context(Terminal(title)))
        if tensorboard:
            sinks.append(TensorBoard(out / "tensorboard"))
        yield tee(*sinks)


def _play(
    run: str, overrides: list[str], out: Path, data_root: Path | None, *, device: str, title: str = "",
    site: int | None = None, resume: bool = False, as_json: bool = False, tensorboard: bool = False,
) -> dict[str, ScoreMatrix]:  # fmt: skip
    from relay_core.config import load_run
    from relay_core.engine import Play, choose_device, processes

    loaded = load_run(run, overrides)
    if site is not None and site not in loaded.all_ids:
        raise RunFileError(f"--site {site}: the run file has the sites {', '.join(map(str, loaded.all_ids))}")
    chosen = choose_device(device)
    quiet = int(os.environ.get("RANK", "0")) > 0
    with processes(chosen), _stop_on_signal() as stop:
        if quiet:
            return Play(loaded, out, data_root, chosen, site, resume, stop=stop)()
        with _sinks(out, title, as_json, tensorboard) as emit:
            return Play(loaded, out, data_root, chosen, site, resume, emit, stop)()


@app.command()
def train(
    run: RunArgument,
    site: Annotated[int | None, typer.Option(help="Train this site alone (its task_id); default: the whole run.")] = None,
    data_root: DataRootOption = None,
    out: Annotated[Path, typer.Option(help="Folder for checkpoints, scores and pictures.")] = Path("runs/relay"),
    device: DeviceOption = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an earlier call stopped.")] = False,
    seed: Annotated[int | None, typer.Option(help="Overrides random_seed.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override a key: train.batch_size=8. Repeatable.")] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write TensorBoard files below OUT.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a run: all its sites in order on one machine, or one site of a real relay."""
    overrides = [*(set_ or []), *([f"random_seed={seed}"] if seed is not None else [])]
    matrices = _play(
        run,
        overrides,
        out,
        data_root,
        device=device,
        site=site,
        resume=resume,
        as_json=as_json,
        tensorboard=tensorboard,
    )
    if not matrices:
        return
    if as_json:
        print(json.dumps({name: json.loads(matrix.to_json()) for name, matrix in matrices.items()}), flush=True)
    else:
        print(f"\n{matrices['dice_per_sample'].to_markdown()}\nwritten to {out}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the phantoms, both trainings and the pictures.")] = Path("demo"),
    sites: Annotated[int, typer.Option(min=2, max=8, help="Number of hospitals.")] = 3,
    device: DeviceOption = "auto",
    seed: Annotated[int, typer.Option(help="Seed of phantoms and training.")] = 0,
) -> None:
    """Play a relay over phantom hospitals, and plain fine-tuning beside it; show what each forgets."""
    from relay_core.demo import run_demo

    run_demo(out, sites, seed, partial(_play, device=device, resume=True))


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


def _checkpoint(path: Path) -> Checkpoint:
    from relay_core.engine.checkpoint import find

    return find(path, lambda message: print(f"warning: {message}", file=sys.stderr))


@app.command()
def evaluate(
    checkpoint: CheckpointArgument,
    run: Annotated[str, typer.Option(help="Run file or recipe that names the test sets.")],
    data_root: DataRootOption = None,
    out: Annotated[Path | None, typer.Option(help="Also write scores.json and predictions.png here.")] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Score a checkpoint's solver on every test set of a run that is on this machine."""
    from relay_core.config import load_run
    from relay_core.engine import choose_device
    from relay_core.report import evaluate_checkpoint, scores_table

    chosen = choose_device(device)
    scores = evaluate_checkpoint(_checkpoint(checkpoint), load_run(run), data_root, chosen, out)
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
    """Write the solver's masks, at each image's own size."""
    from relay_core.engine import choose_device
    from relay_core.report import predict_files

    written = predict_files(_checkpoint(checkpoint), images, out, format_, subject_pattern, choose_device(device))
    print(json.dumps([str(path) for path in written]) if as_json else f"wrote {len(written)} masks to {out}")


@app.command()
def samples(
    checkpoint: CheckpointArgument,
    out: Annotated[Path, typer.Option(help="PNG to write.")] = Path("samples.png"),
    per_site: Annotated[int, typer.Option(min=1, max=64, help="Pictures a site.")] = 8,
    device: DeviceOption = "auto",
) -> None:
    """Draw generated images and labels for every site that a relay checkpoint remembers."""
    from relay_core.engine import choose_device
    from relay_core.report import draw_samples

    draw_samples(_checkpoint(checkpoint), out, per_site, choose_device(device))
    print(f"wrote {out}")


@app.command()
def inspect(checkpoint: CheckpointArgument, as_json: JsonOption = False) -> None:
    """Verify a checkpoint and say what is in it."""
    from relay_core.report import describe, description_text

    facts = describe(_checkpoint(checkpoint))
    print(json.dumps(facts) if as_json else description_text(facts))


@app.command()
def recipes() -> None:
    """List the run files that come with relay."""
    from relay_core.config import recipes as shipped

    for name, path in shipped().items():
        print(f"{name:28} {path.read_text().splitlines()[0].removeprefix('# ')}")

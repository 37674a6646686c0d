"""The commands of a hand-off: export, import and inspection of bundles, and signed reports."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from relay_core.bundle import Policy
from relay_core.cli.keys import KEYS, JsonOption, KeysOption, key_folder, keys_app
from relay_core.errors import BundleError
from relay_core.files import alone

if TYPE_CHECKING:
    from relay_core.bundle import BundleFacts, Progress

BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", exists=True, dir_okay=False, help="A .relay file.")]
PolicyOption = Annotated[
    Literal["off", "warn", "require"],
    typer.Option(envvar="RELAY_RELEASE_POLICY", help="require: nothing leaves without a privacy audit that passed."),
]
MaxAucOption = Annotated[
    float, typer.Option(envvar="RELAY_RELEASE_MAX_AUC", min=0.5, max=1, help="AUC that an audit must exclude; 0.5: chance.")
]
AlphaOption = Annotated[
    float, typer.Option(envvar="RELAY_RELEASE_ALPHA", min=0.001, max=0.5, help="False alarms that are put up with.")
]
MinPatientsOption = Annotated[
    int, typer.Option(envvar="RELAY_RELEASE_MIN_PATIENTS", min=2, help="Fewest patients of either side of an audit.")
]
RunOption = Annotated[str, typer.Option("--run", help="Run file or recipe of the relay.")]

bundle_app = typer.Typer(help="Look at bundles, without a service.", no_args_is_help=True)
report_app = typer.Typer(help="Signed evaluations, metrics only, for the coordinator.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands of a hand-off to the app."""
    app.command("export")(export_)
    app.command("import")(import_)
    app.add_typer(keys_app, name="keys")
    app.add_typer(bundle_app, name="bundle")
    app.add_typer(report_app, name="report")


@contextlib.contextmanager
def _clean_exit() -> Iterator[None]:
    """End on SIGTERM as on Ctrl-C: what was decrypted is removed on the way out."""
    previous_handler = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous_handler)


class _Megabytes:
    """Shows on a terminal how many bytes are done, in one line that is written again."""

    def __init__(self) -> None:
        self._next = time.monotonic() + 1.0

    def __call__(self, done: int, total: int) -> None:
        if (now := time.monotonic()) >= self._next and sys.stderr.isatty():
            self._next = now + 1.0
            print(f"\r{done >> 20} of {total >> 20} MiB", end="\r", file=sys.stderr, flush=True)


def _progress(as_json: bool) -> Progress:
    from relay_core.cli.output import CountLines

    return CountLines(sys.stdout) if as_json else _Megabytes()


def export_(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="Checkpoint file, or the folder of a trained site.")
    ],
    run: RunOption,
    out: Annotated[Path, typer.Option(help="File to write.")],
    keys: KeysOption = KEYS,
    scores: Annotated[
        Path | None, typer.Option(help="The site's scores.json; default: the one beside the checkpoint.")
    ] = None,
    parent: Annotated[Path | None, typer.Option(help="bundle/provenance.json of what the training started from.")] = None,
    to: Annotated[
        str | None, typer.Option("--to", help="Encrypt for this site of the roster: its name or fingerprint.")
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="Carry the weights in half precision.")] = False,
    discriminators: Annotated[
        bool,
        typer.Option(
            "--discriminators/--without-discriminators", help="Whether they travel; else the next site's start anew."
        ),
    ] = True,
    audit: Annotated[Path | None, typer.Option(help="audit.signed.json of relay privacy-audit, of this checkpoint.")] = None,
    policy: PolicyOption = "off",
    max_auc: MaxAucOption = Policy.max_auc,
    alpha: AlphaOption = Policy.alpha,
    min_patients: MinPatientsOption = Policy.min_patients,
    override: Annotated[
        str | None, typer.Option(help="Release although the audit did not pass, for this reason; it travels along, signed.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a signed bundle of a finished training, for the next site."""
    from relay_core.bundle import MAX_REASON, Gate, Provenance, export_bundle, is_reason, read_audit
    from relay_core.config import load_run

    if not is_reason(override):
        raise typer.BadParameter(f"is one line of 1 to {MAX_REASON} letters", param_hint="--override")
    report = None
    if audit is not None:
        try:
            report = read_audit(audit, key_folder(keys))
        except BundleError as error:
            if policy == "require" and override is None:
                raise
            print(f"warning: {error}; it counts as none", file=sys.stderr)
    gate = Gate(policy, Policy(max_auc, alpha, min_patients), report, override)
    checkpoint_file = newest_file(checkpoint)
    beside = checkpoint_file.parent / "scores.json"
    with _clean_exit():
        facts = export_bundle(
            checkpoint_file, load_run(run), key_folder(keys), out, scores=scores or (beside if beside.is_file() else None),
            parent=Provenance.read(parent) if parent else None, recipient=to, half=half, gate=gate,
            discriminators=discriminators, progress=_progress(as_json),
            warn=lambda message: print(f"warning: {message}", file=sys.stderr),
        )  # fmt: skip
    _print_facts(facts, as_json, f"wrote {out}, {facts.size / 1e6:.1f} MB")


def newest_file(path: Path) -> Path:
    """Return a checkpoint's file: the path itself, or the newest in a folder. Raises CheckpointError."""
    from relay_core.errors import CheckpointError

    if path.is_file():
        return path
    files = sorted(path.glob("step-*.safetensors"))
    if not files:
        raise CheckpointError(f"{path}: no checkpoint there")
    return files[-1]


def import_(
    bundle: BundleArgument,
    out: Annotated[Path, typer.Option(help="Folder of this site's trainings: the --out of relay train.")],
    keys: KeysOption = KEYS,
    run: Annotated[str | None, typer.Option("--run", help="Run file or recipe of the relay.")] = None,
    site: Annotated[int | None, typer.Option(help="Which site of the run this one is (task_id).")] = None,
    known: Annotated[
        Path | None, typer.Option(help="JSON of runs and earlier imports, instead of --run and --site.")
    ] = None,
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="To be scored only: whose turn it is does not matter.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check a bundle through and through, and put its checkpoint where `relay train --site` starts from it."""
    from relay_core.bundle import KnownRelays, import_bundle
    from relay_core.config import load_run
    from relay_core.engine import hand_over_layout
    from relay_core.files import write_atomically

    if known is None and run is None:
        raise typer.BadParameter("name the relay's run file with --run")
    out.mkdir(parents=True, exist_ok=True)
    with _clean_exit(), alone(out):
        record = out / "imports.json"
        if known is not None:
            knowledge = KnownRelays.read(known)
        else:
            loaded = load_run(str(run))
            earlier = json.loads(record.read_text()) if record.is_file() and not evaluate else []
            knowledge = KnownRelays({loaded.digest: (loaded, site)}, earlier)
        facts, target = import_bundle(
            bundle, knowledge, key_folder(keys), out, hand_over_layout, evaluate=evaluate, progress=_progress(as_json)
        )
        if known is None and not evaluate:  # a bundle that is only evaluated can still be imported
            entry = {key: getattr(facts, key) for key in ("digest", "run", "hop", "created_at")}
            write_atomically(record, json.dumps([*knowledge.imported, entry], indent=1).encode())
    _print_facts(facts, as_json, f"accepted; the next site starts from {target}")


def _print_facts(facts: BundleFacts, as_json: bool, done: str) -> None:
    if as_json:
        print(json.dumps({"bundle": facts.to_json()}), flush=True)
        return
    print(f"{done}\n{_facts_text(facts)}")


def _facts_text(facts: BundleFacts) -> str:
    from relay_core.bundle import day, spoken_fingerprint

    lines = [
        f"bundle     {facts.digest}",
        f"run        {facts.run}, hop {facts.hop}, by {facts.site}; relay {facts.version}",
        f"signer     {facts.signer['name']}, {spoken_fingerprint(facts.signer['fingerprint'])}"
        f" ({'trusted here' if facts.signer['trusted'] else 'NOT trusted here'})",
        f"made       {day(facts.created_at)}; {'for one site, encrypted' if facts.recipient else 'for any site'}"
        f"{'; half precision' if facts.half else ''}",
    ]
    return "\n".join([*lines, *_hop_lines(facts)])


def _hop_lines(facts: BundleFacts) -> list[str]:
    from relay_core.bundle import audit_words, day, privacy_words, spoken_fingerprint
    from relay_core.metrics import headlines

    lines = []
    for hop in facts.history:
        trusted = "" if hop["trusted"] else ", NOT trusted here"
        lines.append(
            f"hop {hop['hop']:<6} {hop['site']}: {hop['images']} images, {day(hop['created_at'])}, signed by "
            f"{hop['signer']} ({spoken_fingerprint(hop['fingerprint'])}{trusted}); {headlines(hop['metrics'])}; "
            f"{audit_words(hop['audit'])}{privacy_words(hop['privacy'])}; bundle {hop['bundle'][:16]}"
        )
    return lines


@contextlib.contextmanager
def _opened_bundle(bundle: Path, keys: Path, trust: bool) -> Iterator[Any]:
    import tempfile

    from relay_core.bundle import opened

    with (
        _clean_exit(),
        tempfile.TemporaryDirectory() as work,
        opened(bundle, key_folder(keys), Path(work), trust=trust) as contents,
    ):
        yield contents


@bundle_app.command("verify")
def verify_(bundle: BundleArgument, keys: KeysOption = KEYS, as_json: JsonOption = False) -> None:
    """Whether a bundle is whole, signed by sites that are trusted here, and holds what its run's networks need."""
    from relay_core.bundle import check_networks

    with _opened_bundle(bundle, keys, trust=True) as contents:
        try:
            from relay_core.engine import hand_over_layout
        except ModuleNotFoundError:
            print("networks not compared: pip install 'relay-learning[train]'", file=sys.stderr)
        else:
            settings = contents.run.site(contents.manifest["task_id"])
            check_networks(contents.table, hand_over_layout(settings), settings.facts.has_generators)
        _print_facts(contents.facts, as_json, "verified")


@bundle_app.command("inspect")
def inspect_(
    bundle: BundleArgument,
    keys: KeysOption = KEYS,
    card: Annotated[bool, typer.Option("--card", help="Print the model card instead.")] = False,
    as_json: JsonOption = False,
) -> None:
    """What a bundle says, whether or not its signers are trusted here."""
    with _opened_bundle(bundle, keys, trust=False) as contents:
        if card:
            print(contents.members["MODEL_CARD.md"].decode())
            return
        _print_facts(
            contents.facts, as_json, f"{bundle.name}: {contents.facts.size / 1e6:.1f} MB, {len(contents.table)} tensors"
        )


@bundle_app.command("history")
def history_(bundle: BundleArgument, keys: KeysOption = KEYS, as_json: JsonOption = False) -> None:
    """Where a model has been, hop by hop."""
    with _opened_bundle(bundle, keys, trust=False) as contents:
        print(json.dumps(contents.history) if as_json else "\n".join(_hop_lines(contents.facts)))


@bundle_app.command("diff")
def diff_(first: BundleArgument, second: BundleArgument, keys: KeysOption = KEYS, as_json: JsonOption = False) -> None:
    """What changed from one bundle to another: facts, settings, and how far each network moved."""
    from relay_core.bundle import differences, differences_text

    with _opened_bundle(first, keys, trust=False) as a, _opened_bundle(second, keys, trust=False) as b:
        changes = differences(a, b)
        print(json.dumps(changes) if as_json else differences_text(changes))


@report_app.command("sign")
def sign_(
    scores: Annotated[
        Path, typer.Argument(metavar="SCORES", exists=True, dir_okay=False, help="scores.json of an evaluation.")
    ],
    checkpoint: Annotated[Path, typer.Option(help="What was scored.")],
    run: RunOption,
    out: Annotated[Path, typer.Option(help="File to write.")],
    keys: KeysOption = KEYS,
    as_json: JsonOption = False,
) -> None:
    """Sign an evaluation, metrics only, for the coordinator."""
    from dataclasses import asdict

    from relay_core.bundle import sign_report
    from relay_core.config import load_run

    report = sign_report(scores, newest_file(checkpoint), load_run(run), key_folder(keys), out)
    print(json.dumps({"report": asdict(report)}) if as_json else f"wrote {out}")


@report_app.command("matrix")
def matrix_(
    reports: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False, help="Signed reports of one run.")],
    run: RunOption,
    keys: KeysOption = KEYS,
    out: Annotated[Path | None, typer.Option(help="Also write the matrices here: JSON, CSV, PNG.")] = None,
    as_json: JsonOption = False,
) -> None:
    """The site x test-set matrix, from the reports of all sites; every signature is checked."""
    from relay_core.bundle import collected_matrices, read_report
    from relay_core.config import load_run
    from relay_core.metrics import is_withheld

    signed = [read_report(path, key_folder(keys)) for path in reports]
    matrices = collected_matrices(signed, load_run(run), out)
    if as_json:
        print(json.dumps({name: json.loads(matrix.to_json()) for name, matrix in matrices.items()}))
        return
    print(next(iter(matrices.values())).to_markdown())
    withheld = [f"{name} after {each.site}" for each in signed for name, row in each.scores.items() if is_withheld(row)]
    if withheld:
        print(f"withheld, as few patients stand behind them: {', '.join(withheld)}")

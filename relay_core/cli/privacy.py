"""The command `relay privacy-audit`: what could be found out about a site's images from the networks that leave it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from relay_core.bundle import Policy
from relay_core.cli.bundles import AlphaOption, MaxAucOption, MinPatientsOption, RunOption
from relay_core.cli.keys import KEYS, JsonOption, KeysOption, key_folder

if TYPE_CHECKING:
    from relay_core.config import RunFile
    from relay_core.engine import Checkpoint


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("privacy-audit")(privacy_audit)


def privacy_audit(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="Checkpoint file, or the folder of a trained site.")
    ],
    run: RunOption,
    data_root: Annotated[
        Path | None, typer.Option(help="Folder that the sites' image folders lie in; default: the run file's root_path.")
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(help="The checkpoint that the training began from; default: of the site before, beside CHECKPOINT."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the report; default: audit/ beside the checkpoint.")] = None,
    samples: Annotated[int, typer.Option(min=100, help="Generated images that are searched for copies.")] = 10_000,
    discriminators: Annotated[
        bool, typer.Option("--discriminators/--without-discriminators", help="As `relay export` will be called.")
    ] = True,
    max_auc: MaxAucOption = Policy.max_auc,
    alpha: AlphaOption = Policy.alpha,
    min_patients: MinPatientsOption = Policy.min_patients,
    keys: KeysOption = KEYS,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    as_json: JsonOption = False,
) -> None:
    """Attack the networks of a checkpoint as its receiver could: which images were trained on, and are any copied?

    Called again after a stop, it goes on. `relay audit` is the service's log.
    """
    from relay_core.bundle import AUDIT, judge, sign_audit
    from relay_core.cli.output import counting
    from relay_core.cli.training import stop_on_signal
    from relay_core.config import load_run
    from relay_core.engine import checkpoint as checkpoints
    from relay_core.engine import choose_device
    from relay_core.files import write_atomically
    from relay_core.privacy import Audit, audit_text, write_audit

    def warn(message: str) -> None:
        print(f"warning: {message}", file=sys.stderr)

    source, loaded = checkpoints.find(checkpoint, warn), load_run(run)
    before = checkpoints.find(reference, warn) if reference is not None else _before(source, loaded)
    folder = out or source.path.parent / "audit"
    with (
        counting("privacy audit", as_json) as progress,
        stop_on_signal("stopping: what is done is kept") as stop,
    ):
        report, pairs = Audit(
            source, loaded, folder, data_root, choose_device(device), before, samples, discriminators, progress, stop
        )()
    policy = Policy(max_auc, alpha, min_patients)
    verdict = judge(report, policy)
    written = write_audit(report, verdict, policy, pairs, folder)
    site_keys = key_folder(keys)
    if site_keys.exists:
        written.append(folder / AUDIT)
        write_atomically(written[-1], sign_audit(report, site_keys))
    if as_json:
        summary = {"outcome": verdict.outcome, "reasons": verdict.reasons, "checkpoint": report["checkpoint"]}
        print(json.dumps({"audit": summary, "files": [str(path) for path in written]}), flush=True)
        return
    print(f"{audit_text(report, verdict)}\nwritten to {folder}")
    if not site_keys.exists:
        print(f"not signed, as {keys} holds no keys: relay export takes signed audits alone (--keys)")


def _before(source: Checkpoint, run: RunFile) -> Checkpoint | None:
    """Return the checkpoint that a training began from, where it lies beside it; None where it began from nothing."""
    from relay_core.engine import checkpoint as checkpoints

    task_id = source.meta["task_id"]
    place = run.task_ids.index(task_id) if task_id in run.task_ids else 0
    if not place or source.meta.get("base", {}) is None:
        return None
    folder = source.path.parent.parent / run.site(run.task_ids[place - 1]).folder_name
    return checkpoints.find(folder, lambda message: None) if folder.is_dir() else None

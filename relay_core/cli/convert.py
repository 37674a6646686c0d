"""The command `relay convert-checkpoint`: on the command line alone, never within reach of a service."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("convert-checkpoint")(convert_checkpoint)


def convert_checkpoint(
    source: Annotated[
        Path, typer.Argument(metavar="FILE", help="last.ckpt of the published code, or with --pretrained a .pth.")
    ],
    out: Annotated[
        Path, typer.Option(help="Folder of the trainings, the --out of relay train; with --pretrained: the file.")
    ],
    run: Annotated[str | None, typer.Option(help="Run file that describes the networks.")] = None,
    site: Annotated[int | None, typer.Option(help="The site that was trained last (its task_id).")] = None,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Plain ImageNet weights, as torchvision has them.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print data as JSON on standard output.")] = False,
) -> None:
    """Make a checkpoint of the published code into one that `relay train` starts from. The file can run no code here."""
    if not pretrained and (run is None or site is None):
        raise typer.BadParameter("name the run file with --run and the site that was trained last with --site")
    if pretrained and (run is not None or site is not None):
        raise typer.BadParameter("--pretrained takes no --run and no --site")
    if source.is_file() and not as_json:
        print(f"reading {source}, {source.stat().st_size / 1e6:.0f} MB, in a process of its own", file=sys.stderr)
    if run is None or site is None:
        _pretrained(source, out, as_json)
    else:
        _checkpoint(source, run, site, out, as_json)


def _pretrained(source: Path, out: Path, as_json: bool) -> None:
    from relay_core.conversion import convert_pretrained

    count = convert_pretrained(source, out)
    print(json.dumps({"path": str(out), "tensors": count}) if as_json else f"wrote {out}, {count} tensors")


def _checkpoint(source: Path, run: str, site: int, out: Path, as_json: bool) -> None:
    from relay_core.config import load_run
    from relay_core.conversion import convert

    warnings: list[str] = []
    checkpoint = convert(source, load_run(run), site, out, warnings.append)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    meta = checkpoint.meta
    facts = {key: meta[key] for key in ("site", "task_id", "strategy", "sites", "images", "converted")}
    if as_json:
        print(json.dumps({"path": str(checkpoint.path), "digest": checkpoint.digest, **facts, "warnings": warnings}))
        return
    print(f"wrote {checkpoint.path}: {meta['strategy']}, {', '.join(checkpoint.networks)}; sites {', '.join(meta['sites'])}")
    print(f"the next site starts from it: relay train {run} --site NEXT --out {out}")

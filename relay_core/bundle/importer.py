"""From a checked bundle to a checkpoint that the engine starts from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from relay_core.bundle import provenance, weights
from relay_core.bundle.container import Progress, no_progress
from relay_core.bundle.facts import BundleFacts
from relay_core.bundle.keys import KeyFolder
from relay_core.bundle.reader import opened
from relay_core.bundle.writer import Provenance, write_beside
from relay_core.config import SiteSettings
from relay_core.errors import CheckpointError

Layout = Callable[[SiteSettings], weights.Table]


def import_bundle(
    path: Path, known: provenance.KnownRelays, keys: KeyFolder, out: Path, layout: Layout, *, evaluate: bool = False,
    progress: Progress = no_progress,
) -> tuple[BundleFacts, Path]:  # fmt: skip
    """Check a bundle through and through; write its checkpoint below `out`, and what it says to `out/bundle`.

    Args:
        path: the file.
        known: runs and earlier imports of this site.
        keys: of this site.
        out: folder; the checkpoint goes where the run keeps that site's.
        layout: the tensors that a site's settings ask for.
        evaluate: see `provenance.check`.
        progress: told bytes done and in all.

    Raises:
        BundleError: why it is refused; nothing is written then.
        CheckpointError: `out` holds that site's own training, which is not replaced.
        OSError: not readable, or the disk is full.
    """
    with opened(path, keys, out, progress=progress) as bundle:
        made = bundle.manifest
        run = provenance.check(bundle.facts, known, evaluate=evaluate)
        settings = run.site(made["task_id"])
        weights.check_networks(bundle.table, layout(settings))
        target = out / settings.folder_name / f"step-{made['checkpoint']['step']:08d}.safetensors"
        earlier = _imports(target.parent)
        meta = {**_meta(made, settings, bundle.facts.digest), "sites": [record["site"] for record in bundle.history]}
        weights.to_checkpoint(bundle.stored, weights.locate(bundle.table), meta, target, progress)
        for old in earlier - {target}:
            old.unlink()  # the next training starts from the one with the most steps
        write_beside(out / "bundle", bundle.members, Provenance(bundle.facts.digest, bundle.history))
    return bundle.facts, target


def _imports(folder: Path) -> set[Path]:
    """Checkpoints that earlier imports left."""
    found = set(folder.glob("step-*.safetensors"))
    if any("bundle" not in weights.read_meta(path) for path in found):
        raise CheckpointError(f"{folder} holds a training of that site itself; choose another --out")
    return found


def _meta(made: Mapping[str, Any], settings: SiteSettings, digest: str) -> dict[str, Any]:
    """The checkpoint's JSON; the settings are those of the site's own run file."""
    return {
        **made["checkpoint"],
        "format": 1,
        "run": made["run"],
        "site": made["site"],
        "task_id": made["task_id"],
        "settings": settings.shared(),
        "optimizers": {},
        "bundle": digest,
    }

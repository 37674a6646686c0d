"""Imports a bundle: turns it, once checked, into a checkpoint that the engine starts from."""

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
"""A function that returns the names, types and shapes of the tensors that a site's settings ask for."""


def import_bundle(
    path: Path, known: provenance.KnownRelays, keys: KeyFolder, out: Path, layout: Layout, *, evaluate: bool = False,
    progress: Progress = no_progress,
) -> tuple[BundleFacts, Path]:  # fmt: skip
    """Check a bundle completely, write its checkpoint below `out` and its readable members to `out/bundle`.

    Args:
        path: the bundle file.
        known: the runs and the earlier imports of this site.
        keys: the keys of this site.
        out: the folder of the run's trainings; the checkpoint goes to the subfolder of the site that trained it.
        layout: returns the tensors that a site's settings ask for.
        evaluate: whether the model is only to be scored, not trained on; see `provenance.check`.
        progress: called with the bytes processed so far and in all.

    Returns:
        The bundle's facts and the path of the checkpoint.

    Raises:
        BundleError: the bundle is refused, and nothing has been written.
        CheckpointError: `out` holds a training that was made there for that site, which is not replaced.
        OSError: the bundle is not readable, or the disk is full.
    """
    with opened(path, keys, out, progress=progress) as bundle:
        manifest_data = bundle.manifest
        run = provenance.check(bundle.facts, known, evaluate=evaluate)
        settings = run.site(manifest_data["task_id"])
        weights.check_networks(bundle.table, layout(settings), settings.facts.has_generators)
        target = out / settings.folder_name / f"step-{manifest_data['checkpoint']['step']:08d}.safetensors"
        earlier_imports = _earlier_imports(target.parent)
        meta = {
            **_checkpoint_meta(manifest_data, settings, bundle.facts.digest),
            "sites": [record["site"] for record in bundle.history],
        }
        weights.to_checkpoint(bundle.stored, weights.locate(bundle.table), meta, target, progress)
        for checkpoint in earlier_imports - {target}:
            checkpoint.unlink()  # the next training starts from the checkpoint with the most steps
        write_beside(out / "bundle", bundle.members, Provenance(bundle.facts.digest, bundle.history))
    return bundle.facts, target


def _earlier_imports(folder: Path) -> set[Path]:
    """Return the checkpoints that earlier imports left in a site's folder.

    Raises:
        CheckpointError: the folder holds a checkpoint that was trained there and not imported.
    """
    checkpoints = set(folder.glob("step-*.safetensors"))
    if any("bundle" not in weights.read_meta(path) for path in checkpoints):
        raise CheckpointError(f"{folder} holds a training of that site itself; choose another --out")
    return checkpoints


def _checkpoint_meta(manifest_data: Mapping[str, Any], settings: SiteSettings, digest: str) -> dict[str, Any]:
    """Return the checkpoint's JSON metadata; its settings come from the run file that this site has, not from the bundle."""
    return {
        **manifest_data["checkpoint"],
        "format": 1,
        "run": manifest_data["run"],
        "site": manifest_data["site"],
        "task_id": manifest_data["task_id"],
        "settings": settings.shared(),
        "optimizers": {},
        "bundle": digest,
    }

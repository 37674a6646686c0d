"""From a finished checkpoint to a signed bundle."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import relay_core
from relay_core.bundle import canonical, card, container, encryption, history, manifest, signing, weights
from relay_core.bundle.container import Progress, no_progress
from relay_core.bundle.facts import BundleFacts
from relay_core.bundle.keys import KeyFolder
from relay_core.bundle.private import private_folder
from relay_core.bundle.values import is_digest
from relay_core.config import RunFile
from relay_core.errors import BundleError
from relay_core.files import replace_with, write_atomically


@dataclass(frozen=True)
class Provenance:
    """What the next hop needs to know of a bundle: its digest and its history."""

    digest: str
    history: list[history.Record]

    @classmethod
    def read(cls, path: Path) -> Provenance:
        """Raises BundleError `history_broken`, `bundle_damaged`."""
        found = canonical.load(path.read_bytes(), path.name)
        if not isinstance(found, dict) or found.keys() != {"digest", "history"} or not is_digest(found["digest"]):
            raise BundleError("history_broken", f"{path.name} does not say where the model has been")
        return cls(found["digest"], history.check(found["history"], None))

    def to_json(self) -> bytes:
        """The file's content."""
        return canonical.dump({"digest": self.digest, "history": self.history})


def export_bundle(
    checkpoint: Path, run: RunFile, keys: KeyFolder, target: Path, *, scores: Path | None = None,
    parent: Provenance | None = None, recipient: str | None = None, half: bool = False, progress: Progress = no_progress,
) -> BundleFacts:  # fmt: skip
    """Write a bundle, and beside it, below `bundle/`, what it says.

    Args:
        checkpoint: a finished training of a site of `run`.
        run: the relay's run file.
        keys: of this site.
        target: file to write; it appears whole or not at all.
        scores: the site's `scores.json`, for history and model card.
        parent: of the bundle that the training started from; None at the first site.
        recipient: name or fingerprint in the roster of the one site that may read it; None: whoever has the file.
        half: carry weights in half precision.
        progress: told bytes done and in all, of the weights.

    Raises:
        BundleError: `bundle_incomplete`, `bundle_other_run`, `weights_invalid`, `bundle_too_large`, `key_missing`,
            `key_locked`, `signer_unknown`, `signer_revoked`, `history_broken`.
        CheckpointError: damaged.
        OSError: the disk is full.
    """
    found = weights.read_checkpoint(checkpoint)
    meta, stored = found.meta, found.tensors
    _check(meta, run, parent)
    before = parent.history if parent else []
    to = keys.roster.find(recipient) if recipient is not None else None
    if to is not None:
        keys.roster.require(to.card.fingerprint, run.digest, f"the recipient {to.card.name}")
    metrics = manifest.scores_of(scores, found.digest) if scores is not None else {}
    with private_folder(target.parent) as staging:
        carried = staging / container.WEIGHTS
        table = weights.select(checkpoint, _handed_over(meta, stored), carried, half, progress)
        made = {
            "format": manifest.FORMAT,
            "relay": relay_core.__version__,
            "run": run.digest,
            "hop": len(before) + 1,
            "task_id": meta["task_id"],
            "site": meta["site"],
            "signer": {"name": keys.card.name, "fingerprint": keys.card.fingerprint},
            "recipient": to.card.fingerprint if to else None,
            "parent": parent.digest if parent else None,
            "created_at": round(time.time(), 3),
            "half": half,
            "tensors": {name: [dtype, list(shape)] for name, (dtype, shape) in table.items()},
            "metrics": metrics,
            "checkpoint": {
                **{key: meta[key] for key in ("strategy", "step", "steps", "images", "consumed")},
                "state": {**meta["state"], **({"frozen": []} if "frozen" in meta["state"] else {})},
                **({"looks": meta["looks"]} if meta.get("looks") else {}),
            },
            "tools": {"python": platform.python_version()},
        }  # fmt: skip
        record = {key: made[key] for key in ("hop", "task_id", "site", "run", "parent", "metrics", "relay", "created_at")}
        digests = {container.WEIGHTS: weights.file_digest(carried)}
        record |= {"weights": digests[container.WEIGHTS], "images": meta["images"], "steps": meta["steps"]}
        records = history.add(before, record, keys)
        members = {
            "manifest.json": canonical.dump(made),
            "run.yaml": run.canonical().encode(),
            "history.json": canonical.dump(records),
            "MODEL_CARD.md": card.model_card(made, records, run).encode(),
        }
        digests |= {name: canonical.sha256(content) for name, content in members.items()}
        manifest.check(members["manifest.json"])  # nothing leaves that the next site would refuse
        manifest.require_fit(made, records, run)
        members["signature.json"] = signing.sign(_name(made), digests, made["recipient"], keys)
        _write(target, members, carried, to.card.age if to else None, progress)
    digest = signing.root_digest(digests)
    write_beside(target.parent / "bundle", members, Provenance(digest, records))
    return BundleFacts.of(made, records, digest, keys.roster, target)


def write_beside(folder: Path, members: Mapping[str, bytes], provenance: Provenance) -> None:
    """The readable members of a bundle, and its provenance, as files."""
    for name in ("manifest.json", "history.json", "MODEL_CARD.md"):
        write_atomically(folder / name, members[name])
    write_atomically(folder / "provenance.json", provenance.to_json())


def _check(meta: Mapping[str, Any], run: RunFile, parent: Provenance | None) -> None:
    """Whether the checkpoint may leave, and its history has no gap."""
    if meta["run"] != run.digest:
        raise BundleError("bundle_other_run", "the checkpoint was trained with another run file than the one given")
    stated = run.site(meta["task_id"]).facts.holds_real_images
    if meta.get("holds_real_images", stated) or stated:
        raise BundleError(
            "weights_invalid",
            f"a checkpoint of strategy {meta['strategy']} holds real images of patients: it never leaves its machine",
        )
    if meta["step"] < meta["steps"]:
        done = f"{meta['step']} of {meta['steps']} steps"
        raise BundleError(
            "bundle_incomplete", f"the training of {meta['site']} is not finished ({done}): relay train --resume"
        )
    if meta["task_id"] not in run.task_ids:
        raise BundleError("bundle_other_run", f"{meta['site']} is not one of the sites that the run file trains (task_ids)")
    place = run.task_ids.index(meta["task_id"])
    if parent is None and place > 0:
        raise BundleError(
            "bundle_incomplete",
            f"{meta['site']} is site {place + 1} of its relay: name the bundle that it started from with --parent "
            "(bundle/provenance.json, left by the import or export of the site before)",
        )
    if parent is not None and (not parent.history or parent.history[-1]["run"] != run.digest):
        raise BundleError("bundle_other_run", "the parent's history is of another run")
    if parent is not None and parent.history[-1]["task_id"] != (run.task_ids[place - 1] if place else None):
        raise BundleError("hop_out_of_order", f"the parent is not of the site before {meta['site']}")


def _handed_over(meta: Mapping[str, Any], stored: Mapping[str, weights.Stored]) -> dict[str, weights.Stored]:
    """What the next site needs: the networks that the strategy hands over, without optimizers and frozen copies."""
    kept = {name: tensor for name, tensor in stored.items() if name.startswith("network/")}
    networks = meta.get("hand_over") or {n.split("/")[1] for n in kept if not n.startswith("network/old_")}
    return {name: tensor for name, tensor in kept.items() if name.split("/")[1] in networks}


def _name(made: Mapping[str, Any]) -> str:
    return f"relay-{made['run'][:12]}-hop-{made['hop']}"


def _write(target: Path, members: Mapping[str, bytes], carried: Path, age: str | None, progress: Progress) -> None:
    def plain(path: Path) -> None:
        with path.open("xb") as file:
            container.write(file, members, carried, progress)

    if age is None:
        replace_with(target, plain)
        return
    with private_folder(target.parent) as staging:
        plain(staging / "plain.relay")

        def sealed(path: Path) -> None:
            with path.open("xb") as file:
                encryption.encrypt(staging / "plain.relay", file, age)

        replace_with(target, sealed)

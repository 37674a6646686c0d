"""Exports a finished checkpoint as a signed bundle, encrypted if it is for one recipient."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import relay_core
from relay_core.bundle import canonical, card, container, encryption, history, manifest, signing, weights
from relay_core.bundle.audit import Gate
from relay_core.bundle.container import Progress, no_progress
from relay_core.bundle.facts import BundleFacts
from relay_core.bundle.keys import KeyFolder
from relay_core.bundle.private import private_folder
from relay_core.bundle.values import is_digest
from relay_core.bundle.withheld import withheld_class_counts, withheld_statistics
from relay_core.config import RunFile
from relay_core.errors import BundleError
from relay_core.files import replace_with, write_atomically


@dataclass(frozen=True)
class Provenance:
    """Holds what the next hop needs to know of the bundle that it starts from."""

    digest: str
    """Digest of the bundle."""
    history: list[history.Record]
    """Where its model has been."""
    checkpoint: str | None = None
    """Content digest of the checkpoint that went into the bundle, where the bundle was made here."""

    @classmethod
    def read(cls, path: Path) -> Provenance:
        """Read a `provenance.json`. Raises BundleError `history_broken`, `bundle_damaged`."""
        content = canonical.load(path.read_bytes(), path.name)
        fields = content if isinstance(content, dict) else {}
        checkpoint = fields.get("checkpoint")
        known = fields.keys() - {"checkpoint"} == {"digest", "history"} and is_digest(fields["digest"])
        if not known or not (checkpoint is None or is_digest(checkpoint)):
            raise BundleError("history_broken", f"{path.name} does not say where the model has been")
        return cls(fields["digest"], history.check(fields["history"], None), checkpoint)

    def to_json(self) -> bytes:
        """Return the content of `provenance.json`."""
        made_here = {} if self.checkpoint is None else {"checkpoint": self.checkpoint}
        return canonical.dump({"digest": self.digest, "history": self.history, **made_here})


def export_bundle(
    checkpoint: Path, run: RunFile, keys: KeyFolder, target: Path, *, scores: Path | None = None,
    parent: Provenance | None = None, recipient: str | None = None, half: bool = False, gate: Gate | None = None,
    discriminators: bool = True,
    progress: Progress = no_progress, warn: Callable[[str], object] = lambda message: None,
) -> BundleFacts:  # fmt: skip
    """Write a bundle, and its readable members to the folder `bundle/` beside it.

    Args:
        checkpoint: the checkpoint of a finished training of one of the run's sites.
        run: the relay's run file.
        keys: the keys of this site.
        target: the file to write; it appears whole or not at all.
        scores: the site's `scores.json`, for history and model card.
        parent: the provenance of the bundle that the training started from; None at the first site.
        recipient: the name or fingerprint, in the roster, of the one site that may read the bundle; None: the bundle is not
            encrypted, and whoever has the file can read it.
        half: whether to carry the weights in half precision.
        discriminators: whether they travel; without them the next site's start anew.
        gate: the site's policy of release with the privacy audit of the checkpoint; None asks for none.
        progress: called with the bytes of the weights that are done, and in all.
        warn: told what the gate's policy warns of.

    Raises:
        BundleError: `bundle_incomplete`, `bundle_other_run`, `weights_invalid`, `bundle_too_large`, `key_missing`,
            `key_locked`, `signer_unknown`, `signer_revoked`, `history_broken`, `hop_out_of_order`, `parent_differs`,
            `release_refused`, `audit_invalid`.
        CheckpointError: the checkpoint is damaged.
        OSError: the target is not writable, or the disk is full.
    """
    source = weights.read_checkpoint(checkpoint)
    meta, stored = source.meta, source.tensors
    _require_exportable(meta, run, parent)
    earlier_records = history.check(parent.history, keys.roster) if parent else []
    recipient_entry = keys.roster.find(recipient) if recipient is not None else None
    if recipient_entry is not None:
        keys.roster.require(recipient_entry.card.fingerprint, run.digest, f"the recipient {recipient_entry.card.name}")
    metrics = manifest.scores_of(scores, source.digest) if scores is not None else {}
    handed_over = _handed_over_tensors(meta, stored, () if discriminators else weights.DISCRIMINATORS)
    audit, warning = (gate or Gate()).clear(source.digest, {name.split("/")[1] for name in handed_over})
    if warning is not None:
        warn(warning)
    state = withheld_class_counts(meta["state"], run.site(meta["task_id"]).facts)
    with private_folder(target.parent) as staging:
        weights_file = staging / container.WEIGHTS
        table = weights.select(checkpoint, handed_over, weights_file, half, progress)
        manifest_data = {
            "format": manifest.FORMAT,
            "relay": relay_core.__version__,
            "run": run.digest,
            "hop": len(earlier_records) + 1,
            "task_id": meta["task_id"],
            "site": meta["site"],
            "signer": {"name": keys.card.name, "fingerprint": keys.card.fingerprint},
            "recipient": recipient_entry.card.fingerprint if recipient_entry else None,
            "parent": parent.digest if parent else None,
            "created_at": round(time.time(), 3),
            "half": half,
            "tensors": {name: [dtype, list(shape)] for name, (dtype, shape) in table.items()},
            "metrics": metrics,
            "checkpoint": {
                **{key: meta[key] for key in ("strategy", "step", "steps", "images", "consumed")},
                "state": {**state, **({"frozen": []} if "frozen" in state else {})},
                **({"looks": looks} if (looks := withheld_statistics(meta.get("looks") or {})) else {}),
            },
            "tools": {"python": platform.python_version()},
        }  # fmt: skip
        record = {
            key: manifest_data[key] for key in ("hop", "task_id", "site", "run", "parent", "metrics", "relay", "created_at")
        }
        digests = {container.WEIGHTS: weights.file_digest(weights_file)}
        record |= {"weights": digests[container.WEIGHTS], "images": meta["images"], "steps": meta["steps"]}
        record |= {"audit": audit} if audit is not None else {}
        record |= {"privacy": meta["privacy"]} if "privacy" in meta else {}
        records = history.add(earlier_records, record, keys)
        members = {
            "manifest.json": canonical.dump(manifest_data),
            "run.yaml": run.canonical().encode(),
            "history.json": canonical.dump(records),
            "MODEL_CARD.md": card.model_card(manifest_data, records, run).encode(),
        }
        digests |= {name: canonical.sha256(content) for name, content in members.items()}
        manifest.check(members["manifest.json"])  # so that no bundle leaves which the next site would refuse
        manifest.require_fit(manifest_data, records, run)
        members["signature.json"] = signing.sign(_bundle_name(manifest_data), digests, manifest_data["recipient"], keys)
        _write_bundle(target, members, weights_file, recipient_entry.card.age if recipient_entry else None, progress)
    digest = signing.root_digest(digests)
    write_beside(target.parent / "bundle", members, Provenance(digest, records, source.digest))
    return BundleFacts.of(manifest_data, records, digest, keys.roster, target)


def write_beside(folder: Path, members: Mapping[str, bytes], provenance: Provenance) -> None:
    """Write manifest, history and model card of a bundle, and its provenance, as files into a folder. Raises OSError."""
    for name in ("manifest.json", "history.json", "MODEL_CARD.md"):
        write_atomically(folder / name, members[name])
    write_atomically(folder / "provenance.json", provenance.to_json())


def _require_exportable(meta: Mapping[str, Any], run: RunFile, parent: Provenance | None) -> None:
    """Require that a checkpoint may leave the site and that its history has no gap.

    Raises:
        BundleError: `bundle_other_run`, `weights_invalid`, `bundle_incomplete`, `hop_out_of_order`, `parent_differs`.
    """
    if meta["run"] != run.digest:
        raise BundleError("bundle_other_run", "the checkpoint was trained with another run file than the one given")
    holds_real_images = run.site(meta["task_id"]).facts.holds_real_images
    if meta.get("holds_real_images", holds_real_images) or holds_real_images:
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
    position = run.task_ids.index(meta["task_id"])
    if parent is None and position > 0:
        raise BundleError(
            "bundle_incomplete",
            f"{meta['site']} is site {position + 1} of its relay: name the bundle that it started from with --parent "
            "(bundle/provenance.json, left by the import or export of the site before)",
        )
    if parent is not None and (not parent.history or parent.history[-1]["run"] != run.digest):
        raise BundleError("bundle_other_run", "the parent's history is of another run")
    if parent is not None and parent.history[-1]["task_id"] != (run.task_ids[position - 1] if position else None):
        raise BundleError("hop_out_of_order", f"the parent is not of the site before {meta['site']}")
    if parent is not None and "base" in meta:  # older versions did not say
        _require_parent_of(meta, parent)


def _require_parent_of(meta: Mapping[str, Any], parent: Provenance) -> None:
    """Require that a training began from a bundle.

    Raises:
        BundleError: `parent_differs`; `bundle_incomplete` where the provenance does not tell.
    """
    base = meta["base"]
    if base is None:
        raise BundleError(
            "parent_differs",
            f"the training of {meta['site']} began from nothing (checkpoint.load, or a strategy whose sites start anew): it "
            "continues no bundle",
        )
    if base["bundle"] is None and parent.checkpoint is None:
        raise BundleError(
            "bundle_incomplete",
            "--parent was written by an older version, and does not say which checkpoint it was made of: export the site "
            "before again",
        )
    if parent.digest != base["bundle"] and parent.checkpoint != base["checkpoint"]:
        raise BundleError(
            "parent_differs",
            f"the training of {meta['site']} did not begin from the bundle {parent.digest[:16]} that --parent names: name "
            "the one that it began from, or train again from this one",
        )


def _handed_over_tensors(
    meta: Mapping[str, Any], stored: Mapping[str, weights.Stored], without: Sequence[str]
) -> dict[str, weights.Stored]:
    """Return the tensors of the networks that the strategy hands over: no optimizer states, no frozen copies."""
    network_tensors = {name: tensor for name, tensor in stored.items() if name.startswith("network/")}
    handed_over = meta.get("hand_over") or {n.split("/")[1] for n in network_tensors if not n.startswith("network/old_")}
    names = {*handed_over} - {*without}
    return {name: tensor for name, tensor in network_tensors.items() if name.split("/")[1] in names}


def _bundle_name(manifest_data: Mapping[str, Any]) -> str:
    return f"relay-{manifest_data['run'][:12]}-hop-{manifest_data['hop']}"


def _write_bundle(
    target: Path, members: Mapping[str, bytes], weights_file: Path, age_recipient: str | None, progress: Progress
) -> None:
    def plain(path: Path) -> None:
        with path.open("xb") as file:
            container.write(file, members, weights_file, progress)

    if age_recipient is None:
        replace_with(target, plain)
        return
    with private_folder(target.parent) as staging:
        plain(staging / "plain.relay")

        def sealed(path: Path) -> None:
            with path.open("xb") as file:
                encryption.encrypt(staging / "plain.relay", file, age_recipient)

        replace_with(target, sealed)

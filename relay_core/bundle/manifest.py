"""`manifest.json`: what a bundle is. FORMAT.md describes each field."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

import relay_core
from relay_core.bundle import canonical
from relay_core.bundle.values import are_metrics, is_count, is_digest, is_mean, is_moment, is_name, is_number, is_version
from relay_core.bundle.weights import Table, read_table
from relay_core.config import RunFile, StrategyFacts
from relay_core.errors import BundleError

FORMAT = 1
_FIELDS = frozenset({
    "format", "relay", "run", "hop", "task_id", "site", "signer", "recipient", "parent", "created_at", "half", "tensors",
    "metrics", "checkpoint", "tools",
})  # fmt: skip
_CHECKPOINT = frozenset({"strategy", "step", "steps", "images", "consumed", "state"})
MAX_STEPS = 10**8
"""Checkpoints are named by their step, with eight digits."""
Manifest = dict[str, Any]


def check(data: bytes) -> tuple[Manifest, Table]:
    """A manifest of this format, and the tensors that it lists.

    Raises:
        BundleError: `bundle_version_unknown`, `bundle_newer`, `bundle_damaged`, `weights_invalid`.
    """
    found = canonical.load(data, "manifest.json")
    if not isinstance(found, dict):
        raise BundleError("bundle_damaged", "manifest.json is not readable")
    if type(found.get("format")) is not int or found["format"] != FORMAT:
        raise BundleError(
            "bundle_version_unknown", f"its format is {str(found.get('format'))[:20]!r}; this version reads {FORMAT}"
        )
    if not is_version(found.get("relay")):
        raise BundleError("bundle_damaged", "manifest.json does not say which version made it")
    if _major(found["relay"]) > _major(relay_core.__version__):
        raise BundleError(
            "bundle_newer",
            f"it was made by relay {str(found['relay'])[:20]!r}; this is {relay_core.__version__}: update this site first",
        )
    sound = (
        found.keys() == _FIELDS
        and is_digest(found["run"])
        and all(is_count(found[key]) and found[key] > 0 for key in ("hop", "task_id"))
        and is_name(found["site"])
        and isinstance(found["signer"], dict)
        and found["signer"].keys() == {"name", "fingerprint"}
        and is_name(found["signer"]["name"])
        and is_digest(found["signer"]["fingerprint"])
        and (found["recipient"] is None or is_digest(found["recipient"]))
        and (found["parent"] is None or is_digest(found["parent"]))
        and is_moment(found["created_at"])
        and type(found["half"]) is bool
        and are_metrics(found["metrics"])
        and isinstance(found["checkpoint"], dict)
        and found["checkpoint"].keys() in (_CHECKPOINT, _CHECKPOINT | {"looks"})
        and all(is_count(found["checkpoint"][key]) for key in ("step", "steps", "images", "consumed"))
        and found["checkpoint"]["steps"] <= found["checkpoint"]["step"] < MAX_STEPS
        and _are_looks(found["checkpoint"].get("looks", {}))
        and is_name(found["checkpoint"]["strategy"])
        and isinstance(found["checkpoint"]["state"], dict)
        and isinstance(found["tools"], dict)
        and all(is_name(name) and is_name(version) for name, version in found["tools"].items())
    )
    if not sound:
        raise BundleError("bundle_damaged", "manifest.json lacks a field, or has one that this format does not know")
    return found, read_table(found["tensors"])


Scores = dict[str, dict[str, float | str | None]]
"""Test set -> metric -> mean; the one text is `hd95_unit`."""


def brief(scores: dict[str, Any]) -> Scores:
    """A site's scores without anything about single patients."""
    return {
        name: {key: _plain(value) for key, value in row.items() if is_mean(key, _plain(value))}
        for name, row in scores.items()
    }


def scores_of(path: Path, checkpoint: str) -> Scores:
    """`brief` of a `scores.json`.

    Args:
        path: the file.
        checkpoint: digest of the checkpoint that it must be about.

    Raises:
        BundleError: `bundle_incomplete`: it is another file, or about another checkpoint.
    """
    try:
        found = json.loads(path.read_text())
        scored, metrics = found["checkpoint"], brief(found["scores"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BundleError("bundle_incomplete", f"{path} is not a scores.json of relay train or relay evaluate") from None
    if scored != checkpoint:
        raise BundleError("bundle_incomplete", f"{path} has the scores of another checkpoint: relay evaluate --out")
    return metrics


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not is_number(value) else value


def _major(version: str) -> int:
    return int(version.partition(".")[0])


def require_handed_over(state: object, facts: StrategyFacts) -> None:
    """Check a strategy's state against the schema that the strategy states of itself.

    Raises:
        BundleError: `bundle_damaged`.
    """
    try:
        facts.handed_over.model_validate(state)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"])) or "state"
        raise BundleError(
            "bundle_damaged", f"the state of the strategy in the manifest is not sound: {where[:100]!r}"
        ) from None


def _are_looks(looks: Any) -> bool:
    return isinstance(looks, dict) and all(is_name(site) and _are_numbers(known) for site, known in looks.items())


def _are_numbers(known: Any) -> bool:
    """What `imaging.outlier.looks` gives of one site."""
    return (
        isinstance(known, dict)
        and known.keys() == {"images", "mean", "sd", "limit"}
        and is_count(known["images"])
        and known["images"] > 0
        and is_number(known["limit"])
        and known["limit"] >= 1
        and all(isinstance(known[key], list) and all(map(is_number, known[key])) for key in ("mean", "sd"))
        and 0 < len(known["mean"]) == len(known["sd"]) <= 16
    )


def require_fit(made: Manifest, records: Sequence[Mapping[str, Any]], run: RunFile) -> None:
    """Whether the run can have led to this history and state: its sites in its order, slots that its networks have.

    Raises:
        BundleError: `history_broken`, `bundle_damaged`.
        RunFileError: the run file is not valid.
    """
    sites = [run.site(i) for i in run.task_ids[: len(records)]]
    due = [(site.task_id, "joint" if site.facts.sequence == "at_once" else site.name) for site in sites]
    if [(record["task_id"], record["site"]) for record in records] != due:
        raise BundleError("history_broken", "the history does not go from site to site as the run does")
    settings, state = sites[-1], made["checkpoint"]["state"]
    require_handed_over(state, settings.facts)
    slots = {name: slot["id"] for bank in ("previous", "current") for name, slot in state.get(bank, {}).items()}
    room = min(getattr(settings.model.kwargs, key, 0) for key in ("c_img_dim", "c_label_dim"))
    classes = [slot.get("classes") for bank in ("previous", "current") for slot in state.get(bank, {}).values()]
    counted = settings.data.num_classes if settings.data.task == "classification" else None
    if (
        made["checkpoint"]["strategy"] != settings.strategy.name
        or not slots.keys() <= {name for _, name in due}
        or any(slot >= room for slot in slots.values())
        or any((None if known is None else len(known)) != counted for known in classes)
        or ("img" in state and ("label" in state) != (counted is None))
        or state.get("sites", len(records)) != len(records)
        or settings.facts.holds_real_images
    ):
        raise BundleError("bundle_damaged", "the manifest's strategy or site bank is not one that the run's networks have")

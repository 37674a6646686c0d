"""Checks `manifest.json`, which describes a bundle's contents. FORMAT.md describes each field."""

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
from relay_core.bundle.withheld import withheld_scores
from relay_core.config import RelayState, RunFile, SiteCountState, StrategyFacts
from relay_core.errors import BundleError

FORMAT = 1
_FIELDS = frozenset({
    "format", "relay", "run", "hop", "task_id", "site", "signer", "recipient", "parent", "created_at", "half", "tensors",
    "metrics", "checkpoint", "tools",
})  # fmt: skip
_CHECKPOINT = frozenset({"strategy", "step", "steps", "images", "consumed", "state"})
MAX_STEPS = 10**8
"""Steps lie below this limit, because a checkpoint's file name has its step in eight digits."""
Manifest = dict[str, Any]


def check(data: bytes) -> tuple[Manifest, Table]:
    """Parse a manifest, check each field, and return it with the tensors that it lists.

    Raises:
        BundleError: `bundle_version_unknown` where its format is another; `bundle_newer` where a newer major version made
            it; `bundle_damaged` where a field is missing, unknown or invalid; `weights_invalid` as `read_table`.
    """
    content = canonical.load(data, "manifest.json")
    if not isinstance(content, dict):
        raise BundleError("bundle_damaged", "manifest.json is not readable")
    if type(content.get("format")) is not int or content["format"] != FORMAT:
        raise BundleError(
            "bundle_version_unknown", f"its format is {str(content.get('format'))[:20]!r}; this version reads {FORMAT}"
        )
    if not is_version(content.get("relay")):
        raise BundleError("bundle_damaged", "manifest.json does not say which version made it")
    if _major(content["relay"]) > _major(relay_core.__version__):
        raise BundleError(
            "bundle_newer",
            f"it was made by relay {str(content['relay'])[:20]!r}; this is {relay_core.__version__}: update this site first",
        )
    sound = (
        content.keys() == _FIELDS
        and is_digest(content["run"])
        and all(is_count(content[key]) and content[key] > 0 for key in ("hop", "task_id"))
        and is_name(content["site"])
        and isinstance(content["signer"], dict)
        and content["signer"].keys() == {"name", "fingerprint"}
        and is_name(content["signer"]["name"])
        and is_digest(content["signer"]["fingerprint"])
        and (content["recipient"] is None or is_digest(content["recipient"]))
        and (content["parent"] is None or is_digest(content["parent"]))
        and is_moment(content["created_at"])
        and type(content["half"]) is bool
        and are_metrics(content["metrics"])
        and isinstance(content["checkpoint"], dict)
        and content["checkpoint"].keys() in (_CHECKPOINT, _CHECKPOINT | {"looks"})
        and all(is_count(content["checkpoint"][key]) for key in ("step", "steps", "images", "consumed"))
        and content["checkpoint"]["steps"] <= content["checkpoint"]["step"] < MAX_STEPS
        and _are_looks(content["checkpoint"].get("looks", {}))
        and is_name(content["checkpoint"]["strategy"])
        and isinstance(content["checkpoint"]["state"], dict)
        and isinstance(content["tools"], dict)
        and all(is_name(name) and is_name(version) for name, version in content["tools"].items())
    )
    if not sound:
        raise BundleError("bundle_damaged", "manifest.json lacks a field, or has one that this format does not know")
    return content, read_table(content["tensors"])


Scores = dict[str, dict[str, float | str | None]]
"""Maps test set -> metric -> mean, None where it is withheld; the only text is that of `hd95_unit` (`px` or `mm`)."""


def brief(scores: dict[str, Any]) -> Scores:
    """Return a site's scores with the means of its test sets only, and nothing about single patients (`withheld_scores`)."""
    return {
        name: withheld_scores({k: _finite_or_none(value) for k, value in row.items() if is_mean(k, _finite_or_none(value))})
        for name, row in scores.items()
    }


def scores_of(path: Path, checkpoint: str) -> Scores:
    """Read a `scores.json` and return its means as `brief` does.

    Args:
        path: the `scores.json`.
        checkpoint: the digest of the checkpoint that the scores must belong to.

    Raises:
        BundleError: `bundle_incomplete` where the file is no `scores.json`, or belongs to another checkpoint.
    """
    try:
        content = json.loads(path.read_text())
        scored_checkpoint, metrics = content["checkpoint"], brief(content["scores"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BundleError("bundle_incomplete", f"{path} is not a scores.json of relay train or relay evaluate") from None
    if scored_checkpoint != checkpoint:
        raise BundleError("bundle_incomplete", f"{path} has the scores of another checkpoint: relay evaluate --out")
    return metrics


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not is_number(value) else value


def _major(version: str) -> int:
    return int(version.partition(".")[0])


def require_handed_over(state: object, facts: StrategyFacts) -> None:
    """Check a strategy's state in a manifest against the schema that the strategy's facts declare.

    Raises:
        BundleError: `bundle_damaged` where the state does not fit the schema.
    """
    try:
        facts.handed_over.model_validate(state)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"])) or "state"
        raise BundleError(
            "bundle_damaged", f"the state of the strategy in the manifest is not sound: {where[:100]!r}"
        ) from None


def _are_looks(statistics: Any) -> bool:
    return isinstance(statistics, dict) and all(
        is_name(site) and _are_feature_statistics(of_site) for site, of_site in statistics.items()
    )


def _are_feature_statistics(statistics: Any) -> bool:
    """Return whether a value is the feature statistics of one site (`imaging.out_of_distribution.feature_statistics`)."""
    return (
        isinstance(statistics, dict)
        and statistics.keys() == {"images", "mean", "sd", "limit"}
        and is_count(statistics["images"])
        and statistics["images"] > 0
        and is_number(statistics["limit"])
        and statistics["limit"] >= 1
        and all(isinstance(statistics[key], list) and all(map(is_number, statistics[key])) for key in ("mean", "sd"))
        and 0 < len(statistics["mean"]) == len(statistics["sd"]) <= 16
    )


def require_fit(made: Manifest, records: Sequence[Mapping[str, Any]], run: RunFile) -> None:
    """Require that the run can have led to this history and strategy state.

    The history must have the run's sites in the run's order, and the site bank only slots that the run's networks have.

    Args:
        made: the manifest.
        records: the history.
        run: the run file.

    Raises:
        BundleError: `history_broken`, `bundle_damaged`.
        RunFileError: the run file is not valid.
    """
    sites = [run.site(i) for i in run.task_ids[: len(records)]]
    expected_order = [(site.task_id, "joint" if site.facts.sequence == "at_once" else site.name) for site in sites]
    if [(record["task_id"], record["site"]) for record in records] != expected_order:
        raise BundleError("history_broken", "the history does not go from site to site as the run does")
    settings, state = sites[-1], made["checkpoint"]["state"]
    require_handed_over(state, settings.facts)
    banks = [state["previous"], state["current"]] if issubclass(settings.facts.handed_over, RelayState) else []
    slots = {name: slot["id"] for bank in banks for name, slot in bank.items()}
    slot_count = min(getattr(settings.model.kwargs, key, 0) for key in ("c_img_dim", "c_label_dim"))
    merged = [group for bank in banks for slot in bank.values() for group in slot.get("merged", [])]
    class_counts = [slot.get("classes") for bank in banks for slot in bank.values()]
    num_classes = settings.data.num_classes if settings.data.task == "classification" else None
    if (
        made["checkpoint"]["strategy"] != settings.strategy.name
        or not slots.keys() <= {name for _, name in expected_order}
        or any(slot >= slot_count for slot in slots.values())
        or any(group >= len(settings.data.groups) for group in merged)
        or any((None if counts is None else len(counts)) != num_classes for counts in class_counts)
        or (banks and ("label" in state) != (num_classes is None))
        or (issubclass(settings.facts.handed_over, SiteCountState) and state["sites"] != len(records))
        or settings.facts.holds_real_images
    ):
        raise BundleError("bundle_damaged", "the manifest's strategy or site bank is not one that the run's networks have")

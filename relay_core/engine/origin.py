"""Where the model of a checkpoint comes from: its sites, its base, its training images and what they look like."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from relay_core.engine import changed_images
from relay_core.engine.checkpoint import Checkpoint
from relay_core.imaging import out_of_distribution

if TYPE_CHECKING:
    from relay_core.engine.train import SiteTraining


def origin(site: SiteTraining, base: Checkpoint | None, own_checkpoint: Checkpoint | None) -> dict[str, Any]:
    """Return what a checkpoint says of where its model comes from.

    `sites` it was at, in order; `looks`, their feature statistics; `base`, the checkpoint that this site began from, with
    the bundle that brought it; `training_set`, the fingerprints of the images that it began with; and whether real
    images came along.
    """
    own = own_checkpoint.meta if own_checkpoint else {}
    before = base.meta if base else {}
    if own:  # one of an older version does not say what it began from, and nobody knows it now
        began_from = {"base": own["base"]} if "base" in own else {}
    else:
        began_from = {"base": {"checkpoint": base.digest, "bundle": before.get("bundle")} if base else None}
    return {
        **began_from,
        "looks": own.get("looks") or _feature_statistics(site, base),
        "sites": own.get("sites", [site.name]) if own else [*(_trained_before(base) if base else []), site.name],
        "holds_real_images": site.settings.facts.holds_real_images
        or any(bool(meta.get("holds_real_images")) for meta in (own, before)),
        "training_set": own.get("training_set") or changed_images.fingerprints(site.images),
    }


def _trained_before(base: Checkpoint) -> list[str]:
    return list(base.meta.get("sites") or [base.meta["site"]])


def _feature_statistics(site: SiteTraining, base: Checkpoint | None) -> dict[str, Any]:
    """Return the feature statistics of the training images of all sites so far, by site; not of one that trains privately.

    The out-of-distribution score of an image is measured against them; see `imaging.out_of_distribution`.
    """
    before = base.meta.get("looks", {}) if base else {}
    if site.settings.train.privacy is not None:
        return dict(before)
    low, high = site.settings.data.out_range
    step = max(1, len(site.images) // out_of_distribution.MOST)
    indices = range(0, len(site.images), step)
    batches = (indices[i : i + 64] for i in range(0, len(indices), 64))
    statistics = out_of_distribution.feature_statistics(
        (site.images.batch(batch)[0].numpy() - low) / (high - low) for batch in batches
    )
    return {**before, site.name: statistics}

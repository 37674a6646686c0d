"""Whether a training still sees the images that it began with, or that its site's preflight saw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from relay_core.config import CheckpointSettings
from relay_core.data import data_error, set_digest
from relay_core.engine.checkpoint import Checkpoint
from relay_core.errors import Problem
from relay_core.strategies import Images


def fingerprints(images: Images) -> list[str]:
    """Return the sorted fingerprints of a training set; none for images that have no files."""
    return sorted(getattr(images, "fingerprints", ()))


def check(
    images: Images, settings: CheckpointSettings, own_checkpoint: Checkpoint | None, warn: Callable[[str], None]
) -> None:
    """Compare the training images with those of the site's own checkpoint, and with the digest that the settings name.

    Raises:
        DataError: they are others, and the settings make that an error; it names the new and changed files. Otherwise `warn`
            is told, without names.
    """
    present = fingerprints(images)
    if not present:
        return
    began_with = own_checkpoint.meta.get("training_set") if own_checkpoint else None
    if began_with is not None and began_with != present:
        appeared, gone = Counter(present) - Counter(began_with), Counter(began_with) - Counter(present)
        message = (
            f"the training images are not those that this training began with: {len(began_with)} were there, "
            f"{len(present)} are; {appeared.total()} new or changed, {gone.total()} gone or changed"
        )
        _say(message, images, appeared, settings, warn)
    if settings.images_digest is not None and settings.images_digest != set_digest(present):
        _say("the training images are not those that the preflight saw", images, Counter(), settings, warn)


def _say(
    message: str, images: Images, appeared: Counter[str], settings: CheckpointSettings, warn: Callable[[str], None]
) -> None:
    if settings.on_changed_images == "warn":
        warn(message)
        return
    names = zip(getattr(images, "names", ()), getattr(images, "fingerprints", ()), strict=True)
    problems = [Problem(name, "is new or has changed") for name, fingerprint in names if fingerprint in appeared]
    raise data_error(f"{message}; put them back, or train anew in another folder (checkpoint.on_changed_images)", problems)

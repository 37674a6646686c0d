"""The images of an audit: members, which a network was trained on, and others of the same site, which it never saw."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from relay_core.config import RunFile, SiteSettings
from relay_core.data import SiteData, load_site
from relay_core.engine import Checkpoint, settings_of
from relay_core.errors import DataError
from relay_core.privacy.statistics import Groups

MISSING = 0.05
"""Most of the images that were trained on, as a share, that may be missing from a conclusive audit."""
MOST = 2000
"""Most images of either side; a larger set is thinned evenly."""


@dataclass
class Sides:
    """The images of both sides at the solver's size, members first, in [-1, 1], and their labels and groups."""

    images: Tensor
    labels: Tensor
    groups: Groups
    counts: dict[str, int]
    train: SiteData
    place_of: list[int]
    """Place of each member in `train`."""
    digest: str

    @classmethod
    def load(
        cls, settings: SiteSettings, run: RunFile, source: Checkpoint, data_root: Path | None, warnings: list[str],
        doubts: list[str],
    ) -> Sides:  # fmt: skip
        """Load a site's images, saying what was left out to `warnings`, and what leaves the audit inconclusive to `doubts`.

        Raises:
            DataError: no image that was trained on is here, or no other one to compare with.
        """
        trained, folder = settings_of(source), settings.data_folder(data_root, run.base)
        kwargs = settings.data.model_copy(update={"fit": trained.data.fit})
        train, test = (
            load_site(settings.dataset.name, kwargs, folder=folder, split=split, resolution=trained.resolution)
            for split in ("train", "test")
        )
        trained_on = set(source.meta.get("training_set") or train.fingerprints)
        members = [i for i, print_ in enumerate(train.fingerprints) if print_ in trained_on]
        if not members:
            raise DataError(
                f"none of the training images of {settings.name} in {folder} is one that the checkpoint was trained on"
            )
        if changed := len(train) - len(members):
            warnings.append(f"{changed} training images are new or have changed since the training, and were left out")
        gone = len(trained_on - {*train.fingerprints})
        if gone:
            warnings.append(f"{gone} images that were trained on are not here any more, or have changed")
        if gone > MISSING * len(trained_on):
            doubts.append(
                f"{gone} of the {len(trained_on)} images that were trained on are missing: the audit did not see them"
            )
        named = {s for s, name in zip(train.subjects, train.names, strict=True) if s != name}  # else it is a file's name
        pixels = {_digest(image) for part in torch.arange(len(train)).split(256) for image in train.unit_batch(part)[0]}
        members = _thinned(members)
        images, labels = train.unit_batch(members)
        candidates = _thinned(range(len(test)))
        other_images, other_labels = test.unit_batch(candidates)
        fine = [
            n for n, i in enumerate(candidates) if test.subjects[i] not in named and _digest(other_images[n]) not in pixels
        ]
        if left_out := len(candidates) - len(fine):
            warnings.append(f"{left_out} test images are of patients, or equal to images, that were trained on: left out")
        if len(fine) < 2 or len(members) < 2:
            raise DataError(
                f"{settings.name} has {len(fine)} test images of patients that it was not trained on: an audit compares "
                "training images with such, and needs some (dataset.kwargs.test_share)"
            )
        of_patient = [train.subjects[i] for i in members], [test.subjects[candidates[n]] for n in fine]
        groups = Groups.of(*of_patient)
        if len(set(of_patient[0])) == len(members) and len(set(of_patient[1])) == len(fine):
            warnings.append(
                "every image counts as a patient of its own; where patients have several, name them (patient_pattern), or "
                "the intervals are too narrow"
            )
        counts = {
            "members": len(members), "others": len(fine), "member_patients": len(groups.patients(True)),
            "other_patients": len(groups.patients(False)),
        }  # fmt: skip
        return cls(
            torch.cat([images, other_images[fine]]) * 2 - 1, torch.cat([labels, other_labels[fine]]), groups, counts, train,
            list(members), hashlib.sha256(f"{train.digest}{test.digest}".encode()).hexdigest(),
        )  # fmt: skip

    def half(self) -> list[int]:
        """Return the places of the images of every second member patient."""
        patients = np.random.default_rng(0).permutation(self.groups.patients(True))
        chosen = set(patients[::2].tolist())
        return [i for i in range(self.counts["members"]) if int(self.groups.patient[i]) in chosen]


def _thinned(positions: Sequence[int]) -> list[int]:
    """At most `MOST` of the positions, evenly."""
    number = min(len(positions), MOST)
    return [positions[(2 * i + 1) * len(positions) // (2 * number)] for i in range(number)]


def _digest(image: Tensor) -> bytes:
    return hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest()

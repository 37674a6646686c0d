"""A privacy audit: attacks on the networks of a checkpoint, on images of its site that were trained on and others.

Members are the site's training images, others those of its test set, which no network has seen; images of other sites never
take part, since what tells sites apart tells nothing of membership.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import relay_core
from relay_core import events
from relay_core.bundle import AUDIT_FORMAT
from relay_core.config import RunFile, SiteSettings
from relay_core.engine import BATCH, Checkpoint
from relay_core.errors import DataError, RunFileError, Stopped
from relay_core.events import Stop
from relay_core.files import write_atomically
from relay_core.metrics import SolverFeatures
from relay_core.privacy import attacks
from relay_core.privacy.attacks import Target
from relay_core.privacy.combined import judged
from relay_core.privacy.copies import COMPARISONS, closest_pairs, copying, map_distances, pixel_distances
from relay_core.privacy.shadow import Part, shadow_steps, train_shadow
from relay_core.privacy.sides import Sides
from relay_core.replay import resize_images

SAMPLES = 10_000
PARTS = ".audit-parts.json"
SHADOW = "shadow"


@dataclass
class Audit:
    """One audit: what is audited, on which images, and where progress goes.

    Args:
        source: the checkpoint of a finished training.
        run: its run file.
        out: folder of the report, and of what a stopped audit goes on from.
        data_root: folder that the site's images lie in; None takes the run file's `root_path`.
        device: the device to compute on.
        reference: the checkpoint that the site's training began from, if it received one.
        samples: generated images that are searched for copies.
        discriminators: whether they leave too, and so are attacked.
        progress: called with (done, total) units of work.
        stop: asked after each of them whether to stop.
    """

    source: Checkpoint
    run: RunFile
    out: Path
    data_root: Path | None
    device: torch.device
    reference: Checkpoint | None = None
    samples: int = SAMPLES
    discriminators: bool = True
    progress: Callable[[int, int], object] = lambda done, total: None
    stop: Stop = events.never
    any_reference: bool = False
    """Whether a site that began from nothing may be compared with given networks, which must never have seen its images."""
    warnings: list[str] = field(default_factory=list, init=False)
    doubts: list[str] = field(default_factory=list, init=False)
    """Why nothing that this audit does not find is proof, whatever its numbers."""
    _done: int = field(default=0, init=False)
    _total: int = field(default=1, init=False)

    def __call__(self) -> tuple[dict[str, Any], Pairs | None]:
        """Return the report, and the generated images nearest to training images, for the site's own eyes.

        Raises:
            DataError: the site has no test set here, or its training images are not those that it was trained on.
            RunFileError: the run file is not the checkpoint's; `reference` is not where the training began.
            CheckpointError: a checkpoint cannot be read in this version.
            Stopped: it was asked to stop; called again, it goes on.
        """
        start = time.monotonic()
        settings = self._settings()
        sides = Sides.load(settings, self.run, self.source, self.data_root, self.warnings, self.doubts)
        context = self._context(sides)
        parts = _Parts(self.out / PARTS, context)
        target = Target.of(self.source, self.device, settings.name)
        shadow_half = sides.half() if self.reference is None else []
        fair = np.ones(len(sides.groups.member), bool)
        fair[shadow_half] = False  # a shadow's own images are its members: what is calibrated by it leaves them out
        counts = sides.counts | {"member_patients": len(np.unique(sides.groups.patient[fair & sides.groups.member]))}
        if min(counts["member_patients"], counts["other_patients"]) < 2:
            raise DataError(f"{settings.name} has one patient on one side of the audit: nothing can be compared")
        received = Target.of(self.reference, self.device, settings.name) if self.reference is not None else None
        self._plan([target, received or target], settings, sides)
        self._reach(parts.done)
        if received is None:
            reference, kind = self._shadow(settings, sides, shadow_half, self.out / f"{SHADOW}-{context[:16]}"), "shadow"
        else:
            reference, kind = received, "received"
        attacks.require_same_shape(target, reference)
        own = self._scores(target, sides, parts, "own")
        other = self._scores(reference, sides, parts, "reference")
        copies, pairs = self._copies(target, reference, sides, own, other)
        rows, combined = judged(own, other, sides.groups, fair)
        counting = {row["name"]: row["counts"] for row in rows}
        if apart := [name for name in own if not counting[name]]:
            self.doubts.append(
                "the training and test images differ by themselves, for networks that never saw them: "
                f"{', '.join(apart)} cannot be used"
            )
        copies = [{**row, "counts": counting[f"nearest_{row['name']}"]} for row in copies]
        report = {
            "format": AUDIT_FORMAT,
            "relay": relay_core.__version__,
            "created_at": round(time.time(), 3),
            "checkpoint": self.source.digest,
            "run": self.source.meta["run"],
            "task_id": self.source.meta["task_id"],
            "site": settings.name,
            "strategy": self.source.meta["strategy"],
            "networks": self._networks(target),
            "counts": counts,
            "reference": {"kind": kind, "checkpoint": self.reference.digest if self.reference else None},
            "attacks": rows,
            "combined": combined,
            "copies": copies,
            "samples": self.samples if target.relay else 0,
            "seconds": round(time.monotonic() - start, 1),
            "warnings": self.warnings,
            "doubts": self.doubts,
        }
        parts.path.unlink(missing_ok=True)
        for folder in self.out.glob(f"{SHADOW}-*"):
            shutil.rmtree(folder)
        self.progress(self._total, self._total)
        return report, pairs

    def _settings(self) -> SiteSettings:
        meta = self.source.meta
        if meta["run"] != self.run.digest:
            raise RunFileError(f"{self.source.path} was trained with another run file than {self.run.path}")
        if meta["step"] < meta["steps"]:
            raise RunFileError(f"{self.source.path}: the training is not finished; an audit is of what leaves: --resume it")
        settings = self.run.site(meta["task_id"])
        base = meta.get("base")
        if self.reference is None and base is not None:
            raise RunFileError(
                f"the training of {settings.name} began from checkpoint {base['checkpoint'][:16]}: name it with "
                "--reference, it is what the attacks are compared with"
            )
        if self.reference is not None and base is not None and self.reference.digest != base["checkpoint"]:
            raise RunFileError(
                f"{self.reference.path} is not the checkpoint that the training of {settings.name} began from "
                f"({base['checkpoint'][:16]})"
            )
        if self.reference is not None and settings.name in self.reference.meta.get("sites", []):
            self.doubts.append("the reference was at this site before: what it learned there is not seen as a leak")
        if self.reference is not None and "base" in meta and base is None and not self.any_reference:
            raise RunFileError(f"the training of {settings.name} began from nothing: leave --reference out")
        return settings

    def _context(self, sides: Sides) -> str:
        """Digest of all that the parts of an audit depend on."""
        reference = self.reference.digest if self.reference else None
        content = [
            relay_core.__version__,
            self.source.digest,
            reference,
            sides.digest,
            self.samples,
            self.discriminators,
            self.device.type,
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def _networks(self, target: Target) -> list[str]:
        """Names of the networks that leave, and so were attacked."""
        without = () if self.discriminators else target.relay.gan.names if target.relay else ()
        return [name for name in target.networks if name not in without]

    def _plan(self, targets: list[Target], settings: SiteSettings, sides: Sides) -> None:
        """Count the units of work, as `_tick` does: batches, drawn parts and comparisons of pixels."""
        batches, self._total = -(-len(sides.images) // BATCH), COMPARISONS if targets[0].relay else 0
        for target in targets:
            self._total += batches
            if target.relay:
                self._total += batches * (attacks.MATES + attacks.INVERSION_STEPS * len(target.slots))
                self._total += -(-self.samples // attacks.DRAWN) + COMPARISONS
        self._total += shadow_steps(settings, sides.counts["members"]) if self.reference is None else 0

    def _reach(self, done: int) -> None:
        """Say that so many units of work are done; a stopped audit may have done more already."""
        self._done = max(self._done, done)
        self.progress(min(self._done, self._total - 1), self._total)

    def _tick(self) -> None:
        self._reach(self._done + 1)
        if self.stop():
            raise Stopped("the audit was stopped; called again with the same --out, it goes on")

    def _shadow(self, settings: SiteSettings, sides: Sides, half: list[int], folder: Path) -> Target:
        steps = shadow_steps(settings, sides.counts["members"])

        def emit(event: events.Event) -> None:
            if isinstance(event, events.Started | events.Step):
                self._reach(min(event.step, steps))

        part = Part(sides.train, [sides.place_of[i] for i in half])
        shadow = train_shadow(settings, part, sides.counts["members"], folder, self.device, emit, self.stop)
        self._reach(steps)
        return Target.of(shadow, self.device, settings.name)

    def _scores(self, target: Target, sides: Sides, parts: _Parts, whose: str) -> dict[str, np.ndarray]:
        images, labels = sides.images, sides.labels

        def part(name: str, compute: Callable[[], Tensor]) -> np.ndarray:
            return np.array(parts.get(f"{whose}/{name}", compute, lambda: self._done))

        scores = {"solver": part("solver", lambda: attacks.solver_scores(target, images, labels, self._tick))}
        if target.relay:
            small, maps = attacks.of_game(target, images, labels)
            logits = functools.cache(lambda: attacks.discriminator_scores(target, small, maps, self._tick))
            for name in (each for each in target.relay.gan.names if each in self._networks(target)):
                scores[name] = part(name, functools.partial(lambda name: logits()[name], name))
            scores["inversion"] = part("inversion", lambda: attacks.inversion_scores(target, small, maps, self._tick))
        return scores

    def _copies(
        self, target: Target, reference: Target, sides: Sides, own: dict[str, np.ndarray], other: dict[str, np.ndarray]
    ) -> tuple[list[dict[str, Any]], Pairs | None]:
        """Search generated images for copies; the distance to the nearest one is an attack as well, added to `own`.

        That to the nearest one of the reference's generated images is added to `other`. So are those of label maps; they are
        searched for no copies, as outlines that are alike are no sign of one.
        """
        if not target.relay:
            return [], None
        real, maps = attacks.of_game(target, sides.images, sides.labels)
        classes, side = target.relay.codec.classes, target.strategy.settings.resolution
        features = SolverFeatures(target.strategy.solver, target.strategy.settings.data.out_range)
        known = _features(features, real, side)
        mean, spread = known.mean(dim=0), known.std(dim=0) + 1e-6

        def distances(images: Tensor) -> dict[str, Tensor]:
            """Distances to the real images, by what is compared."""
            standard = ((_features(features, images, side) - mean) / spread, (known - mean) / spread)
            return {"pixels": pixel_distances(images, real, self._tick), "solver_features": torch.cdist(*standard)}

        def nearest(images: Tensor, labels: Tensor) -> tuple[dict[str, Tensor], dict[str, np.ndarray]]:
            """Distances, and minus that of each real image and label map to the nearest one drawn: an attack."""
            found = distances(images)
            all_found = found | ({"label_maps": map_distances(labels, maps, classes)} if maps.ndim > 1 else {})
            return found, {f"nearest_{name}": -each.min(dim=0).values.double().numpy() for name, each in all_found.items()}

        generated, labels = attacks.drawn(target, self.samples, self._tick)
        to_real, scores = nearest(generated, labels)
        own |= scores
        if reference.relay:
            other |= nearest(*attacks.drawn(reference, self.samples, self._tick))[1]
        between = distances(real)
        rows = [{"name": name, **copying(to_real[name], between[name], sides.groups)} for name in between]
        pairs = closest_pairs(to_real["pixels"], sides.counts["members"])
        chosen = [torch.tensor([pair[i] for pair in pairs]) for i in range(2)]
        return rows, Pairs(generated[chosen[0]], real[chosen[1]])


@dataclass(frozen=True)
class Pairs:
    """Generated images and, for each, the training image that it is nearest to: patients' images."""

    generated: Tensor
    members: Tensor


def _features(network: SolverFeatures, images: Tensor, side: int) -> Tensor:
    return torch.cat([network(resize_images(part, side)).cpu() for part in images.split(256)])


class _Parts:
    """Scores that are done already, and the units of work until then, in a file, so that a stopped audit goes on.

    The file is removed at the end.
    """

    def __init__(self, path: Path, context: str) -> None:
        self.path, self.context = path, context
        saved = json.loads(path.read_text()) if path.is_file() else {}
        fits = "done" in saved and saved["context"] == context  # an earlier version did not say how far it was
        self.values: dict[str, list[float]] = saved["values"] if fits else {}
        self.done: int = saved["done"] if fits else 0

    def get(self, key: str, compute: Callable[[], Tensor], done: Callable[[], int]) -> list[float]:
        """Return the scores of this key, computed unless they are there; `done` says how far the audit is then."""
        if key not in self.values:
            self.values[key] = compute().double().tolist()
            content = {"context": self.context, "done": done(), "values": self.values}
            write_atomically(self.path, json.dumps(content).encode(), 0o600)
        return self.values[key]

"""Define the settings of differentially private training, and refuse what would let images leak past it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from relay_core.config.base import Settings
from relay_core.errors import RunFileError

if TYPE_CHECKING:
    from relay_core.config.site import SiteSettings


class PrivacySettings(Settings):
    """Differentially private training, an EXPERIMENT: DP-SGD (Abadi 2016, arXiv 1607.00133); docs/privacy.md says what it
    promises and what it costs. The unit that is protected is the patient where the data set names patients, else the
    image."""

    noise_multiplier: float = Field(default=1.0, gt=0)
    """Standard deviation of the noise on a step's sum of clipped gradients, in units of `max_grad_norm`."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Norm that a patient's (or image's) gradient is clipped to: that of the solver, and that of the discriminators."""
    delta: float = Field(default=1e-5, gt=0, lt=1)
    """Delta that epsilon is stated for: well below 1 / patients."""


def require_private(settings: SiteSettings) -> None:
    """Check that nothing but noisy gradients would carry a site's images into what leaves it.

    Raises:
        RunFileError: something would; the message names the key.
    """
    from relay_core.config.model import Corrections, DoubleGanKwargs

    train, kwargs, solver = settings.train, settings.model.kwargs, settings.solver
    relay = kwargs if isinstance(kwargs, DoubleGanKwargs) else None
    of_solver = "model.kwargs" if relay is None else "model.kwargs.solver_kwargs"
    refusals = [
        (
            not settings.facts.trains_privately or settings.facts.sequence == "at_once",
            f"strategy {settings.mode}",
            "is not one whose every use of an image is covered: take relay, lwf, or baseline (sequential, local)",
        ),
        (
            getattr(solver.kwargs, "norm", None) == "batch",
            f"{of_solver}.norm",
            "batch mixes the images of a batch, and its statistics travel: take group",
        ),
        (train.precision == "16", "train.precision", "16 skips steps by what single gradients are: take bf16 or 32"),
        (
            train.accumulate_grad_batches > 1,
            "train.accumulate_grad_batches",
            "is not needed, since images are looked at one by one: set it to 1 and batch_size to more",
        ),
    ]
    if relay is not None:
        refusals += [
            (relay.task == "classification", "model.kwargs.task", "classification hands over, with generators, how many "
             "images of each class there were: take a strategy without"),
            (relay.recoloured_share > 0, "model.kwargs.recoloured_share", "hands over colour statistics of real images: 0"),
            (relay.corrections != Corrections(), "model.kwargs.corrections", "must be left alone, and published unset"),
            (relay.solver_distil_weight == 0, "model.kwargs.solver_distil_weight", "must not be 0: replay teaches by it"),
            (relay.gan_batch_size is not None, "model.kwargs.gan_batch_size", "must be left out: who is drawn is random"),
            (relay.task_merge_replay, "model.kwargs.task_merge_replay", "must be false"),
            (
                relay.solver_side != relay.img_resolution and relay.reduced_share > 0,
                "model.kwargs.reduced_share",
                "chooses images by their place in a batch: set it to 0",
            ),
        ]  # fmt: skip
    for refused, key, why in refusals:
        if refused:
            raise RunFileError(f"train.privacy: {key} {why}")

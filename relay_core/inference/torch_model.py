"""Call the solver of a checkpoint as an exported model is called."""

from __future__ import annotations

from typing import Any

import torch

from relay_core.config import SiteSettings
from relay_core.engine import Checkpoint, load_solver
from relay_core.inference.outputs import OUTPUTS
from relay_core.inference.resolution import ModelCall, at_resolution
from relay_core.inference.served import ServedSolver


def torch_run(checkpoint: Checkpoint, device: torch.device, flips: bool = False) -> tuple[ModelCall, SiteSettings]:
    """Return a checkpoint's solver as a `ModelCall` for images of any size, and the settings that it was trained with.

    With `flips` it answers by the mean over the four flips of an image.

    Raises:
        CheckpointError: the checkpoint's settings are not valid here, or its tensors do not fit them.
    """
    solver, settings = load_solver(checkpoint, device, flips)
    network = ServedSolver.of(solver, settings).to(device)
    names = OUTPUTS[network.task]

    @torch.no_grad()
    def run(images: Any, outputs: Any) -> list[Any]:
        output_by_name = dict(zip(names, network(torch.tensor(images, device=device)), strict=True))
        return [output_by_name[name].cpu().numpy() for name in outputs]

    return at_resolution(run, settings.resolution, settings.data.fit), settings

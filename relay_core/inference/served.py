"""Wrap a solver for its callers: images of any size in 0..1 go in, classes of every pixel, or of the image, come out.

What a caller would otherwise have to get right is part of the network: the size and the range of values that the solver was
trained with. Legend: N images, C channels, H rows, W columns, R the solver's resolution, K classes.
"""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relay_core.config import SiteSettings, Task


class ServedSolver(nn.Module):
    """A solver that resizes and scales its input itself, and resizes its logits (segmentation), with softmax and arg max.

    Shape: (N, C, H, W) float32 in 0..1 -> logits and probabilities (N, K, H, W), confidence (N, H, W), the largest
    probability, mask (N, H, W) uint8, and `looks` (N, 2 C + 1), the features of `imaging.out_of_distribution`; all but the
    mask are float32. A classifier gives logits and probabilities (N, K), confidence (N,), and class (N,) uint8 instead of
    the mask; see `outputs`.

    Args:
        solver: network (N, C, R, R) -> (N, K, R, R), or (N, K) for classification.
        resolution: R, in pixels.
        out_range: values of black and white in training.
        half: whether the solver computes in half precision.
        task: task that the solver was trained for.
    """

    def __init__(
        self,
        solver: nn.Module,
        resolution: int,
        out_range: tuple[float, float],
        half: bool = False,
        task: Task = "segmentation",
    ) -> None:
        super().__init__()
        self.task = task
        self.solver = solver.half() if half else solver
        self.resolution, self.half_precision = resolution, half
        self.low, self.span = out_range[0], out_range[1] - out_range[0]

    @classmethod
    def of(cls, solver: nn.Module, settings: SiteSettings, half: bool = False) -> Self:
        """Wrap a solver with the resolution and the range that it was trained with, in eval mode."""
        return cls(solver, settings.resolution, settings.data.out_range, half, settings.data.task).eval()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return logits, probabilities, confidence, mask or class, and features, as the class describes them."""
        small = resize(image, self.resolution)
        x = small * self.span + self.low
        logits = self.solver(x.half()).float() if self.half_precision else self.solver(x)
        if self.task == "segmentation":
            logits = F.interpolate(logits, size=image.shape[2:], mode="bilinear", align_corners=False)
        probabilities = logits.softmax(dim=1)
        return logits, probabilities, probabilities.amax(dim=1), logits.argmax(dim=1).to(torch.uint8), _image_features(small)


def _image_features(x: Tensor) -> Tensor:
    """Compute `imaging.out_of_distribution.image_features` in the graph: (N, 2 C + 1)."""
    grain = (x[:, :, 1:] - x[:, :, :-1]).abs().mean(dim=(1, 2, 3)) + (x[..., 1:] - x[..., :-1]).abs().mean(dim=(1, 2, 3))
    deviation = (x - x.mean(dim=(2, 3), keepdim=True)).square().mean(dim=(2, 3)).sqrt()
    return torch.cat([x.mean(dim=(2, 3)), deviation, grain[:, None] / 2], dim=1)


def resize(image: Tensor, side: int) -> Tensor:
    """Resize (N, C, H, W) to (N, C, side, side), bilinearly with antialiasing, as the training images were resized.

    It is written as two matrix products, so that an exported graph takes any H and W on any of ONNX Runtime's providers.
    """
    rows, columns = (_weights(size, side, image) for size in image.shape[2:])
    return rows @ image @ columns.transpose(0, 1)


def _weights(size: int, side: int, like: Tensor) -> Tensor:
    """Return (side, size), how much each of `size` pixels contributes to each of `side`: triangles as wide as the step."""
    step = size / side
    source = torch.arange(size, device=like.device, dtype=torch.float32) + 0.5
    target = ((torch.arange(side, device=like.device, dtype=torch.float32) + 0.5) * step)[:, None]
    width = torch.clamp(torch.ones((), device=like.device) * step, min=1.0)
    # where the image grows, the edge pixel is repeated beyond the edge; where it shrinks, nothing lies there
    centre = torch.where(width > 1, target, target.clamp(0.5, size - 0.5))
    weights = (1 - (source - centre).abs() / width).clamp(min=0)
    return weights / weights.sum(dim=1, keepdim=True)

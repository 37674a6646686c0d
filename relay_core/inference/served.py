"""Wrap a solver for its callers: images of any size in 0..1 go in, classes of every pixel, or of the image, come out.

What a caller would otherwise have to get right is part of the network: the size and the range of values that the solver was
trained with. Legend: N images, C channels, H rows, W columns, R the solver's resolution, K classes.
"""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relay_core.config import Fit, SiteSettings, Task
from relay_core.imaging import EDGE


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
        fit: how an image that is not square becomes one, as in training.
    """

    def __init__(
        self,
        solver: nn.Module,
        resolution: int,
        out_range: tuple[float, float],
        half: bool = False,
        task: Task = "segmentation",
        fit: Fit = "stretch",
    ) -> None:
        super().__init__()
        self.task, self.fit = task, fit
        self.solver = solver.half() if half else solver
        self.resolution, self.half_precision = resolution, half
        self.low, self.span = out_range[0], out_range[1] - out_range[0]

    @classmethod
    def of(cls, solver: nn.Module, settings: SiteSettings, half: bool = False) -> Self:
        """Wrap a solver with the resolution and the range that it was trained with, in eval mode."""
        data = settings.data
        return cls(solver, settings.resolution, data.out_range, half, data.task, data.fit).eval()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return logits, probabilities, confidence, mask or class, and features, as the class describes them."""
        small = resize(image, self.resolution, self.fit)
        x = small * self.span + self.low
        logits = self.solver(x.half()).float() if self.half_precision else self.solver(x)
        if self.task == "segmentation":
            logits = enlarge(logits, image, self.fit)
        probabilities = logits.softmax(dim=1)
        return logits, probabilities, probabilities.amax(dim=1), logits.argmax(dim=1).to(torch.uint8), _image_features(small)


def _image_features(x: Tensor) -> Tensor:
    """Compute `imaging.out_of_distribution.image_features` in the graph: (N, 2 C + 1)."""
    grain = (x[:, :, 1:] - x[:, :, :-1]).abs().mean(dim=(1, 2, 3)) + (x[..., 1:] - x[..., :-1]).abs().mean(dim=(1, 2, 3))
    deviation = (x - x.mean(dim=(2, 3), keepdim=True)).square().mean(dim=(2, 3)).sqrt()
    return torch.cat([x.mean(dim=(2, 3)), deviation, grain[:, None] / 2], dim=1)


def resize(image: Tensor, side: int, fit: Fit = "stretch") -> Tensor:
    """Resize (N, C, H, W) to (N, C, side, side), bilinearly with antialiasing, as the training images were resized.

    It is `imaging.shrink` as two matrix products in the graph, so that an exported one takes any H and W on any of ONNX
    Runtime's providers.
    """
    rows, columns = (_shrinking(size, span, side, image) for size, span in _spans(image, fit))
    return rows @ image @ columns.transpose(0, 1)


def enlarge(logits: Tensor, image: Tensor, fit: Fit) -> Tensor:
    """Bring logits (N, K, R, R) to the pixels of the images (N, C, H, W) that they were computed for: (N, K, H, W)."""
    if fit == "stretch":
        return F.interpolate(logits, size=image.shape[2:], mode="bilinear", align_corners=False)
    rows, columns = (_enlarging(size, span, logits.shape[2], image) for size, span in _spans(image, fit))
    return rows @ logits @ columns.transpose(0, 1)


def _spans(image: Tensor, fit: Fit) -> list[tuple[int, Tensor]]:
    """Return rows and columns of the images, each with the pixels that the square spans along it."""
    sizes = [torch.ones((), device=image.device) * size for size in image.shape[2:]]
    if fit != "stretch":
        sizes = [(torch.maximum if fit == "pad" else torch.minimum)(*sizes)] * 2
    return list(zip(image.shape[2:], sizes, strict=True))


def _centres(count: int, like: Tensor) -> Tensor:
    return torch.arange(count, device=like.device, dtype=torch.float32) + 0.5


def _shrinking(size: int, span: Tensor, side: int, like: Tensor) -> Tensor:
    """Return (side, size), how much each of `size` pixels contributes to each of `side`: triangles as wide as the step."""
    target = (_centres(side, like) * (span / side) + (size - span) / 2)[:, None]
    width = (span / side).clamp(min=1.0)
    inside = ((target > 0) & (target < size)).float()
    # where the image grows, the edge pixel is repeated up to the edge
    centre = torch.where(width > 1, target.clamp(0, size), target.clamp(0.5, size - 0.5))
    weights = (1 - (_centres(size, like) - centre).abs() / width).clamp(min=0)
    return weights / weights.sum(dim=1, keepdim=True) * inside


def _enlarging(size: int, span: Tensor, side: int, like: Tensor) -> Tensor:
    """Return (size, side), how much each of `side` pixels contributes to each of `size`: bilinear, edges repeated."""
    centres = ((_centres(size, like) - (size - span) / 2) / (span / side))[:, None]
    inside = ((centres > -EDGE) & (centres < side + EDGE)).float()
    return (1 - (_centres(side, like) - centres.clamp(0.5, side - 0.5)).abs()).clamp(min=0) * inside

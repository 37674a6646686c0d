"""Classify whole images with an encoder and a linear layer."""

from __future__ import annotations

from torch import Tensor, nn


class Classifier(nn.Module):
    """Compute class logits of an image. Shape: (N, in_channels, H, W) -> (N, num_classes).

    Args:
        encoder: gives the features of an image at several strides, the deepest last; `channels` says how many maps each has.
        num_classes: number of classes.
    """

    def __init__(self, encoder: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        channels: list[int] = encoder.channels  # type: ignore[assignment]
        self.head = nn.Linear(channels[-1], num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Return the deepest features, averaged over pixels: (N, C, H, W) -> (N, D)."""
        deepest: Tensor = self.encoder(x)[-1]
        return deepest.mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Return the class logits (N, num_classes)."""
        return self.head(self.features(x))

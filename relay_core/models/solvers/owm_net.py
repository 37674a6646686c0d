"""The small network that orthogonal weight modification was shown with (Zeng 2019, arXiv 1810.01256): no biases at all."""

from __future__ import annotations

from torch import Tensor, nn

from relay_core.config import OwmNetKwargs, Task
from relay_core.models.solvers.blocks import make_activation

WIDTHS = (64, 128, 256)
HIDDEN = 1000


class OwmNet(nn.Module):
    """Compute class logits of an image. Shape: (N, in_channels, side, side) -> (N, num_classes).

    Args:
        in_channels: number of channels of the image.
        num_classes: number of classes.
        side: side of the image in pixels, 8 or more.
        activation: a name of `blocks.ACTIVATIONS`.
        dropout: share of the values dropped after each convolution.
    """

    def __init__(
        self, in_channels: int, num_classes: int, side: int, activation: str = "relu", dropout: float = 0.2
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in WIDTHS:
            layers += [nn.ReplicationPad2d(1), nn.Conv2d(in_channels, width, 2, bias=False), make_activation(activation)]
            layers += [nn.MaxPool2d(2), nn.Dropout(dropout)]
            in_channels, side = width, (side + 1) // 2
        self.convolutions = nn.Sequential(*layers)
        self.fc1 = nn.Linear(WIDTHS[-1] * side**2, HIDDEN, bias=False)
        self.fc2 = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.head = nn.Linear(HIDDEN, num_classes, bias=False)
        self.act = make_activation(activation)

    def features(self, x: Tensor) -> Tensor:
        """Return the features that the last layer classifies: (N, 1000)."""
        return self.act(self.fc2(self.act(self.fc1(self.convolutions(x).flatten(1)))))

    def forward(self, x: Tensor) -> Tensor:
        """Return the class logits (N, num_classes)."""
        return self.head(self.features(x))


def build(name: str, settings: OwmNetKwargs, task: Task, side: int) -> OwmNet:
    """Build the network for images of `side` x `side` pixels."""
    return OwmNet(settings.in_channels, settings.num_classes, side, settings.activation, settings.dropout)

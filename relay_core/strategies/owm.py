"""Orthogonal weight modification (Zeng 2019, arXiv 1810.01256)."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relay_core.config import OwmKwargs, SiteSettings
from relay_core.errors import RunFileError
from relay_core.strategies.base import Images, Position
from relay_core.strategies.remembering import RememberingStrategy

Layer = nn.Conv2d | nn.ConvTranspose2d | nn.Linear
MOST = 8192
"""Most inputs of a layer: its projector then takes 256 MiB in single precision."""


class OWMStrategy(RememberingStrategy):
    """From the second site on a layer's gradient leaves out the directions of the inputs that it had at earlier sites.

    Each convolution and linear layer has a projector P, the identity at first. At the end of a site, over the mean inputs x
    of its batches (the weights being what they became): `k = P x`, `P -= k k^T / (alpha_i + x^T k)`, alpha_i falling from
    alpha to alpha * decay along the pass. At later sites `gradient := gradient P`, or the optimizer's step (`project`). The
    input of a convolution is its patch where that has up to `largest` numbers, otherwise its channels, and so it is where it
    is transposed. Biases and the weights of normalisations learn freely: the paper's network has none.

    Raises:
        RunFileError: a layer has too many inputs for a square matrix of them.
    """

    def __init__(self, settings: SiteSettings, device: torch.device) -> None:
        super().__init__(settings, device)
        self.kwargs = cast(OwmKwargs, settings.strategy.kwargs)
        self.layers = {n: m for n, m in self.solver.named_modules() if isinstance(m, Layer)}
        projectors = nn.Module()
        for name, layer in self.layers.items():
            width = self._width(layer)
            if width > MOST:
                raise RunFileError(
                    f"strategy owm keeps a square matrix of each layer's inputs, and {name} has {width}; at most {MOST}: "
                    "choose another network, or smaller images"
                )
            projectors.register_buffer(_key(name), torch.eye(width, device=device, dtype=self.dtype))
        self.networks["projectors"] = projectors
        if self.kwargs.project == "gradient":
            self.updaters["solver"].before_step = self._project_gradients

    def hand_over(self) -> list[str]:
        """The solver and the projectors of its layers."""
        return ["solver", "projectors"]

    def _by_patch(self, layer: Layer) -> bool:
        return isinstance(layer, nn.Conv2d) and layer.weight[0].numel() <= self.kwargs.largest

    def _width(self, layer: Layer) -> int:
        """Side of a layer's projector: how many numbers its input vector has."""
        if self._by_patch(layer):
            return layer.weight[0].numel()
        return layer.weight.shape[0 if isinstance(layer, nn.ConvTranspose2d) else 1]

    def _projector(self, name: str) -> Tensor:
        return self.networks["projectors"].get_buffer(_key(name))

    @torch.no_grad()
    def _project_gradients(self) -> None:
        if self.sites:
            for name, layer in self.layers.items():
                if layer.weight.grad is not None:
                    layer.weight.grad.copy_(self._projected(name, layer, layer.weight.grad))

    def step(self, images: Tensor, labels: Tensor, position: Position) -> dict[str, Tensor]:
        """Train the solver for one step that leaves out the directions of earlier inputs."""
        if self.kwargs.project == "gradient" or not self.sites:
            return super().step(images, labels, position)
        before = {name: layer.weight.detach().clone() for name, layer in self.layers.items()}
        losses = super().step(images, labels, position)
        with torch.no_grad():
            for name, layer in self.layers.items():
                layer.weight.copy_(before[name] + self._projected(name, layer, layer.weight - before[name]))
        return losses

    def _projected(self, name: str, layer: Layer, change: Tensor) -> Tensor:
        """Project a change of a layer's weights so that its answers to earlier inputs stay."""
        p = self._projector(name)
        if self._by_patch(layer):
            return (change.flatten(1) @ p).view_as(change)
        return torch.einsum("iokl,ij->jokl" if isinstance(layer, nn.ConvTranspose2d) else "oi...,ij->oj...", change, p)

    @torch.no_grad()
    def end_site(self, images: Images) -> None:
        """Add the directions of this site's inputs to the projectors; every process computes all of it."""
        size = self.settings.train.batch_size
        steps = max(1, min(self.kwargs.batches, len(images) // size))
        training = self.solver.training
        self.solver.eval()
        hooks = []
        for i in range(steps):
            alpha = self.kwargs.alpha * self.kwargs.decay ** (i / steps)
            hooks = [m.register_forward_pre_hook(self._input_hook(n, m, alpha)) for n, m in self.layers.items()]
            index = [(i + k * steps) % len(images) for k in range(min(size, len(images)))]
            self._logits(self.solver, self._signed(images.batch(index)[0].to(self.device)), exact=True)
            for hook in hooks:
                hook.remove()
        self.solver.train(training)
        super().end_site(images)

    def _input_hook(self, name: str, layer: Layer, alpha: float) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def add_input(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x, p = self._mean_input(layer, inputs[0].to(self.dtype)), self._projector(name)
            k = p @ x
            p.sub_(torch.outer(k, k) / (alpha + x @ k))

        return add_input

    def _mean_input(self, layer: Layer, x: Tensor) -> Tensor:
        """Mean input vector (width,) of a layer, over samples, positions and groups."""
        if isinstance(layer, nn.Linear):
            return x.flatten(0, -2).mean(dim=0)
        mean = x.mean(dim=0, keepdim=True)
        if not self._by_patch(layer):
            return mean.mean(dim=(0, 2, 3)).view(-1, self._width(layer)).mean(dim=0)
        conv = cast(nn.Conv2d, layer)
        kernel, dilation, padding, stride = (
            cast(tuple[int, int], v) for v in (conv.kernel_size, conv.dilation, conv.padding, conv.stride)
        )
        patches = F.unfold(mean, kernel, dilation, padding, stride)
        return patches.mean(dim=(0, 2)).view(conv.groups, -1).mean(dim=0)


def _key(name: str) -> str:
    """A layer's name without dots, which the name of a buffer may not have."""
    return name.replace(".", "__")

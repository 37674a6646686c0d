"""Replay of looks alone: the site's own images, recoloured as those of the sites before; no generator, no image travels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from relay_core import distributed
from relay_core.config import SiteSettings, StyleKwargs
from relay_core.errors import RunFileError
from relay_core.losses import distillation
from relay_core.strategies.base import Images, Position
from relay_core.strategies.remembering import RememberingStrategy, frozen_copy

EPSILON = 1e-4
"""Added to the variance of a channel (images are in [-1, 1]), so that an even image has a colour distribution too."""
AT_ONCE = 64
"""Images whose colours are measured together."""


def colours(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean colour (N, C) of images (N, C, H, W), and the Cholesky factor (N, C, C) of its covariance."""
    pixels = images.flatten(2)
    mean = pixels.mean(dim=2)
    centred = pixels - mean[:, :, None]
    covariance = centred @ centred.transpose(1, 2) / pixels.shape[2]
    return mean, torch.linalg.cholesky(covariance + EPSILON * torch.eye(images.shape[1], device=images.device))


def recoloured(images: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    """Return images (N, C, H, W) with the mean colour (N, C) and the covariance factor (N, C, C) given, cut to [-1, 1].

    A linear map of the colours (Reinhard 2001, Color transfer between images, with the covariance instead of three
    variances): shapes, and so the label maps, stay.
    """
    own_mean, own_factor = colours(images)
    white = torch.linalg.solve_triangular(own_factor, images.flatten(2) - own_mean[:, :, None], upper=False)
    return (factor @ white + mean[:, :, None]).reshape(images.shape).clamp(-1, 1)


class Styles(nn.Module):
    """The looks of up to `sites` sites: for each a Gaussian over its images' colours, as `colours` measures them.

    An image's colours are D = C + C (C + 1) / 2 numbers: the mean and the factor's lower triangle (logarithms on its
    diagonal).
    """

    def __init__(self, sites: int, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.rows, self.columns = torch.tril_indices(channels, channels)
        numbers = channels + len(self.rows)
        self.register_buffer("means", torch.zeros(sites, numbers))
        self.register_buffer("spreads", torch.zeros(sites, numbers, numbers))
        self.means: Tensor
        self.spreads: Tensor

    def keep(self, site: int, images: Iterable[Tensor]) -> None:
        """Keep the Gaussian of a site's images, given in batches."""
        parts = []
        for mean, factor in map(colours, images):
            factor.diagonal(dim1=1, dim2=2).log_()
            parts.append(torch.cat([mean, factor[:, self.rows, self.columns]], dim=1))
        numbers = torch.cat(parts).double()
        self.means[site] = numbers.mean(dim=0)
        covariance = torch.cov(numbers.T) if len(numbers) > 1 else torch.zeros(numbers.shape[1], numbers.shape[1])
        values, vectors = torch.linalg.eigh(covariance.cpu())
        self.spreads[site] = vectors * values.clamp(min=0).sqrt()

    def draw(self, count: int, sites: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Draw colours (count, C) and (count, C, C) of the first `sites` sites, each as likely."""
        of_site = distributed.randint(0, sites, count, device=device)
        normal = distributed.randn(count, self.means.shape[1], device=device)
        numbers = self.means[of_site] + (self.spreads[of_site] @ normal[:, :, None])[:, :, 0]
        factor = torch.zeros(count, self.channels, self.channels, device=device)
        factor[:, self.rows, self.columns] = numbers[:, self.channels :]
        factor.diagonal(dim1=1, dim2=2).exp_()
        return numbers[:, : self.channels], factor


class StyleStrategy(RememberingStrategy):
    """From the second site on, a share of each batch is recoloured as the images of earlier sites are.

    There the solver learns from the label map, which still fits, and from the previous solver's answers.
    """

    def __init__(self, settings: SiteSettings, device: torch.device) -> None:
        super().__init__(settings, device)
        self.kwargs = cast(StyleKwargs, settings.strategy.kwargs)
        self.networks["styles"] = Styles(self.kwargs.sites, settings.data.img_channels).to(device)
        self.networks["old_solver"] = frozen_copy(self.solver)

    @property
    def styles(self) -> Styles:
        """The looks of the sites so far."""
        return cast(Styles, self.networks["styles"])

    def hand_over(self) -> list[str]:
        """The solver, which becomes the next site's teacher, and the looks."""
        return ["solver", "styles"]

    def begin_site(self, name: str, images: int, classes: Sequence[int] | None = None) -> None:
        """Freeze a copy of the received solver as the teacher. Raises RunFileError where another site has no room."""
        if self.sites >= self.kwargs.sites:
            raise RunFileError(f"strategy style has room for {self.kwargs.sites} sites: set strategy.kwargs.sites")
        self.networks["old_solver"].load_state_dict(self.solver.state_dict())

    def step(self, images: Tensor, labels: Tensor, position: Position) -> dict[str, Tensor]:
        """Train the solver for one step on the site's images, the first of them recoloured."""
        if position.step >= position.solver_steps:
            return {}
        images = self._signed(images)
        count = min(len(images) - 1, max(1, round(len(images) * self.kwargs.share))) if self.sites else 0
        if count:
            restyled = recoloured(images[:count], *self.styles.draw(count, self.sites, self.device))
            images = torch.cat([restyled, images[count:]])
        images, labels = self.augment(images, labels)
        logits = self._logits(self.solver, images)
        losses = {"solver": self.supervised(logits, labels)}
        if count and self.kwargs.weight:
            with torch.no_grad():
                target = self._logits(self.networks["old_solver"], images[:count])
            losses["distillation"] = self.kwargs.weight * distillation(logits[:count], target, self.kwargs.tau)
        self.updaters["solver"].update(torch.stack(list(losses.values())).sum(), position.progress)
        return {name: value.detach() for name, value in losses.items()}

    @torch.no_grad()
    def end_site(self, images: Images) -> None:
        """Keep the looks of this site."""
        parts = torch.arange(len(images)).split(AT_ONCE)
        self.styles.keep(self.sites, (self._signed(images.batch(part)[0].to(self.device)) for part in parts))
        super().end_site(images)

"""Looks of sites: the colours of a site's images as a Gaussian, and images recoloured by it, whose shapes stay."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from relay_core import distributed

EPSILON = 1e-4
"""Added to the variance of a channel (images are in [-1, 1]), so that an even image has a colour distribution too."""


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
    """The looks of up to `sites` sites, by number: for each a Gaussian over its images' colours, as `colours` measures them.

    An image's colours are D = C + C (C + 1) / 2 numbers: the mean and the factor's lower triangle (logarithms on its
    diagonal). No image travels in it, and none can be drawn from it.
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

    def knows(self, site: int) -> bool:
        """Return whether the colours of a site were kept."""
        return bool(self.means[site].any())  # to no last bit are all means and logarithms of deviations 0

    def draw(self, count: int, sites: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
        """Draw colours (count, C) and (count, C, C) of the given sites, each as likely."""
        of_site = torch.tensor(sites, device=device)[distributed.randint(0, len(sites), count, device=device)]
        normal = distributed.randn(count, self.means.shape[1], device=device)
        numbers = self.means[of_site] + (self.spreads[of_site] @ normal[:, :, None])[:, :, 0]
        factor = torch.zeros(count, self.channels, self.channels, device=device)
        factor[:, self.rows, self.columns] = numbers[:, self.channels :]
        factor.diagonal(dim1=1, dim2=2).exp_()
        return numbers[:, : self.channels], factor

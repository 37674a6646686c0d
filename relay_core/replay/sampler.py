"""Pseudo images and their labels, drawn from the generators that the last site handed over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from relay_core import distributed
from relay_core.models.stylegan2 import Generator, Noise
from relay_core.replay.bank import SiteBank, one_hot
from relay_core.replay.sizes import resize_images, resize_labels


@dataclass(frozen=True)
class LabelCodec:
    """Class ids 0..K-1 as one channel in [-1, 1], evenly spaced."""

    classes: int
    noise: float = 0.0

    def encode(self, ids: Tensor) -> Tensor:
        """Code class ids (N, H, W) as exactly quantised values (N, 1, H, W), float32."""
        return ids[:, None].to(torch.float32) * (2 / (self.classes - 1)) - 1

    def decode(self, label_map: Tensor) -> Tensor:
        """Decode a label map (N, 1, H, W), clipped to [-1, 1], to the nearest class ids (N, H, W)."""
        return ((label_map[:, 0].clamp(-1, 1) + 1) * ((self.classes - 1) / 2)).round().long()

    def code(self, slots: Tensor, c_dim: int, classes: Tensor | None = None) -> Tensor:
        """One-hot conditioning of a network: slots (N,), and for classification classes (N,) -> (N, c_dim [+ K])."""
        site = one_hot(slots, c_dim)
        return site if classes is None else torch.cat([site, one_hot(classes, self.classes)], dim=1)

    def add_noise(self, label_map: Tensor) -> Tensor:
        """Add clipped Gaussian noise, so that a discriminator cannot win by noticing the quantisation."""
        n, *shape = label_map.shape
        return label_map + self.noise * distributed.randn(n, *shape, device=label_map.device).clamp(-3, 3)


@dataclass(frozen=True)
class Replay:
    """A batch of pseudo data: images (N, C, R, R) in [-1, 1], class ids (N, R, R), or (N,) for classification, and the slots
    (N,) of the sites whose style the images have."""

    images: Tensor
    labels: Tensor
    slots: Tensor

    def at(self, side: int, classes: int) -> Replay:
        """Return the same with images and label maps of `side` pixels; `classes` is how many there are."""
        return Replay(resize_images(self.images, side), resize_labels(self.labels, side, classes), self.slots)


class Replayer:
    """Draws pseudo data: site, label map, image.

    For classification there is no label map: a class is drawn in proportion to the site's own numbers of images of each,
    which travel with the bank, and conditions the image through the site code, to which it is appended one-hot. So mapping
    network and projection discriminator learn it as they learn the site (a class-conditional StyleGAN2); a constant label
    map would order classes that have no order, and SPADE would have nothing to vary over the image.

    Args:
        label: label generator; None: classification.
        image: image generator.
        codec: coding of label maps, and the number of classes.
        bank: sites to draw from.
        c_dims: width of the site code of label and image generator.
        truncation: psi of both mapping networks.
        conditioning: what the image generator sees: "clean", the map quantised, with the noise of training; "clipped"
            to [-1, 1]; "raw" as generated.
        noise: inside both generators.
        select: sites drawn alike or by their numbers of images.
        single_cid: label map and image of a sample are of the same site.
    """

    def __init__(
        self,
        label: Generator | None,
        image: Generator,
        codec: LabelCodec,
        bank: SiteBank,
        c_dims: tuple[int, int],
        *,
        truncation: float = 1.0,
        conditioning: Literal["clean", "clipped", "raw"] = "clean",
        noise: Noise = "none",
        select: Literal["uniform", "frequency"] = "uniform",
        single_cid: bool = True,
    ) -> None:
        self.label, self.image, self.codec, self.bank, self.c_dims = label, image, codec, bank, c_dims
        self.truncation, self.conditioning, self.noise, self.select = truncation, conditioning, noise, select
        self.single_cid = single_cid

    @torch.no_grad()
    def draw(self, n: int, two_styles: bool = False, slots: Tensor | None = None) -> Replay:
        """Draw `n` pseudo samples for this process, of given or of randomly drawn sites.

        `two_styles` mixes in the style of a second site from a random layer on; the sample then counts for the first.
        """
        device = self.image.mapping.embed.weight.device
        if slots is None:
            slots = self.bank.draw(n, self.select, device)
        others = self.bank.draw(n, self.select, device) if two_styles else None
        if self.label is None:
            classes = self.bank.draw_classes(slots)
            styles = self._styles(self.image, slots, others, self.c_dims[1], classes)
            return Replay(self.image.synthesize(styles, None, self.noise).clamp(-1, 1), classes, slots)
        of_map = slots if self.single_cid else self.bank.draw(n, self.select, device)
        raw = self.label.synthesize(self._styles(self.label, of_map, others, self.c_dims[0]), noise=self.noise)
        side = self.image.resolution  # the label generator may draw smaller maps
        ids = resize_labels(self.codec.decode(raw), side, self.codec.classes)
        if self.conditioning == "clean":
            condition = self.codec.add_noise(self.codec.encode(ids))
        else:
            condition = resize_images(raw.clamp(-1, 1) if self.conditioning == "clipped" else raw, side)
        styles = self._styles(self.image, slots, others, self.c_dims[1])
        image = self.image.synthesize(styles, condition, self.noise).clamp(-1, 1)
        return Replay(image, ids, slots)

    def _styles(
        self, generator: Generator, slots: Tensor, others: Tensor | None, c_dim: int, classes: Tensor | None = None
    ) -> Tensor:
        n, device = slots.shape[0], slots.device
        z = distributed.randn(n, generator.z_dim, device=device)
        c = self.codec.code(slots, c_dim, classes)
        if others is None:
            return generator.styles(z, c, self.truncation)
        other_z = distributed.randn(n, generator.z_dim, device=device)
        crossover = distributed.randint(1, generator.num_ws, n, device=device)
        return generator.mixed_styles(z, c, other_z, self.codec.code(others, c_dim, classes), crossover, self.truncation)

"""Generators against discriminators (StyleGAN2-ADA, arXiv 2006.06676).

One pair for label maps, one for images given label maps; for classification one for images given classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relay_core import distributed
from relay_core.config import DoubleGanKwargs
from relay_core.models.stylegan2 import AdaptiveAugment, AugmentPipe, Discriminator, Generator
from relay_core.replay import LabelCodec, resize_labels
from relay_core.strategies.batches import Batch, singly
from relay_core.strategies.private import Privacy
from relay_core.strategies.updater import Updater

PATH_DECAY = 0.01


def path_lengths(image: Tensor, ws: Tensor, noise: Tensor) -> Tensor:
    """Length of the image's change along each style: (N,) from image (N, C, R, R) = G(ws), ws (N, L, w_dim).

    The gradient of <image, noise> by ws, noise being N(0, 1) / sqrt(pixels) of the image's shape: L2 norm over w_dim,
    root mean square over layers (Karras 2020, arXiv 1912.04958, equation 4).
    """
    (gradient,) = torch.autograd.grad((image * noise).sum(), ws, create_graph=True)
    return gradient.square().sum(dim=2).mean(dim=1).sqrt()


def r1_penalty(logits: Tensor, x: Tensor, channels: int) -> Tensor:
    """Squared norm of the gradient of each logit by the first `channels` channels of x: (N,) (Mescheder 2018)."""
    (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    return gradient[:, :channels].square().sum(dim=[1, 2, 3])


@dataclass(frozen=True)
class SiteCodes:
    """Site codes (N, c_dim) of the one or two styles of each sample; without `second` both styles have the first."""

    first: Tensor
    second: Tensor | None = None

    @property
    def both(self) -> Tensor:
        """The sum of both codes of each sample, divided by its maximum: what a discriminator sees of two styles."""
        assert self.second is not None
        total = self.first + self.second
        return total / total.amax(dim=1, keepdim=True)

    def head(self, n: int) -> SiteCodes:
        """The codes of the first n samples."""
        return SiteCodes(self.first[:n], None if self.second is None else self.second[:n])


@dataclass(frozen=True)
class FakeSlots:
    """Slots of the sites (N,) that fakes are made for; in `second`, by kind of generator, those of second styles."""

    slots: Tensor
    second: dict[str, Tensor] = field(default_factory=dict)

    def codes(self, pair: AdversarialPair, codec: LabelCodec, classes: Tensor | None) -> SiteCodes:
        """The site codes that condition one generator."""
        second = self.second.get(pair.kind)
        other = None if second is None else codec.code(second, pair.c_dim, classes)
        return SiteCodes(codec.code(self.slots, pair.c_dim, classes), other)


class AdversarialPair:
    """One generator against one discriminator, with its adaptive augmentation and path-length mean."""

    def __init__(self, settings: DoubleGanKwargs, kind: str, networks: dict[str, nn.Module], device: torch.device) -> None:
        s, image = settings, kind == "img"
        self.settings, self.kind = s, kind
        self.generator = cast(Generator, networks[f"G_{kind}"])
        self.discriminator = cast(Discriminator, networks[f"D_{kind}"])
        self.c_dim = s.c_img_dim if image else s.c_label_dim  # site slots; for classification the code has classes too
        self.image_channels = s.img_channels if image else 1
        published = not s.corrections.ada_image_only
        conf = s.aug_conf_img if image else s.aug_conf_label
        self.pipe = AugmentPipe(conf, self.image_channels, published=published).to(device)
        self.ada = AdaptiveAugment(
            s.ada_target_img if image else s.ada_target_label, s.ada_interval, s.ada_kimg,
            p_range=s.aug_p_range_img if image else s.aug_p_range_label,
        )  # fmt: skip
        self.path_mean = torch.zeros([], device=device)

    @property
    def name(self) -> str:
        """The name of the discriminator's network."""
        return f"D_{self.kind}"

    def styles(self, codes: SiteCodes) -> tuple[Tensor, Tensor]:
        """Draw styles for random latents; return them (N, num_ws, w_dim) and the discriminator's conditioning (N, c_dim).

        With probability `style_mixing_prob` the styles of a sample are those of two latents, split at a random layer; the
        discriminator then sees both sites of it.
        """
        n, device, layers = len(codes.first), codes.first.device, self.generator.num_ws
        z, other = (distributed.randn(n, self.generator.z_dim, device=device) for _ in range(2))
        if self.settings.corrections.crossover == "uniform":
            crossover = distributed.randint(1, layers, n, device=device)
        else:
            crossover = (distributed.rand(n, layers, device=device) < 0.5).sum(dim=1)
        mixed = distributed.rand(n, device=device) < self.settings.style_mixing_prob
        second = codes.first if codes.second is None else codes.second
        styles = self.generator.mixed_styles(z, codes.first, other, second, torch.where(mixed, crossover, layers))
        return styles, codes.first if codes.second is None else torch.where(mixed[:, None], codes.both, codes.first)

    def generate(self, codes: SiteCodes, label_map: Tensor | None) -> tuple[Tensor, Tensor]:
        """Generate fakes, on label maps where the generator wants them; return them and the discriminator's conditioning."""
        styles, conditioning = self.styles(codes)
        return self.generator.synthesize(styles, label_map), conditioning

    def discriminate(self, x: Tensor, code: Tensor) -> Tensor:
        """Logits (N,) of the augmented x (N, C, R, R), given the site codes (N, c_dim)."""
        return self.discriminator(self.pipe(x, self.ada.p), code)

    def path_penalty(self, codes: SiteCodes, label_map: Tensor | None) -> Tensor:
        """Path-length penalty of the first half of the batch (Karras 2020, arXiv 1912.04958); moves the running mean."""
        n = max(1, len(codes.first) // 2)
        ws, _ = self.styles(codes.head(n))
        image = self.generator.synthesize(ws, None if label_map is None else label_map[:n])
        noise = distributed.randn(*image.shape, device=image.device) / (image.shape[2] * image.shape[3]) ** 0.5
        lengths = path_lengths(image, ws, noise)
        with torch.no_grad():
            self.path_mean.lerp_(distributed.mean_(lengths.detach().mean()), PATH_DECAY)
        return (lengths - self.path_mean).square().mean()

    def discriminate_real(self, x: Tensor, code: Tensor, regularise: bool) -> tuple[Tensor, Tensor | None]:
        """Logits of augmented real images, and their R1 penalty where `regularise` asks for it.

        R1 is the squared norm of the gradient by what the discriminator sees, the augmented images (Mescheder 2018, for the
        discriminator's own input distribution), not by the images before the augmentation, as the code of StyleGAN2-ADA has
        it: the two differ where p > 0. So nothing is differentiated twice through the augmentation.
        """
        if not regularise:
            return self.discriminate(x, code), None
        x = self.pipe(x, self.ada.p).detach().requires_grad_()
        logits = self.discriminator(x, code)
        channels = x.shape[1] if self.settings.corrections.r1_on_label else self.image_channels
        return logits, r1_penalty(logits, x, channels).mean()

    def state(self) -> dict[str, Any]:
        """The state of augmentation and path-length mean, for JSON."""
        return {"ada": self.ada.state_dict(), "path_mean": float(self.path_mean)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore `state`."""
        self.ada.load_state_dict(state["ada"])
        self.path_mean.fill_(state["path_mean"])


class Adversaries:
    """All pairs of a relay, trained together: one step of the generators, then one of the discriminators."""

    def __init__(
        self,
        settings: DoubleGanKwargs,
        networks: dict[str, nn.Module],
        accumulate: int,
        half: bool,
        device: torch.device,
    ) -> None:
        self.settings = settings
        self.codec = LabelCodec(settings.label_num_classes, settings.label_noise)
        self.pairs = [
            AdversarialPair(settings, kind, networks, device) for kind in ("label", "img") if f"G_{kind}" in networks
        ]
        self.generators = [networks[f"G_{pair.kind}"] for pair in self.pairs]
        self.discriminators = [networks[f"D_{pair.kind}"] for pair in self.pairs]
        self.averaged = [networks.get(f"G_{pair.kind}_ema") for pair in self.pairs]
        self.g_updater = Updater(
            "generators", _parameters(self.generators), settings.generator_optimizer, accumulate=accumulate, half=half
        )
        self.d_updater = Updater(
            "discriminators", _parameters(self.discriminators), settings.discriminator_optimizer,
            accumulate=accumulate, half=half,
        )  # fmt: skip

    def step(
        self,
        batch: Batch,
        fake_slots: FakeSlots,
        step: int,
        progress: float,
        batch_global: int,
        d_batch: Batch | None = None,
    ) -> dict[str, Tensor]:
        """Train all pairs for one step; the same fakes serve generators and discriminators.

        Args:
            batch: images (N, C, R, R) in [-1, 1], class ids (N, R, R) or (N,), and slots of the sites (N,).
            fake_slots: sites that the fakes are made for.
            step: number of this step, for the lazy regularisation.
            progress: share of the budget done.
            batch_global: N over all processes.
            d_batch: another batch for the discriminators; None shares the generators'.
        """
        _, labels, _ = batch
        condition = self._condition(labels)
        codes = {g.kind: fake_slots.codes(g, self.codec, None if condition is not None else labels) for g in self.pairs}
        fakes, losses = self._generator_step(condition, codes, step, progress)
        self._average(batch_global)
        real, slots = self._real(batch if d_batch is None else d_batch, condition if d_batch is None else None)
        losses |= self._discriminator_step(real, fakes, slots, step, progress, batch_global)
        return losses

    def step_privately(
        self, privacy: Privacy, batch: Batch, real: int, fake_slots: FakeSlots, step: int, progress: float
    ) -> dict[str, Tensor]:
        """Train all pairs for one step of which the discriminators alone learn from the site's images, by private gradients.

        Images are generated on generated label maps, for as many samples as a batch has in the mean; the augmentation stays
        as strong as it is, since it would follow what discriminators say of real images.

        Args:
            privacy: takes those gradients.
            batch: as in `step`: the site's images, then replayed ones, which may be known.
            real: how many of them are the site's.
            fake_slots: sites that the fakes are made for, as many as are expected in a batch.
            step: number of this step, for the lazy regularisation.
            progress: share of the budget done.
        """
        codes = {pair.kind: fake_slots.codes(pair, self.codec, None) for pair in self.pairs}
        fakes, losses = self._generator_step(None, codes, step, progress)
        expected = len(fake_slots.slots)
        self._average(expected)
        regularise = self.settings.r1_gamma > 0 and step % self.settings.D_reg_interval == 0

        def of_real(images: Tensor, labels: Tensor, slots: Tensor) -> Tensor:
            """Sum over a batch of the losses of all discriminators."""
            samples, conditions = self._real((images, labels, slots), None)
            total = torch.zeros([], device=images.device)
            for pair in self.pairs:
                logits, penalty = pair.discriminate_real(samples[pair.kind], conditions[pair.kind], regularise)
                total = total + F.softplus(-logits).sum()
                if penalty is not None:
                    total = total + self.settings.r1_gamma / 2 * self.settings.D_reg_interval * penalty * len(images)
            return total

        public = torch.stack([F.softplus(pair.discriminate(*fakes[pair.kind])).mean() for pair in self.pairs]).sum()
        if len(batch[0]) > real:
            images, labels, slots = (tensor[real:] for tensor in batch)
            public = public + of_real(images, labels, slots) / expected
        own = (of_real(*one) for one in singly(*(tensor[:real] for tensor in batch)))
        losses["D"] = public.detach() + self.d_updater.update_privately(privacy, own, public, 1 / expected, progress)
        return losses

    @property
    def names(self) -> list[str]:
        """Names of the discriminators' networks."""
        return [pair.name for pair in self.pairs]

    @torch.no_grad()
    def logits(self, batch: Batch) -> dict[str, Tensor]:
        """Logits (N,) of a batch as in `step`, not augmented, by the name of the discriminator's network."""
        real, codes = self._real(batch, None)
        return {pair.name: pair.discriminator(real[pair.kind], codes[pair.kind])[:, 0] for pair in self.pairs}

    def _drawn(self, fake: Tensor) -> Tensor:
        """Return generated label maps as replay would have them condition images."""
        ids = self.codec.decode(fake.detach())
        condition = self._condition(resize_labels(ids, self.settings.img_resolution, self.codec.classes))
        assert condition is not None
        return condition

    def _condition(self, labels: Tensor) -> Tensor | None:
        """Noisy label maps that images are made for; None for classification."""
        return self.codec.add_noise(self.codec.encode(labels)) if labels.ndim > 1 else None

    def _real(self, batch: Batch, condition: Tensor | None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What each discriminator sees of a batch, and the site codes that condition it."""
        images, labels, slots = batch
        if labels.ndim == 1:
            return {"img": images}, {"img": self.codec.code(slots, self.pairs[0].c_dim, labels)}
        maps = self._condition(labels) if condition is None else condition
        assert maps is not None
        side = self.settings.label_side
        small = maps if maps.shape[-1] == side else self._condition(resize_labels(labels, side, self.codec.classes))
        assert small is not None
        real = {"label": small, "img": torch.cat([images, maps], dim=1)}
        return real, {pair.kind: self.codec.code(slots, pair.c_dim) for pair in self.pairs}

    def _generator_step(
        self, condition: Tensor | None, codes: dict[str, SiteCodes], step: int, progress: float
    ) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
        """Update the generators; return the fakes with their conditioning for the discriminators, and the losses.

        Without a `condition`, images are generated on the label maps that are generated with them.
        """
        _freeze(self.discriminators, True)
        fakes: dict[str, tuple[Tensor, Tensor]] = {}
        for pair in self.pairs:
            if pair.kind == "img" and condition is None and "label" in fakes:
                condition = self._drawn(fakes["label"][0])
            fake, conditioning = pair.generate(codes[pair.kind], condition if pair.kind == "img" else None)
            if pair.kind == "label" and self.settings.corrections.fake_label_noise:
                fake = self.codec.add_noise(fake)
            if pair.kind == "img" and condition is not None:
                fake = torch.cat([fake, condition], dim=1)
            fakes[pair.kind] = fake, conditioning
        losses = {f"G_{pair.kind}": F.softplus(-pair.discriminate(*fakes[pair.kind])).mean() for pair in self.pairs}
        total = torch.stack(list(losses.values())).sum()
        if self.settings.pl_weight > 0 and step % self.settings.G_reg_interval == 0:
            for pair in self.pairs:
                maps = condition if pair.kind == "img" else None
                losses[f"path_{pair.kind}"] = pair.path_penalty(codes[pair.kind], maps)
                total = total + self.settings.pl_weight * self.settings.G_reg_interval * losses[f"path_{pair.kind}"]
        self.g_updater.update(total, progress)
        _freeze(self.discriminators, False)
        return {kind: (fake.detach(), conditioning) for kind, (fake, conditioning) in fakes.items()}, losses

    def _discriminator_step(
        self,
        real: dict[str, Tensor],
        fakes: dict[str, tuple[Tensor, Tensor]],
        codes: dict[str, Tensor],
        step: int,
        progress: float,
        batch_global: int,
    ) -> dict[str, Tensor]:
        regularise = self.settings.r1_gamma > 0 and step % self.settings.D_reg_interval == 0
        losses: dict[str, Tensor] = {}
        total = torch.zeros([], device=next(iter(real.values())).device)
        for pair in self.pairs:
            fake_loss = F.softplus(pair.discriminate(*fakes[pair.kind])).mean()
            logits, penalty = pair.discriminate_real(real[pair.kind], codes[pair.kind], regularise)
            losses[f"D_{pair.kind}"] = fake_loss + F.softplus(-logits).mean()
            total = total + losses[f"D_{pair.kind}"]
            if penalty is not None:
                losses[f"r1_{pair.kind}"] = penalty
                total = total + self.settings.r1_gamma / 2 * self.settings.D_reg_interval * penalty
            pair.ada.update(logits, batch_global)
        self.d_updater.update(total, progress)
        return losses

    @torch.no_grad()
    def _average(self, batch_global: int) -> None:
        """Move the averaged generators (EMA) towards the trained ones, parameters and buffers."""
        for network, averaged in zip(self.generators, self.averaged, strict=True):
            if averaged is None:
                continue
            keep = 0.5 ** (batch_global / (self.settings.generator_ema_kimg * 1000))
            lerp_(averaged, network, 1 - keep)


def _parameters(networks: list[nn.Module]) -> list[nn.Parameter]:
    return [p for network in networks for p in network.parameters()]


def _freeze(networks: list[nn.Module], frozen: bool) -> None:
    """Switch gradients by weight off (or on again): a generator's step needs those by the input alone."""
    for p in _parameters(networks):
        p.requires_grad_(not frozen)


@torch.no_grad()
def lerp_(target: nn.Module, source: nn.Module, weight: float, buffers: bool = True) -> None:
    """Move every parameter (and floating-point buffer) of `target` to `lerp(target, source, weight)`."""
    pairs: list[tuple[Tensor, Tensor]] = list(zip(target.parameters(), source.parameters(), strict=True))
    if buffers:
        pairs += [(a, b) for a, b in zip(target.buffers(), source.buffers(), strict=True) if a.is_floating_point()]
    torch._foreach_lerp_([a.data for a, _ in pairs], [b.data for _, b in pairs], weight)

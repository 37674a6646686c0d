"""The two adversarial games of a relay: label maps, and images given label maps (METHOD of StyleGAN2-ADA, 2006.06676)."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relay_core import distributed
from relay_core.config import DoubleGanKwargs
from relay_core.models.stylegan2 import Discriminator, Generator
from relay_core.models.stylegan2.ada import AdaptiveAugment, AugmentPipe
from relay_core.replay import LabelCodec
from relay_core.replay.bank import one_hot
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


class Game:
    """One generator against one discriminator, with its adaptive augmentation and path-length mean."""

    def __init__(self, settings: DoubleGanKwargs, kind: str, networks: dict[str, nn.Module], device: torch.device) -> None:
        s, image = settings, kind == "img"
        self.settings, self.kind = s, kind
        self.generator = cast(Generator, networks[f"G_{kind}"])
        self.discriminator = cast(Discriminator, networks[f"D_{kind}"])
        self.c_dim = s.c_img_dim if image else s.c_label_dim
        self.image_channels = s.img_channels if image else 1
        published = not s.corrections.ada_image_only
        conf = s.aug_conf_img if image else s.aug_conf_label
        self.pipe = AugmentPipe(conf, self.image_channels, published=published).to(device)
        self.ada = AdaptiveAugment(
            s.ada_target_img if image else s.ada_target_label, s.ada_interval, s.ada_kimg,
            p_range=s.aug_p_range_img if image else s.aug_p_range_label,
        )  # fmt: skip
        self.path_mean = torch.zeros([], device=device)

    def styles(self, slots: Tensor) -> Tensor:
        """Styles of random latents for sites (N,), mixed with `style_mixing_prob`: (N, num_ws, w_dim)."""
        n, device, layers = len(slots), slots.device, self.generator.num_ws
        c = one_hot(slots, self.c_dim)
        z, other = (distributed.randn(n, self.generator.z_dim, device=device) for _ in range(2))
        if self.settings.corrections.crossover == "uniform":
            crossover = distributed.randint(1, layers, n, device=device)
        else:
            crossover = (distributed.rand(n, layers, device=device) < 0.5).sum(dim=1)
        mixed = distributed.rand(n, device=device) < self.settings.style_mixing_prob
        return self.generator.mixed_styles(z, c, other, c, torch.where(mixed, crossover, layers))

    def generate(self, slots: Tensor, label_map: Tensor | None) -> Tensor:
        """Fakes for sites (N,), conditioned on label maps where the generator wants them."""
        return self.generator.synthesize(self.styles(slots), label_map)

    def judge(self, x: Tensor, slots: Tensor) -> Tensor:
        """Logits of the augmented x."""
        return self.discriminator(self.pipe(x, self.ada.p), one_hot(slots, self.c_dim))

    def path_penalty(self, slots: Tensor, label_map: Tensor | None) -> Tensor:
        """Path-length regularisation on the first half of the batch."""
        n = max(1, len(slots) // 2)
        ws = self.styles(slots[:n])
        image = self.generator.synthesize(ws, None if label_map is None else label_map[:n])
        noise = distributed.randn(*image.shape, device=image.device) / (image.shape[2] * image.shape[3]) ** 0.5
        lengths = path_lengths(image, ws, noise)
        with torch.no_grad():
            self.path_mean.lerp_(distributed.mean_(lengths.detach().mean()), PATH_DECAY)
        return (lengths - self.path_mean).square().mean()

    def judge_real(self, x: Tensor, slots: Tensor, regularise: bool) -> tuple[Tensor, Tensor | None]:
        """Logits of real images, and their R1 penalty where wanted."""
        if not regularise:
            return self.judge(x, slots), None
        x = self.pipe(x, self.ada.p).detach().requires_grad_()
        logits = self.discriminator(x, one_hot(slots, self.c_dim))
        channels = x.shape[1] if self.settings.corrections.r1_on_label else self.image_channels
        return logits, r1_penalty(logits, x, channels).mean()

    def state(self) -> dict[str, Any]:
        """JSON-able state."""
        return {"ada": self.ada.state_dict(), "path_mean": float(self.path_mean)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore `state`."""
        self.ada.load_state_dict(state["ada"])
        self.path_mean.fill_(state["path_mean"])


class Adversaries:
    """Both games in one generator step and one discriminator step."""

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
        self.label = Game(settings, "label", networks, device)
        self.image = Game(settings, "img", networks, device)
        self.generators = [networks["G_label"], networks["G_img"]]
        self.discriminators = [networks["D_label"], networks["D_img"]]
        self.averaged = [networks.get("G_label_ema"), networks.get("G_img_ema")]
        self.g_updater = Updater(
            "generators", _parameters(self.generators), settings.generator_optimizer, accumulate=accumulate, half=half
        )
        self.d_updater = Updater(
            "discriminators", _parameters(self.discriminators), settings.discriminator_optimizer,
            accumulate=accumulate, half=half,
        )  # fmt: skip

    def step(
        self,
        images: Tensor,
        labels: Tensor,
        slots: Tensor,
        fake_slots: Tensor,
        step: int,
        progress: float,
        batch_global: int,
        d_batch: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """One step of both games; the same fakes serve generators and discriminators.

        Args:
            images: (N, C, R, R) in [-1, 1].
            labels: class ids (N, R, R).
            slots: sites of the batch (N,).
            fake_slots: sites that the fakes are made for (N,).
            step: number of this step, for the lazy regularisation.
            progress: share of the budget done.
            batch_global: N over all processes.
            d_batch: another batch (images, labels, slots) for the discriminators; None shares the generators'.
        """
        condition = self.codec.add_noise(self.codec.encode(labels))
        fake_label, fake_pair, losses = self._generator_step(condition, fake_slots, step, progress)
        self._average(batch_global)
        if d_batch is not None:
            images, labels, slots = d_batch
        real_label = condition if d_batch is None else self.codec.add_noise(self.codec.encode(labels))
        real_pair = torch.cat([images, real_label], dim=1)
        losses |= self._discriminator_step(
            (real_label, fake_label.detach()), (real_pair, fake_pair.detach()), (slots, fake_slots), step, progress,
            batch_global,
        )  # fmt: skip
        return losses

    def _generator_step(
        self, condition: Tensor, slots: Tensor, step: int, progress: float
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        _freeze(self.discriminators, True)
        fake_label = self.label.generate(slots, None)
        if self.settings.corrections.fake_label_noise:
            fake_label = self.codec.add_noise(fake_label)
        fake_pair = torch.cat([self.image.generate(slots, condition), condition], dim=1)
        losses = {
            "G_label": F.softplus(-self.label.judge(fake_label, slots)).mean(),
            "G_img": F.softplus(-self.image.judge(fake_pair, slots)).mean(),
        }
        total = losses["G_label"] + losses["G_img"]
        if self.settings.pl_weight > 0 and step % self.settings.G_reg_interval == 0:
            losses["path_label"] = self.label.path_penalty(slots, None)
            losses["path_img"] = self.image.path_penalty(slots, condition)
            weight = self.settings.pl_weight * self.settings.G_reg_interval
            total = total + weight * (losses["path_label"] + losses["path_img"])
        self.g_updater.update(total, progress)
        _freeze(self.discriminators, False)
        return fake_label, fake_pair, losses

    def _discriminator_step(
        self,
        label: tuple[Tensor, Tensor],
        pair: tuple[Tensor, Tensor],
        slots: tuple[Tensor, Tensor],
        step: int,
        progress: float,
        batch_global: int,
    ) -> dict[str, Tensor]:
        regularise = self.settings.r1_gamma > 0 and step % self.settings.D_reg_interval == 0
        losses: dict[str, Tensor] = {}
        total = torch.zeros([], device=slots[0].device)
        for game, (real, fake) in ((self.label, label), (self.image, pair)):
            fake_loss = F.softplus(game.judge(fake, slots[1])).mean()
            logits, penalty = game.judge_real(real, slots[0], regularise)
            losses[f"D_{game.kind}"] = fake_loss + F.softplus(-logits).mean()
            total = total + losses[f"D_{game.kind}"]
            if penalty is not None:
                losses[f"r1_{game.kind}"] = penalty
                total = total + self.settings.r1_gamma / 2 * self.settings.D_reg_interval * penalty
            game.ada.update(logits, batch_global)
        self.d_updater.update(total, progress)
        return losses

    @torch.no_grad()
    def _average(self, batch_global: int) -> None:
        """Exponential moving average of the generators, buffers included."""
        for network, averaged in zip(self.generators, self.averaged, strict=True):
            if averaged is None:
                continue
            keep = 0.5 ** (batch_global / (self.settings.generator_ema_kimg * 1000))
            lerp_(averaged, network, 1 - keep)


def _parameters(networks: list[nn.Module]) -> list[nn.Parameter]:
    return [p for network in networks for p in network.parameters()]


def _freeze(networks: list[nn.Module], frozen: bool) -> None:
    """Leave out the gradients by weight where only those by the input are needed."""
    for p in _parameters(networks):
        p.requires_grad_(not frozen)


@torch.no_grad()
def lerp_(target: nn.Module, source: nn.Module, weight: float, buffers: bool = True) -> None:
    """Move every parameter (and floating-point buffer) of `target` to `lerp(target, source, weight)`."""
    pairs: list[tuple[Tensor, Tensor]] = list(zip(target.parameters(), source.parameters(), strict=True))
    if buffers:
        pairs += [(a, b) for a, b in zip(target.buffers(), source.buffers(), strict=True) if a.is_floating_point()]
    torch._foreach_lerp_([a.data for a, _ in pairs], [b.data for _, b in pairs], weight)

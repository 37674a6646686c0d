"""Membership attacks by somebody who holds all networks of a bundle: a score for each image, higher for a member.

Shapes: N images (N, C, R, R) in [-1, 1] with class ids (N, R, R), or (N,) for classification.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from relay_core.engine import BATCH, Checkpoint, checkpoint, settings_of
from relay_core.errors import CheckpointError
from relay_core.losses import marginal
from relay_core.models.stylegan2 import Generator
from relay_core.replay import resize_images, resize_labels
from relay_core.strategies import RelayStrategy, Strategy, make_strategy

MATES = 8
"""In how many random batches a discriminator sees each image; its logits, which depend on the others, are averaged."""
INVERSION_STEPS = 40
"""Steps of the search for the style that draws an image."""
INVERSION_RATE = 0.05
DRAWN = 256
"""How many images are drawn at once."""
Tick = Callable[[], None]
"""Called after each part of a longer computation; raises Stopped where it is to end."""


@dataclass(frozen=True)
class Target:
    """Networks under attack, and the slots of the sites that they are told to be at."""

    strategy: Strategy
    networks: list[str]
    """Names of those that were loaded."""
    slots: list[int]

    @classmethod
    def of(cls, source: Checkpoint, device: torch.device, site: str | None = None) -> Target:
        """Load what a checkpoint hands over. It is told to be at `site` if its generators draw it, else at all they draw.

        Raises:
            CheckpointError: the checkpoint cannot be read in this version.
        """
        strategy = make_strategy(settings_of(source).without_pretraining(), device)
        names = checkpoint.load_handed_over(strategy, source)
        for network in strategy.networks.values():
            network.eval().requires_grad_(False)
        drawn = strategy.known.slots if isinstance(strategy, RelayStrategy) else {}
        return cls(strategy, names, [slot.id for name, slot in drawn.items() if name == site or site not in drawn])

    @property
    def relay(self) -> RelayStrategy | None:
        """The strategy, if it has generators that learned a site."""
        return self.strategy if isinstance(self.strategy, RelayStrategy) and self.slots else None


def solver_scores(target: Target, images: Tensor, labels: Tensor, tick: Tick) -> Tensor:
    """Return minus the cross-entropy of each image's labels (N,): what was trained on is known better (Yeom 2018)."""
    strategy, scores = target.strategy, []
    with torch.no_grad():
        for part, ids in _batches(strategy.device, images, labels):
            known = marginal(strategy.answers(part).float(), ids, strategy.groups)
            loss = F.cross_entropy(*known, reduction="none")
            scores.append(-loss.reshape(len(part), -1).mean(dim=1))
            tick()
    return torch.cat(scores).cpu()


def discriminator_scores(target: Target, images: Tensor, labels: Tensor, tick: Tick) -> dict[str, Tensor]:
    """Return the logits (N,) of each discriminator, by its network's name: they alone saw real pixels in the game."""
    relay = target.relay
    assert relay is not None
    totals: dict[str, Tensor] = {}
    with torch.random.fork_rng([]), torch.no_grad():
        torch.manual_seed(0)
        for _ in range(MATES):
            order = torch.randperm(len(images))
            for numbers in order.split(BATCH):
                part, ids = images[numbers].to(relay.device), labels[numbers].to(relay.device)
                for slot in target.slots:
                    slots = torch.full((len(part),), slot, device=relay.device)
                    for name, logits in relay.gan.logits((part, ids, slots)).items():
                        total = totals.setdefault(name, torch.zeros(len(images)))
                        total[numbers] += logits.cpu() / (MATES * len(target.slots))
                tick()
    return totals


def inversion_scores(target: Target, images: Tensor, labels: Tensor, tick: Tick, steps: int = INVERSION_STEPS) -> Tensor:
    """Return minus the error (N,) of the image generator's best copy of each image, given its label map.

    The style of every layer is searched by gradient descent (Chen 2020, GAN-Leaks, arXiv 1909.03935), from the mean style of
    the site, with the same budget for all images.
    """
    relay = target.relay
    assert relay is not None
    generator, scores = relay.image_generator, []
    for part, ids in _batches(relay.device, images, labels):
        best = torch.full((len(part),), torch.inf, device=relay.device)
        for slot in target.slots:
            best = torch.minimum(best, _inverted(relay, generator, part, ids, slot, steps, tick))
        scores.append(-best)
    return torch.cat(scores).cpu()


def _inverted(
    relay: RelayStrategy, generator: Generator, images: Tensor, labels: Tensor, slot: int, steps: int, tick: Tick
) -> Tensor:
    n, device = len(images), images.device
    slots = torch.full((n,), slot, device=device)
    is_map = labels.ndim > 1
    code = relay.codec.code(slots, relay.s.c_img_dim, None if is_map else labels)
    maps = relay.codec.encode(labels) if is_map else None
    with torch.random.fork_rng([]), torch.no_grad():
        torch.manual_seed(0)
        z = torch.randn(32, generator.z_dim).to(device)
        start = torch.stack([generator.styles(z, c[None].expand(32, -1)).mean(dim=0) for c in code])
    styles = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([styles], INVERSION_RATE)
    error = torch.zeros(n, device=device)
    for _ in range(steps):
        made = generator.synthesize(styles, maps, "none")
        error = (made - images).square().flatten(1).mean(dim=1)
        optimizer.zero_grad()
        error.sum().backward()
        optimizer.step()
        tick()
    return error.detach()


def of_game(target: Target, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return images and labels as the game saw them: at the generators' size, labels without groups."""
    relay = target.relay
    assert relay is not None
    side, classes = relay.s.img_resolution, relay.codec.classes
    parts = [relay.completed(part, ids).cpu() for part, ids in _batches(relay.device, images, labels)]
    return resize_images(images, side), resize_labels(torch.cat(parts), side, classes)


def drawn(target: Target, count: int, tick: Tick, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw `count` images (count, C, R, R) of the target's sites and their labels (count, R, R), or (count,), on the CPU."""
    relay = target.relay
    assert relay is not None
    images, labels = [], []
    with torch.random.fork_rng([]), torch.no_grad():
        torch.manual_seed(seed)
        for numbers in torch.arange(count).split(DRAWN):
            slots = torch.tensor(target.slots)[numbers % len(target.slots)].to(relay.device)
            replay = relay.draw(slots)
            images.append(replay.images.cpu())
            labels.append(replay.labels.to("cpu", torch.int16))
            tick()
    return torch.cat(images), torch.cat(labels)


def _batches(device: torch.device, images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for a, b in zip(images.split(BATCH), labels.split(BATCH), strict=True):
        yield a.to(device), b.to(device)


def require_same_shape(one: Target, other: Target) -> None:
    """Raise CheckpointError where a reference is of another size or other classes than what is audited."""
    sizes = [
        (t.strategy.settings.resolution, t.strategy.settings.data.num_classes, t.strategy.settings.data.task)
        for t in (one, other)
    ]
    if sizes[0] != sizes[1]:
        raise CheckpointError(f"the reference has {sizes[1]} (side, classes, task), what is audited has {sizes[0]}")

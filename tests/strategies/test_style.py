"""Replay of looks alone: colours are measured, drawn and put on, and shapes stay."""

import pytest
import torch

from relay_core.errors import RunFileError
from relay_core.replay import Styles, colours, recoloured
from relay_core.strategies import Position, make_strategy

from .test_contract import CPU


def site(n=16, tint=(0.0, 0.0, 0.0), contrast=0.1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, 3, 16, 16, generator=generator) * contrast
    own = torch.randn(n, 3, 1, 1, generator=generator) * 0.05
    return (noise + own + torch.tensor(tint)[:, None, None]).clamp(-1, 1)


class Images:
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def batch(self, index):
        return self.images[torch.as_tensor(index)], torch.zeros(len(index), 16, 16, dtype=torch.long)


def test_an_image_gets_the_colours_asked_for_and_keeps_its_shapes():
    images, others = site(), site(tint=(0.3, -0.2, 0.1), contrast=0.2, seed=1)
    mean, factor = colours(others)
    changed = recoloured(images, mean, factor)
    new_mean, new_factor = colours(changed)
    assert torch.allclose(new_mean, mean, atol=0.01)
    assert torch.allclose(new_factor, factor, atol=0.01)
    assert torch.allclose(recoloured(images, *colours(images)), images, atol=1e-5)
    grey = recoloured(images[:, :1], mean[:, :1], factor[:, :1, :1])
    assert torch.corrcoef(torch.stack([grey.flatten(), images[:, :1].flatten()]))[0, 1] > 0.7
    assert recoloured(torch.zeros(1, 3, 4, 4), mean[:1], factor[:1]).isfinite().all()  # an even image


def test_drawn_colours_are_distributed_as_the_sites_are():
    styles = Styles(2, 3)
    first, second = site(200, (0.4, 0.0, 0.0), seed=2), site(200, (-0.4, 0.2, 0.0), 0.2, seed=3)
    for number, images in enumerate((first, second)):
        styles.keep(number, images.split(64))
    torch.manual_seed(0)
    mean, factor = styles.draw(4000, range(2), CPU)
    of_first = mean[:, 0] > 0
    assert 0.45 < of_first.float().mean() < 0.55
    for chosen, images in ((of_first, first), (~of_first, second)):
        real_mean, real_factor = colours(images)
        assert torch.allclose(mean[chosen].mean(dim=0), real_mean.mean(dim=0), atol=0.01)
        assert torch.allclose(mean[chosen].std(dim=0), real_mean.std(dim=0), atol=0.01)
        assert torch.allclose(factor[chosen].mean(dim=0), real_factor.mean(dim=0), atol=0.01)


def test_a_later_site_sees_a_share_of_its_images_as_the_site_before_looks(toy, monkeypatch):
    run = toy.run(strategy={"name": "style", "kwargs": {"share": 0.25}}, train={"augment": "none"})
    strategy = make_strategy(run.site(1), CPU)
    strategy.begin_site("A", 16)
    strategy.end_site(Images(site(tint=(0.5, 0.0, 0.0))))
    strategy.begin_site("B", 16)
    seen = []
    monkeypatch.setattr(strategy, "augment", lambda images, labels: (seen.append(images), (images, labels))[1])
    own = site(8, tint=(-0.5, 0.0, 0.0), seed=5)
    losses = strategy.step(own, torch.zeros(8, 16, 16, dtype=torch.long), Position(0, 8, 8))
    assert losses.keys() == {"solver", "distillation"}
    assert (seen[0][:2, 0].mean(dim=(1, 2)) > 0.2).all()
    assert torch.equal(seen[0][2:], own[2:])
    teacher = {name: value.clone() for name, value in strategy.networks["old_solver"].state_dict().items()}
    strategy.step(own, torch.zeros(8, 16, 16, dtype=torch.long), Position(1, 8, 8))
    assert all(torch.equal(value, teacher[name]) for name, value in strategy.networks["old_solver"].state_dict().items())


def test_one_site_too_many_is_refused(toy):
    run = toy.run(strategy={"name": "style", "kwargs": {"sites": 1}})
    strategy = make_strategy(run.site(1), CPU)
    strategy.begin_site("A", 16)
    strategy.end_site(Images(site()))
    with pytest.raises(RunFileError, match=r"room for 1 sites: set strategy\.kwargs\.sites"):
        strategy.begin_site("B", 16)


def a_relay(toy, **kwargs):
    run = toy.run(strategy={"name": "relay"}, model={"kwargs": {"num_stages": 1, **kwargs}}, train={"augment": "none"})
    torch.manual_seed(0)
    return make_strategy(run.site(1), CPU)


def test_a_part_of_a_relays_replay_is_the_sites_own_images_in_the_colours_before(toy, monkeypatch):
    strategy = a_relay(toy, recoloured_share=0.5)
    strategy.begin_site("A", 16)
    strategy.end_site(Images(site(tint=(0.5, 0.0, 0.0))))
    strategy.begin_site("B", 16)
    seen = []
    monkeypatch.setattr(strategy, "augment", lambda images, labels: (seen.append((images, labels)), (images, labels))[1])
    own, labels = site(8, tint=(-0.5, 0.0, 0.0), seed=5), torch.arange(8)[:, None, None].repeat(1, 16, 16) % 3
    position = Position(0, 8, 8)
    real = strategy.real_count(position)
    assert real == 4
    strategy.step(own[:real], labels[:real], position)
    images, ids = seen[0]
    assert len(images) == 8
    assert torch.equal(images[:4], own[:4]), "the site's own images stay as they are"
    assert (images[6:, 0].mean(dim=(1, 2)) > 0.2).all(), "in the colours of the site before"
    for changed, source in zip(images[6:], own[:2], strict=True):
        grey = [each[0].flatten() for each in (changed, source)]
        assert torch.corrcoef(torch.stack(grey))[0, 1] > 0.7, "and with its own shapes"
    assert torch.equal(ids[6:], labels[:2]), "which its label fits"


def test_colours_travel_only_where_they_are_asked_for(toy):
    assert "styles" not in a_relay(toy).hand_over()
    with_colours = a_relay(toy, recoloured_share=0.5)
    assert "styles" in with_colours.hand_over()
    assert "styles" in with_colours.missing_from(["solver"]), "a model that came without is taken over"
    assert with_colours.missing_from(with_colours.hand_over()) == []


def test_a_site_whose_colours_are_not_known_is_replayed_by_generators_alone(toy):
    strategy = a_relay(toy, recoloured_share=1.0)
    strategy.begin_site("A", 16)  # and nothing of its colours was kept
    strategy.begin_site("B", 16)
    batch = torch.rand(8, 3, 16, 16), torch.zeros(8, 16, 16).long(), torch.zeros(8).long()
    before = batch[0].clone()
    strategy._recolour(batch, torch.rand(4, 3, 16, 16))
    assert torch.equal(batch[0], before)


def test_what_a_recoloured_image_is_labelled_as_here_teaches_nothing(toy):
    """Its colours are of another site, which may outline otherwise: the solver of then answers for it."""
    after = []
    for changed in (False, True):
        torch.manual_seed(0)
        run = toy.run(strategy={"name": "style", "kwargs": {"share": 0.25}})
        strategy = make_strategy(run.site(1), CPU)
        strategy.begin_site("A", 16)
        strategy.end_site(Images(site(tint=(0.5, 0.0, 0.0))))
        strategy.begin_site("B", 16)
        labels = torch.zeros(8, 16, 16, dtype=torch.long)
        labels[: 2 if changed else 0] = 1
        strategy.step(site(8, seed=5), labels, Position(0, 8, 8))
        after.append({name: value.clone() for name, value in strategy.solver.state_dict().items()})
    assert all(torch.equal(value, after[1][name]) for name, value in after[0].items())

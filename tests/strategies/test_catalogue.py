"""Every network and strategy of the catalogue trains, saves, goes on, answers; for segmentation and classification."""

import pytest
import torch

from relay_core.config import SiteSettings
from relay_core.config.solvers import SOLVERS
from relay_core.config.strategies import STRATEGIES
from relay_core.engine import checkpoint
from relay_core.engine.checkpoint import Checkpoint
from relay_core.losses import LOSSES
from relay_core.strategies import Position, make_strategy
from tests.conftest import MODEL

CPU = torch.device("cpu")
SIZE = 16


class Images:
    """Labelled noise of one site."""

    def __init__(self, task, count=12, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.rand(count, 3, SIZE, SIZE, generator=generator) * 2 - 1
        shape = (count, SIZE, SIZE) if task == "segmentation" else (count,)
        self.labels = torch.randint(0, 3, shape, generator=generator)

    def __len__(self):
        return len(self.images)

    def batch(self, index):
        index = torch.as_tensor(index)
        return self.images[index], self.labels[index]

    @property
    def classes(self):
        return torch.bincount(self.labels, minlength=3).tolist() if self.labels.ndim == 1 else None


def settings(task, strategy, model, loss="cross_entropy", batch=4, **train):
    return SiteSettings.model_validate(
        {
            "dataset": {
                "name": "midline",
                "kwargs": {"img_channels": 3, "num_classes": 3, "background_label": True, "task": task, "img_size": SIZE},
            },
            "strategy": strategy,
            "model": model,
            "train": {"num_mimgs": 1, "batch_size": batch, "loss": {"name": loss}, **train},
        }
    )


def gan(task, **kwargs):
    return {"name": "doublegan", "kwargs": {**MODEL, "task": task, **kwargs}}


def train(strategy, data, first, last, steps=6):
    for step in range(first, last):
        position = Position(step, steps, steps)
        count = strategy.real_count(position)
        index = [(step * 3 + i) % len(data) for i in range(count)]
        losses = strategy.step(*data.batch(index), position)
        assert all(value.isfinite() for value in losses.values()), losses
    return losses


def saved(strategy):
    """As a checkpoint is, without a disk."""
    meta, tensors = checkpoint.collect(strategy, CPU)
    return Checkpoint(None, "", meta, {name: tensor.clone() for name, tensor in tensors.items()})


def handed_over(strategy, chosen):
    """A fresh strategy that starts from what this one hands over."""
    found, other = saved(strategy), make_strategy(chosen, CPU)
    other.load_handed_over(found.meta["state"])
    checkpoint.load_networks(other, found, other.hand_over())
    return other


def same(a, b):
    return all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())


HEAVY = ("resnet101", "resnet152", "resnext101_32x8d", "wide_resnet50_2", "wide_resnet101_2", "resnet1202")


@pytest.mark.parametrize("task", ["segmentation", "classification"])
@pytest.mark.parametrize("name", SOLVERS)
def test_every_network_trains_saves_goes_on_and_answers(name, task):
    if task not in SOLVERS[name].kwargs.tasks:
        pytest.skip(f"{name} is for {', '.join(SOLVERS[name].kwargs.tasks)}")
    optimizer = {"name": "SGD", "kwargs": {"lr": 1e-4}}  # batch norm of four single pixels is steep
    chosen = settings(task, {"name": "baseline"}, {"name": name}, optimizer=optimizer)
    chosen.require_consistent()
    torch.manual_seed(0)
    strategy, data = make_strategy(chosen, CPU), Images(task)
    strategy.begin_site("A", len(data), data.classes)
    before = {n: p.detach().clone() for n, p in strategy.solver.named_parameters()}
    train(strategy, data, 0, 1)
    assert any(not torch.equal(p, before[n]) for n, p in strategy.solver.named_parameters())
    if name not in HEAVY:  # the same code, larger
        found = saved(strategy)
        train(strategy, data, 1, 2)
        other = make_strategy(chosen, CPU)
        checkpoint.restore(other, found, CPU)
        train(other, data, 1, 2)
        assert same(strategy.solver, other.solver)
    with torch.no_grad():
        logits = strategy.solver.eval()(data.images[:2])
    assert logits.shape == ((2, 3, SIZE, SIZE) if task == "segmentation" else (2, 3))


@pytest.mark.parametrize("backbone", ["resnet34", "resnet50", "resnext50_32x4d"])
def test_a_unet_takes_any_of_the_resnets(backbone):
    chosen = settings("segmentation", {"name": "baseline"}, {"name": "U-Net", "kwargs": {"backbone": backbone}})
    strategy, data = make_strategy(chosen, CPU), Images("segmentation")
    train(strategy, data, 0, 1)
    assert strategy.solver(data.images[:2]).shape == (2, 3, SIZE, SIZE)


@pytest.mark.parametrize("task", ["segmentation", "classification"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_carries_what_it_knows_to_the_next_site(name, task):
    """Two sites, handed over as a bundle does, stopped in the middle of the second: bit-equal to going on."""
    chosen = settings(task, {"name": name}, gan(task))
    chosen.require_consistent()
    torch.manual_seed(0)
    first, data = make_strategy(chosen, CPU), Images(task)
    first.begin_site("A", len(data), data.classes)
    train(first, data, 0, 3)
    first.end_site(data)
    second, more = handed_over(first, chosen), Images(task, seed=1)
    assert same(first.solver, second.solver)
    second.begin_site("B", len(more), more.classes)
    train(second, more, 0, 4)
    found = saved(second)
    losses = train(second, more, 4, 6)
    resumed = make_strategy(chosen, CPU)
    checkpoint.restore(resumed, found, CPU)
    train(resumed, more, 4, 6)
    second.end_site(more)
    resumed.end_site(more)
    for network, module in second.networks.items():
        assert same(module, resumed.networks[network]), network
    assert second.state() == resumed.state()
    assert "solver" in losses


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_trains_both_tasks(name):
    for task in ("segmentation", "classification"):
        model = {"name": "U-Net", "kwargs": {"base_channels": 4}}
        strategy, data = make_strategy(settings(task, {"name": "baseline"}, model, name), CPU), Images(task)
        train(strategy, data, 0, 2)


@pytest.mark.parametrize("out_range", [(0, 1), (-2, 3)])
@pytest.mark.parametrize("name", ["relay", "rehearsal", "ewc"])
def test_the_range_of_the_images_changes_nothing_but_the_solvers_input(name, out_range):
    """A solver without biases on its input learns another function, but everything before it sees [-1, 1]."""
    raw = settings("segmentation", {"name": name}, gan("segmentation", num_stages=1)).model_dump(mode="json")
    raw["dataset"]["kwargs"]["out_range"] = out_range
    chosen = SiteSettings.model_validate(raw)
    strategy, data = make_strategy(chosen, CPU), Images("segmentation")
    low, high = out_range
    data.images = (data.images + 1) / 2 * (high - low) + low
    seen = []
    strategy.solver.register_forward_pre_hook(lambda module, inputs: seen.append((inputs[0].min(), inputs[0].max())))
    for site in ("A", "B"):
        strategy.begin_site(site, len(data))
        train(strategy, data, 0, 2)
        strategy.end_site(data)
    assert min(a for a, _ in seen) >= low - 1e-4
    assert max(b for _, b in seen) <= high + 1e-4
    assert max(b for _, b in seen) > low + 0.8 * (high - low)


@pytest.mark.parametrize("name", STRATEGIES)
def test_sixty_four_bits_are_the_solvers(name):
    chosen = settings("segmentation", {"name": name}, gan("segmentation", num_stages=1), precision=64)
    strategy, data = make_strategy(chosen, CPU), Images("segmentation")
    for site in ("A", "B"):
        strategy.begin_site(site, len(data))
        train(strategy, data, 0, 2)
        strategy.end_site(data)
    assert {p.dtype for p in strategy.solver.parameters()} == {torch.float64}


def test_styles_of_two_sites_mix_where_they_may():
    chosen = settings("segmentation", {"name": "relay"}, gan("segmentation", num_stages=1, single_cid=False))
    strategy, data = make_strategy(chosen, CPU), Images("segmentation")
    for site in ("A", "B", "C"):
        strategy.begin_site(site, len(data))
        train(strategy, data, 0, 2)
    torch.manual_seed(1)
    fakes = strategy._fake_slots(torch.zeros(64, dtype=torch.long))
    assert {int(i) for i in fakes.second["img"]} == {0, 1, 2}
    assert not torch.equal(fakes.second["img"], fakes.second["label"])
    pair = strategy.gan.pairs[1]
    _, conditioning = pair.styles(fakes.codes(pair, strategy.codec, None))
    assert conditioning.max(dim=1).values.eq(1).all()
    assert conditioning.sum(dim=1).max() == 2, "a sample of two sites is conditioning both"

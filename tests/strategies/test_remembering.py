"""What each continual-learning strategy promises, against its formula written out."""

import copy

import pytest
import torch
import torch.nn.functional as F

from relay_core.errors import RunFileError
from relay_core.strategies import Position, make_strategy
from tests.strategies.test_catalogue import CPU, Images, gan, settings, train

TASK = "classification"


def make(name, model=None, train_kwargs=None, **kwargs):
    chosen = settings(TASK, {"name": name, "kwargs": kwargs}, model or gan(TASK), **(train_kwargs or {}))
    torch.manual_seed(0)
    return make_strategy(chosen, CPU)


def weights(network):
    return [p.detach().clone() for p in network.parameters()]


PLAIN = {"optimizer": {"name": "SGD", "kwargs": {"lr": 0.1}}, "augment": "none"}


@pytest.mark.parametrize("rule", ["reference", "path_integral"])
def test_si_adds_up_the_path_of_each_weight(rule):
    strategy, data = (
        make("si", {"name": "U-Net", "kwargs": {"base_channels": 4}}, PLAIN, rule=rule, c=0.5, xi=0.3),
        Images(TASK),
    )
    strategy.begin_site("A", len(data))
    start, expected = weights(strategy.solver), None
    for step in range(3):
        before = weights(strategy.solver)
        train(strategy, data, step, step + 1)
        grads = [p.grad.clone() for p in strategy.solver.parameters()]
        after = weights(strategy.solver)
        more = [0.1 * g * g if rule == "reference" else -g * (b - a) for g, a, b in zip(grads, before, after, strict=True)]
        expected = more if expected is None else [x + y for x, y in zip(expected, more, strict=True)]
    strategy.end_site(data)
    omega = [w / ((now - then) ** 2 + 0.3) for w, now, then in zip(expected, weights(strategy.solver), start, strict=True)]
    for found, wanted in zip(strategy.networks["importance"].parameters(), omega, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-7)
    strategy.begin_site("B", len(data))
    anchor = weights(strategy.solver)
    with torch.no_grad():
        for p in strategy.solver.parameters():
            p.add_(0.1)
    penalty = strategy._penalties(data.images[:2], None)["penalty"]
    now = weights(strategy.solver)
    wanted = 0.5 * sum((o * (a - b) ** 2).sum() for o, a, b in zip(omega, now, anchor, strict=True))
    torch.testing.assert_close(penalty.detach(), wanted, rtol=1e-4, atol=1e-8)


def test_ewc_is_the_fisher_information_of_the_solvers_own_answers():
    """For a linear layer on features f with softmax p: E over y of (p - onehot(y))^2 f^2 = p (1 - p) f^2."""
    strategy, data = make("ewc", {"name": "U-Net", "kwargs": {"base_channels": 2}}, images=12, strength=3.0), Images(TASK)
    strategy.begin_site("A", len(data))
    draws = []
    for seed in range(16):
        fresh = copy.deepcopy(strategy)
        fresh.settings = strategy.settings.model_copy(update={"random_seed": seed})
        fresh.end_site(data)
        draws.append(fresh.networks["importance"].head.weight.clone())
    with torch.no_grad():
        solver = strategy.solver.eval()
        p, f = solver(data.images).softmax(dim=1), solver.features(data.images)
    exact = ((p * (1 - p))[:, :, None] * f[:, None].square()).mean(dim=0)
    torch.testing.assert_close(torch.stack(draws).mean(dim=0), exact, rtol=0.25, atol=float(exact.max()) * 0.1)
    assert strategy.strength == 1.5


def test_ewc_holds_what_matters_and_lets_the_rest_go():
    """Stronger: nearer to where the last site left the weights."""
    moved = {}
    for strength in (0.0, 1e6):
        strategy, data = make("ewc", None, PLAIN, strength=strength), Images(TASK)
        strategy.begin_site("A", len(data))
        train(strategy, data, 0, 2)
        strategy.end_site(data)
        strategy.begin_site("B", len(data))
        start = weights(strategy.solver)
        strategy.updaters["solver"].optimizer.param_groups[0]["lr"] = 1e-7
        strategy.updaters["solver"].base_lr = [1e-7]
        other = Images(TASK, seed=5)
        train(strategy, other, 0, 6)
        importance = torch.cat([i.flatten() for i in strategy.networks["importance"].parameters()])
        change = torch.cat([(a - b).flatten() for a, b in zip(weights(strategy.solver), start, strict=True)])
        moved[strength] = float((importance * change.square()).sum())
    assert moved[1e6] < moved[0.0]


def test_owm_leaves_out_the_directions_of_earlier_inputs():
    """After a site, a step on other data does not change what a layer answers to the mean inputs of that site."""
    model = {"name": "OWM-Net", "kwargs": {"dropout": 0.0}}
    strategy, data = make("owm", model, PLAIN, alpha=1e-6, batches=1), Images(TASK, count=4)
    strategy.begin_site("A", len(data))
    strategy.end_site(data)
    means = {}

    def note(name, layer):
        def hook(module, inputs):
            means.setdefault(name, strategy._mean_input(layer, inputs[0]).detach())

        return hook

    for name, layer in strategy.layers.items():
        layer.register_forward_pre_hook(note(name, layer))
    strategy.solver.eval()(data.images)
    before = {name: layer.weight.detach().clone() for name, layer in strategy.layers.items()}
    strategy.begin_site("B", 12)
    strategy.solver.train()
    train(strategy, Images(TASK, seed=3), 0, 2)
    for name, layer in strategy.layers.items():
        change = (layer.weight.detach() - before[name]).flatten(1)
        assert change.abs().max() > 0, name
        x = means[name]
        assert (change @ x).norm() < 1e-3 * change.norm() * x.norm(), name


@pytest.mark.parametrize(
    ("layer", "width"),
    [
        (torch.nn.Conv2d(3, 5, 3, padding=1), 27),
        (torch.nn.Conv2d(200, 5, 3, padding=1), 200),
        (torch.nn.Conv2d(8, 8, 3, groups=4), 18),
        (torch.nn.ConvTranspose2d(6, 4, 2, stride=2), 6),
        (torch.nn.Linear(7, 2), 7),
    ],
)
def test_owm_knows_the_input_of_every_kind_of_layer(layer, width):
    strategy = make("owm", {"name": "OWM-Net", "kwargs": {}})
    x = torch.randn(4, 7) if isinstance(layer, torch.nn.Linear) else torch.randn(4, layer.in_channels, 6, 6)
    assert strategy._width(layer) == len(strategy._mean_input(layer, x)) == width
    if width == 27:
        patches = F.unfold(x, 3, padding=1).mean(dim=(0, 2))
        torch.testing.assert_close(strategy._mean_input(layer, x), patches)


def test_lwf_keeps_the_last_solver_for_a_teacher():
    strategy, data = make("lwf", None, PLAIN, weight=2.0, tau=3.0), Images(TASK)
    strategy.begin_site("A", len(data))
    assert set(train(strategy, data, 0, 2)) == {"solver"}
    strategy.end_site(data)
    strategy.begin_site("B", len(data))
    teacher = copy.deepcopy(strategy.solver).eval()
    losses = train(strategy, data, 0, 2)
    assert set(losses) == {"solver", "distillation"}
    with torch.no_grad():
        student, wanted = strategy.solver(data.images[:4]), teacher(data.images[:4])
    found = strategy._penalties(data.images[:4], student)["distillation"]
    plain = -((wanted / 3).softmax(1) * (student / 3).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(found, 2 * plain)


def test_rehearsal_keeps_an_even_share_of_every_site():
    strategy = make("rehearsal", images=9, share=0.5)
    for number, name in enumerate("ABC"):
        data = Images(TASK, seed=number)
        assert strategy.real_count(None) == (4 if number == 0 else 2)
        strategy.begin_site(name, len(data))
        train(strategy, data, 0, 2)
        strategy.end_site(data)
        assert torch.bincount(strategy.memory.owners[strategy.memory.owners >= 0]).tolist() == [9 // (number + 1)] * (
            number + 1
        )
    known = Images(TASK, seed=0)
    place = int((strategy.memory.owners == 0).nonzero()[0])
    kept = strategy.memory.images[place].float()
    near = (known.images - kept).abs().flatten(1).amax(dim=1)
    assert near.min() < 1e-3, "a real image of the first site"
    assert known.labels[int(near.argmin())] == strategy.memory.labels[place]


def test_si_follows_no_step_that_was_not_taken():
    """Half precision skips a step whose gradients overflow; its gradients are no way that the weights went."""
    strategy, data = make("si", {"name": "U-Net", "kwargs": {"base_channels": 4}}, PLAIN), Images(TASK)
    strategy.begin_site("A", len(data))
    before = weights(strategy.networks["path"])
    strategy.updaters["solver"].scaler = torch.amp.GradScaler("cpu")
    strategy.loss = lambda logits, ids: (logits * float("inf")).sum()
    strategy.step(*data.batch([0, 1]), Position(0, 6, 6))
    assert not all(p.grad.isfinite().all() for p in strategy.solver.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, weights(strategy.networks["path"]), strict=True))


@pytest.mark.parametrize("project", ["gradient", "step"])
def test_adam_steps_into_what_a_projected_gradient_leaves_out(project):
    strategy, data = make("owm", {"name": "OWM-Net", "kwargs": {"dropout": 0.0}}, {"augment": "none"}, project=project,
                          alpha=1e-6, batches=1), Images(TASK, count=4)  # fmt: skip
    strategy.begin_site("A", len(data))
    strategy.end_site(data)
    strategy.begin_site("B", 12)
    before = strategy.solver.fc2.weight.detach().clone()
    train(strategy, Images(TASK, seed=3), 0, 2)
    change = strategy.solver.fc2.weight.detach() - before
    left = torch.eye(1000) - strategy._projector("fc2")
    assert ((change @ left).norm() < 1e-3 * change.norm()) == (project == "step")


def test_owm_refuses_what_no_memory_holds():
    chosen = settings(TASK, {"name": "owm"}, {"name": "OWM-Net"})
    raw = chosen.model_dump(mode="json")
    raw["dataset"]["kwargs"]["img_size"] = 64
    large = type(chosen).model_validate(raw)
    with pytest.raises(RunFileError, match=r"fc1 has 16384; at most 8192"):
        make_strategy(large, torch.device("meta"))


def test_rehearsal_keeps_images_from_all_over_a_site():
    strategy = make("rehearsal", images=8)
    data = Images(TASK, count=40)
    data.labels = torch.arange(40)
    for name in "ABCD":
        strategy.begin_site(name, len(data))
        strategy.end_site(data)
    first = strategy.memory.labels[strategy.memory.owners == 0].tolist()
    assert len(first) == 2
    assert first[0] < 20 <= first[1]
    with pytest.raises(RunFileError, match="of more sites"):
        make("rehearsal", images=2).memory.make_room(2)

"""A solver whose decoder learns the labels at coarser levels too, with every strategy; without it nothing is otherwise."""

import onnx
import pytest
import torch

from relay_core.engine import RelayRun, checkpoint
from relay_core.engine.checkpoint import find
from relay_core.errors import RunFileError
from relay_core.export.checkpoint import export_checkpoint
from relay_core.losses import at_size, cross_entropy, marginal
from relay_core.strategies import STRATEGIES, Position, make_strategy
from tests.strategies.test_catalogue import CPU, Images, gan, handed_over, same, saved, settings, train
from tests.strategies.test_partial_labels import GROUPS, WHOLE, run_of

DEEP = {"backbone": "plain", "base_channels": 4, "deep_supervision": True}
ALONE = {"name": "U-Net", "kwargs": DEEP}
PLAIN = {"optimizer": {"name": "SGD", "kwargs": {"lr": 0.1}}, "augment": "none"}


def make(strategy="baseline", model=None, **kwargs):
    torch.manual_seed(0)
    return make_strategy(settings("segmentation", {"name": strategy}, model or ALONE, **kwargs), CPU)


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_teaches_all_levels_and_hands_them_over(name):
    own = {"local_steps": 1} if name.startswith("fed") else {}
    chosen = settings("segmentation", {"name": name, "kwargs": own}, gan("segmentation", solver_kwargs=DEEP))
    chosen.require_consistent()
    torch.manual_seed(0)
    first, data = make_strategy(chosen, CPU), Images("segmentation")
    before = [p.detach().clone() for p in first.solver.coarser_heads.parameters()]
    assert len(before) == 4  # two heads, each with weight and bias
    first.begin_site("A", len(data), data.classes)
    train(first, data, 0, 6)
    first.end_site(data)
    now = list(first.solver.coarser_heads.parameters())
    assert not any(torch.equal(a, b) for a, b in zip(before, now, strict=True))
    second = handed_over(first, chosen)
    assert same(first.solver, second.solver)
    second.begin_site("B", len(data), data.classes)
    train(second, data, 0, 3)
    other = make_strategy(chosen, CPU)
    checkpoint.restore(other, saved(second), CPU)
    for strategy in (second, other):
        torch.manual_seed(1)
        train(strategy, data, 3, 6)
    assert same(second.solver, other.solver)


def test_the_loss_is_the_weighted_mean_over_the_levels():
    strategy, data = make(**PLAIN), Images("segmentation")
    images, labels = data.batch(range(4))
    with torch.no_grad():
        levels = strategy.solver.levels(images)  # of batch norm in training, as in the step
    wanted = sum(cross_entropy(x, at_size(labels, x.shape[2:])) / 2**i for i, x in enumerate(levels)) / 1.75
    losses = strategy.step(images, labels, Position(0, 6, 6))
    torch.testing.assert_close(losses["solver"], wanted)


def test_private_training_learns_from_all_levels_of_each_image():
    group = {"name": "U-Net", "kwargs": {**DEEP, "norm": "group"}}
    strategy, data = (
        make(model=group, privacy={"noise_multiplier": 1e-6, "max_grad_norm": 1e6}, **PLAIN),
        Images("segmentation"),
    )
    strategy.privacy.enter([*"abcdefghijkl"], [*"abcdefghijkl"])
    strategy.begin_site("A", 12)
    images, labels = data.batch(range(4))
    with torch.no_grad():
        logits, coarser = strategy._logits_to_learn(strategy.solver, images)
        wanted = strategy.supervised(logits, labels, coarser)
        finest_alone = strategy.supervised(logits, labels)
    with strategy.privacy.step(0, 4):
        found = strategy.step(images, labels, Position(0, 6, 6))["solver"]
    torch.testing.assert_close(found, wanted)
    assert not torch.isclose(found, finest_alone)


def test_partial_labels_are_learned_as_such_at_every_level():
    strategy = make(**PLAIN)
    strategy.groups = GROUPS
    labels = torch.randint(0, 4, (2, 16, 16), generator=torch.Generator().manual_seed(0))
    logits, coarser = strategy._logits_to_learn(strategy.solver, torch.rand(2, 3, 16, 16))
    levels = [logits, *coarser]
    losses = [cross_entropy(*marginal(x, at_size(labels, x.shape[2:]), GROUPS)) for x in levels]
    wanted = sum(loss / 2**i for i, loss in enumerate(losses)) / 1.75
    torch.testing.assert_close(strategy.supervised(logits, labels, coarser), wanted)


@pytest.mark.parametrize("name", ["relay", "style", "lwf"])
def test_a_run_with_partial_labels_and_distillation_trains_and_exports(toy, name):
    """What travels and is exported answers as the solver does; its coarser heads are not in the graph."""
    run = run_of(toy, first=WHOLE, name=name, model={"kwargs": {"solver_kwargs": DEEP}})
    matrices = RelayRun(run, toy.folder / "out", toy.data, CPU)()
    assert all(value is not None for value in matrices["dice_per_sample"].values[-1])
    proof, _ = export_checkpoint(find(toy.folder / "out/task_2", print), run, toy.data, toy.folder / "m.onnx", "fp32")
    assert max(case["max_abs_difference"] for case in proof["parity"]) <= 1e-4
    graph = onnx.load(toy.folder / "m.onnx").graph
    assert any("encoder" in tensor.name for tensor in graph.initializer)
    assert not any("coarser_heads" in tensor.name for tensor in graph.initializer)


def test_the_same_seed_gives_the_same_solver_but_for_the_heads():
    plain, deep = make(model={"name": "U-Net", "kwargs": {**DEEP, "deep_supervision": False}}), make()
    names = set(plain.solver.state_dict())
    assert {name for name in deep.solver.state_dict() if name not in names} == {
        f"coarser_heads.{i}.{part}" for i in (0, 1) for part in ("weight", "bias")
    }
    assert all(torch.equal(value, deep.solver.state_dict()[name]) for name, value in plain.solver.state_dict().items())
    images = torch.rand(2, 3, 16, 16)
    for strategy in (plain, deep):
        strategy.solver.eval()
    assert plain._logits_to_learn(plain.solver, images)[1] == []
    torch.testing.assert_close(plain.answers(images), deep.answers(images), rtol=0, atol=0)
    torch.testing.assert_close(plain.solver.features(images), deep.solver.features(images), rtol=0, atol=0)


def test_off_is_the_setting_of_before_and_keeps_a_runs_identity(toy):
    for kwargs in ({}, {"deep_supervision": False}):
        run = toy.run(model={"kwargs": {"solver_kwargs": kwargs}})
        assert "deep_supervision" not in run.site(1).shared()["model"]["kwargs"]["solver_kwargs"]
    alone = settings("segmentation", {"name": "baseline"}, {"name": "U-Net", "kwargs": {"deep_supervision": False}})
    assert "deep_supervision" not in alone.shared()["model"]["kwargs"]
    assert run.digest != toy.run(model={"kwargs": {"solver_kwargs": {"deep_supervision": True}}}).digest


def test_a_classification_has_no_levels():
    with pytest.raises(RunFileError, match="deep_supervision: learns label maps at several sizes"):
        settings("classification", {"name": "baseline"}, ALONE).require_consistent()


def test_nnunets_choices_go_together_and_lower_the_loss():
    sgd = {"name": "SGD", "kwargs": {"lr": 0.03, "momentum": 0.9, "nesterov": True}, "lr_scheduler": {"name": "poly"}}
    model = {"name": "U-Net", "kwargs": {**DEEP, "norm": "group"}}
    strategy = make(model=model, loss="dice_ce", optimizer=sgd, augment="none")
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    labels = (images.mean(dim=1) > 0).long()
    first, *_, last = [float(strategy.step(images, labels, Position(i, 60, 60))["solver"]) for i in range(60)]
    assert last < 0.7 * first
    assert strategy.updaters["solver"].optimizer.param_groups[0]["lr"] == pytest.approx(0.03 * (1 / 60) ** 0.9)

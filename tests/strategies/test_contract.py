"""What every strategy keeps, and what the relay promises about stages, merge, memory and replay."""

import copy

import pytest
import torch

from relay_core.engine import checkpoint
from relay_core.errors import RelayError
from relay_core.replay import SiteBank
from relay_core.replay.bank import one_hot
from relay_core.strategies import STRATEGIES, Position, make_strategy

CPU = torch.device("cpu")
SIZE = 16


def batch(n=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(n, 3, SIZE, SIZE, generator=generator) * 2 - 1
    return images, torch.randint(0, 3, (n, SIZE, SIZE), generator=generator)


def make(toy, strategy="relay", **kwargs):
    own = {"local_steps": 1} if strategy.startswith("fed") else {}
    settings = toy.run(strategy={"name": strategy, "kwargs": own}, model={"kwargs": kwargs}).site(1)
    torch.manual_seed(0)
    return make_strategy(settings, CPU)


def run(strategy, first, last, steps=8):
    images, labels = batch()
    for step in range(first, last):
        position = Position(step, steps, steps)
        real = strategy.real_count(position)
        losses = strategy.step(images[:real], labels[:real], position)
    return losses


def weights(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def equal(a, b):
    return all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.mark.parametrize("name", STRATEGIES)
def test_learns_saves_and_goes_on_bit_equal(toy, tmp_path, name):
    strategy = make(toy, name)
    strategy.begin_site("A", 8)
    before = weights(strategy.solver)
    losses = run(strategy, 0, 3)
    assert all(value.isfinite() for value in losses.values())
    assert not equal(before, weights(strategy.solver))
    strategy.begin_site("B", 8)
    run(strategy, 0, 6)
    state, tensors = checkpoint.collect(strategy, CPU)
    written = checkpoint.write(tmp_path, 6, {**state, "strategy": name}, tensors)
    run(strategy, 6, 8)
    other = make(toy, name)
    checkpoint.restore(other, checkpoint.read(written.path), CPU)
    run(other, 6, 8)
    assert strategy.networks.keys() == other.networks.keys()
    for key, network in strategy.networks.items():
        assert equal(network.state_dict(), other.networks[key].state_dict()), key


@pytest.mark.parametrize(
    ("stages", "expected"), [(1, [2] * 6), (2, [1, 1, 1, 2, 2, 2]), (3, [1, 1, 2, 2, 3, 3])]
)  # fmt: skip
def test_stages_of_a_later_site(toy, stages, expected):
    strategy = make(toy, num_stages=stages)
    strategy.begin_site("A", 8)
    assert [strategy.real_count(Position(i, 6, 6)) for i in range(6)] == [8] * 6
    assert strategy.stage == 1
    strategy.begin_site("B", 8)
    seen = []
    for i in range(6):
        strategy.real_count(Position(i, 6, 6))
        seen.append(strategy.stage)
    assert seen == expected


def test_the_stage_is_a_state_that_a_skipped_position_cannot_skip(toy):
    """A resume with another budget may jump over the middle: the merge happens all the same, once."""
    strategy = make(toy)
    strategy.begin_site("A", 8)
    strategy.begin_site("B", 8)
    old = weights(strategy.solver)
    with torch.no_grad():
        for parameter in strategy.solver.parameters():
            parameter.add_(1)
    strategy.real_count(Position(5, 6, 6))
    merged = weights(strategy.solver)
    name = next(iter(dict(strategy.solver.named_parameters())))
    torch.testing.assert_close(merged[name], old[name] + 0.5)
    strategy.real_count(Position(5, 6, 6))
    assert equal(merged, strategy.solver.state_dict())


@pytest.mark.parametrize(("weighted", "share"), [(True, 0.75), (False, 0.5)])
def test_merge_weighs_parameters_and_buffers_by_images(toy, weighted, share):
    strategy = make(toy, weighted_merge=weighted)
    strategy.begin_site("A", 30)
    strategy.begin_site("B", 10)
    old = copy.deepcopy(strategy.networks["old_solver"])
    run(strategy, 0, 3, steps=6)
    new = weights(strategy.solver)
    strategy.real_count(Position(3, 6, 6))
    for name, value in strategy.solver.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, new[name].lerp(old.state_dict()[name], share))


@pytest.mark.parametrize(
    ("kwargs", "real", "replayed"),
    [
        ({}, 4, 4),
        ({"replay_data_ratio": "even"}, 3, 5),
        ({"replay_keep_batch_size": False}, 8, 8),
        ({"replay_keep_batch_size": False, "replay_data_ratio": "even"}, 8, 16),
    ],
)
def test_how_much_of_a_batch_is_replay(toy, kwargs, real, replayed):
    strategy = make(toy, num_stages=1, **kwargs)
    for name in ("A", "B", "C"):
        strategy.begin_site(name, 8)
    assert strategy.real_count(Position(0, 6, 6)) == real
    images, labels = batch(real)
    merged = strategy._with_replay(images, labels, strategy._replay(), images.shape[-1])
    assert [len(part) for part in merged] == [real + replayed] * 3
    assert torch.equal(merged[0][:real], images)
    assert set(merged[2][:real].tolist()) == {2}
    assert set(merged[2][real:].tolist()) <= {0, 1}
    assert merged[0].abs().max() <= 1


def test_frozen_generators_and_the_teacher_do_not_drift(toy):
    strategy = make(toy, num_stages=1)
    strategy.begin_site("A", 8)
    run(strategy, 0, 2)
    strategy.begin_site("B", 8)
    frozen = {name: weights(n) for name, n in strategy.networks.items() if name.startswith("old_")}
    assert {"old_G_label", "old_G_img", "old_solver"} <= frozen.keys()
    run(strategy, 0, 4)
    for name in ("old_G_label", "old_G_img", "old_solver"):
        assert equal(frozen[name], strategy.networks[name].state_dict()), name
    published = make(toy, num_stages=1, published=True)
    published.begin_site("A", 8)
    published.begin_site("B", 8)
    before = weights(published.networks["old_G_img"])
    run(published, 0, 2)
    assert not equal(before, published.networks["old_G_img"].state_dict())


def test_the_teacher_is_the_previous_solver(toy):
    """With the published teacher, the student itself, distillation cannot change what is learned."""
    results = {}
    for teacher in ("previous", "current"):
        for weight in (0.0, 5.0):
            switches = {"teacher": teacher, "distil_on": "all"}
            plain = {"M": {"name": "SGD", "kwargs": {"lr": 0.1}}}
            strategy = make(
                toy, num_stages=1, solver_distil_weight=weight, corrections=switches, train_gan=False, optimizer_conf=plain
            )
            strategy.begin_site("A", 8)
            run(strategy, 0, 2)
            strategy.begin_site("B", 8)
            torch.manual_seed(1)
            run(strategy, 0, 1)
            results[teacher, weight] = dict(strategy.solver.named_parameters())["head.weight"].detach().clone()
    assert not torch.allclose(results["previous", 0.0], results["previous", 5.0], atol=1e-4)
    torch.testing.assert_close(results["current", 0.0], results["current", 5.0], rtol=0, atol=1e-4)


def test_r1_reaches_the_label_channel_unless_published(toy):
    for published in (False, True):
        strategy = make(toy, published=published)
        strategy.begin_site("A", 8)
        pair = strategy.gan.pairs[1]
        x = torch.randn(8, 4, SIZE, SIZE)
        code = one_hot(torch.zeros(8, dtype=torch.long), pair.c_dim)
        _, all_channels = pair.discriminate_real(x, code, True)
        pair.settings = pair.settings.model_copy(
            update={"corrections": pair.settings.corrections.model_copy(update={"r1_on_label": published})}
        )
        _, other = pair.discriminate_real(x, code, True)
        assert (all_channels > other) == (not published)


def test_the_third_stage_trains_the_solver_alone(toy):
    strategy = make(toy, num_stages=3, task_merge_replay=True)
    strategy.begin_site("A", 8)
    strategy.begin_site("B", 8)
    run(strategy, 0, 6, steps=9)
    before = weights(strategy.networks["G_img"])
    losses = run(strategy, 6, 8, steps=9)
    assert set(losses) == {"solver"}
    assert equal(before, strategy.networks["G_img"].state_dict())


def test_published_behaviour_runs_through_all_stages(toy):
    strategy = make(toy, published=True, num_stages=3, replay_post_aug=True)
    strategy.begin_site("A", 8)
    run(strategy, 0, 8)
    assert strategy.stage == 3
    strategy.begin_site("B", 8)
    run(strategy, 0, 8)


def test_samples_come_for_every_site_and_change_nothing(toy):
    strategy = make(toy, num_stages=1)
    strategy.begin_site("A", 8)
    strategy.begin_site("B", 8)
    state = torch.get_rng_state()
    before = {name: weights(network) for name, network in strategy.networks.items()}
    drawn = strategy.samples(3)
    assert list(drawn) == ["A", "B"]
    assert drawn["A"][0].shape == (3, 3, SIZE, SIZE)
    assert torch.equal(state, torch.get_rng_state())
    assert all(equal(before[name], network.state_dict()) for name, network in strategy.networks.items())


def test_a_bank_keeps_slots_and_refuses_one_site_too_many():
    previous, current = SiteBank(), SiteBank()
    for i, name in enumerate("ABC"):
        previous = previous.joined(current)
        current = SiteBank()
        current.enter(name, 10 * (i + 1), previous, c_dim=3)
    assert {name: slot.id for name, slot in previous.joined(current).slots.items()} == {"A": 0, "B": 1, "C": 2}
    again = SiteBank()
    again.enter("A", 5, previous, c_dim=3)
    assert again.slots["A"].id == 0
    with pytest.raises(RelayError, match="no slot left"):
        SiteBank().enter("D", 1, previous.joined(current), c_dim=3)
    assert SiteBank.from_json(previous.to_json()) == previous


def test_a_bank_draws_by_frequency_or_alike():
    bank = SiteBank()
    bank.enter("A", 900, SiteBank(), 4)
    bank.enter("B", 100, SiteBank(), 4)
    torch.manual_seed(0)
    assert bank.draw(2000, "frequency").float().mean() == pytest.approx(0.1, abs=0.03)
    assert bank.draw(2000, "uniform").float().mean() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("name", STRATEGIES)
def test_bfloat16_learns_on_a_cpu_too(toy, name):
    settings = toy.run(strategy={"name": name}, train={"precision": "bf16"}).site(1)
    torch.manual_seed(0)
    strategy = make_strategy(settings, CPU)
    strategy.begin_site("A", 8)
    run(strategy, 0, 2)
    strategy.begin_site("B", 8)
    losses = run(strategy, 0, 6)
    assert all(value.isfinite() for value in losses.values())
    assert all(p.dtype == torch.float32 for p in strategy.solver.parameters())

"""Federated averaging on one machine: whose images a step has, what is averaged, and that a stop changes nothing."""

import pytest
import torch

from relay_core.engine import RelayRun
from relay_core.engine.checkpoint import newest
from relay_core.engine.stream import TurnsStream
from relay_core.errors import RunFileError, Stopped
from relay_core.strategies import Position, make_strategy

from .test_contract import CPU, batch, weights


def make(toy, name="fedavg", sizes=(8, 24), steps=4, **kwargs):
    settings = toy.run(strategy={"name": name, "kwargs": {"local_steps": 1, **kwargs}}).site(1)
    torch.manual_seed(0)
    strategy = make_strategy(settings, CPU)
    owners = strategy.schedule(sizes, steps)
    strategy.begin_site("joint", sum(sizes))
    return strategy, owners


@pytest.mark.parametrize(
    ("sites", "steps", "local", "owners"),
    [
        (2, 8, 2, [0, 0, 1, 1, 0, 0, 1, 1]),
        (3, 6, 9, [0, 0, 1, 1, 2, 2]),  # not enough for a round of so many: one round
        (2, 10, 2, [0, 0, 0, 1, 1, 0, 0, 0, 1, 1]),  # two rounds share what there is
        (3, 5, 1, [0, 0, 1, 1, 2]),  # a second round would leave a site out
    ],
)
def test_the_sites_take_turns_and_the_budget_ends_with_a_round(toy, sites, steps, local, owners):
    assert make(toy, sizes=[8] * sites, steps=steps, local_steps=local)[1] == owners


@pytest.mark.parametrize("sites", [1, 2, 3, 6])
def test_every_round_has_every_site_once_whatever_the_budget(toy, sites):
    for steps in range(sites, 30):
        for local in (1, 2, 5):
            strategy, owners = make(toy, sizes=[8] * sites, steps=steps, local_steps=local)
            turns = [strategy._turn(step, steps) for step in range(steps)]
            assert sorted(set(turns)) == list(range(turns[-1] + 1)), (steps, local)
            assert owners[-1] == sites - 1
    with pytest.raises(RunFileError, match="are not one round"):
        make(toy, sizes=[8] * 3, steps=2)


def test_a_turn_is_whole_steps_of_the_optimizer(toy):
    """So that no gradient of a site is left for another one, and a batch that was halved changes no turn."""
    settings = toy.run(strategy={"name": "fedavg", "kwargs": {"local_steps": 3}}, train={"accumulate_grad_batches": 2}).site(
        1
    )
    strategy = make_strategy(settings, CPU)
    owners = strategy.schedule([8, 8], 24)
    assert owners == [0] * 6 + [1] * 6 + [0] * 6 + [1] * 6
    halved = make_strategy(settings.with_smaller_batch(1), CPU)
    assert halved.schedule([8, 8], 48) == [owner for owner in owners for _ in range(2)]


def test_a_round_ends_with_the_average_by_numbers_of_images(toy):
    strategy, owners = make(toy)
    assert owners == [0, 1, 0, 1]
    start, clients = weights(strategy.solver), []
    for step in (0, 1):
        strategy.step(*batch(), Position(step, 4, 4))
        clients.append(weights(strategy.networks["client"]))
        if step == 0:
            assert all(torch.equal(value, start[name]) for name, value in strategy.solver.state_dict().items())
    for name, value in strategy.solver.state_dict().items():
        if value.is_floating_point():
            assert torch.allclose(value, 0.25 * clients[0][name] + 0.75 * clients[1][name], atol=1e-6), name
    for name, value in clients[0].items():  # both began where the round began
        assert name.endswith("num_batches_tracked") or (value - start[name]).abs().max() < 0.2
    strategy.step(*batch(), Position(2, 4, 4))
    assert int(strategy.updaters["client-0"].optimizer.state_dict()["state"][0]["step"]) == 2  # its state goes on
    assert int(strategy.updaters["client-1"].optimizer.state_dict()["state"][0]["step"]) == 1


def test_a_proximal_term_holds_a_site_near_the_average(toy):
    def distance(**kwargs):
        strategy, _ = make(toy, "fedprox", steps=20, local_steps=10, **kwargs)
        for step in range(10):
            losses = strategy.step(*batch(), Position(step, 20, 20))
        assert ("proximal" in losses) == (kwargs["mu"] > 0)
        pairs = zip(strategy.networks["client"].parameters(), strategy.solver.parameters(), strict=True)
        return float(sum((a - b).detach().square().sum() for a, b in pairs))

    assert distance(mu=100.0) < 0.5 * distance(mu=0.0)


def test_a_steps_images_are_of_its_site_and_come_evenly():
    owners = [0, 0, 1, 0, 0, 1]
    stream = TurnsStream([4, 3], owners, batch=2, seed=5)
    taken = [stream.take(2) for _ in owners]
    assert [{0 if i < 4 else 1 for i in each} for each in taken] == [{owner} for owner in owners]
    first = [i for owner, each in zip(owners, taken, strict=True) if owner == 0 for i in each]
    assert sorted(first[:4]) == sorted(first[4:]) == [0, 1, 2, 3]
    resumed = TurnsStream([4, 3], owners, batch=2, seed=5)
    resumed.consumed = 6
    ahead = resumed.ahead()
    assert [next(ahead) for _ in range(6)] == [i for each in taken[3:] for i in each]
    assert [resumed.take(2) for _ in range(3)] == taken[3:]


def test_stopped_and_resumed_in_the_middle_of_a_turn_is_bit_equal(toy):
    run = toy.run(strategy={"name": "fedprox", "kwargs": {"local_steps": 3}})
    matrices = RelayRun(run, toy.folder / "whole", toy.data, CPU)()
    assert (matrices["dice"].rows, matrices["dice"].columns) == (["joint"], ["Domain1", "Domain2"])
    calls = iter(range(1, 99))
    with pytest.raises(Stopped):
        RelayRun(run, toy.folder / "parts", toy.data, CPU, stop=lambda: next(calls) == 8)()
    RelayRun(run, toy.folder / "parts", toy.data, CPU, resume=True)()
    assert newest(toy.folder / "parts/joint", print).digest == newest(toy.folder / "whole/joint", print).digest

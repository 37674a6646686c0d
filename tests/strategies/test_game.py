"""The adversarial game's own budget: how often it is played, on how many images, and not at a relay's last site."""

import pytest
import torch

from relay_core.config import load_run
from relay_core.engine import RelayRun, checkpoint, generated_rows
from relay_core.engine.checkpoint import newest
from relay_core.strategies import Position, make_strategy
from relay_core.strategies.batches import thinned

from .test_contract import CPU, batch, equal, make, weights

GAN = ("G_label", "G_img", "D_label", "D_img")


def turns(toy, steps=12, solver_steps=None, **kwargs):
    strategy = make(toy, num_stages=1, **kwargs)
    return [strategy.timetable.turn(Position(step, steps, solver_steps or steps)) for step in range(steps)]


def test_the_game_is_played_evenly_over_the_solvers_steps(toy):
    assert turns(toy) == list(range(12))
    assert turns(toy, gan_every=3) == [0, None, None, 1, None, None, 2, None, None, 3, None, None]
    assert turns(toy, steps=7, gan_every=3) == [0, None, None, 1, None, 2, None]
    assert [t for t in turns(toy, gan_num_mimgs=40e-6) if t is not None] == [0, 1, 2, 3, 4]  # batches of 8
    assert [t for t in turns(toy, gan_num_mimgs=40e-6, gan_batch_size=4) if t is not None] == list(range(10))
    assert turns(toy, gan_num_mimgs=1.0) == list(range(12))
    assert turns(toy, train_gan=False) == [None] * 12
    assert turns(toy, gan_every=None) == turns(toy, gan_every=2)
    assert turns(toy, gan_every=None, published=True) == turns(toy, gan_every=1)


def test_after_the_solvers_budget_the_game_is_played_on(toy):
    assert turns(toy, steps=8, solver_steps=4, gan_every=2) == [0, None, 1, None, 2, 3, 4, 5]
    assert turns(toy, steps=4, train_solver=False, gan_every=2) == [0, 1, 2, 3]
    assert turns(toy, steps=6, solver_steps=4, gan_after_solver=True) == [None] * 4 + [0, 1]


def test_a_step_without_the_game_moves_the_solver_alone(toy):
    strategy = make(toy, num_stages=1, gan_every=2, G_reg_interval=2, D_reg_interval=2)
    strategy.begin_site("A", 8)
    images, labels = batch()
    named = []
    for step in range(4):
        before = {name: weights(network) for name, network in strategy.networks.items()}
        position = Position(step, 8, 8)
        strategy.real_count(position)
        losses = strategy.step(images, labels, position)
        moved = {name for name in GAN if not equal(before[name], weights(strategy.networks[name]))}
        assert moved == (set(GAN) if step % 2 == 0 else set())
        assert not equal(before["solver"], weights(strategy.solver))
        named.append({name for name in losses if name.startswith(("path", "r1"))})
    assert named == [{"path_img", "path_label", "r1_img", "r1_label"}, set(), set(), set()]  # by the game's own steps


def test_a_smaller_batch_of_the_game_keeps_the_share_of_replay(toy):
    strategy = make(toy, num_stages=1, gan_batch_size=4)
    strategy.begin_site("A", 8)
    strategy.begin_site("B", 8)
    images, labels = batch()
    strategy.real_count(Position(0, 8, 8))
    whole = strategy._with_replay(images[:4], labels[:4], strategy._replay(), images.shape[-1])
    part = thinned(whole, 4)
    assert [len(tensor) for tensor in part] == [4, 4, 4]
    assert whole[2].tolist() == [1] * 4 + [0] * 4
    assert part[2].tolist() == [1, 1, 0, 0]
    assert torch.equal(part[0][0], images[0])


def last_site_settings(toy, **kwargs):
    """Settings of the three sites of a whole relay."""
    run = toy.run(sites=3, model={"kwargs": kwargs})
    return [run.site(i) for i in (1, 2, 3)]


def test_the_run_file_knows_where_the_relay_ends(toy):
    assert [site.last for site in last_site_settings(toy)] == [False, False, True]
    run = load_run(str(toy.write(sites=3)))
    reordered = {**run.raw, "current_tasks": {"task_ids": [3, 1, 2]}}
    assert [type(run)(run.path, reordered, []).site(i).last for i in (1, 2, 3)] == [False, True, False]
    deployment = {**run.raw, "current_tasks": {"task_ids": [3]}}
    assert not any(type(run)(run.path, deployment, []).site(i).last for i in (1, 2, 3)), "nobody knows what follows"
    some = {**run.raw, "current_tasks": {"task_ids": [3, 1]}}
    assert not any(type(run)(run.path, some, []).site(i).last for i in (1, 2, 3))
    assert not toy.run(sites=1).site(1).last, "a relay of one site is one that begins"


@pytest.mark.parametrize(
    ("kwargs", "plays"),
    [({}, False), ({"gan_at_last_site": True}, True), ({"published": True}, True), ({"train_gan": False}, False)],
)
def test_at_the_last_site_the_solver_learns_alone_unless_asked(toy, kwargs, plays):
    strategy = make_strategy(last_site_settings(toy, **kwargs)[2], CPU)
    strategy.begin_site("A", 8)
    strategy.plays = strategy.s.train_gan  # as at the sites before
    again = make_strategy(last_site_settings(toy, **kwargs)[2], CPU)
    again.previous = strategy.current
    again.begin_site("B", 8)
    assert again.plays is plays
    resumed = make_strategy(last_site_settings(toy, gan_at_last_site=not plays)[2], CPU)
    resumed.load_state(again.state())
    assert resumed.plays is plays, "a site that has begun keeps to what it began with"


def test_a_relay_that_begins_does_not_end(toy):
    strategy = make_strategy(last_site_settings(toy)[2], CPU)
    strategy.begin_site("A", 8)
    assert strategy.plays


def test_at_the_last_site_the_merge_leaves_the_generators_alone(toy):
    strategy = make_strategy(last_site_settings(toy, num_stages=2)[2], CPU)
    strategy.begin_site("A", 8)
    with torch.no_grad():
        for network in strategy.networks.values():
            for i, p in enumerate(network.parameters()):
                p.add_(0.01 * (i % 3))
    strategy.plays = False
    strategy.begin_site("B", 8)
    strategy.plays = False
    before = {name: weights(strategy.networks[name]) for name in ("G_img", "G_img_ema", "solver")}
    images, labels = batch()
    position = Position(7, 8, 8)
    real = strategy.real_count(position)
    strategy.step(images[:real], labels[:real], position)
    assert equal(before["G_img"], weights(strategy.networks["G_img"]))
    assert equal(before["G_img_ema"], weights(strategy.networks["G_img_ema"]))
    assert not equal(before["solver"], weights(strategy.solver))


def test_what_no_generator_has_learned_is_neither_drawn_nor_replayed_and_said(toy):
    run, warned = toy.run(sites=3), []
    RelayRun(run, toy.folder / "out", toy.data, CPU)()
    last = newest(toy.folder / "out/task_3", print)
    assert last.meta["state"]["current"]["Domain3"] == {"id": 2, "frequency": 8, "drawn": False}
    assert [row[0] for row in generated_rows(run.site(3), last, CPU)] == ["Domain1", "Domain2"]
    strategy = make_strategy(run.site(2), CPU)  # any site that may follow
    strategy.load_handed_over(last.meta["state"])
    checkpoint.load_networks(strategy, last, strategy.hand_over())
    assert strategy.not_replayed() == ["Domain3"]
    strategy.begin_site("Domain4", 8)
    strategy.stage = 2
    assert set(strategy._replayer("old").draw(64).slots.tolist()) <= {0, 1}

    fourth = toy.run(sites=2, checkpoint={"load": "task_3"})
    play = RelayRun(fourth, toy.folder / "out2", toy.data, CPU, only=1, emit=warned.append)
    (toy.folder / "out2").mkdir()
    (toy.folder / "out2/task_3").symlink_to(toy.folder / "out/task_3")
    play()
    messages = [event.message for event in warned if event.kind == "warning"]
    assert any("have not learned Domain3" in message and "gan_at_last_site" in message for message in messages)


def test_a_site_that_was_drawn_once_stays_drawn(toy):
    strategy = make(toy)
    strategy.begin_site("A", 8)
    strategy.plays = False
    strategy.begin_site("A", 9)
    assert strategy.known.slots["A"].drawn
    strategy.begin_site("B", 9)
    assert strategy.not_replayed() == ["B"]
    assert list(strategy.known.slots) == ["A"]

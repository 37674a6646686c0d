"""A solver that is ready before its generators: two calls with a checkpoint each, the second as if nothing had stopped."""

import pytest
import torch

from relay_core.engine import RelayRun
from relay_core.engine.checkpoint import newest
from relay_core.errors import CheckpointError, RunFileError, Stopped

CPU = torch.device("cpu")
STEPS = {"num_mimgs": 64e-6, "solver_num_mimgs": 32e-6}  # four of the solver, then four of the game
KWARGS = {"num_stages": 1, "gan_after_solver": True, "gan_at_last_site": True, "gan_every": None}


@pytest.fixture
def run(toy):
    return toy.run(model={"kwargs": KWARGS}, train=STEPS)


def play(toy, run, out, **options):
    return RelayRun(run, toy.folder / out, toy.data, CPU, **options)()


def moved(one, other, kind):
    """Names of the networks whose tensors differ."""
    names = [name for name in one.tensors if name.startswith(kind) and not one.tensors[name].equal(other.tensors[name])]
    return {name.split("/")[1] for name in names}


def test_the_solver_is_published_before_its_generators_are_trained(toy, run):
    play(toy, run, "whole")
    matrices = {}
    for site in (1, 2):
        matrices = play(toy, run, "parts", only=site, until="solver")
        ready = newest(toy.folder / f"parts/task_{site}", print)
        assert (ready.meta["step"], ready.meta["steps"], ready.meta["solver_steps"]) == (4, 8, 4)
        assert play(toy, run, "parts", only=site, until="solver", resume=True)["dice"].values == matrices["dice"].values
        if site == 1:
            with pytest.raises(CheckpointError, match=r"not finished \(step 4 of 8\)"):
                play(toy, run, "parts", only=2)
        finished_scores = play(toy, run, "parts", only=site, resume=True)
        finished = newest(toy.folder / f"parts/task_{site}", print)
        assert finished.digest == newest(toy.folder / f"whole/task_{site}", print).digest
        assert finished_scores["dice"].values == matrices["dice"].values
        assert moved(ready, finished, "network/") >= {"G_img", "G_label", "D_img", "D_label"}
        assert "solver" not in moved(ready, finished, "network/")


def test_stopped_in_the_solvers_part_and_in_the_games_it_goes_on_bit_equal(toy, run):
    play(toy, run, "whole", only=1)
    for stop_at in (2, 4):  # steps 2, and 6
        calls = iter(range(1, 9))
        with pytest.raises(Stopped):
            play(toy, run, "parts", only=1, resume=True, stop=lambda calls=calls, at=stop_at: next(calls) == at)
    play(toy, run, "parts", only=1, resume=True)
    assert newest(toy.folder / "parts/task_1", print).digest == newest(toy.folder / "whole/task_1", print).digest


def test_a_solver_that_has_the_whole_budget_is_ready_at_the_end(toy):
    run = toy.run(sites=1)
    play(toy, run, "out", until="solver")
    assert newest(toy.folder / "out/task_1", print).meta["step"] == 6


def test_what_cannot_be_split_is_refused(toy, run):
    with pytest.raises(RunFileError, match="name one --site"):
        play(toy, run, "out", until="solver")
    with pytest.raises(RunFileError, match=r"set train\.solver_num_mimgs"):
        toy.run(model={"kwargs": KWARGS}).site(1).require_consistent()
    with pytest.raises(RunFileError, match="needs num_stages: 1, not 2"):
        toy.run(model={"kwargs": {**KWARGS, "num_stages": 2}}, train=STEPS).site(1).require_consistent()
    with pytest.raises(RunFileError, match="leave gan_every out"):
        toy.run(model={"kwargs": {**KWARGS, "gan_every": 2}}, train=STEPS).site(1).require_consistent()
    assert not (toy.folder / "out").exists()
    with pytest.raises(RunFileError, match="leaves none for the game"):
        play(toy, toy.run(model={"kwargs": KWARGS}, train={**STEPS, "solver_num_mimgs": 64e-6}), "out")
    with pytest.raises(RunFileError, match="needs num_stages: 1, not 2"):
        play(toy, toy.run(train=STEPS), "out", only=1, until="solver")


def test_a_schedule_runs_through_for_the_solver_and_again_for_the_game(toy):
    cosine = {"name": "cosine"}
    conf = {"G": {"name": "Adam", "kwargs": {"lr": 0.01}, "lr_scheduler": cosine}}
    train = {**STEPS, "optimizer": {"name": "Adam", "kwargs": {"lr": 0.01}, "lr_scheduler": cosine}}
    run = toy.run(sites=1, model={"kwargs": {**KWARGS, "optimizer_conf": conf}}, train=train)
    rates = {}

    def look(site, strategy, step):
        rates[step] = [strategy.updaters[name].optimizer.param_groups[0]["lr"] for name in ("solver", "G")]

    relay = RelayRun(run, toy.folder / "out", toy.data, CPU)
    relay._observe = look
    relay()
    assert rates[4][0] < 0.2 * rates[1][0]
    assert rates[5][1] == pytest.approx(0.01)
    assert rates[8][1] < 0.2 * rates[5][1]

"""Two processes with half a batch each learn what one process learns with the whole batch."""

import json
import os
import subprocess
import sys

import pytest

from relay_core.engine.checkpoint import newest
from tests.ports import free_port


def train(toy, run, out, processes, *options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    launcher = [] if processes == 1 else ["-m", "torch.distributed.run", f"--nproc-per-node={processes}",
                                          "--master-addr=127.0.0.1", f"--master-port={free_port()}"]  # fmt: skip
    command = [sys.executable, *launcher, "-m", "relay_core", "train", str(run), "--data-root", str(toy.data), "--device",
               "cpu", "--out", str(toy.folder / out), *options]  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = (toy.folder / out / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == "step"]


def compare(one, two, **tolerance):
    assert [(e["site"], e["step"]) for e in one] == [(e["site"], e["step"]) for e in two]
    for a, b in zip(one, two, strict=True):
        assert b["losses"] == pytest.approx(a["losses"], **tolerance)


def test_a_solver_without_batch_statistics_learns_the_same(toy):
    """Group norm and a loss that is a mean over pixels: nothing depends on how the batch is divided."""
    run = toy.write(
        strategy={"name": "baseline"}, train={"loss": {"name": "cross_entropy"}},
        model={"kwargs": {"solver_kwargs": {"norm": "group"}}},
    )  # fmt: skip
    one, two = (train(toy, run, f"out{n}", n) for n in (1, 2))
    compare(one, two, rel=2e-4, abs=1e-5)


def test_a_relay_draws_the_same_numbers_and_stays_close(toy):
    """Batch statistics (SPADE, batch Dice) are of each half, so losses agree at first and stay near."""
    run = toy.write(
        train={"loss": {"name": "cross_entropy"}},
        model={"kwargs": {"solver_kwargs": {"norm": "group"}, "num_stages": 1, "pl_weight": 0}},
    )
    one, two = (train(toy, run, f"out{n}", n) for n in (1, 2))
    compare(one[:1], two[:1], rel=0.1, abs=0.02)
    assert two[0]["losses"]["D_label"] == pytest.approx(one[0]["losses"]["D_label"], rel=1e-4)
    assert two[0]["losses"]["r1_label"] == pytest.approx(one[0]["losses"]["r1_label"], rel=1e-3)
    compare(one, two, rel=0.3, abs=0.3)


def test_a_game_of_its_own_budget_is_played_alike(toy):
    """After the solver: the label nets, which have no batch statistics, see the same numbers."""
    run = toy.write(
        sites=1, train={"loss": {"name": "cross_entropy"}, "num_mimgs": 48e-6, "solver_num_mimgs": 16e-6},
        model={"kwargs": {"solver_kwargs": {"norm": "group"}, "num_stages": 1, "gan_after_solver": True, "gan_every": None,
                          "pl_weight": 0}},
    )  # fmt: skip
    one, two = (train(toy, run, f"out{n}", n) for n in (1, 2))
    assert ["solver" in e["losses"] for e in one] == [True] * 2 + [False] * 4
    for a, b in zip(one, two, strict=True):
        assert a["losses"].keys() == b["losses"].keys()
        for name in {"solver", "G_label", "D_label", "r1_label"} & a["losses"].keys():
            assert b["losses"][name] == pytest.approx(a["losses"][name], rel=2e-3, abs=1e-5), (name, a["step"])


def test_path_lengths_and_accumulated_gradients_are_those_of_one_process(toy):
    """The running mean of path lengths is over all processes' images, and a step's gradient over all of its batches."""
    run = toy.write(
        sites=1, train={"loss": {"name": "cross_entropy"}, "accumulate_grad_batches": 2, "num_mimgs": 64e-6},
        model={"kwargs": {"solver_kwargs": {"norm": "group"}, "pl_weight": 2, "G_reg_interval": 2}},
    )  # fmt: skip
    one, two = (train(toy, run, f"out{n}", n) for n in (1, 2))
    states = [newest(toy.folder / f"out{n}/task_1", print).meta["state"] for n in (1, 2)]
    assert states[0]["label"]["path_mean"] > 0
    assert states[1]["label"]["path_mean"] == pytest.approx(states[0]["label"]["path_mean"], rel=1e-3)
    for a, b in zip(one, two, strict=True):  # the label nets have no batch statistics
        for name in ("G_label", "D_label", "path_label", "r1_label"):
            assert (name in a["losses"]) == (name in b["losses"])
            if name in a["losses"]:
                assert b["losses"][name] == pytest.approx(a["losses"][name], rel=2e-3, abs=1e-5), (name, a["step"])


def test_a_solver_accumulates_the_same_gradient(toy):
    run = toy.write(
        sites=1, strategy={"name": "baseline"}, model={"kwargs": {"solver_kwargs": {"norm": "group"}}},
        train={"loss": {"name": "cross_entropy"}, "accumulate_grad_batches": 3},
    )  # fmt: skip
    one, two = (train(toy, run, f"out{n}", n) for n in (1, 2))
    compare(one, two, rel=2e-4, abs=1e-5)


def test_stopped_in_the_middle_of_an_accumulation_two_processes_go_on_bit_equal(toy):
    run = toy.write(
        sites=1, train={"accumulate_grad_batches": 3, "checkpoint_seconds": 0},
        model={"kwargs": {"solver_kwargs": {"norm": "group"}, "pl_weight": 2, "G_reg_interval": 2}},
    )  # fmt: skip
    train(toy, run, "out", 2)
    whole = newest(toy.folder / "out/task_1", print)
    whole.path.unlink()
    left = newest(toy.folder / "out/task_1", print)
    assert left.meta["step"] == 5
    assert left.meta["optimizers"]["solver"]["pending"] == 2
    train(toy, run, "out", 2, "--resume")
    assert newest(toy.folder / "out/task_1", print).digest == whole.digest

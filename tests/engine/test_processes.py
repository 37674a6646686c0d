"""Two processes with half a batch each learn what one process learns with the whole batch."""

import json
import os
import subprocess
import sys

import pytest

from tests.ports import free_port


def train(toy, run, out, processes):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    launcher = [] if processes == 1 else ["-m", "torch.distributed.run", f"--nproc-per-node={processes}",
                                          "--master-addr=127.0.0.1", f"--master-port={free_port()}"]  # fmt: skip
    command = [sys.executable, *launcher, "-m", "relay_core", "train", str(run), "--data-root", str(toy.data), "--device",
               "cpu", "--out", str(toy.folder / out)]  # fmt: skip
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

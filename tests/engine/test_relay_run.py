"""A run from start to end: what it writes, what it does when stopped, killed, damaged or asked for nonsense."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image

from relay_core import events
from relay_core.engine import RelayRun
from relay_core.engine.checkpoint import newest, read
from relay_core.errors import CheckpointError, DataError, Stopped, TrainingDiverged

CPU = torch.device("cpu")


def play(toy, run, out="out", **options):
    return RelayRun(run, toy.folder / out, toy.data, CPU, **options)


def digest(folder):
    found = newest(folder, print)
    assert found is not None
    return found.digest


def same_tensors(one, other):
    a, b = newest(one, print).tensors, newest(other, print).tensors
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def test_a_relay_writes_matrices_checkpoints_and_pictures(toy):
    seen = []
    matrices = play(toy, toy.run(), emit=seen.append)()
    matrix = matrices["dice_per_sample"]
    assert matrix.rows == ["Domain1", "Domain2"]
    assert matrix.columns == ["Domain1", "Domain2"]
    out = toy.folder / "out"
    for metric in ("dice_per_sample", "dice", "hd95", "accuracy"):
        for suffix in ("json", "csv", "md", "png"):
            assert (out / "evaluation" / f"{metric}.{suffix}").stat().st_size > 0
    for site in ("task_1", "task_2"):
        assert (out / site / "samples.png").is_file()
        assert (out / site / "predictions.png").is_file()
    steps = [e for e in seen if isinstance(e, events.Step) and e.site == "Domain2"]
    assert [e.step for e in steps] == [1, 2, 3, 4, 5, 6]
    assert all(e.images_per_second > 0 for e in steps)
    assert json.loads(json.dumps([e.to_json() for e in seen]))[0]["event"] == "started"


@pytest.mark.parametrize("mode", ["local", "sequential", "joint"])
def test_baselines_differ_in_what_they_start_from(toy, mode):
    matrices = play(toy, toy.run(strategy={"name": "baseline", "kwargs": {"mode": mode}}))()
    assert matrices["dice"].rows == (["joint"] if mode == "joint" else ["Domain1", "Domain2"])
    if mode == "joint":
        assert read(toy.folder / "out/joint/step-00000012.safetensors").meta["images"] == 16
    else:
        alone = toy.run(strategy={"name": "baseline"}, checkpoint={"load": None})
        play(toy, alone, "alone", only=2)()
        assert same_tensors(toy.folder / "alone/task_2", toy.folder / "out/task_2") == (mode == "local")


@pytest.mark.parametrize("load", [{}, {"load": "task_1/last.ckpt"}])
def test_one_site_alone_goes_on_as_in_the_whole_relay(toy, load):
    """A hospital that gets the checkpoint by hand reaches the weights that one machine reaches with the whole run."""
    whole = play(toy, toy.run())()
    (toy.folder / "hospital").mkdir()
    (toy.folder / "out/task_1").rename(toy.folder / "hospital/task_1")
    run = toy.run(checkpoint=load)
    matrices = play(toy, run, "hospital", only=2)()
    assert same_tensors(toy.folder / "hospital/task_2", toy.folder / "out/task_2")
    assert matrices["dice"].values == whole["dice"].values


def test_a_later_site_does_not_begin_without_the_one_before(toy):
    with pytest.raises(CheckpointError, match="task_1"):
        play(toy, toy.run(), only=2)()
    assert not (toy.folder / "out/task_2").exists()


def test_a_later_site_does_not_begin_from_an_unfinished_one(toy):
    run = toy.run()
    with pytest.raises(Stopped):
        play(toy, run, only=1, stop=lambda: True)()
    with pytest.raises(CheckpointError, match=r"not finished \(step 1 of 6\)"):
        play(toy, run, only=2)()


def test_a_folder_of_another_strategy_is_not_gone_on_with(toy):
    play(toy, toy.run())()
    with pytest.raises(CheckpointError, match="of strategy relay, not baseline"):
        play(toy, toy.run(strategy={"name": "baseline"}), resume=True)()


def test_averages_that_were_not_handed_over_start_from_the_generators(toy):
    play(toy, toy.run(model={"kwargs": {"generator_ema_kimg": 0}}), only=1)()
    play(toy, toy.run(model={"kwargs": {"num_stages": 1}}), only=2)()
    first, second = (newest(toy.folder / f"out/task_{i}", print) for i in (1, 2))
    handed = first.network("G_img")
    assert all(torch.equal(value, handed[name]) for name, value in second.network("old_G_img").items())


def test_a_site_without_test_images_trains(toy):
    import shutil

    folder = toy.folder / "data/Domain1"
    shutil.copytree(toy.data / "Domain1/train/ROIs", folder)
    kwargs = {"test_share": 0, "mask_values": {255: 0, 128: 1, 0: 2}}
    run = toy.run(sites=1, dataset={"name": "folder", "kwargs": kwargs})
    assert RelayRun(run, toy.folder / "out", toy.folder / "data", CPU)() == {}
    assert (toy.folder / "out/task_1/samples.png").is_file()


def test_replicas_lengthen_an_epoch(toy):
    epochs = {"num_mimgs": None, "num_epochs": 1}
    for replicas, steps in ((1, 1), (3, 3)):
        run = toy.run(sites=1, train=epochs, dataset={"kwargs": {"num_replica": replicas}})
        play(toy, run, f"out{replicas}")()
        assert newest(toy.folder / f"out{replicas}/task_1", print).meta["step"] == steps


@pytest.mark.parametrize("strategy", ["relay", "baseline"])
def test_stopped_and_resumed_is_bit_equal_to_uninterrupted(toy, strategy):
    run = toy.run(strategy={"name": strategy}, train={"accumulate_grad_batches": 2})
    play(toy, run, "whole")()
    for stop_at in (3, 8):
        count = 0

        def stop(stop_at=stop_at):
            nonlocal count
            count += 1
            return count == stop_at

        with pytest.raises(Stopped, match="--resume"):
            play(toy, run, "parts", resume=True, stop=stop)()
    torch.manual_seed(99)
    play(toy, run, "parts", resume=True)()
    for site in ("task_1", "task_2"):
        assert digest(toy.folder / "parts" / site) == digest(toy.folder / "whole" / site)
    assert (toy.folder / "parts/evaluation/dice.json").read_text() == (toy.folder / "whole/evaluation/dice.json").read_text()


def test_killed_at_any_moment_and_resumed_is_bit_equal(toy):
    path = toy.write(train={"checkpoint_seconds": 0, "num_mimgs": 160e-6})
    command = [sys.executable, "-m", "relay_core", "train", str(path), "--data-root", str(toy.data), "--json", "--out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(toy.folder / "whole")], check=True, env=environment, stdout=subprocess.DEVNULL)
    chance = random.Random(0)
    for _ in range(3):
        process = subprocess.Popen(
            [*command, str(toy.folder / "killed"), "--resume"], env=environment, stdout=subprocess.PIPE, text=True
        )
        for line in process.stdout:
            if '"checkpoint"' in line:
                break
        time.sleep(chance.uniform(0, 1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    subprocess.run(
        [*command, str(toy.folder / "killed"), "--resume"], check=True, env=environment, stdout=subprocess.DEVNULL
    )
    for site in ("task_1", "task_2"):
        assert digest(toy.folder / "killed" / site) == digest(toy.folder / "whole" / site)
        assert len(list((toy.folder / "killed" / site).glob("step-*"))) == 2
        assert not list((toy.folder / "killed" / site).glob(".writing-*"))


def test_what_a_kill_at_the_very_end_left_is_tidied_up(toy):
    run = toy.run(sites=1, train={"checkpoint_seconds": 0})
    play(toy, run)()
    folder = toy.folder / "out/task_1"
    wanted = sorted(path.name for path in folder.iterdir())
    (folder / ".writing-picture").write_bytes(b"half")
    (folder / "step-00000004.safetensors").write_bytes((folder / "step-00000005.safetensors").read_bytes())
    play(toy, run, resume=True)()
    assert sorted(path.name for path in folder.iterdir()) == wanted


def test_a_damaged_checkpoint_is_skipped_and_all_damaged_is_an_error(toy):
    run = toy.run(sites=1, train={"checkpoint_seconds": 0})
    play(toy, run)()
    files = sorted((toy.folder / "out/task_1").glob("step-*"))
    assert [f.name for f in files] == ["step-00000005.safetensors", "step-00000006.safetensors"]
    whole = digest(files[1].parent)
    data = bytearray(files[1].read_bytes())
    data[len(data) // 2] ^= 1
    files[1].write_bytes(data)
    with pytest.raises(CheckpointError, match="does not match its digest"):
        read(files[1])
    seen = []
    play(toy, run, resume=True, emit=seen.append)()
    assert any(isinstance(e, events.Warned) and "damaged" in e.message for e in seen)
    assert digest(files[1].parent) == whole
    for file in files:
        file.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="all 2 checkpoints are damaged"):
        play(toy, run, resume=True)()


def test_an_existing_training_is_not_overwritten(toy):
    run = toy.run(sites=1)
    play(toy, run)()
    before = digest(toy.folder / "out/task_1")
    with pytest.raises(CheckpointError, match="--resume"):
        play(toy, run)()
    assert digest(toy.folder / "out/task_1") == before


def test_a_full_disk_leaves_the_last_checkpoint(toy, monkeypatch):
    from relay_core.engine import checkpoint

    run = toy.run(sites=1, train={"checkpoint_seconds": 0})

    def full(tensors, path, metadata):
        if json.loads(metadata["relay"])["step"] == 3:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(tensors, path, metadata)

    save = checkpoint.save_file
    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(CheckpointError, match="No space left"):
        play(toy, run)()
    left = sorted(p.name for p in (toy.folder / "out/task_1").iterdir())
    assert left == ["step-00000001.safetensors", "step-00000002.safetensors"]


def test_numbers_that_stay_non_finite_end_training_with_a_reason(toy, monkeypatch):
    monkeypatch.setattr("relay_core.strategies.updater.PATIENCE", 3)
    run = toy.run(sites=1, model={"kwargs": {"optimizer_conf": {"M": {"name": "SGD", "kwargs": {"lr": 1e30}}}}})
    with pytest.raises(TrainingDiverged, match="gradients of the solver"):
        play(toy, run)()


def test_all_faults_of_all_sites_are_reported_before_anything_is_written(toy):
    run = toy.run()
    with pytest.raises(DataError) as error:
        RelayRun(run, toy.folder / "out", toy.folder / "elsewhere", CPU)()
    assert "Domain1" in str(error.value)
    assert "Domain2" in str(error.value)
    assert not (toy.folder / "out").exists()


def test_a_checkpoint_for_other_networks_is_refused(toy):
    play(toy, toy.run())()
    run = toy.run(checkpoint={"load": "task_1"}, model={"kwargs": {"w_img_dim": 16}})
    (toy.folder / "out/task_2").rename(toy.folder / "moved")
    with pytest.raises(CheckpointError, match="does not fit"):
        RelayRun(run, toy.folder / "out", toy.data, CPU, only=2)()


def test_scores_and_samples_on_the_way_change_nothing(toy):
    seen = []
    watched = {"check_val_every_n_epoch": 2, "sample_every_n_steps": 3}
    play(toy, toy.run(sites=1, train=watched), "watched", emit=seen.append)()
    assert [e.step for e in seen if isinstance(e, events.Scores)] == [2, 4, 6, 6]
    assert [e.step for e in seen if isinstance(e, events.Samples)] == [3, 6, 6, 6]
    assert (toy.folder / "watched/task_1/samples-00000003.png").is_file()
    play(toy, toy.run(sites=1), "alone")()
    assert same_tensors(toy.folder / "watched/task_1", toy.folder / "alone/task_1")


def test_grids_on_the_way_hold_generated_images_against_the_sites_own(toy):
    seen = []
    model = {"kwargs": {"gan_at_last_site": True}}
    play(toy, toy.run(model=model), "grids", grids=2, emit=seen.append)()
    drawn = [(e.site, e.step) for e in seen if isinstance(e, events.Samples) and "samples-" in e.path]
    assert drawn == [("Domain1", 3), ("Domain1", 6), ("Domain2", 3), ("Domain2", 6)]
    heights = []
    for site in (1, 2):
        with Image.open(toy.folder / f"grids/task_{site}/samples-00000006.png") as picture:
            heights.append(picture.height)
    assert 1.4 < heights[1] / heights[0] < 1.6  # two sites' and the own images, after one site's and the own
    play(toy, toy.run(model=model, train={"sample_every_n_steps": 6}), "file", grids=2)()  # the run file goes before
    assert [path.name for path in (toy.folder / "file/task_1").glob("samples-*")] == ["samples-00000006.png"]
    assert same_tensors(toy.folder / "grids/task_1", toy.folder / "file/task_1")


def test_a_step_says_the_stage_and_how_often_images_are_augmented(toy):
    seen = []
    play(toy, toy.run(model={"kwargs": {"num_stages": 2}}), emit=seen.append)()
    steps = {
        site: [e.figures for e in seen if isinstance(e, events.Step) and e.site == site] for site in ("Domain1", "Domain2")
    }
    assert [figures["stage"] for figures in steps["Domain1"]] == [1] * 6
    assert [figures["stage"] for figures in steps["Domain2"]] == [1, 1, 1, 2, 2, 2]
    assert all(0 <= figures["ada_img"] <= 1 and 0 <= figures["ada_label"] <= 1 for figures in steps["Domain1"])
    assert "ada_img" not in steps["Domain2"][0]  # at a file's last site the game is not played
    step = next(e for e in seen if isinstance(e, events.Step))
    assert events.from_json(step.to_json()) == step
    older = {key: value for key, value in step.to_json().items() if key != "figures"}
    assert events.from_json(older).figures == {}


@pytest.mark.parametrize("strategy", ["ewc", "baseline"])
def test_a_site_that_has_ended_is_not_trained_on_where_it_was_taken_from(toy, strategy):
    def run(images):
        return toy.run(sites=1, strategy={"name": strategy}, train={"num_mimgs": images * 1e-6})

    play(toy, run(16))()
    if strategy == "ewc":
        with pytest.raises(CheckpointError, match="has ended after 2 steps"):
            play(toy, run(32), resume=True)()
        return
    play(toy, run(32), resume=True)()
    assert newest(toy.folder / "out/task_1", print).meta["step"] == 4


def test_a_smaller_budget_ends_a_site_where_it_is(toy):
    def run(images):
        return toy.run(sites=1, strategy={"name": "ewc"}, train={"num_mimgs": images * 1e-6})

    count = iter(range(9))
    with pytest.raises(Stopped):
        play(toy, run(48), stop=lambda: next(count) == 3)()
    play(toy, run(16), resume=True)()
    last = newest(toy.folder / "out/task_1", print).meta
    assert (last["step"], last["ended"], last["state"]) == (4, True, {"sites": 1})

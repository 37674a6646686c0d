"""What a training says, and which scores it reuses, where images or masks changed since it last looked at them."""

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from relay_core import events
from relay_core.data import load_site, preflight, site
from relay_core.engine import RelayRun
from relay_core.engine.checkpoint import newest, read
from relay_core.errors import DataError, Stopped

BASELINE = {"strategy": {"name": "baseline"}}


@pytest.fixture
def own(toy):
    """A toy whose images may be changed."""
    shutil.copytree(toy.data, toy.folder / "data")
    return replace(toy, data=toy.folder / "data")


def play(toy, run, **options):
    seen = []
    matrices = RelayRun(run, toy.folder / "out", toy.data, torch.device("cpu"), emit=seen.append, **options)()
    return matrices, [e.message for e in seen if isinstance(e, events.Warned)]


def stop_after(toy, run, steps):
    seen = []
    stop = lambda: sum(isinstance(e, events.Step) for e in seen) >= steps  # noqa: E731
    with pytest.raises(Stopped):
        RelayRun(run, toy.folder / "out", toy.data, torch.device("cpu"), emit=seen.append, stop=stop)()


def empty_mask(toy, site_name, split="test"):
    """Correct a mask: nothing on it is an object any more."""
    path = sorted((toy.data / site_name / split / "ROIs/mask").iterdir())[0]
    with Image.open(path) as mask:
        Image.new(mask.mode, mask.size, 255).save(path)


def add_image(toy, site_name):
    folder = toy.data / site_name / "train/ROIs"
    for kind in ("image", "mask"):
        first = sorted((folder / kind).iterdir())[0]
        shutil.copy(first, first.with_name(f"new{first.suffix}"))


def test_a_corrected_mask_is_scored_again(own):
    run = own.run(**BASELINE)

    def scored():
        seen = []
        RelayRun(run, own.folder / "out", own.data, torch.device("cpu"), resume=True, emit=seen.append)()
        files = [own.folder / "out" / name for name in ("task_1/scores.json", "task_2/scores.json", "untrained.json")]
        digests = [json.loads(path.read_text())["test_sets"] for path in files]
        return [(e.site, e.test_site) for e in seen if isinstance(e, events.Scores)], digests

    both = [(a, b) for a in ("Domain1", "Domain2") for b in ("Domain1", "Domain2")]
    first, before = scored()
    assert first == both
    assert scored() == ([], before)
    empty_mask(own, "Domain1")
    again, after = scored()
    assert again == both
    for old, new in zip(before, after, strict=True):
        assert (old["Domain1"] != new["Domain1"], old["Domain2"] == new["Domain2"]) == (True, True)


def test_scores_of_an_earlier_site_on_other_masks_are_left_out_of_the_matrix_and_that_is_said(own):
    run = own.run(**BASELINE)
    play(own, run)
    empty_mask(own, "Domain1")
    matrices, warnings = play(own, run, only=2, resume=True)
    assert matrices["dice"].rows == ["Domain2"]
    assert any("on other test images" in warning for warning in warnings)


def test_a_comparison_scores_a_finished_run_again(own):
    from relay_core.experiments import Comparison

    run = own.write(**BASELINE)

    def compare():
        folder = own.folder / "study"
        (outcome,) = Comparison(str(run), ["sequential"], 1, folder, own.data, torch.device("cpu"))()
        return outcome.main.values[0][0]

    before = compare()
    assert compare() == before
    empty_mask(own, "Domain1")
    assert compare() != before


def test_images_that_come_or_change_before_a_resume_are_said_and_counted(own):
    run = own.run(sites=1, **BASELINE)
    stop_after(own, run, 2)
    add_image(own, "Domain1")
    empty_mask(own, "Domain1", "train")
    _, warnings = play(own, run, resume=True)
    (said,) = [warning for warning in warnings if "training images" in warning]
    assert "8 were there, 9 are; 2 new or changed, 1 gone or changed" in said
    assert "new." not in said, "a file's name may be a patient's"
    last = newest(own.folder / "out/task_1", print)
    assert len(last.meta["training_set"]) == 8, "what it began with: a later resume says so again"


def test_changed_images_are_an_error_where_that_is_set(own):
    run = own.run(sites=1, checkpoint={"on_changed_images": "error"}, **BASELINE)
    stop_after(own, run, 2)
    kept = newest(own.folder / "out/task_1", print).digest
    add_image(own, "Domain1")
    with pytest.raises(DataError, match="1 new or changed") as caught:
        play(own, run, resume=True)
    assert [problem.file for problem in caught.value.problems] == ["new"]
    assert newest(own.folder / "out/task_1", print).digest == kept


def test_the_preflights_digest_is_the_trainings(own):
    settings = own.run(sites=1, **BASELINE).site(1)
    found = preflight("fundus", settings.data, own.data / "Domain1").digests["train"]
    run = own.run(sites=1, checkpoint={"images_digest": found, "on_changed_images": "error"}, **BASELINE)
    play(own, run)
    shutil.rmtree(own.folder / "out")
    add_image(own, "Domain1")
    with pytest.raises(DataError, match="preflight"):
        play(own, run)


def test_what_changes_the_digest(own):
    settings = own.run().site(1)

    def digest():
        return load_site("fundus", settings.data, folder=own.data / "Domain1", split="train", resolution=8).digest

    first = digest()
    assert digest() == first
    empty_mask(own, "Domain1", "train")
    masked = digest()
    image = sorted((own.data / "Domain1/train/ROIs/image").iterdir())[0]
    with Image.open(image) as picture:
        pixels = picture.copy()
    pixels.putpixel((0, 0), (1, 2, 3))
    pixels.save(image)
    assert len({first, masked, digest()}) == 3


def test_a_checkpoint_says_what_it_began_from(own):
    play(own, own.run(**BASELINE))
    first, second = (newest(own.folder / f"out/task_{n}", print) for n in (1, 2))
    assert first.meta["base"] is None
    assert second.meta["base"] == {"checkpoint": first.digest, "bundle": None}


def test_a_training_of_an_older_version_does_not_claim_to_have_begun_from_nothing(own):
    """Its export would be refused for that."""
    from relay_core.engine import checkpoint

    run = own.run(sites=1, **BASELINE)
    stop_after(own, run, 2)
    left = newest(own.folder / "out/task_1", print)
    older = {key: value for key, value in left.meta.items() if key not in ("base", "training_set")}
    checkpoint.write(own.folder / "out/task_1", left.meta["step"], older, left.tensors)
    play(own, run, resume=True)
    assert "base" not in newest(own.folder / "out/task_1", print).meta


def test_a_base_that_was_replaced_meanwhile_is_said(own):
    run = own.run(**BASELINE)
    play(own, run)
    for path in (own.folder / "out/task_2").glob("step-*.safetensors"):
        meta = read(path).meta
    from relay_core.engine import checkpoint

    whole = newest(own.folder / "out/task_2", print)
    checkpoint.write(own.folder / "out/task_2", 6, {**meta, "base": {"checkpoint": "0" * 64, "bundle": None}}, whole.tensors)
    _, warnings = play(own, run, only=2, resume=True)
    assert any("began from another checkpoint" in warning for warning in warnings)


@pytest.mark.parametrize("mode", ["sequential", "joint"])
def test_images_decoded_ahead_train_bit_equal_also_after_a_resume(own, monkeypatch, mode):
    run = own.run(strategy={"name": "baseline", "kwargs": {"mode": mode}}, train={"checkpoint_seconds": 0})
    folder = "joint" if mode == "joint" else "task_2"
    play(own, run)
    in_memory = newest(own.folder / "out" / folder, print)
    shutil.rmtree(own.folder / "out")
    monkeypatch.setattr(site, "IN_MEMORY_BYTES", 1000)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(4))  # two decode
    stop_after(own, run, 3)
    play(own, run, resume=True)
    assert newest(own.folder / "out" / folder, print).digest == in_memory.digest


@pytest.mark.parametrize("cores", [2, 4])
def test_a_file_that_breaks_under_a_training_is_named(own, monkeypatch, cores):
    monkeypatch.setattr(site, "IN_MEMORY_BYTES", 1000)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(cores))
    run = own.run(sites=1, **BASELINE)
    stop_after(own, run, 1)
    first = RelayRun._load_images

    def load_and_break(self, sites):
        loaded = first(self, sites)
        for path in (own.data / "Domain1/train/ROIs/image").iterdir():
            path.write_bytes(b"no image")
        return loaded

    monkeypatch.setattr(RelayRun, "_load_images", load_and_break)
    with pytest.raises(DataError) as caught:
        play(own, run, resume=True)
    assert all(problem.file.startswith("train/ROIs/image/") for problem in caught.value.problems)


SLOW = """
import time, torch
from relay_core.cli.training import stop_on_signal
from relay_core.engine import Feed, Stream

class Slow:
    in_memory = False
    def __len__(self): return 4
    def decoded(self, position):
        time.sleep(1.0)
        return torch.zeros(1, 2, 2), torch.zeros(2, 2)
    def batch_of_one(self, position, image, label):
        return image[None], label[None]

if __name__ == "__main__":
    feed = Feed(Slow(), Stream(4, 0), torch.device("cpu"), 2)
    feed.take(1)
    with stop_on_signal() as stop:
        print("waits", flush=True)
        while not stop():
            feed.take(2)
        feed.take(2)
    print("took", flush=True)
    {end}
"""


@pytest.mark.parametrize("end", ["feed.close()", "raise KeyboardInterrupt"])
def test_what_asks_a_training_to_stop_ends_no_process_that_decodes(tmp_path, end):
    """A worker and a terminal send signals to the whole group; the training still gets its batches, and then ends."""
    script = tmp_path / "slow.py"
    script.write_text(SLOW.replace("{end}", f"try:\n        {end}\n    finally:\n        feed.close()"))
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    process = subprocess.Popen(
        [sys.executable, str(script)], env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "waits\n"
    os.killpg(process.pid, signal.SIGTERM)
    os.killpg(process.pid, signal.SIGHUP)
    said, _ = process.communicate(timeout=120)
    assert said == "took\n"


def test_what_is_in_memory_is_not_copied_to_the_processes_that_decode(own):
    kept = load_site("fundus", own.run().site(1).data, folder=own.data / "Domain1", split="train", resolution=8)
    again = copy.copy(kept)  # by what a process is sent
    assert (kept.in_memory, again.in_memory) == (True, False)
    for one, other in zip(kept.batch([1, 0]), again.batch([1, 0]), strict=True):
        assert torch.equal(one, other)

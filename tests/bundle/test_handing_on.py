"""From checkpoint to bundle to checkpoint: what arrives, what is refused, what is left."""

import contextlib
import json
import os
import shutil
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from relay_core.bundle import writer
from relay_core.bundle.compare import differences, differences_text
from relay_core.bundle.keys import KeyFolder
from relay_core.bundle.provenance import KnownRelays
from relay_core.bundle.reader import opened
from relay_core.engine import checkpoint
from relay_core.engine.evaluate import evaluate, load_solver
from relay_core.engine.layout import hand_over_layout
from relay_core.errors import BundleError, CheckpointError
from tests.bundle.kit import make_site, members, packed, resigned
from tests.bundle.mutations import snapshot


def refusal(code, words=""):
    return pytest.raises(BundleError, check=lambda error: error.code == code and words in str(error))


def weights_of(path):
    return {name: value for name, value in checkpoint.read(path).tensors.items() if name.startswith("network/")}


def handed_over(path):
    return {name: value for name, value in weights_of(path).items() if not name.startswith("network/old_")}


@pytest.mark.parametrize("recipient", [None, "south"])
def test_what_arrives_is_what_was_trained(world, tmp_path, recipient):
    facts = world.export(2, tmp_path / "two.relay", recipient=None if recipient is None else "west")
    got, target = world.receive(tmp_path / "two.relay", 3, tmp_path / "out")
    assert got == facts
    assert target == tmp_path / "out/task_2/step-00000006.safetensors"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    found, trained = checkpoint.read(target), checkpoint.read(world.checkpoint(2))
    sent = handed_over(world.checkpoint(2))
    assert found.tensors.keys() == sent.keys(), "networks, and no optimizer, random state or frozen copy"
    assert all(torch.equal(found.tensors[name], value) for name, value in sent.items())
    kept = ("run", "site", "task_id", "strategy", "step", "steps", "images", "settings")
    assert {key: found.meta[key] for key in kept} == {key: trained.meta[key] for key in kept}
    assert found.meta["state"] == {**trained.meta["state"], "frozen": []}
    assert found.meta["bundle"] == facts.digest
    assert [hop["site"] for hop in facts.history] == ["Domain1", "Domain2"]
    assert facts.history[0]["bundle"] == facts.parent
    written = {path.name for path in (tmp_path / "out/bundle").iterdir()}
    assert written == {"manifest.json", "history.json", "MODEL_CARD.md", "provenance.json"}
    assert "Domain1 | 8 | 6" in (tmp_path / "out/bundle/MODEL_CARD.md").read_text()


def test_nothing_about_single_patients_travels(world, one):
    parts = members(one)
    told = b"".join(content for name, content in parts.items() if name != "weights.safetensors")
    scores = json.loads((world.checkpoint(1).parent / "scores.json").read_text())["scores"]
    assert scores["Domain1"]["samples"], "the site's own file has a row for each"
    for word in (b'"samples"', b"subject", b"0001.png", str(world.data).encode(), b"ci95"):
        assert word not in told
    assert set(json.loads(parts["manifest.json"])["metrics"]["Domain1"]) == {
        "accuracy", "balanced_accuracy", "dice", "dice_per_sample", "hd95", "hd95_unit", "num_images", "num_samples",
    }  # fmt: skip


def test_half_precision_rounds_to_the_nearest_and_is_widened_again(world, tmp_path):
    full = world.export(1, tmp_path / "full.relay")
    half = world.export(1, tmp_path / "half.relay", half=True)
    assert half.half
    assert half.size < 0.6 * full.size
    _, target = world.receive(tmp_path / "half.relay", 2, tmp_path / "out")
    got = checkpoint.read(target).tensors
    for name, value in handed_over(world.checkpoint(1)).items():
        assert got[name].dtype == value.dtype
        assert torch.equal(got[name], value.half().float() if value.dtype == torch.float32 else value)


def test_a_value_that_half_precision_cannot_hold_stays_as_it_is(world, tmp_path):
    source = checkpoint.read(world.checkpoint(1))
    name = next(name for name in source.tensors if name.startswith("network/solver/") and source.tensors[name].ndim == 4)
    source.tensors[name][0, 0, 0, 0] = 1e6
    path = checkpoint.write(tmp_path / "task_1", 6, source.meta, source.tensors).path
    writer.export_bundle(path, world.run, world.north, tmp_path / "one.relay", half=True)
    table = json.loads(members(tmp_path / "one.relay")["manifest.json"])["tensors"]
    assert table[name][0] == "F32"
    assert sum(dtype == "F16" for dtype, _ in table.values()) > 20
    _, target = world.receive(tmp_path / "one.relay", 2, tmp_path / "out")
    assert torch.equal(checkpoint.read(target).tensors[name], source.tensors[name])


def test_exports_differ_in_time_and_signatures_alone(world, tmp_path):
    first = world.export(1, tmp_path / "a/one.relay")
    second = world.export(1, tmp_path / "b/one.relay")
    a, b = members(tmp_path / "a/one.relay"), members(tmp_path / "b/one.relay")
    assert first.digest != second.digest
    assert all(a[name] == b[name] for name in ("run.yaml", "MODEL_CARD.md", "weights.safetensors"))
    made = [json.loads(parts["manifest.json"]) for parts in (a, b)]
    assert {key for key in made[0] if made[0][key] != made[1][key]} == {"created_at"}
    records = [json.loads(parts["history.json"])[0] for parts in (a, b)]
    assert {key for key in records[0] if records[0][key] != records[1][key]} == {"created_at", "signature"}


def test_the_digest_does_not_depend_on_the_encryption(world, tmp_path):
    import pyrage

    sealed = world.export(1, tmp_path / "sealed.relay", recipient="south")
    assert sealed.recipient == world.south.card.fingerprint
    data = (tmp_path / "sealed.relay").read_bytes()
    assert b"manifest.json" not in data
    again = pyrage.encrypt(
        pyrage.decrypt(data, [world.south.identity()]), [pyrage.x25519.Recipient.from_str(world.south.card.age)]
    )
    (tmp_path / "again.relay").write_bytes(again)
    facts, _ = world.receive(tmp_path / "again.relay", 2, tmp_path / "out")
    assert facts.digest == sealed.digest
    assert facts.file_sha256 != sealed.file_sha256


def test_a_damaged_ciphertext_leaves_nothing_decrypted(world, tmp_path):
    """age gives out what came before the damage: the last block is the worst place."""
    world.export(1, tmp_path / "sealed.relay", recipient="south")
    data = bytearray((tmp_path / "sealed.relay").read_bytes())
    for at in (-1, -70_000, 200):
        spoilt = bytearray(data)
        spoilt[at] ^= 1
        (tmp_path / "spoilt.relay").write_bytes(spoilt)
        before = snapshot(tmp_path)
        (tmp_path / "out").mkdir(exist_ok=True)
        with refusal("bundle_damaged"):
            world.receive(tmp_path / "spoilt.relay", 2, tmp_path / "out")
        (tmp_path / "out").rmdir()
        assert snapshot(tmp_path) == before


def test_a_sealed_bundle_is_for_its_site_alone(world, tmp_path, monkeypatch):
    world.export(1, tmp_path / "sealed.relay", recipient="south")
    with refusal("wrong_recipient"):
        world.receive(tmp_path / "sealed.relay", 2, tmp_path / "out", keys=world.west)
    with refusal("key_missing"):
        world.receive(tmp_path / "sealed.relay", 2, tmp_path / "out", keys=KeyFolder(tmp_path / "no keys"))
    monkeypatch.setenv("RELAY_KEY_PASSPHRASE", "not the passphrase")
    with refusal("key_locked"):
        world.receive(tmp_path / "sealed.relay", 2, tmp_path / "out", keys=KeyFolder(world.south.folder))
    assert list((tmp_path / "out").iterdir()) == []


def test_an_encrypted_file_too_large_for_a_bundle_is_not_even_decrypted(world, tmp_path):
    with (tmp_path / "huge.relay").open("wb") as file:
        file.write(b"age-encryption.org/v1\n")
        file.truncate(9 << 30)
    with refusal("bundle_too_large"):
        world.receive(tmp_path / "huge.relay", 2, tmp_path / "out")


def test_whose_turn_it_is(world, tmp_path):
    one, two = world.export(1, tmp_path / "one.relay"), world.export(2, tmp_path / "two.relay")
    for path, site in (("one.relay", 1), ("one.relay", 3), ("two.relay", 2)):
        with refusal("hop_out_of_order"):
            world.receive(tmp_path / path, site, tmp_path / "out")
    with refusal("bundle_other_run"):
        world.receive(tmp_path / "one.relay", 2, tmp_path / "out", KnownRelays({}, []))
    facts = {"digest": one.digest, "run": one.run, "hop": 1, "created_at": one.created_at}
    with refusal("bundle_used"):
        world.receive(tmp_path / "one.relay", 2, tmp_path / "out", world.known(2, facts))
    later = {**facts, "digest": "0" * 64, "created_at": one.created_at + 1}
    with refusal("bundle_stale"):
        world.receive(tmp_path / "one.relay", 2, tmp_path / "out", world.known(2, later))
    got, _ = world.receive(tmp_path / "one.relay", 2, tmp_path / "out", world.known(2, later), evaluate=True)
    assert got.digest == one.digest, "to be scored, any hop is welcome"
    other_run = {**later, "run": "0" * 64}
    assert world.receive(tmp_path / "one.relay", 2, tmp_path / "out", world.known(2, other_run))[0].digest == one.digest
    earlier = {**facts, "digest": "0" * 64, "created_at": one.created_at - 1}
    assert world.receive(tmp_path / "one.relay", 2, tmp_path / "out", world.known(2, earlier))[0].digest == one.digest
    assert world.receive(tmp_path / "two.relay", 3, tmp_path / "out", world.known(3, facts))[0].digest == two.digest
    assert world.receive(tmp_path / "two.relay", 2, tmp_path / "out", world.known(None))[0].digest == two.digest


def test_revoked_in_the_middle_of_the_history(world, tmp_path):
    world.export(2, tmp_path / "two.relay")
    west = make_site(tmp_path / "keys", "west again")
    roster = west.roster
    roster.trust(world.south.card)
    west.save(roster)
    with refusal("signer_unknown", "hop 1"):
        world.receive(tmp_path / "two.relay", 3, tmp_path / "out", keys=west)
    roster.trust(world.north.card, world.run.digest)
    west.save(roster)
    world.receive(tmp_path / "two.relay", 3, tmp_path / "out", keys=west)
    roster.revoke("north")
    west.save(roster)
    with refusal("signer_revoked", "hop 1"):
        world.receive(tmp_path / "two.relay", 3, tmp_path / "out", keys=west)


def test_trust_for_another_run_is_none(world, one, tmp_path):
    south = make_site(tmp_path / "keys", "south again")
    roster = south.roster
    roster.trust(world.north.card, "0" * 64)
    south.save(roster)
    with refusal("signer_unknown", "for this run"):
        world.receive(one, 2, tmp_path / "out", keys=south)


def test_what_a_site_may_not_export(world, tmp_path):
    target = tmp_path / "x.relay"
    with refusal("bundle_incomplete", "--parent"):
        writer.export_bundle(world.checkpoint(2), world.run, world.south, target)
    world.export(2, tmp_path / "two.relay")
    parent = writer.Provenance.read(tmp_path / "bundle/provenance.json")
    with refusal("hop_out_of_order"):
        writer.export_bundle(world.checkpoint(2), world.run, world.south, target, parent=parent)
    unfinished = checkpoint.read(world.checkpoint(1))
    path = checkpoint.write(tmp_path / "u", 4, unfinished.meta, unfinished.tensors).path
    with refusal("bundle_incomplete", "--resume"):
        writer.export_bundle(path, world.run, world.north, target)
    with refusal("signer_unknown"):
        writer.export_bundle(world.checkpoint(1), world.run, world.north, target, recipient="nobody")
    with refusal("key_missing"):
        writer.export_bundle(world.checkpoint(1), world.run, KeyFolder(tmp_path / "none"), target)
    for words, scores in (("another checkpoint", "task_2/scores.json"), ("not a scores.json", "untrained.json")):
        with refusal("bundle_incomplete", words):
            writer.export_bundle(
                world.checkpoint(1), world.run, world.north, target, scores=world.folder / "trained" / scores
            )
    unfinished.tensors[next(name for name in unfinished.tensors if name.startswith("network/solver"))].fill_(float("nan"))
    path = checkpoint.write(tmp_path / "nan", 6, unfinished.meta, unfinished.tensors).path
    with refusal("weights_invalid"):
        writer.export_bundle(path, world.run, world.north, target)
    data = bytearray(world.checkpoint(1).read_bytes())
    data[-500] ^= 1
    (tmp_path / "flipped.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        writer.export_bundle(tmp_path / "flipped.safetensors", world.run, world.north, target)
    assert not target.exists()
    assert not list(tmp_path.glob(".*"))


def test_a_parent_other_than_what_the_training_began_from_is_refused(world, tmp_path):
    """Whichever way the base came: trained here and exported, or imported."""
    world.export(1, tmp_path / "one.relay")
    mine = writer.Provenance.read(tmp_path / "bundle/provenance.json")
    stored = checkpoint.read(world.checkpoint(2))
    assert stored.meta["base"] == {"checkpoint": mine.checkpoint, "bundle": None}
    others = {"parent_differs": replace(mine, checkpoint="0" * 64), "bundle_incomplete": replace(mine, checkpoint=None)}
    for code, parent in others.items():
        with refusal(code, "again"):
            writer.export_bundle(world.checkpoint(2), world.run, world.south, tmp_path / "two.relay", parent=parent)
    anew = checkpoint.write(tmp_path / "a", stored.meta["step"], {**stored.meta, "base": None}, stored.tensors).path
    with refusal("parent_differs", "began from nothing"):
        writer.export_bundle(anew, world.run, world.south, tmp_path / "two.relay", parent=mine)
    assert not (tmp_path / "two.relay").exists()
    for digest, code in ((mine.digest, None), ("0" * 64, "parent_differs")):
        base = {"checkpoint": "1" * 64, "bundle": digest}
        path = checkpoint.write(tmp_path / "t", stored.meta["step"], {**stored.meta, "base": base}, stored.tensors).path
        with refusal(code, "") if code else contextlib.nullcontext():
            writer.export_bundle(path, world.run, world.south, tmp_path / "two.relay", parent=replace(mine, checkpoint=None))


def test_another_run_file_or_a_site_that_it_does_not_train(world, tmp_path):
    from relay_core.config import load_run

    other = load_run(world.run_file, ["train.batch_size=4"])
    with refusal("bundle_other_run"):
        writer.export_bundle(world.checkpoint(1), other, world.north, tmp_path / "x.relay")
    raw = yaml.safe_load(world.run_file.read_text())
    (tmp_path / "late.yaml").write_text(yaml.safe_dump({**raw, "current_tasks": {"task_ids": [2, 3]}}))
    late = load_run(tmp_path / "late.yaml")
    assert late.task_ids == [2, 3]
    found = checkpoint.read(world.checkpoint(1))
    path = checkpoint.write(tmp_path / "c", 6, {**found.meta, "run": late.digest}, found.tensors).path
    with refusal("bundle_other_run", "task_ids"):
        writer.export_bundle(path, late, world.north, tmp_path / "x.relay")


@pytest.mark.parametrize("content", [
    b"", b"[]", b"{}", b'{"digest":"x","history":[]}', b'{"digest":"' + b"0" * 64 + b'","history":[]}', b"\xff",
])  # fmt: skip
def test_what_is_no_provenance_is_refused(tmp_path, content):
    (tmp_path / "p.json").write_bytes(content)
    with pytest.raises(BundleError, check=lambda error: error.code in ("history_broken", "bundle_damaged")):
        writer.Provenance.read(tmp_path / "p.json")


def test_a_history_that_was_changed_is_not_carried_on(world, tmp_path):
    world.export(1, tmp_path / "one.relay")
    path = tmp_path / "bundle/provenance.json"
    path.write_text(path.read_text().replace('"images":8', '"images":9'))
    with refusal("history_broken"):
        writer.Provenance.read(path)


def test_a_second_site_cannot_hide_the_first(world, tmp_path):
    """Signed anew by the second site alone, its hop says that it is the first."""
    world.export(2, tmp_path / "two.relay")
    parts = members(tmp_path / "two.relay")

    def alone(made):
        made["hop"], made["parent"] = 1, None

    made = resigned(parts, world.south, manifest=alone, record=lambda last: {**last, "previous": None},
                    chain=lambda records: records[-1:])  # fmt: skip
    (tmp_path / "hidden.relay").write_bytes(packed(made))
    with refusal("history_broken", "from site to site"):
        world.receive(tmp_path / "hidden.relay", 3, tmp_path / "out")


def test_a_baseline_travels_too(world, tmp_path):
    from relay_core.engine import RelayRun
    from tests.conftest import Toy

    toy = Toy(world.data, tmp_path)
    run = toy.run(sites=2, strategy={"name": "baseline"})
    RelayRun(run, tmp_path / "a", world.data, torch.device("cpu"), only=1)()
    path = tmp_path / "a/task_1/step-00000006.safetensors"
    facts = writer.export_bundle(path, run, world.north, tmp_path / "one.relay")
    from relay_core.bundle.importer import import_bundle

    got, _ = import_bundle(
        tmp_path / "one.relay", KnownRelays({run.digest: (run, 2)}, []), world.south, tmp_path / "b", hand_over_layout
    )
    assert got == facts
    RelayRun(run, tmp_path / "b", world.data, torch.device("cpu"), only=2)()
    assert checkpoint.read(tmp_path / "b/task_2/step-00000006.safetensors").meta["site"] == "Domain2"


def test_an_imported_model_scores_what_the_trained_one_did(world, one, tmp_path):
    from relay_core.data import load_site

    _, target = world.receive(one, 2, tmp_path / "out")
    settings = world.run.site(2)
    data = load_site(
        "fundus", settings.data, folder=world.data / "Domain2", split="test", resolution=settings.resolution, workers=0
    )
    scores = []
    for path in (target, world.checkpoint(1)):
        solver, _ = load_solver(checkpoint.read(path), torch.device("cpu"))
        scores.append(evaluate(solver, data, torch.device("cpu")))
    assert scores[0] == scores[1]


def test_a_newer_import_of_fewer_steps_replaces_the_older_one(world, tmp_path):
    """The next training starts from the checkpoint with the most steps, which must not be an outdated one."""
    world.export(1, tmp_path / "one.relay")
    _, old = world.receive(tmp_path / "one.relay", 2, tmp_path / "out")
    found = checkpoint.read(world.checkpoint(1))
    path = checkpoint.write(tmp_path / "c", 5, {**found.meta, "steps": 5}, found.tensors).path
    writer.export_bundle(path, world.run, world.north, tmp_path / "newer.relay")
    _, new = world.receive(tmp_path / "newer.relay", 2, tmp_path / "out")
    assert new.name == "step-00000005.safetensors"
    assert new.exists()
    assert not old.exists()


def test_a_sites_own_training_is_not_replaced(world, one, tmp_path):
    own = tmp_path / "out/task_1/step-00000006.safetensors"
    own.parent.mkdir(parents=True)
    own.write_bytes(world.checkpoint(1).read_bytes())
    with pytest.raises(CheckpointError, match="training of that site itself"):
        world.receive(one, 2, tmp_path / "out")
    assert own.read_bytes() == world.checkpoint(1).read_bytes()


def test_differences_between_two_hops(world, tmp_path):
    world.export(2, tmp_path / "two.relay", half=True)
    with (
        opened(tmp_path / "before-2/before.relay", world.west, tmp_path / "a") as first,
        opened(tmp_path / "two.relay", world.west, tmp_path / "b") as second,
    ):
        found = differences(first, second)
        same = differences(first, first)
    assert found["facts"]["site"] == ["Domain1", "Domain2"]
    assert found["common_hops"] == 1
    assert found["same_run_file"]
    assert found["only_first"] == found["only_second"] == found["other_shape"] == []
    assert "solver moved by" in differences_text(found)
    solvers = [{n: v for n, v in weights_of(world.checkpoint(hop)).items() if "/solver/" in n} for hop in (1, 2)]
    a, b = (np.concatenate([solver[name].double().numpy().ravel() for name in sorted(solver)]) for solver in solvers)
    assert found["moved"]["solver"] == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(a), rel=1e-2)
    assert same["facts"] == {}
    assert set(same["moved"].values()) == {0.0}


def test_looking_shows_strangers_bundles_but_believes_them_nothing(world, tmp_path):
    world.export(1, tmp_path / "strange.relay", keys=world.stranger)
    with opened(tmp_path / "strange.relay", world.south, tmp_path / "a", trust=False) as found:
        assert found.facts.signer == {"name": "stranger", "fingerprint": world.stranger.card.fingerprint, "trusted": False}
    with refusal("signer_unknown"):
        world.receive(tmp_path / "strange.relay", 2, tmp_path / "out")


FULL_DISK = """
import resource, sys
from pathlib import Path
from relay_core.bundle.keys import KeyFolder
from relay_core.bundle.writer import export_bundle
from relay_core.config import load_run
checkpoint, run, keys, target, recipient, limit = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
try:
    export_bundle(Path(checkpoint), load_run(run), KeyFolder(Path(keys)), Path(target), recipient=recipient or None)
except OSError as error:
    sys.exit(75)
"""


@pytest.mark.parametrize(("recipient", "where"), [("", "weights"), ("", "tar"), ("south", "tar"), ("south", "ciphertext")])
def test_a_full_disk_leaves_nothing(world, tmp_path, recipient, where):
    """It is full within the file of weights, within the tar around it, or within the ciphertext, which is the largest."""
    keys, checkpoint_ = world.north, world.checkpoint(1)
    for number in range(5):  # headers and signatures differ in length: now and then the second export is smaller, and fits
        target = tmp_path / f"out{number}" / "one.relay"
        target.parent.mkdir()
        facts = writer.export_bundle(
            checkpoint_, world.run, keys, tmp_path / "full" / "one.relay", recipient=recipient or None
        )
        limit = {"weights": 500_000, "tar": facts.size - 12_000, "ciphertext": facts.size - 100}[where]
        target.write_text("the one before")
        arguments = [checkpoint_, world.run_file, keys.folder, target, recipient, limit]
        done = subprocess.run(
            [sys.executable, "-c", FULL_DISK, *map(str, arguments)],
            capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        )  # fmt: skip
        if done.returncode:
            break
    assert done.returncode == 75, done.stderr
    assert [path.name for path in target.parent.iterdir()] == ["one.relay"]
    assert target.read_text() == "the one before"


def test_the_layout_is_that_of_the_networks(world):
    for site, path in ((1, world.checkpoint(1)), (2, world.checkpoint(2))):
        wanted = hand_over_layout(world.run.site(site))
        names = {torch.float32: "F32", torch.int64: "I64"}
        assert wanted == {name: (names[value.dtype], tuple(value.shape)) for name, value in handed_over(path).items()}


def test_no_bundle_goes_on_from_one_of_a_revoked_key(world, tmp_path):
    world.export(1, tmp_path / "first" / "hop-1.relay")
    parent = writer.Provenance.read(tmp_path / "first/bundle/provenance.json")
    keys = KeyFolder(shutil.copytree(world.south.folder, tmp_path / "keys"))
    roster = keys.roster
    roster.revoke("north")
    keys.save(roster)
    target = tmp_path / "hop-2.relay"
    with refusal("signer_revoked", "which was revoked here on 20"):
        writer.export_bundle(world.checkpoint(2), world.run, keys, target, parent=parent)
    assert not target.exists()


def test_discriminators_may_stay_behind_and_the_next_sites_start_anew(world, one, tmp_path):
    """What they know of the site's images does not leave; everything else goes on as it would."""
    from relay_core.engine import RelayRun, generated_rows, settings_of
    from relay_core.strategies import make_strategy

    facts = world.export(1, tmp_path / "lean.relay", discriminators=False)
    names = {name.split("/")[1] for name in opened_tensors(tmp_path / "lean.relay")}
    assert names == {"solver", "G_label", "G_img", *(n for n in names if n.endswith("_ema"))}
    assert facts.size < (tmp_path / "one.relay").stat().st_size
    _, target = world.receive(tmp_path / "lean.relay", 2, tmp_path / "out")
    received = checkpoint.read(target)
    assert not {"D_label", "D_img"} & {*received.networks}
    assert generated_rows(settings_of(received), received, torch.device("cpu"), 2), "samples are drawn as before"
    first = checkpoint.read(world.checkpoint(1))
    assert torch.equal(received.network("G_img")[key := next(iter(received.network("G_img")))], first.network("G_img")[key])
    RelayRun(world.run, tmp_path / "out", world.data, torch.device("cpu"), only=2)()
    second = checkpoint.read(tmp_path / "out/task_2/step-00000006.safetensors")
    assert {"D_label", "D_img"} <= {*second.networks}, "the second site has its own"
    strategy = make_strategy(settings_of(second), torch.device("cpu"))
    checkpoint.restore(strategy, second, torch.device("cpu"))  # it is whole, and can be resumed
    settings = world.run.site(2)
    halfway = RelayRun(world.run, tmp_path / "again", world.data, torch.device("cpu"), only=2)
    shutil.copytree(tmp_path / "out/task_1", tmp_path / "again/task_1")
    calls = iter(range(2))
    halfway.stop = lambda: next(calls, None) is None
    from relay_core.errors import Stopped

    with pytest.raises(Stopped):
        halfway()
    RelayRun(world.run, tmp_path / "again", world.data, torch.device("cpu"), only=2, resume=True)()
    resumed = checkpoint.read(tmp_path / "again" / settings.folder_name / "step-00000006.safetensors")
    assert all(torch.equal(value, second.tensors[name]) for name, value in resumed.tensors.items() if "network/" in name)


def opened_tensors(path):
    return json.loads(members(path)["manifest.json"])["tensors"]


def test_a_bundle_lacks_whole_discriminators_or_nothing(world, tmp_path):
    """A part of one, or a missing generator, is refused as before."""
    from relay_core.bundle import weights

    wanted = hand_over_layout(world.run.site(1))
    lean = {k: v for k, v in wanted.items() if "/D_" not in k}
    weights.check_networks(lean, wanted, lean=True)
    with pytest.raises(BundleError, match="D_img"):  # of a strategy without generators all has to be there
        weights.check_networks(lean, wanted)
    some = next(name for name in wanted if "/D_img/" in name)
    for lacking in ({some}, {name for name in wanted if "/G_img/" in name}, {name for name in wanted if "/solver/" in name}):
        with pytest.raises(BundleError, match="is missing"):
            weights.check_networks({k: v for k, v in wanted.items() if k not in lacking}, wanted, lean=True)


def test_an_audit_covers_what_leaves(world, tmp_path):
    from relay_core.bundle import Gate
    from tests.privacy.test_gate import report

    digest = checkpoint.read(world.checkpoint(1)).digest
    audit = {**report(), "checkpoint": digest, "networks": ["solver", "G_label", "G_img", "G_label_ema", "G_img_ema"]}
    with refusal("audit_invalid", "D_img, D_label"):
        world.export(1, tmp_path / "all.relay", gate=Gate("require", audit=audit))
    facts = world.export(1, tmp_path / "lean.relay", gate=Gate("require", audit=audit), discriminators=False)
    assert facts.history[0]["audit"]["outcome"] == "passed"
    assert "privacy audit passed" in members(tmp_path / "lean.relay")["MODEL_CARD.md"].decode()
    got, _ = world.receive(tmp_path / "lean.relay", 2, tmp_path / "out")
    assert got.history[0]["audit"] == facts.history[0]["audit"]
    parts = members(tmp_path / "lean.relay")
    changed = json.loads(parts["history.json"])
    changed[0]["audit"]["auc"] = 0.4
    from relay_core.bundle import canonical, history

    with refusal("history_broken", "not signed"):
        history.check(json.loads(canonical.dump(changed)), None)

"""Audits of small relays: they find what is plainly there, say where they cannot tell, and go on after a stop."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch

from relay_core.bundle import Policy, judge
from relay_core.bundle.audit import check_audit
from relay_core.data import make_phantoms
from relay_core.engine import RelayRun
from relay_core.engine.checkpoint import find
from relay_core.errors import DataError, RunFileError, Stopped
from relay_core.privacy import Audit, audit_text, write_audit

CPU = torch.device("cpu")


def trained(toy, **common):
    run = toy.run(**common)
    RelayRun(run, toy.folder / "out", toy.data, CPU)()
    return run, [find(toy.folder / f"out/task_{i}", print) for i in run.task_ids]


def audit(toy, run, source, reference=None, **kwargs):
    return Audit(source, run, toy.folder / "audit", toy.data, CPU, reference, samples=100, **kwargs)


def without_time(report):
    return {key: value for key, value in report.items() if key not in ("created_at", "seconds")}


def test_a_later_site_is_compared_with_what_it_received(toy):
    run, (first, second) = trained(toy)
    report, pairs = audit(toy, run, second, first)()
    check_audit(json.loads(json.dumps(report)))
    assert report["checkpoint"] == second.digest
    assert report["site"] == "Domain2"
    assert report["reference"] == {"kind": "received", "checkpoint": first.digest}
    assert report["counts"] == {"members": 8, "others": 5, "member_patients": 8, "other_patients": 5}
    names = [attack["name"] for attack in report["attacks"]]
    for name in ("solver", "D_label", "D_img", "inversion", "nearest_label_maps"):
        assert name in names
        assert f"{name}, calibrated" in names
    assert "nearest_pixels" in names
    assert [space["name"] for space in report["copies"]] == ["pixels", "solver_features"]
    assert 1 <= len(pairs.generated) == len(pairs.members) <= 8, "no image twice"
    verdict = judge(report, Policy())
    assert verdict.outcome == "inconclusive", "five test images tell nothing, whatever they show"
    assert any("5 patients" in reason for reason in verdict.reasons)
    written = write_audit(report, verdict, Policy(), pairs, toy.folder / "report")
    assert [path.name for path in written] == ["audit.json", "audit.md", "audit.png", "closest.png"]
    assert all(path.stat().st_size > 500 for path in written)
    text = audit_text(report, verdict)
    assert "Inconclusive" in text
    assert "5 patients" in text
    assert list((toy.folder / "audit").iterdir()) == [], "single images' scores and the reference do not stay"


def test_a_first_site_trains_a_reference_and_leaves_its_images_out(toy):
    run, (first, _) = trained(toy)
    seen = []
    report, _ = audit(toy, run, first, progress=lambda done, total: seen.append((done, total)))()
    assert report["reference"] == {"kind": "shadow", "checkpoint": None}
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert not (toy.folder / "audit/shadow").exists()


def test_a_privately_trained_first_site_is_audited_as_others_are(toy):
    train = {"num_mimgs": 16e-6, "privacy": {"delta": 1e-3}}
    run = toy.run(sites=1, train=train, model={"kwargs": {"solver_kwargs": {"norm": "group"}}})
    RelayRun(run, toy.folder / "out", toy.data, CPU)()
    report, _ = audit(toy, run, find(toy.folder / "out/task_1", print))()
    assert report["reference"] == {"kind": "shadow", "checkpoint": None}
    assert {"solver", "D_label", "D_img"} <= {*report["networks"]}


def test_a_stopped_audit_goes_on_and_says_the_same(toy):
    run, (first, second) = trained(toy)
    whole, _ = audit(toy, run, second, first)()
    for ticks in (5, 20, 60):
        calls = iter(range(ticks))
        with pytest.raises(Stopped):
            audit(toy, run, second, first, stop=lambda calls=calls: next(calls, None) is None)()
    assert (toy.folder / "audit/.audit-parts.json").stat().st_mode & 0o077 == 0, "scores of single images are nobody else's"
    seen = []
    again, _ = audit(toy, run, second, first, progress=lambda done, total: seen.append((done, total)))()
    assert without_time(again) == without_time(whole)
    units = [done for done, _ in seen]
    assert units[0] == 1 + 8 + 40 + 1 + 8, "progress begins where the audit goes on, at the search of the reference's styles"
    assert {b - a for a, b in itertools.pairwise(units)} <= {0, 1}, "and jumps nowhere"


def test_a_solver_alone_is_audited_too(toy):
    run, (first, second) = trained(toy, strategy={"name": "baseline"})
    report, pairs = audit(toy, run, second, first)()
    assert pairs is None
    assert report["copies"] == []
    assert [attack["name"] for attack in report["attacks"]] == ["solver", "solver, calibrated"]


def test_a_model_that_knows_its_images_by_heart_is_found_out(toy, tmp_path):
    """Twenty-four images, 150 steps, no augmentation: the loss tells a member from another image."""
    toy.data = tmp_path / "many"
    make_phantoms(toy.data, 2, train=24, test=24, size=32)
    model = {"kwargs": {"solver_kwargs": {"backbone": "plain", "base_channels": 16}}}
    run, (first, _) = trained(
        toy, sites=2, strategy={"name": "baseline"}, train={"num_mimgs": 1.2e-3, "augment": "none"}, model=model
    )
    report, _ = audit(toy, run, first)()
    solver = report["attacks"][0]
    assert solver["auc"] > 0.8
    bound = report["combined"]["epsilon"]
    assert bound["epsilon"] > 0.3, "twelve pairs, nearly all guessed right"
    assert f"at least {bound['epsilon']:.2f} (95 %)" in audit_text(report, judge(report, Policy()))
    verdict = judge(report, Policy())
    assert verdict.outcome == "failed"
    assert any("solver" in reason for reason in verdict.reasons)


def test_what_it_cannot_compare_with_is_named(toy):
    run, (first, second) = trained(toy)
    with pytest.raises(RunFileError, match="--reference"):
        audit(toy, run, second)()
    with pytest.raises(RunFileError, match="is not the checkpoint that the training of Domain2 began from"):
        audit(toy, run, second, second)()
    other = toy.run(train={"num_mimgs": 96e-6})
    with pytest.raises(RunFileError, match="another run file"):
        audit(toy, other, second, first)()


def test_images_that_were_not_trained_on_are_no_members(toy, tmp_path):
    import shutil

    run, (first, second) = trained(toy)
    data = tmp_path / "changed"
    shutil.copytree(toy.data, data)
    images = sorted((data / "Domain2/train/ROIs/image").iterdir())
    masks = sorted((data / "Domain2/train/ROIs/mask").iterdir())
    shutil.copy(images[1], images[0])
    shutil.copy(masks[1], masks[0])
    toy.data = data
    report, _ = audit(toy, run, second, first)()
    assert report["counts"]["members"] == 7
    assert any("1 training images are new or have changed" in warning for warning in report["warnings"])
    tests = data / "Domain2/test/ROIs"
    for kind, source in (("image", images[2]), ("mask", masks[2])):
        for path in (tests / kind).iterdir():
            shutil.copy(source, path)
    with pytest.raises(DataError, match="Domain2 has 0 test images"):
        audit(toy, run, second, first)()


def test_the_command_signs_what_a_gate_reads(toy, tmp_path, monkeypatch, capsys):
    import sys

    from relay_core.bundle import KeyFolder, read_audit
    from relay_core.cli import main

    run, (_, second) = trained(toy)
    keys = KeyFolder(tmp_path / "keys")
    monkeypatch.setenv("RELAY_KEY_PASSPHRASE", "correct horse battery")
    keys.create("North", "correct horse battery")
    command = [
        "relay",
        "privacy-audit",
        str(toy.folder / "out/task_2"),
        "--run",
        str(run.path),
        "--data-root",
        str(toy.data),
    ]
    monkeypatch.setattr(sys, "argv", [*command, "--samples", "100", "--keys", str(tmp_path / "keys")])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    assert "Inconclusive" in capsys.readouterr().out
    report = read_audit(Path(toy.folder / "out/task_2/audit/audit.signed.json"), keys)
    assert report["checkpoint"] == second.digest

"""The release gate: what a policy makes of an audit, and which audits it takes."""

from __future__ import annotations

import json

import pytest

from relay_core.bundle import Gate, KeyFolder, Policy, audit_words, judge, read_audit, sign_audit
from relay_core.bundle.audit import is_audit_fact
from relay_core.errors import BundleError

CHECKPOINT = "a" * 64


def attack(name="solver", auc=0.5, low=0.44, high=0.56, p=0.5, tpr=0.05, tpr_p=0.5, counts=True):
    return {
        "name": name, "auc": auc, "auc_interval": [low, high], "p": p, "tpr": tpr, "tpr_interval": [0.0, 0.1],
        "at_fpr": 0.05, "tpr_p": tpr_p, "detectable_auc": 0.57, "counts": counts,
    }  # fmt: skip


def report(combined=None, attacks=None, patients=(200, 100), copies=(), doubts=()):
    counts = {"members": 200, "others": 100, "member_patients": patients[0], "other_patients": patients[1]}
    return {
        "format": 1, "relay": "0.2.0", "created_at": 1e9, "checkpoint": CHECKPOINT, "run": "b" * 64, "task_id": 1,
        "site": "North", "strategy": "relay", "networks": ["solver", "G_img", "D_img"],
        "counts": counts, "reference": {"kind": "received", "checkpoint": None},
        "attacks": attacks or [attack()], "combined": combined or attack("all together"), "copies": list(copies),
        "samples": 100, "seconds": 1.0, "warnings": [], "doubts": list(doubts),
    }  # fmt: skip


def space(**changes):
    plain = {
        "name": "pixels",
        "nearest_member": 0.6,
        "expected": 0.6,
        "nearest_p": 0.4,
        "close": 0.01,
        "close_p": 0.5,
        "duplicates": 0.0,
    }
    return {**plain, "control": 0.01, "other_duplicates": 0.0, "counts": True, **changes}


@pytest.mark.parametrize(
    ("changes", "outcome", "why"),
    [
        ({}, "passed", "an AUC of at most 0.56"),
        ({"copies": [space()]}, "passed", ""),
        ({"combined": attack("all", high=0.61)}, "inconclusive", "AUC of up to 0.61"),
        ({"patients": (200, 19)}, "inconclusive", "19 patients"),
        ({"combined": attack("all", 0.66, 0.6, 0.72, p=0.001)}, "failed", "AUC of 0.66"),
        ({"attacks": [attack("D_img", tpr=0.3, tpr_p=0.001)]}, "failed", "D_img"),
        ({"copies": [space(close=0.2, close_p=0.005)]}, "failed", "close to a training image"),
        ({"copies": [space(duplicates=0.02)]}, "failed", "2 % of the training images have a duplicate"),
        (
            {"copies": [space(close_p=0.002)], "attacks": [attack(str(i)) for i in range(9)]},
            "failed",
            "close to a training image",
        ),
        ({"copies": [space(duplicates=0.02, close_p=0.002, counts=False)]}, "passed", ""),
        ({"doubts": ["half of the images are missing"]}, "inconclusive", "half of the images"),
        ({"attacks": [attack("solver", 0.54, 0.51, 0.57, p=0.0005)]}, "passed", "more than is allowed"),
        ({"attacks": [attack("D_img", tpr=0.3, tpr_p=0.001, counts=False)]}, "passed", ""),
        ({"attacks": [attack(str(i), tpr_p=0.03) for i in range(5)]}, "passed", ""),
        ({"patients": (200, 19), "copies": [space(nearest_p=0.001)]}, "failed", "nearer"),
    ],
    ids=[
        "nothing",
        "no copies",
        "wide",
        "few",
        "leak",
        "one attack",
        "copies",
        "duplicates",
        "copies among many tests",
        "copies of sets that differ",
        "doubt",
        "below what is allowed",
        "sets differ",
        "luck",
        "few but found",
    ],
)
def test_what_a_policy_makes_of_an_audit(changes, outcome, why):
    verdict = judge(report(**changes), Policy())
    assert verdict.outcome == outcome
    assert why in "; ".join(verdict.reasons)


def test_require_lets_nothing_out_without_an_audit_that_passed():
    passed, failed = report(), report(combined=attack("all", 0.7, 0.65, 0.75, p=0.001))
    wide = report(combined=attack("all", high=0.7))
    for audit, words in ((None, "there is none"), (failed, "is failed"), (wide, "is inconclusive")):
        with pytest.raises(BundleError, match=words) as error:
            Gate("require", audit=audit).clear(CHECKPOINT, ["solver", "D_img"])
        assert error.value.code == "release_refused"
    fact, warning = Gate("require", audit=passed).clear(CHECKPOINT, ["solver", "D_img"])
    assert fact["outcome"] == "passed"
    assert fact["override"] is None
    assert warning is None


def test_an_override_travels_with_its_reason_and_a_pass_needs_none():
    failed = report(combined=attack("all", 0.7, 0.65, 0.75, p=0.001))
    fact, warning = Gate("require", audit=failed, override="consented, public images").clear(CHECKPOINT, ["solver", "D_img"])
    assert (fact["outcome"], fact["override"]) == ("failed", "consented, public images")
    assert "is failed" in warning
    assert "released nevertheless: consented, public images" in audit_words(fact)
    assert Gate("require", audit=report(), override="x").clear(CHECKPOINT, ["solver", "D_img"])[0]["override"] is None
    assert Gate("require", override="no images to spare").clear(CHECKPOINT, ["solver", "D_img"])[0] == {
        "outcome": "none", "override": "no images to spare",
    }  # fmt: skip


def test_warn_warns_and_off_is_silent():
    wide = report(combined=attack("all", high=0.7))
    assert Gate("off").clear(CHECKPOINT, ["solver", "D_img"]) == (None, None)
    assert "no privacy audit was made" in Gate("warn").clear(CHECKPOINT, ["solver", "D_img"])[1]
    assert "is inconclusive" in Gate("warn", audit=wide).clear(CHECKPOINT, ["solver", "D_img"])[1]
    fact, warning = Gate("off", audit=wide).clear(CHECKPOINT, ["solver", "D_img"])
    assert fact["outcome"] == "inconclusive", "what was audited is said, whatever the policy"
    assert warning is None


def test_an_audit_of_another_checkpoint_is_refused_whatever_the_policy():
    for mode in ("off", "warn", "require"):
        with pytest.raises(BundleError, match="not of bbbb") as error:
            Gate(mode, audit=report(), override="please").clear("b" * 64, ["solver"])
        assert error.value.code == "audit_invalid"


def test_only_what_this_site_signed_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("RELAY_KEY_PASSPHRASE", "correct horse battery")
    own, other = KeyFolder(tmp_path / "own"), KeyFolder(tmp_path / "other")
    for keys, name in ((own, "North"), (other, "South")):
        keys.create(name, "correct horse battery")
    path = tmp_path / "audit.signed.json"
    path.write_bytes(sign_audit(report(), own))
    assert read_audit(path, own) == report()
    with pytest.raises(BundleError, match="not a privacy audit that this site signed"):
        read_audit(path, other)
    envelope = json.loads(sign_audit(report(combined=attack("all", 0.7, 0.65, 0.75, p=0.001)), own))
    forged = {**envelope, "payload": json.loads(sign_audit(report(), own))["payload"]}
    plain = json.dumps(report()).encode()
    for content in (json.dumps(forged).encode(), plain, b"", b"[" * 100000, b"x" * (1 << 21)):
        path.write_bytes(content)
        with pytest.raises(BundleError) as error:
            read_audit(path, own)
        assert error.value.code == "audit_invalid"


@pytest.mark.parametrize("key", ["checkpoint", "counts", "attacks", "combined", "copies", "format"])
def test_a_signed_report_that_lacks_something_is_refused(key, tmp_path, monkeypatch):
    monkeypatch.setenv("RELAY_KEY_PASSPHRASE", "correct horse battery")
    keys = KeyFolder(tmp_path / "keys")
    keys.create("North", "correct horse battery")
    path = tmp_path / "audit.signed.json"
    path.write_bytes(sign_audit({k: v for k, v in report().items() if k != key}, keys))
    with pytest.raises(BundleError) as error:
        read_audit(path, keys)
    assert error.value.code == "audit_invalid"


def test_what_travels_says_nothing_of_single_images():
    fact, _ = Gate("off", audit=report()).clear(CHECKPOINT, ["solver", "D_img"])
    assert is_audit_fact(fact)
    assert fact.keys() == {
        "outcome", "override", "auc", "auc_high", "tpr", "at_fpr", "member_patients", "other_patients",
    }  # fmt: skip
    for changes in (
        {"outcome": "sealed"}, {"auc": 2}, {"auc": True}, {"override": "two\nlines"}, {"override": ""}, {"scores": [1]},
        {"override": "x" * 501}, {"member_patients": -1},
    ):  # fmt: skip
        assert not is_audit_fact({**fact, **changes})


def test_an_alpha_that_so_few_draws_cannot_show_is_inconclusive():
    verdict = judge(report(), Policy(alpha=0.001))
    assert verdict.outcome == "inconclusive"
    assert "cannot be told" in verdict.reasons[0]


def test_networks_that_the_audit_left_out_may_go_only_with_a_reason_or_a_laxer_policy():
    for gate in (Gate("warn", audit=report()), Gate("require", audit=report(), override="public")):
        fact, warning = gate.clear(CHECKPOINT, ["solver", "G_new"])
        assert fact == ({"outcome": "none", "override": "public"} if gate.override else None)
        assert "G_new" in warning


def test_an_audit_of_a_relay_has_few_enough_tests_for_the_default_policy():
    """Thirty p-values, of which the smallest that can be drawn must still count."""
    attacks = [attack(str(i)) for i in range(12)]
    assert judge(report(attacks=attacks, copies=[space(), space()]), Policy()).outcome == "passed"
    found = judge(report(attacks=attacks, copies=[space(), space(close_p=1 / 1001)]), Policy())
    assert found.outcome == "failed"

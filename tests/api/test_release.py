"""The release gate over REST: refused, audited, passed and exported; overridden with a reason; seen by the receiver."""

from __future__ import annotations

import json

import pytest

from relay_core.bundle import AUDIT
from relay_core.bundle.keys import KeyFolder
from services.site import artifacts
from tests.api.kit import Site, ok, refused, running
from tests.api.test_bundle_exchange import PASSPHRASE, _done, _join, _work, options, post
from tests.conftest import Toy

REQUIRE = {"RELAY_RELEASE_POLICY": "require", "RELAY_RELEASE_MIN_PATIENTS": "2", "RELAY_RELEASE_MAX_AUC": "1"}
"""A policy that an audit of five test images can pass."""


@pytest.fixture
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAY_KEY_PASSPHRASE", PASSPHRASE)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def trained(site: Site, text: str, name: str) -> str:
    """Make the site's keys, and train its first site; the checkpoint."""
    KeyFolder(site.settings.keys_folder).create(name, PASSPHRASE)
    run = _join(site, text)
    job = ok(post(site, "/api/v1/jobs", {"kind": "train", "run_id": run, "site": 1}, "t"), 202)
    return str(_done(site, job)["checkpoints"][0])


def audit(site: Site, checkpoint: str, key: str = "a") -> dict:
    body = {"kind": "privacy_audit", "checkpoint_id": checkpoint, "samples": 100}
    return _done(site, ok(post(site, "/api/v1/jobs", body, key), 202))


@pytest.mark.usefixtures("_keys")
def test_nothing_leaves_before_an_audit_of_it_has_passed(tmp_path, toy: Toy):
    folders = [tmp_path / name for name in ("north", "south")]
    for folder in folders:
        folder.mkdir()
    text = toy.write().read_text()
    with (
        running(folders[0], None, **options(toy), **REQUIRE) as north,
        running(folders[1], None, **options(toy)) as south,
    ):
        first = trained(north, text, "north")
        body = {"checkpoint_id": first}
        problem = refused(post(north, "/api/v1/exports", body, "e1"), 409, "release_refused")
        assert first in problem["detail"]
        result = audit(north, first)
        assert result["outcome"] == "passed"
        assert {"audit.json", "audit.md", "audit.png", "closest.png"} <= set(result["files"])
        assert [row.detail["outcome"] for row in north.audited("privacy_audit", first)] == ["passed"]
        bundle = _done(north, ok(post(north, "/api/v1/exports", body, "e2"), 202))["bundle"]
        facts = ok(north.viewer.get(f"/api/v1/exports/{bundle}"))["facts"]
        said = facts["history"][0]["audit"]
        assert said == {"outcome": "passed", "override": None}, "four patients stand behind its numbers: they are withheld"

        KeyFolder(south.settings.keys_folder).create("south", PASSPHRASE)
        _join(south, text)
        roster = KeyFolder(south.settings.keys_folder).roster
        roster.trust(KeyFolder(north.settings.keys_folder).card)
        KeyFolder(south.settings.keys_folder).save(roster)
        brought = ok(south.bring(north.operator.get(f"/api/v1/exports/{bundle}/download").content), 202)
        _done(south, {"id": brought["job_id"]})
        path = f"/api/v1/imports/{brought['id']}"
        assert ok(south.viewer.get(path))["facts"]["history"][0]["audit"] == said, "before anybody accepts it"
        assert "privacy audit passed" in south.viewer.get(f"{path}/card").text
        imported = ok(south.operator.post(f"{path}/accept"))["checkpoint_id"]
        refused(
            post(south, "/api/v1/jobs", {"kind": "privacy_audit", "checkpoint_id": imported}, "x"), 409, "conflict"
        )  # the images that it learned from are not here


@pytest.mark.usefixtures("_keys")
def test_an_operator_may_release_with_a_reason_and_no_forged_or_foreign_audit_helps(tmp_path, toy: Toy):
    strict = {**REQUIRE, "RELAY_RELEASE_MIN_PATIENTS": "20"}
    with running(tmp_path, None, **options(toy), **strict) as site:
        first = trained(site, toy.write().read_text(), "north")
        assert audit(site, first)["outcome"] == "inconclusive"
        body = {"checkpoint_id": first}
        job = _work(site, ok(post(site, "/api/v1/exports", body, "e1"), 202)["id"])
        assert (job.state, job.error["code"]) == ("failed", "release_refused")
        assert "inconclusive" in job.error["message"]

        with site.database.read() as session:
            true = artifacts.attached(session, first)[AUDIT]
        envelope = json.loads(site.store.path(true.digest).read_bytes())
        for name, content in (
            ("forged", {**envelope, "payload": envelope["payload"][:-8] + "AAAAAAA="}),
            ("plain", {"format": 1, "checkpoint": first}),
        ):
            site.attach(first, AUDIT, json.dumps(content).encode(), "application/json")
            job = _work(site, ok(post(site, "/api/v1/exports", body, f"e-{name}"), 202)["id"])
            assert (job.state, job.error["code"]) == ("failed", "audit_invalid"), name

        other_run = toy.write("other.yaml", random_seed=7).read_text()
        run = ok(site.operator.post("/api/v1/runs", content=other_run, headers={"Content-Type": "application/yaml"}), 201)
        train = ok(post(site, "/api/v1/jobs", {"kind": "train", "run_id": run["id"], "site": 1}, "t2"), 202)
        second = _done(site, train)["checkpoints"][0]
        site.attach(second, AUDIT, site.store.path(true.digest).read_bytes(), "application/json")
        job = _work(site, ok(post(site, "/api/v1/exports", {"checkpoint_id": second}, "e2"), 202)["id"])
        assert (job.state, job.error["code"]) == ("failed", "audit_invalid"), "of another checkpoint"

        audit(site, first, "a2")
        reason = "images are public, signed <b>Dr Müller</b>"
        refused(
            site.viewer.post("/api/v1/exports", json={**body, "override": reason}, headers={"Idempotency-Key": "v"}),
            403,
            "forbidden",
        )
        refused(post(site, "/api/v1/exports", {**body, "override": "\u200b\n"}, "e3"), 422, "reason_missing")
        bundle = _done(site, ok(post(site, "/api/v1/exports", {**body, "override": reason}, "e4"), 202))["bundle"]
        said = ok(site.viewer.get(f"/api/v1/exports/{bundle}"))["facts"]["history"][0]["audit"]
        assert (said["outcome"], said["override"]) == ("inconclusive", reason)
        (row,) = site.audited("export.override", first)
        assert row.detail["reason"] == reason


@pytest.mark.usefixtures("_keys")
def test_by_default_a_site_warns(tmp_path, toy: Toy):
    with running(tmp_path, None, **options(toy)) as site:
        first = trained(site, toy.write().read_text(), "north")
        job = ok(post(site, "/api/v1/exports", {"checkpoint_id": first}, "e"), 202)
        bundle = _done(site, job)["bundle"]
        assert ok(site.viewer.get(f"/api/v1/exports/{bundle}"))["facts"]["history"][0]["audit"] is None
        assert "no privacy audit was made" in site.viewer.get(f"/api/v1/jobs/{job['id']}/events").text

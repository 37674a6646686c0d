"""Whom a site trusts, over REST: a worker carries changes out, in the name of whoever asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from relay_core.bundle.keys import KeyFolder
from tests.api.kit import Site, ok, refused, running
from tests.api.test_bundle_exchange import PASSPHRASE, _done, _work, options
from tests.conftest import Toy

KEYS = "/api/v1/keys"


@pytest.fixture
def other(tmp_path: Path) -> KeyFolder:
    folder = KeyFolder(tmp_path / "south")
    folder.create("south", PASSPHRASE)
    return folder


def ask(site: Site, path: str, key: str, body: object = None) -> dict:
    return ok(site.admin.post(path, json=body, headers={"Idempotency-Key": key}), 202)


def test_an_admin_trusts_a_site_and_revokes_it(tmp_path, toy: Toy, other: KeyFolder, monkeypatch):
    monkeypatch.setenv("RELAY_KEY_PASSPHRASE", PASSPHRASE)
    (tmp_path / "site").mkdir()
    with running(tmp_path / "site", None, **options(toy)) as site:
        own = KeyFolder(site.settings.keys_folder)
        own.create("north", PASSPHRASE)
        card = other.card.to_json().decode()
        job = ask(site, KEYS, "trust", {"card": card})
        assert ask(site, KEYS, "trust", {"card": card})["id"] == job["id"]
        _done(site, job)
        with site.worker(card=own.card.to_json().decode()):
            known = ok(site.viewer.get(KEYS))
        assert known["own"]["fingerprint"] == own.card.fingerprint
        assert known["card"] == own.card.to_json().decode()
        (entry,) = known["trusted"]
        assert (entry["name"], entry["fingerprint"], entry["revoked_at"]) == ("south", other.card.fingerprint, None)
        assert own.roster.of(other.card.fingerprint) is not None, "the folder of keys itself holds it"
        (row,) = site.audited("keys.trust", other.card.fingerprint)
        assert row.actor.startswith("test admin (")

        changed = card.replace('"south"', '"somebody else"')
        failed = ask(site, KEYS, "forged", {"card": changed})
        _work(site, failed["id"])
        assert site.job(failed["id"]).error["code"] == "signature_invalid"
        assert len(ok(site.viewer.get(KEYS))["trusted"]) == 1

        _done(site, ask(site, f"{KEYS}/{other.card.fingerprint}/revoke", "revoke"))
        assert ok(site.viewer.get(KEYS))["trusted"][0]["revoked_at"] is not None
        assert site.audited("keys.revoke", other.card.fingerprint)
        for client in (site.operator, site.admin):  # what was asked for once is not asked for again by a click
            refused(client.post(f"/api/v1/jobs/{failed['id']}/retry"), 409, "conflict")
        refused(site.admin.post(f"{KEYS}/{own.card.fingerprint}/revoke", headers={"Idempotency-Key": "o"}), 409, "conflict")
        refused(site.admin.post(f"{KEYS}/{'0' * 64}/revoke", headers={"Idempotency-Key": "n"}), 404, "not_found")

        waits = ask(site, KEYS, "late", {"card": card})
        refused(site.operator.post(f"/api/v1/jobs/{waits['id']}/cancel"), 403, "forbidden")
        with own.changing() as roster:  # by somebody at the machine, after the admin asked
            roster.trust(other.card)
            roster.revoke("south")
        _work(site, waits["id"])
        assert site.job(waits["id"]).error["code"] == "signer_revoked"
        assert own.roster.of(other.card.fingerprint).revoked_at is not None


def test_trust_is_an_admins_matter(small_site):
    for client in (small_site.viewer, small_site.operator):
        refused(client.post(KEYS, json={"card": "x"}, headers={"Idempotency-Key": "x"}), 403, "forbidden")
        refused(client.post(f"{KEYS}/{'0' * 64}/revoke", headers={"Idempotency-Key": "x"}), 403, "forbidden")
    refused(small_site.admin.post(f"{KEYS}/nonsense/revoke", headers={"Idempotency-Key": "x"}), 404, "not_found")
    ok(small_site.viewer.get(KEYS))

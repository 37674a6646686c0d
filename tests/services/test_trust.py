"""Whom the site trusts: a key that was revoked is asked for at acceptance, at training, at export and at promotion."""

import os
import pwd
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from sqlalchemy import select

from relay_core.bundle.keys import KeyFolder
from services.site import audit, bundle_exchange, job_plans, jobs, leases, registry, trust
from services.site.db import Database
from services.site.db.models import AuditRecord, Bundle, Checkpoint, Job, JobEvent, Model, RosterCopy, Run
from services.site.errors import Refusal
from services.trainer import work
from tests.services.conftest import SiteKit

PASSPHRASE = "a passphrase of a test"
LATELY = 40.0


@pytest.fixture
def north(tmp_path: Path) -> KeyFolder:
    """Another hospital's keys."""
    keys = KeyFolder(tmp_path / "north")
    keys.create("north", PASSPHRASE)
    return keys


def trusted(site: SiteKit, north: KeyFolder, run: str | None = None) -> None:
    """Let the site trust north, and a worker say so."""
    keys = KeyFolder(site.settings.keys_folder)
    if not keys.exists:
        keys.create("here", PASSPHRASE)
    roster = keys.roster
    roster.trust(north.card, run)
    keys.save(roster)
    trust.confirm(site.database, keys.folder, "worker")


def revoke(site: SiteKit, tell: bool = True) -> None:
    """Revoke north."""
    keys = KeyFolder(site.settings.keys_folder)
    roster = keys.roster
    roster.revoke("north")
    keys.save(roster)
    if tell:
        trust.confirm(site.database, keys.folder, "worker")


def quarantined(site: SiteKit, run_id: str, signer: KeyFolder) -> str:
    """An import that a worker verified, signed by north at its first hop."""
    who = {"name": "north", "fingerprint": signer.card.fingerprint}
    facts = {
        "digest": os.urandom(32).hex(), "run": run_id, "hop": 1, "created_at": 1.0, "signer": {**who, "trusted": True},
        "history": [{"signer": who["name"], "fingerprint": who["fingerprint"]}],
    }  # fmt: skip
    stored = (*site.store.put([_checkpoint()]), "application/vnd.safetensors")
    with site.database.write() as session:
        row, _ = bundle_exchange.receive(
            session, "a" * 64, 1, purpose="train", actor="test", key=facts["digest"], queue_limit=9
        )
        job = session.get_one(Job, row.job_id)
        job.state = "running"
        bundle_exchange.quarantine(session, job, facts, {bundle_exchange.CHECKPOINT: stored})
        jobs.end(session, job, "succeeded", "test", None, None)
    return row.id


def _checkpoint() -> bytes:
    import json
    import struct

    told = {"digest": "0" * 64, "relay": json.dumps({"task_id": 1, "site": "North", "step": 6, "steps": 6})}
    header = json.dumps({"__metadata__": told}).encode()
    return struct.pack("<Q", len(header)) + header + os.urandom(8)


def accept(site: SiteKit, bundle_id: str) -> Bundle:
    with site.database.write() as session:
        return bundle_exchange.accept(session, site.store, bundle_id, "test", LATELY)


def refusal(code: str) -> "pytest.RaisesExc[Refusal]":
    return pytest.raises(Refusal, check=lambda error: error.code == code)


def actions(site: SiteKit, subject: str) -> list[tuple[str, str]]:
    with site.database.read() as session:
        audit.verify(session)
        rows = session.scalars(select(AuditRecord).where(AuditRecord.subject == subject).order_by(AuditRecord.seq))
        return [(row.action, row.actor) for row in rows]


def test_what_a_revoked_key_signed_is_not_accepted(site: SiteKit, toy_run: Path, north: KeyFolder) -> None:
    run = site.add_run(toy_run)
    trusted(site, north)
    bundle_id = quarantined(site, run.id, north)
    revoke(site)
    with refusal("signer_revoked") as caught:
        accept(site, bundle_id)
    for said in ("north", bundle_id, "was revoked here on 20", "UTC", "relay keys trust"):
        assert said in str(caught.value)
    assert [action for action, _ in actions(site, north.card.fingerprint)] == ["keys.trust", "keys.revoke"]
    trusted(site, north)
    assert accept(site, bundle_id).state == "accepted"


def test_trust_for_another_run_is_none_for_this(small_site: SiteKit, toy_run: Path, north: KeyFolder) -> None:
    run = small_site.add_run(toy_run)
    trusted(small_site, north, run="f" * 64)
    with refusal("signer_unknown"):
        accept(small_site, quarantined(small_site, run.id, north))


@pytest.mark.parametrize("moment", [None, 100.0, 1e11])
def test_nothing_is_accepted_by_a_roster_that_no_worker_confirms(
    small_site: SiteKit, toy_run: Path, north: KeyFolder, moment: float | None
) -> None:
    run = small_site.add_run(toy_run)
    trusted(small_site, north)
    bundle_id = quarantined(small_site, run.id, north)
    with small_site.database.write() as session:
        copy = session.get_one(RosterCopy, 1)
        if moment is None:
            session.delete(copy)
        else:
            copy.confirmed_at = moment  # long ago, or by a clock that was far ahead
    with refusal("not_ready"):
        accept(small_site, bundle_id)
    trust.confirm(small_site.database, small_site.settings.keys_folder, "worker")
    assert accept(small_site, bundle_id).state == "accepted"


def test_a_roster_that_cannot_be_read_confirms_nothing(small_site: SiteKit, north: KeyFolder) -> None:
    trusted(small_site, north)
    (small_site.settings.keys_folder / "roster.json").write_text("{")
    with small_site.database.read() as session:
        before = session.get_one(RosterCopy, 1).confirmed_at
    with pytest.raises(Exception, match=r"roster\.json"):
        trust.confirm(small_site.database, small_site.settings.keys_folder, "worker")
    with small_site.database.read() as session:
        assert session.get_one(RosterCopy, 1).confirmed_at == before


@pytest.fixture
def accepted(site: SiteKit, toy_run: Path, north: KeyFolder) -> tuple[str, str]:
    """A run, and the checkpoint of an import that was accepted for its second site."""
    run = site.add_run(toy_run)
    trusted(site, north)
    row = accept(site, quarantined(site, run.id, north))
    return run.id, str(row.checkpoint_id)


def queued(site: SiteKit, run_id: str, number: int) -> str:
    """A training of one site that waits."""
    with site.database.read() as session:
        run = session.get_one(Run, run_id)
    return site.submit_train(run, site=number)


def grown(site: SiteKit, parent: str) -> str:
    """A checkpoint that was trained here from another."""
    with site.database.write() as session:
        base = session.get_one(Checkpoint, parent)
        values = {name: getattr(base, name) for name in ("run_id", "job_id", "step", "digest", "content_digest")}
        child = Checkpoint(**values, parent_id=parent, task_id=2, site="Domain2")
        session.add(child)
        session.flush()
        return child.id


def test_no_job_goes_on_from_a_model_of_a_revoked_key(site: SiteKit, accepted: tuple[str, str]) -> None:
    run_id, base = accepted
    child = grown(site, base)
    plans = (
        lambda session: job_plans.train(session, run_id, site=2),
        lambda session: job_plans.export(session, child),
        lambda session: job_plans.export_onnx(session, child),
        lambda session: job_plans.predict(session, child, "dataset-x"),
    )
    with site.database.read() as session:
        for plan in plans[:1]:
            assert plan(session).checkpoint_id == base
    revoke(site)
    with site.database.read() as session:
        for plan in plans:
            with refusal("signer_revoked"):
                plan(session)
        assert job_plans.evaluate(session, child).checkpoint_id == child  # to see what it was worth
    with site.database.write() as session:
        job_id = session.get_one(Checkpoint, base).job_id
        session.add(
            Model(name="m", version=1, precision="fp32", run_id=run_id, checkpoint_id=child, job_id=job_id,
                  digest=session.get_one(Checkpoint, base).digest, facts={}, created_by="test")
        )  # fmt: skip
        session.flush()
        with refusal("signer_revoked"):
            registry.promote(session, "m", 1, "test", None)


def test_a_worker_asks_its_own_folder_before_each_attempt(site: SiteKit, accepted: tuple[str, str], tmp_path: Path) -> None:
    job_id = queued(site, accepted[0], 2)
    with site.database.write() as session:
        claim = leases.claim(session, worker="w", host="h", devices=["cpu"], lease=60.0, job_id=job_id)
    revoke(site, tell=False)  # the database does not know yet
    with refusal("signer_revoked"):
        work.prepare(site.database, site.store, site.settings, claim, tmp_path)


def test_a_training_stops_when_its_key_is_revoked(site: SiteKit, accepted: tuple[str, str]) -> None:
    waiting, running, other = (queued(site, accepted[0], number) for number in (2, 2, 1))
    with site.database.write() as session:
        leases.claim(session, worker="w", host="h", devices=["cpu"], lease=60.0, job_id=running)
    revoke(site)
    assert [site.job(job_id).state for job_id in (waiting, running, other)] == ["cancelled", "cancelling", "queued"]
    with site.database.read() as session:
        said = [event.data for event in session.scalars(select(JobEvent).where(JobEvent.job_id == running))]
    assert any(event["event"] == "warning" and "was revoked" in event["message"] for event in said)
    revoke(site)  # again: nothing is cancelled twice
    with site.database.write() as session, refusal("signer_revoked"):
        trust.require_job(session, jobs.retry(session, waiting, "test"))


def relay(home: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    """The command, without any setting of a site but those given."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
    command = [sys.executable, "-m", "relay_core", *arguments]
    return subprocess.run(command, cwd=home, env={**environment, **variables}, capture_output=True, text=True, check=False)


def test_the_commands_of_keys_are_in_the_audit_log_with_who(small_site: SiteKit, north: KeyFolder) -> None:
    home = small_site.settings.home
    variables = {**small_site.environment(), "RELAY_KEY_PASSPHRASE": PASSPHRASE, "RELAY_OPERATOR": "ann"}
    keys = ["--keys", str(small_site.settings.keys_folder)]
    home.mkdir(exist_ok=True)
    for arguments in (
        ["create", "--name", "here"], ["trust", str(north.folder / "card.json")], ["revoke", "north"]
    ):  # fmt: skip
        done = relay(home, "keys", *arguments, *keys, **variables)
        assert done.returncode == 0, done.stderr
    own = KeyFolder(small_site.settings.keys_folder).card.fingerprint
    actor = f"{pwd.getpwuid(os.getuid()).pw_name} for ann (relay keys)"
    assert actions(small_site, own) == [("keys.create", actor)]
    assert actions(small_site, north.card.fingerprint) == [("keys.trust", actor), ("keys.revoke", actor)]


def test_a_command_is_the_actor_though_a_worker_looks_at_the_same_moment(site: SiteKit, north: KeyFolder) -> None:
    trusted(site, north)
    keys = KeyFolder(site.settings.keys_folder)
    elsewhere = Database(site.settings.database)
    with trust.changing(site.database, keys.folder, "ann"):
        revoke(site, tell=False)
        worker = threading.Thread(target=trust.confirm, args=(elsewhere, keys.folder, "worker"))
        worker.start()
        worker.join(0.3)
    worker.join()
    elsewhere.close()
    assert actions(site, north.card.fingerprint) == [("keys.trust", "worker"), ("keys.revoke", "ann")]


def test_a_change_past_the_commands_is_in_the_audit_log_too(small_site: SiteKit, north: KeyFolder) -> None:
    trusted(small_site, north)
    (small_site.settings.keys_folder / "roster.json").unlink()
    trust.confirm(small_site.database, small_site.settings.keys_folder, "worker w")
    assert actions(small_site, north.card.fingerprint)[-1] == ("keys.forget", "worker w")


def test_keys_need_no_site_and_a_site_that_is_away_is_said(tmp_path: Path, north: KeyFolder) -> None:
    card = str(north.folder / "card.json")
    done = relay(tmp_path, "keys", "create", "--name", "alone", "--generate-passphrase")
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.name for path in (tmp_path / "relay-site").iterdir()) == ["keys"]
    away = {"RELAY_DATABASE_URL": "postgresql+psycopg://x@127.0.0.1:1/x", "RELAY_DATABASE_PASSWORD": os.urandom(16).hex()}
    done = relay(tmp_path, "keys", "trust", card, **away)
    assert done.returncode == 1
    assert "database was not told" in done.stderr
    assert KeyFolder(tmp_path / "relay-site/keys").roster.of(north.card.fingerprint) is not None

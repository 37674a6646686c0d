"""A site that is backed up while it works and restored elsewhere, onto either database; and backups that are not whole."""

import json
import os
import resource
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from relay_core.bundle import KeyFolder
from relay_core.errors import RelayError
from services.site import audit, auth, backup, jobs, leases, restore, sweep, volumes, workers
from services.site.artifacts import ArtifactStore, attach
from services.site.db import Database, migrate
from services.site.db.models import Artifact, AuditRecord, Base, Checkpoint, Dataset, Job, Run, Token
from services.site.errors import Refusal
from services.site.settings import Settings, load_settings
from tests import postgres
from tests.services.conftest import SiteKit, open_site
from tests.services.test_sweep import keep

TABLES = [table for name, table in sorted(Base.metadata.tables.items()) if name not in backup.PASSING]


def content(database: Database) -> dict[str, list[tuple]]:
    """Every row of every table that is backed up."""
    with database.read() as session:
        return {table.name: sorted(map(repr, session.execute(table.select()).all())) for table in TABLES}


def fill(site: SiteKit) -> str:
    """Rows of many kinds: a running job, checkpoints of which one has an older parent with a later id, files and keys."""
    with site.database.write() as session:
        _, token = auth.create_token(session, site.settings.key, "nurse", "admin")
        session.add(Run(id="r" * 64, name="run Ä", content="x: 1\n", strategy="relay", sites=[{"a": 1}], site=None))
        session.add(Dataset(id="d", name="d", path="Domain1", layout="fundus", options={"a": [1.5, None]}, report=None))
        session.flush()
        for name in ("waits", "runs"):
            job, _ = jobs.submit(session, kind="preflight", params={"dataset": "d"}, actor="me", key=name, body={"n": name})
        leases.claim(session, worker="w", host="h", devices=[], lease=600, job_id=job.id)
        audit.record(session, "me", "test", "things", value=0.1 + 0.2, text="ü\u2028")
    digest = keep(site, b"bytes")
    with site.database.write() as session:
        for own, parent in (("c-9", None), ("c-1", "c-9")):
            session.add(
                Checkpoint(id=own, run_id="r" * 64, job_id=job.id, parent_id=parent, task_id=1, site="R", step=6,
                           digest=digest, content_digest="0" * 64)
            )  # fmt: skip
            session.flush()
    site.settings.keys_folder.mkdir(exist_ok=True)
    (site.settings.keys_folder / "card.json").write_text("{}")
    return token


@pytest.fixture
def made(site: SiteKit, tmp_path: Path) -> Path:
    fill(site)
    backup.create(site.database, site.settings, tmp_path / "backup")
    return tmp_path / "backup"


def elsewhere(tmp_path: Path, url: str | None = None) -> Settings:
    return load_settings(embedded=True, home=tmp_path / "new home", database_url=url, device="cpu")


@pytest.fixture(params=["sqlite", "postgresql"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
    """An empty site to restore into."""
    if request.param == "sqlite":
        yield elsewhere(tmp_path)
        return
    with postgres.schema() as url:
        yield elsewhere(tmp_path, url)


def test_a_restored_site_is_the_same_on_either_database(site: SiteKit, made: Path, target: Settings) -> None:
    before = content(site.database)
    said = restore.restore(made, target)
    database, store = Database(target.database), ArtifactStore(target.artifact_folder)
    after = content(database)
    changed = {"jobs", "job_events", "audit"}
    assert {name: rows for name, rows in after.items() if name not in changed} == {
        name: rows for name, rows in before.items() if name not in changed
    }
    assert after["audit"][: len(before["audit"])] == before["audit"]
    with database.read() as session:
        audit.verify(session)
        last = session.query(AuditRecord).order_by(AuditRecord.seq.desc()).first()
        assert (last.action, last.actor) == ("site.restore", audit.operator("relay restore"))
        waits, runs = session.query(Job).order_by(Job.idempotency_key.desc()).all()
        assert [(job.state, job.tries, job.worker) for job in (waits, runs)] == [("queued", 0, None)] * 2
        assert runs.attempt == 1 + restore.LEAP
        for row in session.query(Artifact):
            assert b"".join(store.read(row.digest)) == b"bytes"
        assert "a backup was restored" in str(sweep.unconfirmed(session, store))
        assert session.query(Token).one().name == "nurse"
    assert migrate.current(database) == migrate.head()
    assert volumes.away(database, target, *volumes.WRITTEN) == {}
    assert (target.keys_folder / "card.json").read_text() == "{}"
    assert any(runs.id in line for line in said)
    orphan, _ = store.put([b"orphan"])
    assert sweep.sweep(database, target, grace=-1) == []
    sweep.confirm(database, target, "admin")
    assert len(sweep.sweep(database, target, grace=-1)) == 1
    assert not store.path(orphan).exists()
    with database.write() as session:  # the tables refuse what they refused before
        with pytest.raises(Exception, match="append-only"):
            session.execute(text("UPDATE audit SET actor = 'you'"))
        session.rollback()
    database.close()


def test_tokens_open_a_site_that_was_restored_with_its_secret(small_site: SiteKit, tmp_path: Path) -> None:
    token = fill(small_site)
    backup.create(small_site.database, small_site.settings, tmp_path / "backup")
    restore.restore(tmp_path / "backup", elsewhere(tmp_path))
    with open_site(elsewhere(tmp_path)) as new, new.database.read() as session:
        assert auth.authenticate(session, new.settings.key, token).role == "admin"


def test_only_its_owner_reads_a_backup(made: Path) -> None:
    assert made.stat().st_mode & 0o777 == 0o700
    for path in made.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
    assert [path.name for path in made.parent.iterdir() if path.name.startswith(".writing")] == []
    (taken,) = [row for row in backup.rows_of(made, "audit") if row["action"] == "site.backup"]
    assert (taken["actor"], taken["subject"]) == (audit.operator("relay backup"), "backup")


def test_a_backup_is_of_one_moment_while_others_write(site: SiteKit, tmp_path: Path) -> None:
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            keep(site, f"artifact {number}".encode(), f"job-{number}")
            with site.database.write() as session:
                audit.record(session, "me", "test", str(number))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(3):
            manifest = backup.create(site.database, site.settings, tmp_path / f"backup-{number}")
            assert manifest["damaged"] == []
            assert backup.verify(tmp_path / f"backup-{number}") == manifest
            assert manifest["tables"]["artifacts"] == manifest["tables"]["attachments"]
    finally:
        stop.set()
        writer.join()


def test_a_backup_overwrites_nothing_and_one_that_breaks_off_leaves_nothing(small_site: SiteKit, tmp_path: Path) -> None:
    fill(small_site)
    (tmp_path / "there").mkdir()
    with pytest.raises(Refusal) as caught:
        backup.create(small_site.database, small_site.settings, tmp_path / "there")
    assert caught.value.code == "name_taken"

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    before = sorted(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        backup.create(small_site.database, small_site.settings, tmp_path / "new", interrupt)
    assert sorted(tmp_path.iterdir()) == before


def test_what_is_damaged_at_the_site_is_said_and_the_rest_backed_up(small_site: SiteKit, tmp_path: Path) -> None:
    fill(small_site)
    lost = keep(small_site, b"lost")
    small_site.store.path(lost).write_bytes(b"other")
    manifest = backup.create(small_site.database, small_site.settings, tmp_path / "backup")
    assert manifest["damaged"] == [lost]
    said = restore.restore(tmp_path / "backup", elsewhere(tmp_path))
    assert "1 were damaged" in said[0]


def damage_byte(folder: Path) -> None:
    path = next((folder / "artifacts").iterdir())
    path.write_bytes(b"x" + path.read_bytes()[1:])


def damage_audit(folder: Path) -> None:
    """A row is changed, and the manifest with it."""
    path = folder / "database" / "audit.jsonl"
    path.write_text(path.read_text().replace('"me"', '"you"'))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["database/audit.jsonl"]["sha256"] = backup._sha256(path)
    (folder / "manifest.json").write_text(json.dumps(manifest))


DAMAGES = {
    "a changed byte": (damage_byte, "was changed"),
    "a file too few": (lambda folder: next((folder / "artifacts").iterdir()).unlink(), "is missing"),
    "a file too many": (lambda folder: (folder / "artifacts" / "more").write_bytes(b""), "not in its manifest"),
    "a link": (
        lambda folder: ((folder / "keys/card.json").unlink(), (folder / "keys/card.json").symlink_to("/etc/passwd")),
        "was changed",
    ),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "has no manifest"),
    "half a manifest": (lambda folder: (folder / "manifest.json").write_text('{"format": 1'), "cannot be read"),
    "another format": (lambda folder: (folder / "manifest.json").write_text('{"format": 2}'), "does not know"),
    "a changed history": (damage_audit, "audit row"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_backup_that_is_not_whole_restores_nothing(small_site: SiteKit, tmp_path: Path, name: str) -> None:
    fill(small_site)
    backup.create(small_site.database, small_site.settings, tmp_path / "backup")
    damage, message = DAMAGES[name]
    damage(tmp_path / "backup")
    with pytest.raises(Refusal, match=message) as caught:
        restore.restore(tmp_path / "backup", elsewhere(tmp_path))
    assert caught.value.code in ("backup_damaged", "audit_broken")
    assert [path.name for path in (tmp_path / "new home").iterdir()] == ["secret-key"]


def test_a_site_that_is_there_is_moved_aside_only_when_asked(site: SiteKit, tmp_path: Path) -> None:
    fill(site)
    backup.create(site.database, site.settings, tmp_path / "backup")
    later = keep(site, b"later")
    before = content(site.database)
    with pytest.raises(Refusal) as caught:
        restore.restore(tmp_path / "backup", site.settings)
    assert caught.value.code == "in_use"
    assert "--replace" in str(caught.value)
    assert content(site.database) == before
    site.database.close()
    said = restore.restore(tmp_path / "backup", site.settings, replace=True)
    with site.database.read() as session:
        assert session.get(Artifact, later) is None
        assert audit.verify(session)
    assert site.store.path(later).exists()  # and stays, until somebody confirms and a week has passed
    assert sweep.sweep(site.database, site.settings, grace=-1) == []
    assert len(list(site.settings.keys_folder.glob("replaced-*/card.json"))) == 1
    if site.database.sqlite:
        (old,) = site.settings.home.glob("replaced-*/relay.db")
        aside = Database(site.settings.database.set(database=str(old)))
        assert content(aside) == before
        aside.close()
        return
    (schema,) = [word for line in said for word in line.split() if word.startswith("replaced_")]
    with site.database.write() as session:
        assert session.scalar(text(f'SELECT count(*) FROM "{schema}".artifacts')) == len(before["artifacts"])
        session.execute(text(f'DROP SCHEMA "{schema}" CASCADE'))


def test_tables_of_others_in_the_same_postgresql_stay(small_site: SiteKit, tmp_path: Path, postgres_url: str) -> None:
    backup.create(small_site.database, small_site.settings, tmp_path / "backup")
    new = elsewhere(tmp_path, postgres_url)
    database = Database(new.database)
    with database.write() as session:
        session.execute(text("CREATE TABLE patients (name text)"))
        session.execute(text("INSERT INTO patients VALUES ('somebody')"))
    restore.restore(tmp_path / "backup", new)
    said = restore.restore(tmp_path / "backup", new, replace=True)
    (schema,) = [word for line in said for word in line.split() if word.startswith("replaced_")]
    with database.write() as session:
        assert session.scalar(text("SELECT name FROM patients")) == "somebody"
        session.execute(text(f'DROP SCHEMA "{schema}" CASCADE'))
    database.close()


def test_no_restore_into_a_site_that_runs(site: SiteKit, tmp_path: Path) -> None:
    fill(site)
    backup.create(site.database, site.settings, tmp_path / "backup")
    with site.database.write() as session:
        workers.seen(session, "w", {})
    with pytest.raises(Refusal, match="seen lately"):
        restore.restore(tmp_path / "backup", site.settings, replace=True)
    with volumes.locked(site.settings.home), pytest.raises(RelayError, match="another relay up"):
        restore.restore(tmp_path / "backup", site.settings, replace=True)


@pytest.mark.parametrize("replace", [False, True])
def test_a_restore_that_breaks_off_leaves_the_old_database(
    site: SiteKit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replace: bool
) -> None:
    fill(site)
    backup.create(site.database, site.settings, tmp_path / "backup")
    keep(site, b"later")
    before = content(site.database)

    def interrupt(session: object) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(restore, "_let_wait", interrupt)
    with pytest.raises((KeyboardInterrupt, Refusal)):
        restore.restore(tmp_path / "backup", site.settings, replace=replace)
    assert content(site.database) == before
    assert [path.name for path in site.settings.home.iterdir() if path.name.startswith((".restoring", "replaced"))] == []


def test_a_database_that_cannot_be_read_is_replaced_too(small_site: SiteKit, tmp_path: Path) -> None:
    fill(small_site)
    backup.create(small_site.database, small_site.settings, tmp_path / "backup")
    before = content(small_site.database)
    small_site.database.close()
    file = Path(str(small_site.settings.database.database))
    file.write_bytes(b"not a database at all" * 100)
    with pytest.raises(Refusal, match="cannot be read"):
        restore.restore(tmp_path / "backup", small_site.settings)
    restore.restore(tmp_path / "backup", small_site.settings, replace=True)
    assert content(small_site.database)["checkpoints"] == before["checkpoints"]


def test_an_older_backup_is_brought_up_to_date_and_a_newer_one_refused(
    small_site: SiteKit, tmp_path: Path, target: Settings
) -> None:
    fill(small_site)
    migrate.downgrade(small_site.database, "0004")
    with pytest.raises(Exception, match="no such table"):
        volumes.away(small_site.database, small_site.settings, "artifacts")
    migrate.upgrade(small_site.database)
    made = tmp_path / "backup"
    backup.create(small_site.database, small_site.settings, made)
    for name in ("volumes", "unneeded"):
        (made / "database" / f"{name}.jsonl").unlink()
    manifest = json.loads((made / "manifest.json").read_text())
    manifest["files"] = {name: entry for name, entry in manifest["files"].items() if (made / name).exists()}
    (made / "manifest.json").write_text(json.dumps({**manifest, "revision": "0004"}))
    shutil.copytree(made, tmp_path / "newer")
    (tmp_path / "newer/manifest.json").write_text(json.dumps({**manifest, "revision": "9999", "version": "9.9"}))
    with pytest.raises(Refusal, match=r"version 9\.9"):
        restore.restore(tmp_path / "newer", target)
    restore.restore(made, target)
    database = Database(target.database)
    assert migrate.current(database) == migrate.head()
    assert volumes.away(database, target, *volumes.WRITTEN) == {}
    database.close()


def test_no_backup_of_a_volume_that_is_away(small_site: SiteKit, tmp_path: Path) -> None:
    (small_site.store.folder / ".relay-volume").unlink()
    with pytest.raises(Refusal) as caught:
        backup.create(small_site.database, small_site.settings, tmp_path / "backup")
    assert caught.value.code == "volume_away"


def bad_sector(path: Path) -> None:
    """A file whose bytes cannot be read: EIO."""
    path.unlink()
    path.symlink_to("/proc/self/mem")


def test_a_bad_sector_is_one_damaged_artifact_and_the_backups_copy_mends_it(small_site: SiteKit, tmp_path: Path) -> None:
    fill(small_site)
    digest, other = keep(small_site, b"worn"), keep(small_site, b"other")
    backup.create(small_site.database, small_site.settings, tmp_path / "whole")
    bad_sector(small_site.store.path(digest))
    with pytest.raises(OSError, match="Input/output error"):
        list(small_site.store.read(digest))
    manifest = backup.create(small_site.database, small_site.settings, tmp_path / "backup")
    assert manifest["damaged"] == [digest]
    assert f"artifacts/{other}" in manifest["files"]
    small_site.database.close()
    said = restore.restore(tmp_path / "whole", small_site.settings, replace=True)
    assert "artifacts: 1 restored" in said
    assert b"".join(small_site.store.read(digest)) == b"worn"


def test_a_backups_disk_that_is_full_ends_it(small_site: SiteKit, tmp_path: Path) -> None:
    digest, size = small_site.store.put([os.urandom(9 << 20)])
    with small_site.database.write() as session:
        attach(session, "job-1", "large", digest, size, "text/plain")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8 << 20, limits[1]))  # writes beyond it fail, as those on a full disk
    try:
        with pytest.raises(OSError, match="File too large"):
            backup.create(small_site.database, small_site.settings, tmp_path / "backup")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.glob("*backup*")) == []


def test_no_restore_beneath_the_mount_point_of_a_volume_that_is_away(site: SiteKit, tmp_path: Path) -> None:
    fill(site)
    backup.create(site.database, site.settings, tmp_path / "backup")
    before = content(site.database)
    site.database.close()
    site.store.folder.rename(tmp_path / "unmounted")
    site.store.folder.mkdir()
    with pytest.raises(Refusal, match=r"`artifacts` is away: .*relay restore --adopt") as caught:
        restore.restore(tmp_path / "backup", site.settings, replace=True)
    assert caught.value.code == "volume_away"
    assert list(site.store.folder.iterdir()) == []
    assert content(site.database) == before
    site.database.close()
    restore.restore(tmp_path / "backup", site.settings, replace=True, adopt=True)
    assert volumes.away(site.database, site.settings, *volumes.WRITTEN) == {}
    for row in backup.rows_of(tmp_path / "backup", "artifacts"):
        assert site.store.path(row["digest"]).is_file()


def test_every_job_that_may_run_again_leaps(small_site: SiteKit, tmp_path: Path) -> None:
    """It may have been retried after the backup, into folders of later attempts."""
    with small_site.database.write() as session:
        for state in ("queued", "failed", "cancelled", "succeeded"):
            job, _ = jobs.submit(session, kind="preflight", params={}, actor="me", key=state, body={"n": state})
            job.state, job.attempt = state, 2
    backup.create(small_site.database, small_site.settings, tmp_path / "backup")
    restore.restore(tmp_path / "backup", elsewhere(tmp_path))
    database = Database(elsewhere(tmp_path).database)
    with database.read() as session:
        found = {job.state: job.attempt for job in session.query(Job)}
    database.close()
    leapt = 2 + restore.LEAP
    assert found == {"queued": leapt, "failed": leapt, "cancelled": leapt, "succeeded": 2}


def test_a_key_that_was_revoked_since_the_backup_stays_revoked(small_site: SiteKit, tmp_path: Path) -> None:
    """Also one that was trusted only after it; and one that the backup has revoked already is as it was."""
    cards = {name: KeyFolder(tmp_path / name).create(name, "a passphrase of a test") for name in ("North", "South", "East")}
    keys = KeyFolder(small_site.settings.keys_folder)

    def change(trusted: list[str], revoked: list[str]) -> None:
        roster = keys.roster
        for name in trusted:
            roster.trust(cards[name])
        for name in revoked:
            roster.revoke(name)
        keys.save(roster)

    change(["North", "South"], [])
    backup.create(small_site.database, small_site.settings, tmp_path / "backup")
    change(["East"], ["North", "East"])
    small_site.database.close()
    moments = {entry.card.name: entry.revoked_at for entry in keys.roster.entries}
    (said,) = [
        line for line in restore.restore(tmp_path / "backup", small_site.settings, replace=True) if line.startswith("keys")
    ]
    assert {entry.card.name: entry.revoked_at for entry in keys.roster.entries} == moments
    assert moments["North"]
    assert "North (" in said
    assert "East (" in said
    assert "South" not in said
    (said,) = [line for line in restore.restore(tmp_path / "backup", elsewhere(tmp_path)) if line.startswith("keys")]
    assert "trusted again: revoke them again" in said
    (small_site.settings.keys_folder / "roster.json").write_text("{}")
    (said,) = [
        line for line in restore.restore(tmp_path / "backup", small_site.settings, replace=True) if line.startswith("keys")
    ]
    assert "revoke them again" in said
    assert "is not a roster" in said


def rows_in(path: Path) -> list[tuple[str]]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute("SELECT * FROM t").fetchall()
    finally:
        connection.close()


def databases(folder: Path) -> tuple[Path, Path]:
    """A new database, and an old one beside whose file a log lies that it needs, as a crash leaves it."""
    folder.mkdir()
    for name in ("new", "crashed"):
        with sqlite3.connect(folder / name) as connection:
            connection.executescript(f"PRAGMA journal_mode=WAL; CREATE TABLE t (x); INSERT INTO t VALUES ('{name}')")
            if name == "crashed":
                for end in ("", "-wal"):
                    shutil.copy(folder / f"{name}{end}", folder / f"old{end}")
        connection.close()
    for path in folder.glob("crashed*"):
        path.unlink()
    return folder / "new", folder / "old"


class PowerLoss(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("aside", ["aside", None])
def test_a_database_is_there_whenever_the_power_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, aside: str | None
) -> None:
    left = 0

    def counted(real):
        def step(*args, **options):
            nonlocal left
            left -= 1
            if left < 0:
                raise PowerLoss
            return real(*args, **options)

        return step

    for name in ("mkdir", "link", "rename", "replace", "unlink", "open", "fsync"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    steps = 0
    for steps in range(30):
        left = 10**6
        draft, target = databases(tmp_path / str(steps))
        left = steps
        try:
            restore._swap(draft, target, aside)
        except PowerLoss:
            left = 10**6
            assert rows_in(target) in ([("crashed",)], [("new",)])
            continue
        left = 10**6
        break
    assert steps > 3
    assert rows_in(target) == [("new",)]
    assert sorted(path.name for path in target.parent.iterdir()) == ["aside"] * (aside is not None) + ["old"]
    if aside is not None:
        assert rows_in(target.parent / aside / "old") == [("crashed",)]


def test_no_restore_over_a_database_that_is_open(tmp_path: Path) -> None:
    draft, target = databases(tmp_path / "home")
    other = sqlite3.connect(target)
    other.execute("SELECT * FROM t").fetchall()
    with pytest.raises(Refusal, match=r"has .*old open") as caught:
        restore._swap(draft, target, "aside")
    other.close()
    assert caught.value.code == "in_use"
    assert rows_in(target) == [("crashed",)]

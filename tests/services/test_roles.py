"""PostgreSQL: API and workers have roles of their own, which cannot touch what was written into the audit log."""

import base64
import hashlib
import hmac
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError

from services.site import audit, backup, restore
from services.site.artifacts import ArtifactStore
from services.site.db import Database, DatabaseError, migrate, roles
from services.site.db.models import AuditRecord
from services.site.settings import Settings, load_settings
from services.trainer.worker_loop import WorkerLoop
from tests import postgres
from tests.api.kit import ok, refused, running
from tests.conftest import Toy
from tests.services.conftest import SiteKit

PASSWORDS = {part: f"{part}{os.urandom(12).hex()}" for part in ("api", "worker")}


@pytest.fixture
def owner() -> Iterator[str]:
    """The URL of a schema whose owner is no superuser, before any migration."""
    with postgres.schema() as server:
        url = make_url(server)
        schema = url.query["options"].rpartition("=")[2]
        with psycopg.connect(postgres.SERVER, autocommit=True) as connection:
            connection.execute(f"CREATE ROLE {schema} LOGIN CREATEROLE")
            connection.execute(f"ALTER SCHEMA {schema} OWNER TO {schema}")
            yield url.set(username=schema).render_as_string()
            connection.execute(f"ALTER SCHEMA {schema} OWNER TO CURRENT_USER")
            for role in (f"{schema}_api", f"{schema}_worker", schema):
                if connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (role,)).fetchone():
                    connection.execute(f"DROP OWNED BY {role} CASCADE")
                    connection.execute(f"DROP ROLE {role}")


def migrated(owner: str) -> str:
    """What `relay migrate` says as the owner."""
    variables = {
        "RELAY_DATABASE_URL": owner, "RELAY_DATABASE_PASSWORD": os.urandom(16).hex(),
        **{f"RELAY_DATABASE_{part.upper()}_PASSWORD": password for part, password in PASSWORDS.items()},
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "relay_core", "migrate"], env={**os.environ, **variables}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def role(owner: str, part: str) -> str:
    """The URL of a part's role."""
    url = make_url(owner)
    return url.set(username=f"{url.username}_{part}").render_as_string()


def test_api_and_worker_carry_a_training_through_by_roles_of_their_own(
    owner: str, tmp_path: Path, toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    schema = make_url(owner).username
    assert f"roles: {schema}_api, {schema}_worker" in migrated(owner)
    assert migrated(owner)  # again: it renews what is there
    settings = load_settings(
        embedded=True, home=tmp_path, data_root=toy.data, database_url=role(owner, "worker"), device="cpu", min_free_mib=1
    )
    station = WorkerLoop(settings, lambda: False)
    worker = SiteKit(settings, station.database, ArtifactStore(settings.artifact_folder))
    with running(tmp_path, role(owner, "api"), RELAY_DATA_ROOT=str(toy.data)) as site:  # it makes tokens and audits them
        run = ok(site.operator.post("/api/v1/runs", content=toy.write(sites=1).read_text(),
                                    headers={"Content-Type": "application/yaml"}), 201)  # fmt: skip
        body = {"name": "Domain1", "path": "Domain1", "layout": "fundus"}
        ok(site.operator.post("/api/v1/datasets", json=body), 201)
        job = site.submit({"kind": "train", "run_id": run["id"]})
        assert station.work_once()
        assert (worker.job(job["id"]).state, worker.job(job["id"]).error) == ("succeeded", None)
        (checkpoint,) = ok(site.viewer.get("/api/v1/checkpoints"))["items"]
        assert site.operator.get(f"/api/v1/checkpoints/{checkpoint['id']}/download").status_code == 200
        assert ok(site.anonymous.get("/readyz"))["checks"]["database"]["ok"]
        ok(site.operator.delete(f"/api/v1/checkpoints/{checkpoint['id']}"), 204)
        refused(site.client("relay_0123456789_wrong").get("/api/v1/runs"), 401, "unauthenticated")
    station.close()
    for part in ("api", "worker"):
        _cannot_touch_the_audit_log(Database(make_url(role(owner, part))), part)


def _cannot_touch_the_audit_log(database: Database, part: str) -> None:
    refused_statements = [
        "UPDATE audit SET actor = 'you'", "DELETE FROM audit", "TRUNCATE audit", "DROP TABLE audit",
        "DROP TRIGGER audit_append_only ON audit", "ALTER TABLE audit DISABLE TRIGGER ALL", "CREATE TABLE mine (i int)",
        "SET session_replication_role = replica", "CREATE OR REPLACE FUNCTION audit_refuse() RETURNS trigger "
        "LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$", "UPDATE alembic_version SET version_num = '0001'",
        {"api": "UPDATE roster SET confirmed_at = 0", "worker": "SELECT hash FROM tokens"}[part],
        "ALTER ROLE CURRENT_USER CREATEROLE", "COPY audit TO PROGRAM 'cat'",
    ]  # fmt: skip
    for statement in refused_statements:
        with pytest.raises(DBAPIError, match=r"permission|must be|privilege"), database.write() as session:
            session.execute(text(statement))
    with database.write() as session:
        audit.record(session, part, "test", "x")
        audit.verify(session)
    database.close()


def test_an_api_that_may_not_migrate_says_who_must(owner: str, tmp_path: Path) -> None:
    migrated(owner)
    database = Database(make_url(owner))
    migrate.downgrade(database, "0004")
    database.close()
    variables = {
        "RELAY_DATABASE_URL": role(owner, "api"), "RELAY_DATABASE_PASSWORD": PASSWORDS["api"], "RELAY_HOME": str(tmp_path),
        "RELAY_SECRET_KEY": os.urandom(16).hex(),
    }  # fmt: skip
    command = [sys.executable, "-m", "services.api"]
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "_api may not do that; run relay migrate as the database's owner" in done.stderr


def test_no_password_is_in_a_statement(owner: str) -> None:
    """The server's log shows statements that fail. A server that would hash a plain one by md5 is given the verifier."""
    url = make_url(owner)
    database = Database(url.set(query={"options": f"{url.query['options']} -c password_encryption=md5"}))
    migrate.upgrade(database)
    roles.grant(database, PASSWORDS)
    database.close()
    with psycopg.connect(postgres.SERVER) as connection:
        for part, password in PASSWORDS.items():
            name = f"{url.username}_{part}"
            (stored,) = connection.execute("SELECT rolpassword FROM pg_authid WHERE rolname = %s", (name,)).fetchone()
            method, parameters, keys = stored.split("$")
            assert method == "SCRAM-SHA-256"
            rounds, salt = parameters.split(":")
            salted = hashlib.pbkdf2_hmac("sha256", password.encode(), base64.b64decode(salt), int(rounds))
            key = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
            assert keys.split(":")[0] == base64.b64encode(key).decode()  # and with the password it opens


def test_an_owner_that_may_not_make_roles_is_told_what_it_lacks(owner: str) -> None:
    name = make_url(owner).username
    with psycopg.connect(postgres.SERVER, autocommit=True) as connection:
        connection.execute(f"ALTER ROLE {name} NOCREATEROLE")
    database = Database(make_url(owner))
    migrate.upgrade(database)
    with pytest.raises(DatabaseError, match=rf"permission denied to create role: .*ALTER ROLE {name} CREATEROLE") as caught:
        roles.grant(database, PASSWORDS)
    database.close()
    assert "\n" not in str(caught.value)
    assert not any(password in str(caught.value) for password in PASSWORDS.values())


def test_backup_and_restore_are_the_owners_work(owner: str, tmp_path: Path) -> None:
    migrated(owner)
    target = tmp_path / "backup"

    def settings(url: str) -> Settings:
        return load_settings(embedded=True, home=tmp_path / "site", database_url=url, device="cpu")

    worker = Database(make_url(role(owner, "worker")))
    with pytest.raises(DatabaseError, match="_worker may not do that; run relay backup as the database's owner"):
        backup.create(worker, settings(role(owner, "worker")), target)
    assert not target.exists()
    database = Database(make_url(owner))
    with database.write() as session:
        assert session.query(AuditRecord).filter_by(action="site.backup").count() == 0  # none was taken
        audit.record(session, "me", "test", "x")
    backup.create(database, settings(owner), target)
    with pytest.raises(DatabaseError, match="_worker may not do that; run relay restore as the database's owner"):
        restore.restore(target, settings(role(owner, "worker")), replace=True)
    with psycopg.connect(postgres.SERVER, autocommit=True) as connection:
        connection.execute(f"GRANT CREATE ON DATABASE {make_url(owner).database} TO {make_url(owner).username}")
        try:
            restore.restore(target, settings(owner), replace=True)
        finally:
            connection.execute(f"REVOKE CREATE ON DATABASE {make_url(owner).database} FROM {make_url(owner).username}")
            connection.execute(f"DROP OWNED BY {make_url(owner).username}_worker")
    roles.grant(database, PASSWORDS)  # what the container `migrate` does when the site starts again
    database.close()
    with worker.write() as session:
        assert audit.record(session, "worker", "test", "x").seq > 1
    _cannot_touch_the_audit_log(worker, "worker")

"""Settings, database, artifacts, audit, tokens, folders."""

import os
import sqlite3
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, select, text
from sqlalchemy.exc import DBAPIError

from services.site import audit, auth
from services.site.artifacts import attach, attached
from services.site.db import Base, migrate
from services.site.db.models import AuditRecord, Lockout, Token
from services.site.errors import Refusal
from services.site.folders import inside
from services.site.settings import SettingsError, load_settings
from tests.services.conftest import SiteKit
from tests.services.volumes import fill
from tests.services.writers import write_from_processes

STRONG = "9f2c4d5e6a7b8c9d0e1f2a3b4c5d6e7f"


def test_migrations_and_models_agree_up_and_down(site: SiteKit) -> None:
    with site.database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []
    assert migrate.current(site.database) == migrate.head()
    migrate.downgrade(site.database)
    assert inspect(site.database.engine).get_table_names() == ["alembic_version"]
    migrate.upgrade(site.database)
    migrate.upgrade(site.database)
    assert set(Base.metadata.tables) <= set(inspect(site.database.engine).get_table_names())


def test_six_processes_write_and_no_caller_sees_a_lock(site: SiteKit) -> None:
    commits, errors = write_from_processes(site.settings.database, float(os.environ.get("RELAY_TEST_WRITE_SECONDS", "3")))
    assert errors == []
    with site.database.read() as session:
        assert audit.verify(session)[0] == commits


def test_the_audit_log_refuses_changes_and_shows_tampering(site: SiteKit) -> None:
    with site.database.write() as session:
        heads = [audit.record(session, "me", "test", str(i), value=i).hash for i in range(5)]
    for statement in ("UPDATE audit SET actor = 'you' WHERE seq = 2", "DELETE FROM audit WHERE seq = 5"):
        with pytest.raises(DBAPIError, match="append-only"), site.database.write() as session:
            session.execute(text(statement))
    columns = "seq, at, actor, action, subject, detail, previous, hash"
    again = f"INTO audit ({columns}) SELECT seq, at, 'you', action, subject, detail, previous, hash FROM audit WHERE seq = 2"
    sqlite = site.database.engine.dialect.name == "sqlite"
    for verb in ("INSERT OR REPLACE", "REPLACE", "INSERT OR IGNORE") if sqlite else ("INSERT",):
        with pytest.raises(DBAPIError), site.database.write() as session:
            session.execute(text(f"{verb} {again}"))
    with site.database.read() as session:
        assert audit.verify(session) == (5, heads[-1])
        assert audit.verify(session, heads[2]) == (5, heads[-1])
        with pytest.raises(Refusal, match="cut off"):
            audit.verify(session, "f" * 64)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE audit SET actor = 'you' WHERE seq = 2", "row 2 was changed"),
        ("UPDATE audit SET detail = '{\"value\": 7}' WHERE seq = 3", "row 3 was changed"),
        ("DELETE FROM audit WHERE seq = 4", "row 4 is missing"),
    ],
)
def test_an_audit_row_changed_behind_the_triggers_is_found(small_site: SiteKit, statement: str, message: str) -> None:
    with small_site.database.write() as session:
        for i in range(5):
            audit.record(session, "me", "test", str(i), value=i)
    with sqlite3.connect(str(small_site.settings.database.database)) as connection:
        connection.execute("DROP TRIGGER audit_no_update")
        connection.execute("DROP TRIGGER audit_no_delete")
        connection.execute(statement)
    connection.close()
    with small_site.database.read() as session, pytest.raises(Refusal, match=message) as caught:
        audit.verify(session)
    assert caught.value.code == "audit_broken"


def test_a_failed_write_leaves_nothing(site: SiteKit) -> None:
    with pytest.raises(ZeroDivisionError), site.database.write() as session:
        assert audit.record(session, "me", "test", "x").seq / 0
    with site.database.read() as session:
        assert session.scalars(select(AuditRecord)).all() == []


def test_artifacts_are_found_by_content_and_verified(small_site: SiteKit) -> None:
    store = small_site.store
    digest, size = store.put([b"some ", b"bytes"])
    assert size == 10
    assert store.put([b"some bytes"]) == (digest, 10)
    assert b"".join(store.read(digest)) == b"some bytes"
    store.path(digest).write_bytes(b"some bytez")
    with pytest.raises(Refusal, match="changed on disk") as caught:
        list(store.read(digest))
    assert caught.value.code == "artifact_damaged"
    target = small_site.settings.home / "copy"
    with pytest.raises(Refusal):
        store.fetch(digest, target)
    assert not target.exists()


def test_a_stream_that_is_too_long_or_breaks_leaves_nothing(small_site: SiteKit) -> None:
    store = small_site.store

    def broken():
        yield b"abc"
        raise ConnectionError

    with pytest.raises(Refusal, match="more than 5 bytes"):
        store.put([b"abc", b"def"], limit=5)
    with pytest.raises(ConnectionError):
        store.put(broken())
    assert [path.name for path in store.folder.rglob("*") if path.is_file()] == [".relay-volume"]


def test_tokens_open_by_their_text_alone(site: SiteKit) -> None:
    key = site.settings.key
    with site.database.write() as session:
        row, token = auth.create_token(session, key, "nurse", "viewer")
        _, old = auth.create_token(session, key, "old", "admin", days=-1)
        assert auth.authenticate(session, key, token).role == "viewer"
        assert token not in str([row.hash for row in session.scalars(select(Token))])
        for wrong in (token[:-1], token + "x", "relay_x_y", "", old, token.replace("relay_", "relay_0")):
            with pytest.raises(Refusal) as caught:
                auth.authenticate(session, key, wrong)
            assert caught.value.status == 401
        with pytest.raises(Refusal):
            auth.authenticate(session, b"another key", token)
        auth.revoke_token(session, row.id)
        with pytest.raises(Refusal):
            auth.authenticate(session, key, token)


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("10.0.0.7", "10.0.0.7"), ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"), ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("::ffff:10.0.0.7", "10.0.0.7"), ("::1", "::/64"), ("fe80::1%eth0", "fe80::/64"), ("unknown", "unknown"),
        ("x" * 300, "x" * 100),
    ],
)  # fmt: skip
def test_callers_are_counted_by_what_one_of_them_has(address: str, network: str) -> None:
    assert auth.network(address) == network


def test_failed_logins_take_no_more_rows_the_more_addresses_they_come_from(site: SiteKit) -> None:
    with site.database.write() as session:
        counts = [auth.note_failure(session, f"address {i}", 300, most=5) for i in range(20)]
        rows = set(session.scalars(select(Lockout.address)))
        with pytest.raises(Refusal, match="locked"):
            auth.check_lockout(session, "a new one", 10, 300)
        auth.check_lockout(session, "address 1", 10, 300)  # is counted by itself, and failed once
    assert auth.OTHERS in rows
    assert len(rows) <= 6
    assert counts == sorted(counts)
    assert counts[-1] >= 15


def test_roles_include_the_lower_ones() -> None:
    operator = auth.Identity("1", "x", "operator")
    operator.require("viewer")
    with pytest.raises(Refusal) as caught:
        operator.require("admin")
    assert caught.value.status == 403


@pytest.mark.parametrize("path", ["/etc", "../x", "a/../../x", "", "a\\b", "link", "real/link", "holds"])
def test_no_way_out_of_the_data_root(tmp_path: Path, path: str) -> None:
    root = tmp_path / "data"
    for folder in ("real", "holds/deep"):
        (root / folder).mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (root / "link").symlink_to(tmp_path / "outside")
    (root / "real" / "link").symlink_to(tmp_path / "outside")
    (root / "holds" / "deep" / "file").symlink_to("/etc/passwd")
    with pytest.raises(Refusal) as caught:
        inside(root, path)
    assert caught.value.code == "path_escape"


def test_a_folder_inside_the_data_root(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert inside(tmp_path, "a/b") == tmp_path / "a" / "b"
    with pytest.raises(Refusal) as caught:
        inside(tmp_path, "a/c")
    assert caught.value.status == 404


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in list(os.environ):
        if name.startswith("RELAY_"):
            monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize("value", ["", "change-me", "secret", "a" * 40, "short"])
def test_no_start_with_a_weak_secret(clean: pytest.MonkeyPatch, value: str) -> None:
    clean.setenv("RELAY_SECRET_KEY", value)
    with pytest.raises(SettingsError, match="RELAY_SECRET_KEY"):
        load_settings(needs_key=True)


def test_the_database_and_the_queue_need_passwords_too(clean: pytest.MonkeyPatch) -> None:
    settings = load_settings()  # a worker's: it has no use for the key
    with pytest.raises(SettingsError, match="RELAY_SECRET_KEY"):
        assert settings.key
    clean.setenv("RELAY_SECRET_KEY", STRONG)
    load_settings(needs_key=True)
    clean.setenv("RELAY_DATABASE_URL", "postgresql+psycopg://relay@db/relay")
    with pytest.raises(SettingsError, match="RELAY_DATABASE_PASSWORD"):
        load_settings()
    clean.setenv("RELAY_DATABASE_PASSWORD", STRONG)
    clean.setenv("RELAY_BROKER_URL", "redis://redis:6379/0")
    with pytest.raises(SettingsError, match="RELAY_BROKER_PASSWORD"):
        load_settings()


def test_secrets_come_from_files(clean: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(STRONG + "\n")
    clean.setenv("RELAY_SECRET_KEY", "x")
    clean.setenv("RELAY_SECRET_KEY_FILE", str(tmp_path / "key"))
    clean.setenv("RELAY_BROKER_URL", "redis://redis:6379/0")
    clean.setenv("RELAY_BROKER_PASSWORD_FILE", str(tmp_path / "key"))
    settings = load_settings(needs_key=True)
    assert settings.key.decode() == STRONG
    assert settings.broker == f"redis://:{STRONG}@redis:6379/0"
    assert STRONG not in repr(settings)
    clean.setenv("RELAY_SECRET_KEY_FILE", str(tmp_path / "none"))
    with pytest.raises(SettingsError, match="cannot be read"):
        load_settings()


def test_an_embedded_site_makes_a_key_that_only_its_owner_reads(clean: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = load_settings(embedded=True, home=tmp_path)
    assert load_settings(embedded=True, home=tmp_path).key == first.key
    assert (tmp_path / "secret-key").stat().st_mode & 0o777 == 0o600


def test_a_wrong_setting_is_named(clean: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clean.setenv("RELAY_PORT", "many")
    with pytest.raises(SettingsError, match="RELAY_PORT"):
        load_settings(embedded=True, home=tmp_path)
    clean.setenv("RELAY_PORT", "8000")
    clean.setenv("RELAY_LEASE", "6")
    with pytest.raises(SettingsError, match="three beats"):
        load_settings(embedded=True, home=tmp_path)


@pytest.mark.parametrize("name", ["=cmd()", "a|b", "<b>", "a/b", "-a", "", "x" * 101])
def test_a_site_name_is_letters_digits_and_few_signs(clean: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    clean.setenv("RELAY_SITE_NAME", name)
    with pytest.raises(SettingsError, match=r"RELAY_SITE_NAME: .*letters of any language"):
        load_settings(embedded=True, home=tmp_path)
    clean.setenv("RELAY_SITE_NAME", "Zu\u0308rich (2)")
    assert load_settings(embedded=True, home=tmp_path).site_name == "Z\u00fcrich (2)"


def test_sqlite_keeps_its_promises(small_site: SiteKit) -> None:
    with small_site.database.read() as session:
        values = {
            name: session.execute(text(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert values == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


def test_attached_bytes_need_a_row(site: SiteKit) -> None:
    with site.database.write() as session:
        attach(session, "o", "n", "a" * 64, 1, "text/plain")
        attach(session, "o", "n", "b" * 64, 1, "text/plain")
        assert [artifact.digest for artifact in attached(session, "o").values()] == ["b" * 64]


def test_the_store_fills_up(artifact_volume: Path, small_site: SiteKit) -> None:
    store = small_site.store
    kept, _ = store.put([b"kept"])
    ballast = fill(artifact_volume)
    with pytest.raises(Refusal) as caught:
        store.put([bytes(1 << 20)])
    assert caught.value.code == "storage_full"
    assert list((artifact_volume / "staging").iterdir()) == []
    assert b"".join(store.read(kept)) == b"kept"
    ballast.unlink()
    store.put([bytes(1 << 20)])

"""What is deleted from the store, when, and what is not: clocks that jump, databases that are older than the artifacts."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import update

from services.site import audit, sweep
from services.site.artifacts import attach, attached, detach
from services.site.db.engine import Database
from services.site.db.models import AuditRecord, Unneeded
from services.site.errors import Refusal
from services.trainer.worker_loop import tidy
from tests.services.conftest import SiteKit

HOUR = 3600.0


def pass_by(site: SiteKit, seconds: float) -> None:
    """Let the database's clock show another time than at the last sweep."""
    with site.database.write() as session:
        session.execute(update(Unneeded).values(seen_at=Unneeded.seen_at - seconds))


def swept(site: SiteKit, hours: int = 0) -> list[str]:
    """What goes within some hours of a site that runs."""
    gone = sweep.sweep(site.database, site.settings)
    for hour in range(0, hours, 2):  # a sweep counts two hours at most
        pass_by(site, min(2, hours - hour) * HOUR)
        gone += sweep.sweep(site.database, site.settings)
    return gone


def keep(site: SiteKit, content: bytes, owner: str = "job-1") -> str:
    """Bytes that a row needs."""
    digest, size = site.store.put([content])
    with site.database.write() as session:
        attach(session, owner, content.decode(), digest, size, "text/plain")
    return digest


def let_go(site: SiteKit, owner: str = "job-1") -> None:
    with site.database.write() as session:
        detach(session, owner)


def record(site: SiteKit, subject: str) -> None:
    with site.database.write() as session:
        audit.record(session, "test", "test", subject)


def actions(site: SiteKit) -> list[str]:
    with site.database.read() as session:
        audit.verify(session)
        return [row.action for row in session.query(AuditRecord).order_by(AuditRecord.seq)]


def test_what_this_database_let_go_is_deleted_after_its_grace(site: SiteKit) -> None:
    kept, dropped = keep(site, b"kept"), keep(site, b"dropped", "job-2")
    let_go(site, "job-2")
    assert swept(site, 23) == []
    assert site.store.path(dropped).exists()
    assert swept(site, 2) == [f"sha256/{dropped[:2]}/{dropped[2:]}"]
    assert not site.store.path(dropped).exists()
    assert list((site.store.folder).glob("trash/*")) == []  # an answer about a patient, say, is really gone
    assert site.store.path(kept).exists()


def test_what_no_row_ever_named_goes_through_the_trash(site: SiteKit) -> None:
    site.settings.trash_days = 1
    digest, _ = site.store.put([b"from a future that the database lost"])
    assert swept(site, 25) == [f"sha256/{digest[:2]}/{digest[2:]}"]
    assert site.store.in_trash(digest).read_bytes() == b"from a future that the database lost"
    assert swept(site, 23) == []
    assert swept(site, 2) == [f"trash/{digest}"]
    assert not site.store.in_trash(digest).exists()


@pytest.mark.parametrize("jump", [365 * 86400.0, -365 * 86400.0])
def test_a_clock_that_jumps_makes_nothing_old_at_once(small_site: SiteKit, jump: float) -> None:
    digest, _ = small_site.store.put([b"young"])
    (small_site.store.folder / "staging" / "upload").write_bytes(b"on its way")
    assert swept(small_site, 1) == []
    pass_by(small_site, jump)
    assert swept(small_site) == []
    assert small_site.store.path(digest).exists()
    assert (small_site.store.folder / "staging" / "upload").exists()
    assert len(swept(small_site, 25)) == 2  # its time goes on afterwards


def test_bytes_that_come_again_are_young_again(small_site: SiteKit) -> None:
    digest, _ = small_site.store.put([b"twice"])
    assert swept(small_site, 23) == []
    assert small_site.store.put([b"twice"])[0] == digest
    assert swept(small_site, 20) == []
    assert small_site.store.path(digest).exists()


def test_needed_bytes_come_back_from_the_trash(small_site: SiteKit) -> None:
    digest, size = small_site.store.put([b"needed after all"])
    swept(small_site, 25)
    assert small_site.store.in_trash(digest).exists()
    with small_site.database.write() as session:
        attach(session, "job-1", "late", digest, size, "text/plain")
    assert b"".join(small_site.store.read(digest)) == b"needed after all"
    small_site.store.in_trash(digest).parent.mkdir(exist_ok=True)
    small_site.store.path(digest).rename(small_site.store.in_trash(digest))
    swept(small_site)
    assert small_site.store.path(digest).exists()


def test_a_crash_between_sweeps_forgets_no_age(small_site: SiteKit) -> None:
    digest, _ = small_site.store.put([b"orphan"])
    swept(small_site, 20)
    again = Database(small_site.settings.database)  # another process
    small_site.database, before = again, small_site.database
    assert len(swept(small_site, 5)) == 1
    assert small_site.store.in_trash(digest).exists()
    small_site.database = before
    again.close()


@pytest.fixture
def older(small_site: SiteKit, tmp_path: Path) -> Iterator[SiteKit]:
    """A site whose database file was copied back from before its newest 36 checkpoints."""
    keep(small_site, b"old")
    record(small_site, "before the backup")
    sweep.remember(small_site.database, small_site.settings)
    small_site.database.close()
    file = Path(str(small_site.settings.database.database))
    shutil.copy(file, tmp_path / "copy.db")
    for i in range(36):
        keep(small_site, f"checkpoint {i}".encode())
    record(small_site, "after the backup")
    (small_site.settings.work_folder / "job-of-the-future" / "attempt-1").mkdir(parents=True)
    sweep.remember(small_site.database, small_site.settings)
    small_site.database.close()
    for path in file.parent.glob(f"{file.name}*"):
        path.unlink()
    shutil.copy(tmp_path / "copy.db", file)
    return small_site


def test_an_older_database_deletes_nothing_until_it_is_confirmed(older: SiteKit) -> None:
    assert len(list(older.store.folder.glob("sha256/??/*"))) == 37
    assert swept(older, 30) == []
    assert len(list(older.store.folder.glob("sha256/??/*"))) == 37
    assert tidy(older.database, older.settings) == 0
    record(older, "life goes on, in another direction")
    sweep.remember(older.database, older.settings)
    with older.database.read() as session:
        assert "older than the artifacts" in str(sweep.unconfirmed(session, older.store))
    with pytest.raises(Refusal) as caught:
        sweep.empty(older.database, older.store, "admin")
    assert caught.value.code == "restore_unconfirmed"
    assert swept(older, 2) == []

    assert sweep.confirm(older.database, older.settings, "admin") == []
    assert swept(older, 23) == []  # time begins with the confirmation
    assert len(swept(older, 2)) == 36
    assert len(list(older.store.folder.glob("trash/*"))) == 36
    assert tidy(older.database, older.settings) == 1
    assert "artifacts.confirm" in actions(older)


def test_the_newer_database_brings_everything_back(older: SiteKit) -> None:
    sweep.confirm(older.database, older.settings, "admin")
    swept(older, 25)
    digests = sweep.restore(older.database, older.store, "admin")
    assert len(digests) == 36
    assert swept(older, 20) == []
    assert actions(older).count("artifacts.restore") == 36
    swept(older, 5)
    one = digests[0]
    assert sweep.restore(older.database, older.store, "admin", [one[:12]]) == [one]
    with pytest.raises(Refusal, match="0 files"):
        sweep.restore(older.database, older.store, "admin", ["f" * 64])
    count, size = sweep.empty(older.database, older.store, "admin")
    assert (count, size > 0) == (35, True)
    assert actions(older)[-1] == "artifacts.empty"
    assert older.store.path(one).exists()


def test_a_note_that_cannot_be_read_holds_everything(small_site: SiteKit) -> None:
    small_site.store.put([b"orphan"])
    (small_site.store.folder / ".relay-known").write_bytes(b"\0\0")
    assert swept(small_site, 30) == []


def test_an_older_postgresql_deletes_nothing(site: SiteKit) -> None:
    """A dump that was restored lacks rows that the artifacts know: here the note is of rows that never were."""
    record(site, "one")
    sweep.remember(site.database, site.settings)
    digest = keep(site, b"x")
    note = site.store.folder / ".relay-known"
    note.write_text(note.read_text().replace('"seq": 1', '"seq": 7'))
    let_go(site)
    assert swept(site, 30) == []
    assert site.store.path(digest).exists()


def test_what_nobody_needs_is_listed_with_size_and_age(small_site: SiteKit) -> None:
    digest, _ = small_site.store.put([b"orphan"])
    needed = keep(small_site, b"gone")
    small_site.store.path(needed).unlink()
    swept(small_site, 2)
    (entry,) = sweep.unused(small_site.database, small_site.store)
    assert (entry.name, entry.size) == (f"sha256/{digest[:2]}/{digest[2:]}", 6)
    assert entry.age == pytest.approx(2 * HOUR, abs=60)
    with small_site.database.read() as session:
        assert sweep.missing(session, small_site.store) == [needed]
        assert list(attached(session, "job-1")) == ["gone"]

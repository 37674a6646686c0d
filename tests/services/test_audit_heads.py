"""Signed heads of the audit log: what a rewritten, a shortened and a foreign log look like beside them."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import select, text

from relay_core.bundle.keys import KeyFolder
from services.site import audit, audit_heads
from services.site.audit_heads import FILE
from services.site.db.models import AuditRecord
from services.site.errors import Refusal
from tests.services.conftest import SiteKit

PASSPHRASE = "a passphrase of a test"


@pytest.fixture
def sealed(small_site: SiteKit, monkeypatch: pytest.MonkeyPatch) -> SiteKit:
    """A site with a key and five rows, the third and the fifth of which were signed."""
    monkeypatch.setenv("RELAY_KEY_PASSPHRASE", PASSPHRASE)
    KeyFolder(small_site.settings.keys_folder).create("here", PASSPHRASE)
    for count in (3, 2):
        add(small_site, count)
        assert seal(small_site)
    return small_site


def add(site: SiteKit, count: int) -> None:
    """Add rows to the log."""
    with site.database.write() as session:
        for i in range(count):
            audit.record(session, "me", "test", str(i))


def seal(site: SiteKit) -> dict | None:
    """Sign, as if the last time were long ago."""
    site.settings.heads_seconds = 0.0
    return audit_heads.seal(site.database, site.settings)


def rewrite(site: SiteKit, rows: int, actor: str) -> None:
    """What the database's owner can do: all rows anew, with hashes that fit."""
    with site.database.write() as session:
        for name in ("audit_no_update", "audit_no_delete", "audit_no_replace"):
            session.execute(text(f"DROP TRIGGER {name}"))
        session.execute(text("DELETE FROM audit"))
        session.expire_all()
        for i in range(rows):
            audit.record(session, actor, "test", str(i))


def heads(site: SiteKit) -> list[str]:
    """The lines of the file."""
    return (site.settings.heads_folder / FILE).read_text().splitlines()


def verify(site: SiteKit, *arguments: str) -> subprocess.CompletedProcess:
    """`relay audit verify`."""
    command = [sys.executable, "-m", "relay_core", "audit", "verify", "--home", str(site.settings.home), *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def checked(site: SiteKit) -> tuple[int, str]:
    """The same without a process."""
    signed, _ = audit_heads.read(site.settings.heads_folder / FILE, [KeyFolder(site.settings.keys_folder).card])
    with site.database.read() as session:
        return audit.verify(session, signed=signed)


def test_a_whole_log_fits_its_signed_heads(sealed: SiteKit) -> None:
    assert checked(sealed)[0] == 5
    done = verify(sealed)
    assert done.returncode == 0, done.stderr
    assert "2 signed heads fit, the last of row 5" in done.stdout
    assert seal(sealed) is None  # no row was added
    sealed.settings.heads_seconds = 300.0
    add(sealed, 1)
    assert audit_heads.seal(sealed.database, sealed.settings) is None  # not yet due
    assert len(heads(sealed)) == 2


@pytest.mark.parametrize(
    ("rows", "actor", "said"),
    [(5, "you", "the log was rewritten: row 3"), (9, "you", "the log was rewritten: row 3"), (2, "me", "cut off")],
)
def test_a_log_rewritten_whole_shows(sealed: SiteKit, rows: int, actor: str, said: str) -> None:
    rewrite(sealed, rows, actor)
    with sealed.database.read() as session:
        assert audit.verify(session)[0] == rows  # the chain by itself is whole
    with pytest.raises(Refusal, match=said) as caught:
        checked(sealed)
    assert caught.value.code == "audit_broken"
    with pytest.raises(Refusal, match="is not the one whose hash was signed"):  # and no worker signs the new one
        seal(sealed)
    assert len(heads(sealed)) == 2


def test_the_command_says_what_does_not_fit(sealed: SiteKit, tmp_path: Path) -> None:
    shipped = shutil.copy(sealed.settings.heads_folder / FILE, tmp_path / "shipped.jsonl")
    card = shutil.copy(sealed.settings.keys_folder / "card.json", tmp_path / "card.json")
    rewrite(sealed, 5, "you")
    shutil.rmtree(sealed.settings.heads_folder)  # whoever has the whole machine removes the file too
    done = verify(sealed, "--json")
    assert (done.returncode, json.loads(done.stdout)["signed_heads"]) == (0, 0)
    done = verify(sealed, "--heads", str(shipped), "--card", str(card))
    assert done.returncode == 1
    assert "the log was rewritten: row 3 is not the one whose hash this site signed at 20" in done.stderr


def test_a_head_of_a_key_that_is_not_the_sites_is_not_believed(sealed: SiteKit, tmp_path: Path) -> None:
    stranger = KeyFolder(tmp_path / "stranger")
    stranger.create("stranger", PASSPHRASE)
    rewrite(sealed, 5, "you")
    shutil.rmtree(sealed.settings.heads_folder)
    own, sealed.settings.keys = sealed.settings.keys_folder, stranger.folder
    assert seal(sealed)
    sealed.settings.keys = own
    with pytest.raises(Refusal, match=r"line 1 of audit-heads\.jsonl was signed with the key .* whose card was not given"):
        checked(sealed)


def test_a_changed_head_is_found_and_a_torn_line_is_said(sealed: SiteKit) -> None:
    file = sealed.settings.heads_folder / FILE
    whole = file.read_bytes()
    file.write_bytes(whole[:-40])  # the power went while the second was written
    add(sealed, 1)
    assert seal(sealed)
    signed, torn = audit_heads.read(file, [KeyFolder(sealed.settings.keys_folder).card])
    assert ([head["seq"] for head in signed], torn) == ([3, 6], 1)
    first, *others = whole.decode().splitlines()
    line = json.loads(first)
    line["payload"] = json.loads(others[0])["payload"]
    file.write_text(json.dumps(line) + "\n")
    with pytest.raises(Refusal, match="was changed after it was signed"):
        checked(sealed)


def test_a_site_without_a_key_signs_nothing(small_site: SiteKit) -> None:
    add(small_site, 1)
    assert seal(small_site) is None
    assert not small_site.settings.heads_folder.exists()


def test_a_head_goes_to_syslog_where_that_is_set(sealed: SiteKit) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as syslog:
        syslog.bind(("127.0.0.1", 0))
        syslog.settimeout(10)
        sealed.settings.heads_syslog = f"127.0.0.1:{syslog.getsockname()[1]}"
        add(sealed, 1)
        assert seal(sealed)
        message = syslog.recv(65536).decode().rstrip("\0")
    assert message.startswith("<38>relay audit head {")
    assert len(message) < 1024  # what every syslog takes in one datagram
    assert message.endswith(heads(sealed)[-1])


def test_a_head_that_could_not_be_sent_goes_with_the_next(sealed: SiteKit, caplog: pytest.LogCaptureFixture) -> None:
    address = sealed.settings.home / "syslog.sock"
    sealed.settings.heads_syslog = str(address)
    for _ in range(2):  # nobody listens yet
        add(sealed, 1)
        assert seal(sealed)
    assert "head of row 7 is signed, in" in caplog.text
    assert "was not sent to" in caplog.text
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.bind(str(address))
        syslog.settimeout(10)
        for count in (3, 1):
            add(sealed, 1)
            assert seal(sealed)
            sent = [syslog.recv(65536).decode().rstrip("\0").partition("relay audit head ")[2] for _ in range(count)]
            assert sent == heads(sealed)[-count:]
        syslog.setblocking(False)
        with pytest.raises(BlockingIOError):
            syslog.recv(65536)


def test_a_worker_signs_by_itself(sealed: SiteKit) -> None:
    from services.trainer.worker_loop import WorkerLoop
    from tests.services.processes import until

    shutil.rmtree(sealed.settings.heads_folder)
    station = WorkerLoop(sealed.settings, lambda: False)
    until(lambda: (sealed.settings.heads_folder / FILE).is_file() and heads(sealed), 20, "a head is signed")
    station.close()
    with sealed.database.read() as session:
        assert session.scalars(select(AuditRecord)).all()
    assert checked(sealed)[0] >= 5

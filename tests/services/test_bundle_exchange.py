"""A model is handed from one site to the next, with real bundles at toy size."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from relay_core.bundle.keys import KeyFolder
from services.site import audit, bundle_exchange, inbox, job_plans, jobs
from services.site.artifacts import attached
from services.site.db.models import AuditRecord, Bundle, Checkpoint, Evaluation
from services.site.dispatch import Silent
from services.site.errors import Refusal
from services.site.inbox import Inbox
from services.site.settings import load_settings
from services.site.sweep import sweep
from services.trainer.work import environment
from services.trainer.worker_loop import WorkerLoop
from tests.conftest import Toy
from tests.services.conftest import SiteKit, open_site

PASSPHRASE = "a passphrase of a test"


@dataclass
class Hospital:
    """A site with a worker, a key and the run."""

    site: SiteKit
    station: WorkerLoop
    keys: KeyFolder
    run: str
    first: str = ""
    """Checkpoint of its first site."""
    built: Bundle | None = None
    """The export of that."""

    def done(self, job_id: str) -> dict:
        """Work until a job is done; its result."""
        while self.station.work_once():
            pass
        job = self.site.job(job_id)
        assert (job.state, job.error) == ("succeeded", None)
        return job.result

    def submit(self, kind: str, made: job_plans.JobPlan) -> str:
        with self.site.database.write() as session:
            return jobs.submit(
                session, kind=kind, params=made.params, actor="test", key=None, body={}, gpus=made.gpus, run_id=made.run_id,
                checkpoint_id=made.checkpoint_id,
            )[0].id  # fmt: skip

    def train(self, number: int) -> str:
        """Train a site; its checkpoint."""
        with self.site.database.read() as session:
            made = job_plans.train(session, self.run, site=number)
        return self.done(self.submit("train", made))["checkpoints"][0]

    def export(self, checkpoint_id: str, **options: object) -> Bundle:
        with self.site.database.read() as session:
            made = job_plans.export(session, checkpoint_id, **options)
        return self.row(self.done(self.submit("export", made))["bundle"])

    def file(self, row: Bundle) -> Path:
        return self.site.store.path(row.digest)

    def bring(self, file: Path, purpose: str = "train", key: str | None = None) -> Bundle:
        """Take a file in, and verify it."""
        digest, size = self.site.store.put_file(file)
        with self.site.database.write() as session:
            row, _ = bundle_exchange.receive(
                session, digest, size, purpose=purpose, actor="test", key=key or os.urandom(4).hex(), queue_limit=100
            )
        while self.station.work_once():
            pass
        return self.row(row.id)

    def row(self, bundle_id: str) -> Bundle:
        with self.site.database.read() as session:
            return session.get_one(Bundle, bundle_id)

    def accept(self, row: Bundle) -> Bundle:
        with self.site.database.write() as session:
            lately = self.site.settings.lately
            return bundle_exchange.accept(session, self.site.store, row.id, "head of clinic", lately)

    def refused(self, row: Bundle) -> str:
        """The code that an import was refused with."""
        assert row.shown == "refused", self.site.job(row.job_id).error
        return self.site.job(row.job_id).error["code"]

    def files(self, row: Bundle) -> set[str]:
        with self.site.database.read() as session:
            return set(attached(session, row.id))

    def actions(self, subject: str) -> list[str]:
        with self.site.database.read() as session:
            audit.verify(session)
            rows = select(AuditRecord.action).where(AuditRecord.subject == subject)
            return list(session.scalars(rows.order_by(AuditRecord.seq)))

    def trust(self, other: "Hospital") -> None:
        roster = self.keys.roster
        roster.trust(other.keys.card)
        self.keys.save(roster)


@contextmanager
def hospital(name: str, folder: Path, toy: Toy) -> Iterator[Hospital]:
    """A site in a folder of its own."""
    settings = load_settings(
        embedded=True, home=folder / name, data_root=toy.data, device="cpu", beat=0.5, lease=12.0, min_free_mib=1
    )
    with open_site(settings) as site:
        keys = KeyFolder(settings.keys_folder)
        keys.create(name, PASSPHRASE)
        made = Hospital(site, WorkerLoop(settings, lambda: False), keys, site.add_run(toy.write()).id)
        yield made
        made.station.close()


@pytest.fixture(autouse=True)
def _passphrase(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAY_KEY_PASSPHRASE", PASSPHRASE)


@pytest.fixture(scope="module")
def north(tmp_path_factory: pytest.TempPathFactory, phantom_data: Path) -> Iterator[Hospital]:
    """The first hospital, which has trained and exported its site."""
    folder = tmp_path_factory.mktemp("north")
    with pytest.MonkeyPatch.context() as patch, hospital("north", folder, Toy(phantom_data, folder)) as made:
        patch.setenv("RELAY_KEY_PASSPHRASE", PASSPHRASE)
        patch.setenv("OMP_NUM_THREADS", "1")
        made.first = made.train(1)
        made.built = made.export(made.first)
        yield made


@pytest.fixture
def south(tmp_path: Path, toy: Toy, north: Hospital) -> Iterator[Hospital]:
    """The second hospital, as it is before anything was brought; the two trust each other."""
    with hospital("south", tmp_path, toy) as made:
        made.trust(north)
        north.trust(made)
        yield made


def test_a_model_goes_from_north_to_south_and_on(north: Hospital, south: Hospital, tmp_path: Path) -> None:
    first, built = north.first, north.built
    assert (built.direction, built.state, built.checkpoint_id, built.purpose) == ("export", "built", first, None)
    assert built.facts["file_sha256"] == built.digest
    assert north.files(built) == {"bundle.relay", "provenance.json", "manifest.json", "history.json", "MODEL_CARD.md"}
    assert north.actions(built.id) == ["export.build"]

    with south.site.database.read() as session, pytest.raises(Refusal, match="left no checkpoint"):
        job_plans.train(session, south.run, site=2)
    row = south.bring(north.file(built))
    assert (row.shown, row.run_id, row.content_digest) == ("quarantined", south.run, built.content_digest)
    with south.site.database.read() as session:  # what waits is used by nothing
        assert session.scalars(select(Checkpoint)).all() == []
    accepted = south.accept(row)
    assert accepted.decided_by == "head of clinic"
    assert south.files(accepted) == {"bundle.relay", "provenance.json", "manifest.json", "history.json", "MODEL_CARD.md"}
    with south.site.database.read() as session:
        base = session.get_one(Checkpoint, accepted.checkpoint_id)
        assert (base.task_id, base.site, base.parent_id, base.job_id) == (1, "Domain1", None, row.job_id)
        (decision,) = session.scalars(select(AuditRecord).where(AuditRecord.action == "import.accept"))
    assert decision.detail["signer"] == north.keys.card.fingerprint
    assert decision.detail["digest"] == built.content_digest
    assert south.actions(row.id) == ["import.receive", "import.quarantine", "import.accept"]
    with south.site.database.write() as session, pytest.raises(Refusal, match="is accepted"):
        bundle_exchange.reject(session, row.id, "me", "too late")

    with south.site.database.read() as session, pytest.raises(Refusal, match="was brought here") as caught:
        job_plans.export(session, base.id)
    assert caught.value.code == "conflict"
    second = south.train(2)
    onward = south.export(second, recipient="north", half=True)
    assert (onward.facts["hop"], onward.facts["parent"]) == (2, built.content_digest)
    assert onward.facts["recipient"] == north.keys.card.fingerprint
    assert [hop["signer"] for hop in onward.facts["history"]] == ["north", "south"]
    scored = north.bring(south.file(onward), purpose="evaluate")
    assert scored.shown == "quarantined", north.site.job(scored.job_id).error


def test_what_cannot_be_believed_is_refused_and_let_go(north: Hospital, south: Hospital, tmp_path: Path) -> None:
    file = north.file(north.built)
    with (tmp_path / "changed.relay").open("wb") as changed:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        changed.write(content)
    refused = south.bring(tmp_path / "changed.relay")
    assert south.refused(refused) == "signature_invalid"
    assert south.files(refused) == set()
    assert south.actions(refused.id) == ["import.receive", "import.refuse"]
    text = str(south.site.job(refused.job_id).error)
    assert str(south.site.settings.home) not in text

    south.keys.save(type(south.keys.roster)([]))
    stranger = south.bring(file)
    assert south.refused(stranger) == "signer_unknown"
    south.trust(north)  # who trusts the key now lets the same job look again
    with south.site.database.write() as session:
        jobs.retry(session, stranger.job_id, "test")
        assert session.get_one(Bundle, stranger.id).shown == "verifying"
    while south.station.work_once():
        pass
    stranger = south.row(stranger.id)
    assert stranger.shown == "quarantined"
    again = south.bring(file)
    assert south.refused(again) == "bundle_used"
    south.accept(stranger)
    assert south.refused(south.bring(file)) == "bundle_used"
    with south.site.database.write() as session, pytest.raises(Refusal, match="only a quarantined"):
        bundle_exchange.accept(session, south.site.store, again.id, "me", south.site.settings.lately)


def test_a_rejected_import_leaves_its_words_alone(north: Hospital, south: Hospital) -> None:
    row = south.bring(north.file(north.built))
    with south.site.database.write() as session:
        bundle_exchange.reject(session, row.id, "head of clinic", "not today")
    row = south.row(row.id)
    assert (row.shown, row.reason, row.decided_by) == ("rejected", "not today", "head of clinic")
    assert row.facts["signer"]["name"] == "north"
    assert south.files(row) == set()
    assert sweep(south.site.database, south.site.settings) == []  # gives them a day
    assert south.site.store.path(row.digest).exists()
    sweep(south.site.database, south.site.settings, grace=0)
    assert not south.site.store.path(row.digest).exists()
    assert south.actions(row.id)[-1] == "import.reject"


def test_a_model_that_came_to_be_scored_is_not_trained_on(north: Hospital, south: Hospital) -> None:
    file = north.file(north.built)
    row = south.accept(south.bring(file, purpose="evaluate"))
    with south.site.database.read() as session, pytest.raises(Refusal, match="left no checkpoint"):
        job_plans.train(session, south.run, site=2)
    with south.site.database.read() as session, pytest.raises(Refusal, match="to be scored"):
        job_plans.train(session, south.run, site=2, checkpoint_id=row.checkpoint_id)
    with south.site.database.read() as session:
        made = job_plans.evaluate(session, row.checkpoint_id)
    evaluation = south.done(south.submit("evaluate", made))["evaluation"]
    with south.site.database.read() as session:
        made = job_plans.report(session, evaluation)
    assert south.done(south.submit("report", made)) == {"report": evaluation}
    with south.site.database.read() as session:
        report = attached(session, evaluation)["report.json"]
    assert b"".join(south.site.store.read(report.digest))
    assert south.actions(evaluation) == ["report.sign"]
    trained = south.bring(file)  # the same model may come for training too
    assert trained.shown == "quarantined", south.site.job(trained.job_id).error
    south.accept(trained)
    with south.site.database.read() as session:
        made = job_plans.train(session, south.run, site=2)
    assert made.checkpoint_id == south.row(trained.id).checkpoint_id


def test_each_hop_is_exported_after_the_one_before(north: Hospital) -> None:
    second = north.train(2)
    with north.site.database.write() as session:  # as if the first had been trained anew, and not exported
        session.get_one(Checkpoint, second).parent_id = other = _copy(session, north.first)
    with north.site.database.read() as session, pytest.raises(Refusal, match="export that one first") as caught:
        job_plans.export(session, second)
    assert caught.value.code == "bundle_incomplete"
    assert other in str(caught.value)
    with north.site.database.write() as session:
        session.get_one(Checkpoint, second).parent_id = north.first
    assert north.export(second).facts["hop"] == 2
    with north.site.database.read() as session:
        evaluation = session.scalars(select(Evaluation).order_by(Evaluation.id.desc())).first()
        made = job_plans.report(session, evaluation.id)
    north.done(north.submit("report", made))


def _copy(session: Session, checkpoint_id: str) -> str:
    row = session.get_one(Checkpoint, checkpoint_id)
    names = ("run_id", "job_id", "task_id", "site", "step", "digest", "content_digest")
    copy = Checkpoint(**{name: getattr(row, name) for name in names})
    session.add(copy)
    session.flush()
    return copy.id


def test_a_key_that_does_not_open_is_said(north: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAY_KEY_PASSPHRASE", "another passphrase")
    with north.site.database.read() as session:
        made = job_plans.export(session, north.first)
    job_id = north.submit("export", made)
    north.station.work_once()
    assert north.site.job(job_id).error["code"] == "key_locked"


def test_only_what_signs_or_verifies_is_told_the_passphrase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAY_DATABASE_PASSWORD", "secret")
    assert not any(name.startswith("RELAY_") for name in environment(()))
    told = {name: value for name, value in environment((), tmp_path).items() if name.startswith("RELAY_")}
    assert told == {"RELAY_KEYS": str(tmp_path), "RELAY_KEY_PASSPHRASE": PASSPHRASE}


def make_inbox(site: SiteKit, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Inbox:
    monkeypatch.setattr(inbox, "STABLE", 0.0)
    return Inbox(folder, site.database, Silent(), site.settings)


def imports(site: SiteKit) -> list[Bundle]:
    with site.database.read() as session:
        return list(session.scalars(select(Bundle).order_by(Bundle.id)))


def test_a_file_in_the_inbox_is_imported_once(site: SiteKit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.settings.min_free_mib = 1
    folder = tmp_path / "inbox"
    one, other = make_inbox(site, folder, monkeypatch), make_inbox(site, folder, monkeypatch)
    assert one.look() == []
    file = folder / "from north.relay"
    file.write_bytes(b"half")
    assert one.look() == other.look() == []  # seen for the first time
    file.write_bytes(b"half and half")
    assert one.look() == []  # it changed
    shutil.copy2(file, tmp_path / "copy")
    (taken,) = one.look()
    assert other.look() == []
    (row,) = imports(site)
    assert (row.id, row.created_by, row.purpose, row.shown) == (taken, "inbox", "train", "verifying")
    assert b"".join(site.store.read(row.digest)) == b"half and half"
    assert [path.name for path in folder.iterdir()] == ["taken"]
    shutil.copy2(tmp_path / "copy", file)  # with the same time: what a worker that was killed before moving it leaves
    assert other.look() == other.look() == []
    assert len(imports(site)) == 1
    assert len(list((folder / "taken").iterdir())) == 1


def test_the_inbox_takes_files_and_nothing_else(
    small_site: SiteKit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_site.settings.min_free_mib, small_site.settings.max_bundle_mib = 1, 1
    folder = tmp_path / "inbox"
    watched = make_inbox(small_site, folder, monkeypatch)
    watched.look()
    (tmp_path / "secret").write_bytes(b"secret")
    (folder / "link.relay").symlink_to(tmp_path / "secret")
    (folder / ".copying.relay").write_bytes(b"x")
    (folder / "empty.relay").touch()
    (folder / "letter.txt").write_bytes(b"x")
    (folder / "folder.relay").mkdir()
    os.mkfifo(folder / "pipe.relay")
    (folder / "large.relay").write_bytes(bytes((1 << 20) + 1))
    left = {path.name for path in folder.iterdir()} - {"large.relay"}
    assert watched.look() == watched.look() == []
    assert imports(small_site) == []
    assert {path.name for path in folder.iterdir()} == left | {"refused"}
    with small_site.database.read() as session:
        (row,) = session.scalars(select(AuditRecord))
    assert (row.action, row.subject, row.actor) == ("inbox.refuse", "large.relay", "inbox")


def test_the_inbox_waits_for_room(small_site: SiteKit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "inbox"
    watched = make_inbox(small_site, folder, monkeypatch)
    watched.look()
    (folder / "a.relay").write_bytes(b"a")
    small_site.settings.min_free_mib = 1 << 40
    assert watched.look() == watched.look() == []
    assert (folder / "a.relay").exists()
    small_site.settings.min_free_mib = 1
    assert len(watched.look()) == 1

"""Define the tables of a site's database.

All times are seconds since 1970 by the database's own clock, so that machines need not agree on theirs.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    ColumnElement,
    Float,
    ForeignKey,
    Index,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    and_,
    case,
    exists,
    func,
    or_,
    select,
    text,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, column_property, mapped_column
from sqlalchemy.sql.functions import FunctionElement

_newest, _counting = 0, threading.Lock()


def new_id(prefix: str, above: str | None = None) -> str:
    """Return an id such as `job-018f...`: 12 hex digits of milliseconds, then 16 random ones; later ids sort later.

    It sorts after `above` too, which a clock that ran ahead may have made.
    """
    global _newest  # noqa: PLW0603
    earlier = int(above.rpartition("-")[2], 16) if above is not None else 0
    with _counting:
        least = max(_newest, earlier) + 1 + secrets.randbits(32)
        _newest = max(int(time.time() * 1000) << 64 | secrets.randbits(64), least)
        return f"{prefix}-{_newest:028x}"


def _rising(prefix: str) -> Callable[[Any], str]:
    """Return a column's default: an id that sorts after all that are in the table, also where the clock was set back."""

    def make(context: Any) -> str:
        column = context.compiled.statement.table.c.id
        return new_id(prefix, context.connection.scalar(select(func.max(column)).where(column.like(f"{prefix}-%"))))

    return make


class clock(FunctionElement[float]):
    """Stands in SQL for the database's time, in seconds since 1970."""

    type = Float()
    inherit_cache = True


@compiles(clock, "sqlite")
def _sqlite_clock(element: clock, compiler: Any, **kwargs: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(clock, "postgresql")
def _postgresql_clock(element: clock, compiler: Any, **kwargs: Any) -> str:
    return "extract(epoch from clock_timestamp())::float8"


def now(session: Session) -> float:
    """Return the database's time at this moment, in seconds since 1970."""
    return float(session.scalar(select(clock())) or 0.0)


SLACK = 5.0
"""Seconds by which a time may lie ahead of the database's clock before the clock counts as set back."""


def passed(deadline: Any, written: Any) -> ColumnElement[bool]:
    """Return the SQL condition that a deadline is over, which was written at the moment `written`.

    One that was written at a moment which the clock has yet to reach is over too: the clock was set back since.
    """
    return or_(deadline < clock(), written > clock() + SLACK)


def lately(moment: Any, seconds: Any) -> ColumnElement[bool]:
    """Return the SQL condition that a moment is one of the last `seconds`, and none that the clock has yet to reach."""
    return and_(moment >= clock() - seconds, moment <= clock() + SLACK)


class Base(DeclarativeBase):
    """Serves as the base class of all tables; it gives constraints names, so that a migration can change them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_N_label)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {dict[str, Any]: JSON, list[Any]: JSON}  # noqa: RUF012


class Artifact(Base):
    """Records that bytes are in the content-addressed store."""

    __tablename__ = "artifacts"
    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    """SHA-256 of the bytes, in hex."""
    size: Mapped[int] = mapped_column(BigInteger)
    """Number of bytes."""
    media_type: Mapped[str] = mapped_column(String(100))
    created_at: Mapped[float] = mapped_column(default=clock())


class Attachment(Base):
    """Records that a row needs stored bytes under a name: `job-.../samples.png`.

    Bytes that no attachment, checkpoint or model names are garbage.
    """

    __tablename__ = "attachments"
    owner: Mapped[str] = mapped_column(String(64), primary_key=True)
    """Id of the row that needs the bytes, in whatever table."""
    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    digest: Mapped[str] = mapped_column(ForeignKey("artifacts.digest"), index=True)


class Unneeded(Base):
    """Records for how long a file of the store has been seen needed by nobody; what is needed again loses its row."""

    __tablename__ = "unneeded"
    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    """Path of the file below the store, such as `trash/ab12...`."""
    mtime_ns: Mapped[int] = mapped_column(BigInteger)
    """Modification time in ns: with another one it is another file, whose time begins anew. It is compared with no clock."""
    let_go: Mapped[bool]
    """Whether a row of this database named the file before, so that letting it go was decided here."""
    age: Mapped[float] = mapped_column(default=0.0)
    """Seconds, as the sweeps counted them one by one: a clock that jumps adds little."""
    seen_at: Mapped[float] = mapped_column(default=clock())


class Volume(Base):
    """Records that a volume of this site was marked; from then on its mark must be there."""

    __tablename__ = "volumes"
    name: Mapped[str] = mapped_column(String(20), primary_key=True)
    """Name of the volume: artifacts or work."""
    site: Mapped[str] = mapped_column(String(64))
    """Id of the site, the same for all its volumes, which the mark holds too."""


class Dataset(Base):
    """Registers a folder of labelled images below the site's data root."""

    __tablename__ = "datasets"
    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=_rising("dataset"))
    name: Mapped[str] = mapped_column(String(100), unique=True)
    """Name of the data set; it is the default data set of every run's site whose task_name is the same."""
    path: Mapped[str] = mapped_column(String(500))
    """Path of the folder, relative to the data root."""
    layout: Mapped[str] = mapped_column(String(50))
    """Kind of the data set, as a run file calls it: fundus, folder."""
    options: Mapped[dict[str, Any]]
    """Options of this kind of data set: its kwargs in a run file."""
    note: Mapped[str] = mapped_column(Text, default="")
    report: Mapped[dict[str, Any] | None]
    """Result of the last preflight job; None before the first."""
    version: Mapped[int] = mapped_column(default=1)
    created_at: Mapped[float] = mapped_column(default=clock())


class Run(Base):
    """Keeps the run file that all sites of a relay share."""

    __tablename__ = "runs"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    """SHA-256 of what the sites share, and so the same at every site of the relay."""
    name: Mapped[str] = mapped_column(String(100))
    content: Mapped[str] = mapped_column(Text)
    """Canonical YAML of the run file, which needs no other file."""
    strategy: Mapped[str] = mapped_column(String(50))
    sites: Mapped[list[Any]]
    """{task_id, name, trained} of each site, in the order of the relay; `trained`: whether it trains or only tests."""
    site: Mapped[int | None]
    """task_id of this site among them; None: not set."""
    version: Mapped[int] = mapped_column(default=1)
    created_at: Mapped[float] = mapped_column(default=clock())


class Job(Base):
    """Records a job and its state. This row is the truth; a message in the queue only says that there is a job."""

    __tablename__ = "jobs"
    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=_rising("job"))
    kind: Mapped[str] = mapped_column(String(30))
    state: Mapped[str] = mapped_column(String(20), default="queued")
    params: Mapped[dict[str, Any]]
    run_id: Mapped[str | None] = mapped_column(ForeignKey("runs.id"), index=True)
    checkpoint_id: Mapped[str | None] = mapped_column(String(64), index=True)
    """Id of the checkpoint that the job starts from or reads (no foreign key: checkpoints name their jobs)."""
    gpus: Mapped[int] = mapped_column(default=0)
    """Number of devices that the job takes: 0 or more."""
    created_by: Mapped[str] = mapped_column(String(200))
    idempotency_key: Mapped[str | None] = mapped_column(String(200))
    body_digest: Mapped[str | None] = mapped_column(String(64))

    attempt: Mapped[int] = mapped_column(default=0)
    """Fencing token: it rises with every claim, and a write with an older one changes nothing."""
    tries: Mapped[int] = mapped_column(default=0)
    """Number of attempts since a person submitted or retried the job."""
    worker: Mapped[str | None] = mapped_column(String(200))
    lease_until: Mapped[float | None]
    leased_at: Mapped[float | None]
    """The moment at which the lease was last renewed; None: a version before wrote it."""
    not_before: Mapped[float | None]
    """Time before which no worker may claim the job, after a crash; None: it may be claimed at once."""
    rung_at: Mapped[float | None]
    """Time when the doorbell last rang for the job."""
    events: Mapped[int] = mapped_column(default=0)
    """Number of the job's events."""

    progress: Mapped[dict[str, Any] | None]
    """{site, step, steps, images_per_second, eta_seconds} of a training's last step; other jobs: {step, steps}."""
    result: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]
    """{code, message} of the error of a failed job."""
    created_at: Mapped[float] = mapped_column(default=clock())
    queued_at: Mapped[float] = mapped_column(default=clock())
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]

    __table_args__ = (
        UniqueConstraint("created_by", "idempotency_key"),
        Index("ix_jobs_queue", "state", "queued_at"),
        CheckConstraint("state IN ('queued', 'running', 'cancelling', 'succeeded', 'failed', 'cancelled')", name="state"),
    )


class JobEvent(Base):
    """Records one event of a job, numbered by `seq` from 1."""

    __tablename__ = "job_events"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    attempt: Mapped[int]
    at: Mapped[float] = mapped_column(default=clock())
    data: Mapped[dict[str, Any]]


class Metric(Base):
    """Holds one value of a series of a training. A step that a resumed attempt repeats replaces the earlier value."""

    __tablename__ = "metrics"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    site: Mapped[str] = mapped_column(String(100), primary_key=True)
    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[float]
    attempt: Mapped[int]


class Checkpoint(Base):
    """Records a checkpoint, made by a training here or imported, which the relay goes on from."""

    __tablename__ = "checkpoints"
    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=_rising("checkpoint"))
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), index=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    parent_id: Mapped[str | None] = mapped_column(ForeignKey("checkpoints.id"), index=True)
    """Id of the checkpoint of the site before that the training started from; None: it started from nothing."""
    task_id: Mapped[int]
    site: Mapped[str] = mapped_column(String(100))
    step: Mapped[int]
    steps: Mapped[int | None]
    """Steps of the whole training; None where an older version wrote the row, of a finished training."""
    digest: Mapped[str] = mapped_column(ForeignKey("artifacts.digest"))
    content_digest: Mapped[str] = mapped_column(String(64))
    """Digest that the file itself holds, over its tensors and settings."""
    pinned: Mapped[bool] = mapped_column(default=False)
    note: Mapped[str] = mapped_column(Text, default="")
    version: Mapped[int] = mapped_column(default=1)
    created_at: Mapped[float] = mapped_column(default=clock())

    @property
    def finished(self) -> bool:
        """Return whether the training did all its steps; otherwise its solver alone is ready."""
        return self.steps is None or self.step >= self.steps


class Evaluation(Base):
    """Holds scores on test sets: the site x test-set matrix of a training, or one row of it for one checkpoint."""

    __tablename__ = "evaluations"
    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=_rising("evaluation"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), index=True)
    checkpoint_id: Mapped[str | None] = mapped_column(ForeignKey("checkpoints.id"), index=True)
    matrices: Mapped[dict[str, Any]]
    """Name of a metric -> rows, columns, values and transfer figures of its matrix."""
    created_at: Mapped[float] = mapped_column(default=clock())


_IMPORTED = text("direction = 'import' AND state IN ('quarantined', 'accepted')")


class Bundle(Base):
    """Records one end of a hand-off: a bundle that was built here to be carried away, or one that was brought here."""

    __tablename__ = "bundles"
    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=_rising("bundle"))
    direction: Mapped[str] = mapped_column(String(10))
    """Direction of the hand-off: export or import."""
    state: Mapped[str] = mapped_column(String(20))
    """State of an export: built; of an import: received, quarantined, then accepted or rejected; `shown` says more."""
    purpose: Mapped[str | None] = mapped_column(String(10))
    """What an import is for: train, to train on from it here; evaluate, only to score it. None for an export."""
    run_id: Mapped[str | None] = mapped_column(ForeignKey("runs.id"), index=True)
    """Id of the run; None for an import that was not verified yet."""
    checkpoint_id: Mapped[str | None] = mapped_column(String(64), index=True)
    """Id of the checkpoint that was exported, or was made of the import (no foreign key: checkpoints may be deleted)."""
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    """Id of the job that built or verifies the bundle."""
    digest: Mapped[str] = mapped_column(String(64))
    """SHA-256 of the bundle file; its bytes are attached as long as they are needed."""
    size: Mapped[int] = mapped_column(BigInteger)
    """Size of the bundle file in bytes."""
    content_digest: Mapped[str | None] = mapped_column(String(64), index=True)
    """Digest of the contents, the same for the encrypted and the plain bundle; None before it was verified."""
    facts: Mapped[dict[str, Any] | None]
    """Contents of the signed manifest; None before it was verified."""
    created_by: Mapped[str] = mapped_column(String(200))
    created_at: Mapped[float] = mapped_column(default=clock())
    decided_by: Mapped[str | None] = mapped_column(String(200))
    """Name of who accepted or rejected the import."""
    decided_at: Mapped[float | None]
    reason: Mapped[str | None] = mapped_column(Text)

    __table_args__ = (
        Index(  # two verifications at once cannot both bring the same model in
            "uq_bundles_imported", "content_digest", "purpose", unique=True, sqlite_where=_IMPORTED,
            postgresql_where=_IMPORTED,
        ),
        CheckConstraint(
            "(direction = 'export' AND state = 'built') OR (direction = 'import' AND state IN "
            "('received', 'quarantined', 'accepted', 'rejected'))",
            name="state",
        ),
    )  # fmt: skip

    shown: Mapped[str] = column_property(
        case(
            (state != "received", state),
            (exists().where(Job.id == job_id, Job.state.in_(("queued", "running", "cancelling"))), "verifying"),
            else_="refused",
        )
    )
    """The state as people see it: `received` becomes verifying while the job waits or runs, and refused after that."""


class Model(Base):
    """Records a version of a model that can be served: an ONNX file that was exported and proved here."""

    __tablename__ = "models"
    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=_rising("model"))
    name: Mapped[str] = mapped_column(String(64))
    version: Mapped[int]
    """Number of the version, from 1 for each name."""
    precision: Mapped[str] = mapped_column(String(10))
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), index=True)
    checkpoint_id: Mapped[str] = mapped_column(String(64), index=True)
    """Id of the checkpoint that the model was made from (no foreign key: a checkpoint may be deleted)."""
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    digest: Mapped[str] = mapped_column(ForeignKey("artifacts.digest"))
    facts: Mapped[dict[str, Any]]
    """{proof, facts}: how the model was proved, and what it states about itself."""
    created_by: Mapped[str] = mapped_column(String(200))
    created_at: Mapped[float] = mapped_column(default=clock())

    __table_args__ = (UniqueConstraint("name", "version"),)


class ModelName(Base):
    """Holds the last version number that a name ever had: no number is used again, whatever was deleted."""

    __tablename__ = "model_names"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    last: Mapped[int]


class Promotion(Base):
    """Records that a version of a model was put into production; the last promotion of a name counts."""

    __tablename__ = "promotions"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    """Number of the promotion, from 1 for each name."""
    version: Mapped[int]
    actor: Mapped[str] = mapped_column(String(200))
    reason: Mapped[str | None] = mapped_column(Text)
    comparison: Mapped[dict[str, Any]]
    """Comparison with the version in production before, as it was shown to the person who decided."""
    at: Mapped[float] = mapped_column(default=clock())


class Token(Base):
    """Records a bearer token by a keyed hash; the text of the token is stored nowhere."""

    __tablename__ = "tokens"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    role: Mapped[str] = mapped_column(String(20))
    hash: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float] = mapped_column(default=clock())
    expires_at: Mapped[float | None]
    revoked_at: Mapped[float | None]


class BrowserSession(Base):
    """Records who is signed in at the site's page, by a keyed hash of the browser's cookie; or a link that signs in once."""

    __tablename__ = "browser_sessions"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    token_id: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float]
    seen_at: Mapped[float | None]
    """When somebody last worked with the page; None: a link that nobody has opened yet."""


class Lockout(Base):
    """Counts the failed logins of an address."""

    __tablename__ = "lockouts"
    address: Mapped[str] = mapped_column(String(100), primary_key=True)
    failures: Mapped[int]
    since: Mapped[float]


class AuditRecord(Base):
    """Records who did what. Rows are only ever added (triggers refuse the rest); each holds the hash of the one before."""

    __tablename__ = "audit"
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[float]
    actor: Mapped[str] = mapped_column(String(200))
    action: Mapped[str] = mapped_column(String(50))
    subject: Mapped[str] = mapped_column(String(200))
    detail: Mapped[dict[str, Any]]
    previous: Mapped[str] = mapped_column(String(64))
    hash: Mapped[str] = mapped_column(String(64))


class RosterCopy(Base):
    """Holds, in one row, whom the site trusts: a copy of the roster in the folder of keys, for the API, which has none."""

    __tablename__ = "roster"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    """Always 1."""
    entries: Mapped[list[Any]]
    """{fingerprint, name, run, added_at, revoked_at} of each entry."""
    confirmed_at: Mapped[float] = mapped_column(default=clock())
    """Time when the folder was last read."""


class Worker(Base):
    """Records a worker process and its last heartbeat."""

    __tablename__ = "workers"
    id: Mapped[str] = mapped_column(String(200), primary_key=True)
    """Id of the worker: `host:process id:start time`."""
    host: Mapped[str] = mapped_column(String(100), index=True)
    facts: Mapped[dict[str, Any]]
    """What the worker states about itself: {pid, device, gpus, version, torch, ops, volumes, gpu_memory}."""
    started_at: Mapped[float] = mapped_column(default=clock())
    seen_at: Mapped[float] = mapped_column(default=clock())


class DeviceLease(Base):
    """Records which job has a device. The device is free when `until` has passed."""

    __tablename__ = "device_leases"
    host: Mapped[str] = mapped_column(String(100), primary_key=True)
    device: Mapped[str] = mapped_column(String(50), primary_key=True)
    job_id: Mapped[str] = mapped_column(String(64))
    attempt: Mapped[int]
    until: Mapped[float]
    leased_at: Mapped[float | None]

"""Tables. All times are seconds since 1970 by the database's own clock, so that machines need not agree on theirs."""

from __future__ import annotations

import secrets
import threading
import time
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Float,
    ForeignKey,
    Index,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    case,
    exists,
    select,
    text,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, column_property, mapped_column
from sqlalchemy.sql.functions import FunctionElement

_newest, _counting = 0, threading.Lock()


def new_id(prefix: str) -> str:
    """`job-018f...`: 12 hex digits of milliseconds, then 16 random ones; a process's later ids sort later."""
    global _newest  # noqa: PLW0603
    with _counting:
        _newest = max(int(time.time() * 1000) << 64 | secrets.randbits(64), _newest + 1 + secrets.randbits(32))
        return f"{prefix}-{_newest:028x}"


class clock(FunctionElement[float]):
    """The database's time, in seconds since 1970."""

    type = Float()
    inherit_cache = True


@compiles(clock, "sqlite")
def _sqlite_clock(element: clock, compiler: Any, **kwargs: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(clock, "postgresql")
def _postgresql_clock(element: clock, compiler: Any, **kwargs: Any) -> str:
    return "extract(epoch from clock_timestamp())::float8"


def now(session: Session) -> float:
    """The database's time at this moment, in seconds since 1970."""
    return float(session.scalar(select(clock())) or 0.0)


class Base(DeclarativeBase):
    """All tables; constraints have names, so that a migration can change them."""

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
    """Bytes in the content-addressed store."""

    __tablename__ = "artifacts"
    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    """SHA-256."""
    size: Mapped[int] = mapped_column(BigInteger)
    media_type: Mapped[str] = mapped_column(String(100))
    created_at: Mapped[float] = mapped_column(default=clock())


class Attachment(Base):
    """Who needs which bytes, under which name: `job-.../samples.png`. What no attachment names is garbage."""

    __tablename__ = "attachments"
    owner: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    digest: Mapped[str] = mapped_column(ForeignKey("artifacts.digest"), index=True)


class Dataset(Base):
    """One site's folder of labelled images, below the site's data root."""

    __tablename__ = "datasets"
    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("dataset"))
    name: Mapped[str] = mapped_column(String(100), unique=True)
    """A run's site with this task_name finds its images here by itself."""
    path: Mapped[str] = mapped_column(String(500))
    """Relative to the data root."""
    layout: Mapped[str] = mapped_column(String(50))
    """The data set's name in a run file: fundus, folder."""
    options: Mapped[dict[str, Any]]
    """Its kwargs in a run file."""
    note: Mapped[str] = mapped_column(Text, default="")
    report: Mapped[dict[str, Any] | None]
    """What the last preflight said."""
    version: Mapped[int] = mapped_column(default=1)
    created_at: Mapped[float] = mapped_column(default=clock())


class Run(Base):
    """A relay's shared run file."""

    __tablename__ = "runs"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    """SHA-256 of what the sites share: the same at every site of the relay."""
    name: Mapped[str] = mapped_column(String(100))
    content: Mapped[str] = mapped_column(Text)
    """Canonical YAML, needing no other file."""
    strategy: Mapped[str] = mapped_column(String(50))
    sites: Mapped[list[Any]]
    """In order: {task_id, name}."""
    site: Mapped[int | None]
    """Which of them this site is (task_id)."""
    version: Mapped[int] = mapped_column(default=1)
    created_at: Mapped[float] = mapped_column(default=clock())


class Job(Base):
    """A piece of work. This row is the truth; a queue message only says that there is one."""

    __tablename__ = "jobs"
    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("job"))
    kind: Mapped[str] = mapped_column(String(30))
    state: Mapped[str] = mapped_column(String(20), default="queued")
    params: Mapped[dict[str, Any]]
    run_id: Mapped[str | None] = mapped_column(ForeignKey("runs.id"), index=True)
    checkpoint_id: Mapped[str | None] = mapped_column(String(64), index=True)
    """The checkpoint that it starts from, or looks at (no foreign key: checkpoints name their jobs)."""
    gpus: Mapped[int] = mapped_column(default=0)
    """Devices that it takes: 0 none, 1 or more."""
    created_by: Mapped[str] = mapped_column(String(200))
    idempotency_key: Mapped[str | None] = mapped_column(String(200))
    body_digest: Mapped[str | None] = mapped_column(String(64))

    attempt: Mapped[int] = mapped_column(default=0)
    """Fencing token: goes up with every claim; a write with an older one changes nothing."""
    tries: Mapped[int] = mapped_column(default=0)
    """Attempts since it was submitted or retried by a person."""
    worker: Mapped[str | None] = mapped_column(String(200))
    lease_until: Mapped[float | None]
    not_before: Mapped[float | None]
    """After a crash it rests until then."""
    rung_at: Mapped[float | None]
    """When the doorbell last rang for it."""
    events: Mapped[int] = mapped_column(default=0)
    """Number of its events."""

    progress: Mapped[dict[str, Any] | None]
    """{site, step, steps, images_per_second, eta_seconds} of the last step."""
    result: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]
    """{code, message} of a failed one."""
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
    """One line of a job's story."""

    __tablename__ = "job_events"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    attempt: Mapped[int]
    at: Mapped[float] = mapped_column(default=clock())
    data: Mapped[dict[str, Any]]


class Metric(Base):
    """One value of a series. A step that a resumed attempt did again replaces the earlier value."""

    __tablename__ = "metrics"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    site: Mapped[str] = mapped_column(String(100), primary_key=True)
    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[float]
    attempt: Mapped[int]


class Checkpoint(Base):
    """What a training left at a site: the relay goes on from it."""

    __tablename__ = "checkpoints"
    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("checkpoint"))
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), index=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    parent_id: Mapped[str | None] = mapped_column(ForeignKey("checkpoints.id"), index=True)
    """The one of the site before that the training started from."""
    task_id: Mapped[int]
    site: Mapped[str] = mapped_column(String(100))
    step: Mapped[int]
    digest: Mapped[str] = mapped_column(ForeignKey("artifacts.digest"))
    content_digest: Mapped[str] = mapped_column(String(64))
    """The digest inside the file, over tensors and settings."""
    pinned: Mapped[bool] = mapped_column(default=False)
    note: Mapped[str] = mapped_column(Text, default="")
    version: Mapped[int] = mapped_column(default=1)
    created_at: Mapped[float] = mapped_column(default=clock())


class Evaluation(Base):
    """Scores on test sets: the site x test-set matrix of a training, or one row for one checkpoint."""

    __tablename__ = "evaluations"
    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("evaluation"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), index=True)
    checkpoint_id: Mapped[str | None] = mapped_column(ForeignKey("checkpoints.id"), index=True)
    matrices: Mapped[dict[str, Any]]
    """Metric -> rows, columns, values and transfer figures."""
    created_at: Mapped[float] = mapped_column(default=clock())


_IMPORTED = text("direction = 'import' AND state IN ('quarantined', 'accepted')")


class Bundle(Base):
    """A model that is handed on: one built here to be carried away, or one that was brought."""

    __tablename__ = "bundles"
    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("bundle"))
    direction: Mapped[str] = mapped_column(String(10))
    """export or import."""
    state: Mapped[str] = mapped_column(String(20))
    """Of an export: built. Of an import: received, quarantined, then accepted or rejected; `shown` says more."""
    purpose: Mapped[str | None] = mapped_column(String(10))
    """Of an import: train, to go on from it here; evaluate, only to score it."""
    run_id: Mapped[str | None] = mapped_column(ForeignKey("runs.id"), index=True)
    """Of an import: not known before it was verified."""
    checkpoint_id: Mapped[str | None] = mapped_column(String(64), index=True)
    """The one in it, or the one made of it when it was accepted (no foreign key: checkpoints may be deleted)."""
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    """What built or verifies it."""
    digest: Mapped[str] = mapped_column(String(64))
    """SHA-256 of the file; its bytes are attached, as long as they are needed."""
    size: Mapped[int] = mapped_column(BigInteger)
    """Bytes of the file."""
    content_digest: Mapped[str | None] = mapped_column(String(64), index=True)
    """What it is known by, encrypted or not."""
    facts: Mapped[dict[str, Any] | None]
    """What its signed manifest says."""
    created_by: Mapped[str] = mapped_column(String(200))
    created_at: Mapped[float] = mapped_column(default=clock())
    decided_by: Mapped[str | None] = mapped_column(String(200))
    """Who accepted or rejected it."""
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
    """The state, where `received` is told apart by its job: verifying while that waits or runs, else refused."""


class Model(Base):
    """A version of a model that can be served: an ONNX file that was exported and proved here."""

    __tablename__ = "models"
    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("model"))
    name: Mapped[str] = mapped_column(String(64))
    version: Mapped[int]
    """1, 2, 3, ... of its name."""
    precision: Mapped[str] = mapped_column(String(10))
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), index=True)
    checkpoint_id: Mapped[str] = mapped_column(String(64), index=True)
    """What it was made of (no foreign key: a checkpoint may be deleted)."""
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    digest: Mapped[str] = mapped_column(ForeignKey("artifacts.digest"))
    facts: Mapped[dict[str, Any]]
    """{proof, facts}: how it was proved, and what it says of itself."""
    created_by: Mapped[str] = mapped_column(String(200))
    created_at: Mapped[float] = mapped_column(default=clock())

    __table_args__ = (UniqueConstraint("name", "version"),)


class ModelName(Base):
    """The last version that a name ever had: a number is not used again, whatever was deleted."""

    __tablename__ = "model_names"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    last: Mapped[int]


class Promotion(Base):
    """A change of which version of a model is in production; the last one counts."""

    __tablename__ = "promotions"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    """1, 2, 3, ... of its name."""
    version: Mapped[int]
    actor: Mapped[str] = mapped_column(String(200))
    reason: Mapped[str | None] = mapped_column(Text)
    comparison: Mapped[dict[str, Any]]
    """What was shown to who decided."""
    at: Mapped[float] = mapped_column(default=clock())


class Token(Base):
    """A bearer token; the token itself is nowhere, only a keyed hash."""

    __tablename__ = "tokens"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    role: Mapped[str] = mapped_column(String(20))
    hash: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float] = mapped_column(default=clock())
    expires_at: Mapped[float | None]
    revoked_at: Mapped[float | None]


class Lockout(Base):
    """Failed logins of an address."""

    __tablename__ = "lockouts"
    address: Mapped[str] = mapped_column(String(100), primary_key=True)
    failures: Mapped[int]
    since: Mapped[float]


class AuditRecord(Base):
    """Who did what. Rows are only ever added (triggers refuse the rest), each holding the hash of the one before."""

    __tablename__ = "audit"
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[float]
    actor: Mapped[str] = mapped_column(String(200))
    action: Mapped[str] = mapped_column(String(50))
    subject: Mapped[str] = mapped_column(String(200))
    detail: Mapped[dict[str, Any]]
    previous: Mapped[str] = mapped_column(String(64))
    hash: Mapped[str] = mapped_column(String(64))


class Worker(Base):
    """A worker process that was seen."""

    __tablename__ = "workers"
    id: Mapped[str] = mapped_column(String(200), primary_key=True)
    """host:pid:start."""
    host: Mapped[str] = mapped_column(String(100), index=True)
    facts: Mapped[dict[str, Any]]
    """{pid, device, gpus, version, torch, ops}."""
    started_at: Mapped[float] = mapped_column(default=clock())
    seen_at: Mapped[float] = mapped_column(default=clock())


class DeviceLease(Base):
    """One device, one training. Free when `until` has passed."""

    __tablename__ = "device_leases"
    host: Mapped[str] = mapped_column(String(100), primary_key=True)
    device: Mapped[str] = mapped_column(String(50), primary_key=True)
    job_id: Mapped[str] = mapped_column(String(64))
    attempt: Mapped[int]
    until: Mapped[float]

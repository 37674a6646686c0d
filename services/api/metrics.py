"""What Prometheus reads: counted in the database when it asks, so that no process has to remember anything."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import Float, cast, func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

import relay_core
from relay_core.errors import RelayError
from services.site import HELD, TERMINAL, ArtifactStore, Settings
from services.site.db import AuditRecord, Database, Job, Worker, clock

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0)
Metric = CounterMetricFamily | GaugeMetricFamily | SummaryMetricFamily
log = logging.getLogger(__name__)


def durations(registry: CollectorRegistry) -> Histogram:
    """The durations of requests by the template of their address; event streams are left out."""
    return Histogram(
        "relay_http_request_duration_seconds", "Seconds from a request to the end of its answer.",
        ["method", "route", "status"], buckets=BUCKETS, registry=registry,
    )  # fmt: skip


class SiteCollector(Collector):
    """Jobs, queue, workers and storage of a site."""

    def __init__(self, settings: Settings, database: Database, store: ArtifactStore) -> None:
        self.settings, self.database, self.store = settings, database, store
        self._ended: Counter[tuple[str, str]] = Counter()
        self._seen = 0
        self._lock = threading.Lock()

    def describe(self) -> list[Metric]:
        """Nothing: a registry must not read the database to learn names."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All metrics; without a database only that it is away, and what needs none."""
        build = GaugeMetricFamily("relay_build_info", "This version.", labels=["version", "database"])
        build.add_metric([relay_core.__version__, self.database.url.get_backend_name()], 1)
        yield build
        yield GaugeMetricFamily(
            "relay_storage_free_bytes", "Free space of the artifact volume.", value=self.store.free_mib() << 20
        )
        found: list[Metric] = []
        try:
            with self.database.read() as session:
                found = [*self._jobs(session), *self._waiting(session), *self._workers(session)]
        except (SQLAlchemyError, RelayError) as error:
            log.warning("metrics without the database: %s", error)
        yield GaugeMetricFamily("relay_database_up", "Whether the database could be read.", value=bool(found))
        yield from found

    def _jobs(self, session: Session) -> Iterator[Metric]:
        total = CounterMetricFamily("relay_jobs", "Ended attempts at a job, by outcome.", labels=["kind", "outcome"])
        for (kind, outcome), count in sorted(self._outcomes(session).items()):
            total.add_metric([kind, outcome], count)
        yield total
        present = GaugeMetricFamily("relay_jobs", "Jobs by their present state.", labels=["kind", "state"])
        for kind, state, count in session.execute(select(Job.kind, Job.state, func.count()).group_by(Job.kind, Job.state)):
            present.add_metric([kind, state], count)
        yield present
        taken = SummaryMetricFamily(
            "relay_job_duration_seconds", "From the first start to the end of finished jobs.", labels=["kind"]
        )
        spent = func.sum(Job.finished_at - Job.started_at)
        finished = select(Job.kind, func.count(), cast(spent, Float)).where(Job.finished_at >= Job.started_at)
        for kind, count, seconds in session.execute(finished.group_by(Job.kind)):
            taken.add_metric([kind], count_value=count, sum_value=seconds)
        yield taken

    def _outcomes(self, session: Session) -> Mapping[tuple[str, str], int]:
        """Ends of jobs from the audit log, which only grows: a retried job's row forgets that it failed before."""
        actions = [f"job.{state}" for state in TERMINAL]
        with self._lock:
            last = session.scalar(select(func.max(AuditRecord.seq))) or 0
            ended = (
                select(Job.kind, AuditRecord.action, func.count())
                .join(Job, Job.id == AuditRecord.subject)
                .where(AuditRecord.seq > self._seen, AuditRecord.seq <= last, AuditRecord.action.in_(actions))
                .group_by(Job.kind, AuditRecord.action)
            )
            for kind, action, count in session.execute(ended):
                self._ended[kind, action.removeprefix("job.")] += count
            self._seen = last
            return dict(self._ended)

    def _waiting(self, session: Session) -> Iterator[Metric]:
        oldest = session.scalar(select(clock() - func.min(Job.queued_at)).where(Job.state == "queued"))
        yield GaugeMetricFamily("relay_queue_age_seconds", "How long the oldest queued job waits.", value=oldest or 0.0)
        beats = GaugeMetricFamily("relay_job_heartbeat_age_seconds", "Since a running job's last sign.", labels=["job"])
        age = clock() - (Job.lease_until - self.settings.lease)
        for job_id, seconds in session.execute(select(Job.id, age).where(Job.state.in_(HELD), Job.lease_until.is_not(None))):
            beats.add_metric([job_id], max(0.0, seconds))
        yield beats

    def _workers(self, session: Session) -> Iterator[Metric]:
        ages = GaugeMetricFamily("relay_worker_heartbeat_age_seconds", "Since a worker's last sign.", labels=["worker"])
        memory = GaugeMetricFamily("relay_gpu_memory_bytes", "In use on a GPU.", labels=["worker", "device"])
        for worker, facts, seconds in session.execute(select(Worker.id, Worker.facts, clock() - Worker.seen_at)):
            ages.add_metric([worker], max(0.0, seconds))
            for device, used in _numbers(facts.get("gpu_memory")):
                memory.add_metric([worker, device], used)
        yield ages
        yield memory


def _numbers(value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        yield from ((str(name), float(number)) for name, number in value.items() if isinstance(number, int | float))

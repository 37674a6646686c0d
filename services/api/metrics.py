"""Provide the metrics that Prometheus reads, counted in the database at each scrape: no process has to remember them."""

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
    """Create the histogram of requests' durations in seconds, by method, address template and status.

    Event streams are left out.
    """
    return Histogram(
        "relay_http_request_duration_seconds", "Seconds from a request to the end of its answer.",
        ["method", "route", "status"], buckets=BUCKETS, registry=registry,
    )  # fmt: skip


class SiteCollector(Collector):
    """Collects the metrics of a site's jobs, queue, workers and storage."""

    def __init__(self, settings: Settings, database: Database, store: ArtifactStore) -> None:
        self.settings, self.database, self.store = settings, database, store
        self._ended: Counter[tuple[str, str]] = Counter()
        self._seen = 0
        self._lock = threading.Lock()

    def describe(self) -> list[Metric]:
        """Return nothing, so that a registry need not read the database to learn the metrics' names."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics; while the database does not answer, that it is down and the metrics that need none."""
        build = GaugeMetricFamily("relay_build_info", "This version.", labels=["version", "database"])
        build.add_metric([relay_core.__version__, self.database.url.get_backend_name()], 1)
        yield build
        yield GaugeMetricFamily(
            "relay_storage_free_bytes", "Free space of the artifact volume.", value=self.store.free_mib() << 20
        )
        database_metrics: list[Metric] = []
        try:
            with self.database.read() as session:
                database_metrics = [*self._jobs(session), *self._waiting(session), *self._workers(session)]
        except (SQLAlchemyError, RelayError) as error:
            log.warning("metrics without the database: %s", error)
        yield GaugeMetricFamily("relay_database_up", "Whether the database could be read.", value=bool(database_metrics))
        yield from database_metrics

    def _jobs(self, session: Session) -> Iterator[Metric]:
        outcomes = CounterMetricFamily("relay_jobs", "Ended attempts at a job, by outcome.", labels=["kind", "outcome"])
        for (kind, outcome), count in sorted(self._outcomes(session).items()):
            outcomes.add_metric([kind, outcome], count)
        yield outcomes
        states = GaugeMetricFamily("relay_jobs", "Jobs by their present state.", labels=["kind", "state"])
        for kind, state, count in session.execute(select(Job.kind, Job.state, func.count()).group_by(Job.kind, Job.state)):
            states.add_metric([kind, state], count)
        yield states
        job_durations = SummaryMetricFamily(
            "relay_job_duration_seconds", "From the first start to the end of finished jobs.", labels=["kind"]
        )
        total_seconds = func.sum(Job.finished_at - Job.started_at)
        finished = select(Job.kind, func.count(), cast(total_seconds, Float)).where(Job.finished_at >= Job.started_at)
        for kind, count, seconds in session.execute(finished.group_by(Job.kind)):
            job_durations.add_metric([kind], count_value=count, sum_value=seconds)
        yield job_durations

    def _outcomes(self, session: Session) -> Mapping[tuple[str, str], int]:
        """Return how many attempts at jobs ended, by (kind, outcome).

        They are counted in the audit log, which only grows: the row of a retried job does not show that it failed before.
        """
        actions = [f"job.{state}" for state in TERMINAL]
        with self._lock:
            last = session.scalar(select(func.max(AuditRecord.seq))) or 0
            ended_counts = (
                select(Job.kind, AuditRecord.action, func.count())
                .join(Job, Job.id == AuditRecord.subject)
                .where(AuditRecord.seq > self._seen, AuditRecord.seq <= last, AuditRecord.action.in_(actions))
                .group_by(Job.kind, AuditRecord.action)
            )
            for kind, action, count in session.execute(ended_counts):
                self._ended[kind, action.removeprefix("job.")] += count
            self._seen = last
            return dict(self._ended)

    def _waiting(self, session: Session) -> Iterator[Metric]:
        oldest = session.scalar(select(func.max(func.abs(clock() - Job.queued_at))).where(Job.state == "queued"))
        yield GaugeMetricFamily("relay_queue_age_seconds", "How long the oldest queued job waits.", value=oldest or 0.0)
        heartbeats = GaugeMetricFamily("relay_job_heartbeat_age_seconds", "Since a running job's last sign.", labels=["job"])
        age = clock() - Job.leased_at
        for job_id, seconds in session.execute(select(Job.id, age).where(Job.state.in_(HELD), Job.leased_at.is_not(None))):
            heartbeats.add_metric([job_id], abs(seconds))  # ahead of the clock is as wrong as behind it
        yield heartbeats

    def _workers(self, session: Session) -> Iterator[Metric]:
        ages = GaugeMetricFamily("relay_worker_heartbeat_age_seconds", "Since a worker's last sign.", labels=["worker"])
        memory = GaugeMetricFamily("relay_gpu_memory_bytes", "In use on a GPU.", labels=["worker", "device"])
        for worker, facts, seconds in session.execute(select(Worker.id, Worker.facts, clock() - Worker.seen_at)):
            ages.add_metric([worker], abs(seconds))
            for device, used in _numbers(facts.get("gpu_memory")):
                memory.add_metric([worker, device], used)
        yield ages
        yield memory


def _numbers(value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        yield from ((str(name), float(number)) for name, number in value.items() if isinstance(number, int | float))

"""One model in memory: calls that wait run together.

While a batch runs, requests gather; when it ends, those of the same size run as the next batch. So a single caller never
waits for others, and many share the cost of a call.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.site import Refusal, Settings

if TYPE_CHECKING:
    from relay_core.inference import OnnxModel

Array = npt.NDArray[Any]
Results = dict[str, Array]
BATCH_PIXELS = 1 << 22
"""Of images that run together."""
BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 10.0)
log = logging.getLogger(__name__)


class Meters:
    """What Prometheus reads of inference."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ["model", "version"]
        self.seconds = Histogram(
            "relay_infer_duration_seconds", "From a request's arrival in the queue to its result.", labels,
            buckets=BUCKETS, registry=registry,
        )  # fmt: skip
        self.requests = Counter("relay_infer_requests", "Requests by outcome.", [*labels, "outcome"], registry=registry)
        self.images = Counter("relay_infer_images", "Images that were predicted.", labels, registry=registry)
        self.batches = Counter("relay_infer_batches", "Calls of the model.", labels, registry=registry)
        self.loaded = Gauge("relay_models_loaded", "Models in memory.", registry=registry)


@dataclass
class Times:
    """A count and the nanoseconds that it took, as the protocol's statistics have them."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float) -> None:
        """Count one."""
        self.count += 1
        self.ns += int(seconds * 1e9)


@dataclass
class Statistics:
    """Of one model since it was first loaded."""

    images: int = 0
    batches: int = 0
    last_ms: int = 0
    success: Times = field(default_factory=Times)
    fail: Times = field(default_factory=Times)
    queue: Times = field(default_factory=Times)
    compute: Times = field(default_factory=Times)


@dataclass
class _Request:
    images: Array
    outputs: frozenset[str]
    future: Future[Results]
    arrived: float = field(default_factory=time.perf_counter)


class Hosted:
    """A model in memory with its queue; one thread runs it.

    Args:
        name: of the model.
        version: of it.
        session: that runs it.
        settings: of the site.
        meters: of the process.
        statistics: go on from an earlier stay in memory.
    """

    def __init__(
        self, name: str, version: int, session: OnnxModel, settings: Settings, meters: Meters, statistics: Statistics
    ) -> None:
        self.name, self.version, self.session, self.statistics = name, version, session, statistics
        self._limit, self._most, self._delay = settings.serve_queue, settings.serve_batch, settings.serve_batch_delay
        self._meters, self._labels = meters, (name, str(version))
        self._waiting: deque[_Request] = deque()
        self.users = 0
        """Of `Host.borrow`; guarded by the host's lock."""
        self._ready = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name=f"model-{name}-{version}", daemon=True)
        self._thread.start()

    def submit(self, images: Array, outputs: Sequence[str]) -> Future[Results]:
        """Queue a request; its result holds at least the outputs that it asks for.

        Args:
            images: (N, C, H, W) float32 in 0..1.
            outputs: names.

        Raises:
            Refusal: `busy`, `model_unavailable`.
        """
        request = _Request(images, frozenset(outputs), Future())
        with self._ready:
            if self._closed:
                raise Refusal("model_unavailable", "the model was just let go; try again", {"Retry-After": "1"})
            if len(self._waiting) >= self._limit:
                self._meters.requests.labels(*self._labels, "busy").inc()
                raise Refusal(
                    "busy", f"{self._limit} requests wait for {self.name} already; try again", {"Retry-After": "1"}
                )
            self._waiting.append(request)
            self._ready.notify()
        return request.future

    def run(self, images: Array, outputs: Sequence[str]) -> list[Array]:
        """`submit` and wait, as `imaging.prediction` calls a model."""
        results = self.submit(images, outputs).result()
        return [results[name] for name in outputs]

    def close(self) -> None:
        """Take no more requests; those that wait are still answered."""
        with self._ready:
            self._closed = True
            self._ready.notify()

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            batch = [request for request in batch if request.future.set_running_or_notify_cancel()]
            if batch:
                began = time.perf_counter()
                try:
                    results = self._run(batch)
                except Exception as error:  # whatever the runtime raises: the callers are told, the thread goes on
                    log.error("model %s %d: a call failed: %s", self.name, self.version, type(error).__name__)
                    self._note(batch, began, ok=False)
                    for request in batch:
                        request.future.set_exception(
                            Refusal("model_unavailable", "the model could not be run on this input")
                        )
                else:
                    self._note(batch, began, ok=True)
                    for request, result in zip(batch, results, strict=True):
                        request.future.set_result(result)

    def _run(self, batch: list[_Request]) -> list[Results]:
        outputs = sorted(frozenset().union(*(request.outputs for request in batch)))
        images = batch[0].images if len(batch) == 1 else np.concatenate([request.images for request in batch])
        found = dict(zip(outputs, self.session(images, outputs), strict=True))
        stops = np.cumsum([len(request.images) for request in batch])
        return [
            {name: found[name][stop - len(request.images) : stop] for name in request.outputs}
            for request, stop in zip(batch, stops, strict=True)
        ]

    def _next(self) -> list[_Request] | None:
        """The oldest request and those of its size that may run with it; None when closed and all are answered."""
        with self._ready:
            self._ready.wait_for(lambda: self._waiting or self._closed)
            if not self._waiting:
                return None
            if self._delay and not self._closed:
                left = self._waiting[0].arrived + self._delay / 1000 - time.perf_counter()
                if left > 0:
                    self._ready.wait_for(lambda: sum(len(r.images) for r in self._waiting) >= self._most, left)
            first = self._waiting.popleft()
            most = min(self._most, max(1, BATCH_PIXELS // math.prod(first.images.shape[2:])))
            batch, size, rest = [first], len(first.images), deque[_Request]()
            for request in self._waiting:
                fits = request.images.shape[1:] == first.images.shape[1:] and size + len(request.images) <= most
                (batch if fits else rest).append(request)
                size += len(request.images) if fits else 0
            self._waiting = rest
            return batch

    def _note(self, batch: list[_Request], began: float, *, ok: bool) -> None:
        ended, statistics = time.perf_counter(), self.statistics
        count = sum(len(request.images) for request in batch)
        statistics.last_ms = int(time.time() * 1000)
        statistics.compute.add(ended - began)
        for request in batch:
            (statistics.success if ok else statistics.fail).add(ended - request.arrived)
            statistics.queue.add(began - request.arrived)
            self._meters.seconds.labels(*self._labels).observe(ended - request.arrived)
            self._meters.requests.labels(*self._labels, "ok" if ok else "failed").inc()
        if ok:
            statistics.images += count
            statistics.batches += 1
            self._meters.images.labels(*self._labels).inc(count)
            self._meters.batches.labels(*self._labels).inc()

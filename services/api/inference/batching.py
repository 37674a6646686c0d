"""Hold one model in memory, and run the requests that wait for it together.

While a batch runs, requests gather; when it ends, those of the same size run as the next batch. So a single caller never
waits for others, and many callers share the cost of one call of the model.
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
"""The most pixels (images x height x width) that run together, where more than one image waits."""
BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 10.0)
log = logging.getLogger(__name__)


class Meters:
    """Holds the metrics of inference that Prometheus reads."""

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
    """Holds a count and the nanoseconds spent on it, as the protocol's statistics have them."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float) -> None:
        """Count one more, which took this many seconds."""
        self.count += 1
        self.ns += int(seconds * 1e9)


@dataclass
class Statistics:
    """Holds the counts and times of one version of a model since this process first used it."""

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
    """Holds a model in memory with the queue of its requests; one thread runs it.

    Args:
        name: the model's name.
        version: the number of its version.
        session: the loaded model, which computes outputs of images.
        settings: the site's settings.
        meters: the metrics of this process.
        statistics: the version's counts so far, from an earlier stay in memory.
    """

    def __init__(
        self, name: str, version: int, session: OnnxModel, settings: Settings, meters: Meters, statistics: Statistics
    ) -> None:
        self.name, self.version, self.session, self.statistics = name, version, session, statistics
        self._limit, self._most, self._delay = settings.serve_queue, settings.serve_batch, settings.serve_batch_delay
        self._meters, self._labels = meters, (name, str(version))
        self._waiting: deque[_Request] = deque()
        self.users = 0
        """The number of `Host.borrow` blocks that use the model now; guarded by the host's lock."""
        self._ready = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run_batches, name=f"model-{name}-{version}", daemon=True)
        self._thread.start()

    def submit(self, images: Array, outputs: Sequence[str]) -> Future[Results]:
        """Queue a request, and return the future of its results, which hold the outputs that it asks for.

        Args:
            images: (N, C, H, W) float32, values 0 to 1.
            outputs: the outputs' names.

        Raises:
            Refusal: `busy` where the queue is full; `model_unavailable` where the model was let go.
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
        """Run a request and return its outputs in the order asked for, as `relay_core.inference.predict` calls models."""
        results = self.submit(images, outputs).result()
        return [results[name] for name in outputs]

    def close(self) -> None:
        """Take no more requests; those that wait are still answered."""
        with self._ready:
            self._closed = True
            self._ready.notify()

    def _run_batches(self) -> None:
        while (batch := self._next_batch()) is not None:
            batch = [request for request in batch if request.future.set_running_or_notify_cancel()]
            if batch:
                began = time.perf_counter()
                try:
                    results = self._run_batch(batch)
                except Exception as error:  # whatever the runtime raises is passed to the callers, and the thread goes on
                    log.error("model %s %d: a call failed: %s", self.name, self.version, type(error).__name__)
                    self._record(batch, began, ok=False)
                    for request in batch:
                        request.future.set_exception(
                            Refusal("model_unavailable", "the model could not be run on this input")
                        )
                else:
                    self._record(batch, began, ok=True)
                    for request, result in zip(batch, results, strict=True):
                        request.future.set_result(result)

    def _run_batch(self, batch: list[_Request]) -> list[Results]:
        outputs = sorted(frozenset().union(*(request.outputs for request in batch)))
        images = batch[0].images if len(batch) == 1 else np.concatenate([request.images for request in batch])
        batch_outputs = dict(zip(outputs, self.session(images, outputs), strict=True))
        stops = np.cumsum([len(request.images) for request in batch])
        return [
            {name: batch_outputs[name][stop - len(request.images) : stop] for name in request.outputs}
            for request, stop in zip(batch, stops, strict=True)
        ]

    def _next_batch(self) -> list[_Request] | None:
        """Wait for the oldest request and those of its size that may run with it; None: closed, and all are answered."""
        with self._ready:
            self._ready.wait_for(lambda: self._waiting or self._closed)
            if not self._waiting:
                return None
            if self._delay and not self._closed:
                seconds_left = self._waiting[0].arrived + self._delay / 1000 - time.perf_counter()
                if seconds_left > 0:
                    self._ready.wait_for(lambda: sum(len(r.images) for r in self._waiting) >= self._most, seconds_left)
            first = self._waiting.popleft()
            batch_limit = min(self._most, max(1, BATCH_PIXELS // math.prod(first.images.shape[2:])))
            batch, size, rest = [first], len(first.images), deque[_Request]()
            for request in self._waiting:
                fits = request.images.shape[1:] == first.images.shape[1:] and size + len(request.images) <= batch_limit
                (batch if fits else rest).append(request)
                size += len(request.images) if fits else 0
            self._waiting = rest
            return batch

    def _record(self, batch: list[_Request], began: float, *, ok: bool) -> None:
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

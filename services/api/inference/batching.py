"""Hold one model in memory, and run the requests that wait for it together.

While a batch runs, requests gather; when it ends, those of the same size run as the next batch. So a single caller never
waits for others, and many callers share the cost of one call of the model. Callers take turns, and a large request is run
in parts, so that nobody waits for all that somebody else has asked for.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import OrderedDict, deque
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
"""The most pixels that run together, where more than one image waits: images, at their own size or the network's."""
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


@dataclass(eq=False)
class _Request:
    images: Array
    outputs: frozenset[str]
    caller: str
    future: Future[Results] = field(default_factory=Future)
    arrived: float = field(default_factory=time.perf_counter)
    began: float = 0.0
    taken: int = 0
    """Images that were taken into batches; the request is in the queue until all are."""
    parts: list[Results] = field(default_factory=list)


@dataclass
class _Share:
    """Images `start` to `stop` of a request, in a batch."""

    request: _Request
    start: int
    stop: int

    @property
    def images(self) -> Array:
        return self.request.images[self.start : self.stop]


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
        self._pixels = session.facts.resolution**2
        self._waiting: OrderedDict[str, deque[_Request]] = OrderedDict()
        """Requests by caller, whose turn is next first."""
        self.users = 0
        """The number of `Host.borrow` blocks that use the model now; guarded by the host's lock."""
        self._ready = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run_batches, name=f"model-{name}-{version}", daemon=True)
        self._thread.start()

    def submit(self, images: Array, outputs: Sequence[str], caller: str = "") -> Future[Results]:
        """Queue a request, and return the future of its results, which hold the outputs that it asks for.

        Args:
            images: (N, C, H, W) float32, values 0 to 1.
            outputs: the outputs' names.
            caller: who asks; callers take turns, and none may have more than half of the queue.

        Raises:
            Refusal: `busy` where the queue is full; `model_unavailable` where the model was let go.
        """
        request = _Request(images, frozenset(outputs), caller)
        with self._ready:
            if self._closed:
                raise Refusal("model_unavailable", "the model was just let go; try again", {"Retry-After": "1"})
            own = len(self._waiting.get(caller, ()))
            if sum(map(len, self._waiting.values())) >= self._limit or own >= max(1, self._limit // 2):
                self._meters.requests.labels(*self._labels, "busy").inc()
                raise Refusal(
                    "busy", f"{own} requests of yours wait for {self.name} already; try again", {"Retry-After": "1"}
                )
            self._waiting.setdefault(caller, deque()).append(request)
            self._ready.notify()
        return request.future

    def run(self, images: Array, outputs: Sequence[str], caller: str = "") -> list[Array]:
        """Run a request and return its outputs in the order asked for, as `relay_core.inference.predict` calls models."""
        results = self.submit(images, outputs, caller).result()
        return [results[name] for name in outputs]

    def close(self) -> None:
        """Take no more requests; those that wait are still answered."""
        with self._ready:
            self._closed = True
            self._ready.notify()

    def _run_batches(self) -> None:
        while (batch := self._next_batch()) is not None:
            if not batch:
                continue
            began = time.perf_counter()
            for share in batch:
                share.request.began = share.request.began or began
            try:
                results = self._run_batch(batch)
            except Exception as error:  # whatever the runtime raises is passed to the callers, and the thread goes on
                log.error("model %s %d: a call failed: %s", self.name, self.version, type(error).__name__)
                with self._ready:
                    for share in batch:
                        self._drop(share.request)
                self._record(batch, [share.request for share in batch], began, ok=False)
                for share in batch:
                    share.request.future.set_exception(
                        Refusal("model_unavailable", "the model could not be run on this input")
                    )
            else:
                for share, result in zip(batch, results, strict=True):
                    share.request.parts.append(result)
                answered = [share.request for share in batch if share.stop == len(share.request.images)]
                self._record(batch, answered, began, ok=True)
                for request in answered:
                    request.future.set_result(_joined(request.parts))

    def _run_batch(self, batch: list[_Share]) -> list[Results]:
        outputs = sorted(frozenset().union(*(share.request.outputs for share in batch)))
        images = batch[0].images if len(batch) == 1 else np.concatenate([share.images for share in batch])
        batch_outputs = dict(zip(outputs, self.session(images, outputs), strict=True))
        stops = np.cumsum([len(share.images) for share in batch])
        return [
            {name: batch_outputs[name][stop - len(share.images) : stop] for name in share.request.outputs}
            for share, stop in zip(batch, stops, strict=True)
        ]

    def _next_batch(self) -> list[_Share] | None:
        """Wait for a request; return images of the caller whose turn it is, and of others that may run with them.

        None: closed, and all are answered.
        """
        with self._ready:
            self._ready.wait_for(lambda: self._waiting or self._closed)
            if not self._waiting:
                return None
            if self._delay and not self._closed:
                oldest = min(queue[0].arrived for queue in self._waiting.values())
                seconds_left = oldest + self._delay / 1000 - time.perf_counter()
                if seconds_left > 0:
                    self._ready.wait_for(lambda: self._images_waiting() >= self._most, seconds_left)
            shape = next(iter(self._waiting.values()))[0].images.shape[1:]
            room = min(self._most, max(1, BATCH_PIXELS // max(math.prod(shape[1:]), self._pixels)))
            batch: list[_Share] = []
            for request in [request for queue in self._waiting.values() for request in queue]:
                fits = room > 0 and request.images.shape[1:] == shape
                if fits and request.taken == 0 and not request.future.set_running_or_notify_cancel():
                    self._drop(request)  # its caller left
                elif fits:
                    share = _Share(request, request.taken, min(len(request.images), request.taken + room))
                    request.taken, room = share.stop, room - len(share.images)
                    batch.append(share)
                    if share.stop == len(request.images):
                        self._drop(request)
            if batch and batch[0].request.caller in self._waiting:
                self._waiting.move_to_end(batch[0].request.caller)
            return batch

    def _images_waiting(self) -> int:
        return sum(len(request.images) - request.taken for queue in self._waiting.values() for request in queue)

    def _drop(self, request: _Request) -> None:
        """Take a request out of the queue, where it still is. Called with the lock."""
        queue = self._waiting.get(request.caller)
        if queue is not None and request in queue:
            queue.remove(request)
            if not queue:
                del self._waiting[request.caller]

    def _record(self, batch: list[_Share], answered: list[_Request], began: float, *, ok: bool) -> None:
        """Count a call of the model, and the requests that end with it."""
        ended, statistics = time.perf_counter(), self.statistics
        count = sum(len(share.images) for share in batch)
        statistics.last_ms = int(time.time() * 1000)
        statistics.compute.add(ended - began)
        for request in answered:
            (statistics.success if ok else statistics.fail).add(ended - request.arrived)
            statistics.queue.add(request.began - request.arrived)
            self._meters.seconds.labels(*self._labels).observe(ended - request.arrived)
            self._meters.requests.labels(*self._labels, "ok" if ok else "failed").inc()
        if ok:
            statistics.images += count
            statistics.batches += 1
            self._meters.images.labels(*self._labels).inc(count)
            self._meters.batches.labels(*self._labels).inc()


def _joined(parts: list[Results]) -> Results:
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

"""Models in memory: loaded when they are wanted, let go when memory runs short; calls that wait run together.

While a batch runs, requests gather; when it ends, those of the same size run as the next batch. So a single caller never
waits for others, and many share the cost of a call.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.requests import Request

from relay_core.errors import RelayError
from services.site.artifacts import ArtifactStore
from services.site.errors import Refusal
from services.site.settings import Settings

if TYPE_CHECKING:
    from relay_core.export.session import Session

Array = npt.NDArray[Any]
Results = dict[str, Array]
BATCH_PIXELS = 1 << 22
"""Of images that run together."""
OVERHEAD = 32 << 20
"""Bytes that a session needs besides twice its file (an estimate)."""
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
        self, name: str, version: int, session: Session, settings: Settings, meters: Meters, statistics: Statistics
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


class Host:
    """The models that this process serves.

    Args:
        settings: of the site.
        store: where their files lie.
        registry: of Prometheus.
    """

    def __init__(self, settings: Settings, store: ArtifactStore, registry: CollectorRegistry) -> None:
        self._settings, self._store, self._meters = settings, store, Meters(registry)
        self._lock = threading.Lock()
        self._loading: dict[tuple[str, int], threading.Lock] = {}
        self._hosted: OrderedDict[tuple[str, int], Hosted] = OrderedDict()
        self._statistics: dict[tuple[str, int], Statistics] = {}

    @contextmanager
    def borrow(self, name: str, version: int, digest: str) -> Iterator[Hosted]:
        """A version of a model, in memory as long as the block lasts; the first call loads and warms it up.

        Args:
            name: of the model.
            version: of it.
            digest: of its file, which is verified.

        Raises:
            Refusal: `model_unavailable`, `artifact_damaged`.
            ExportError: its file is none that this version exported.
        """
        hosted = self._borrow((name, version), digest)
        try:
            yield hosted
        finally:
            with self._lock:
                hosted.users -= 1
                last = hosted.users == 0 and self._hosted.get((name, version)) is not hosted
            if last:
                hosted.close()

    def _borrow(self, key: tuple[str, int], digest: str) -> Hosted:
        if (found := self._look(key)) is not None:
            return found
        with self._lock:
            loading = self._loading.setdefault(key, threading.Lock())
        with loading:  # of many first callers one loads
            if (found := self._look(key)) is not None:
                return found
            hosted = self._load(key, digest)
            with self._lock:
                hosted.users += 1
                self._hosted[key] = hosted
                gone = self._make_room(key)
                self._meters.loaded.set(len(self._hosted))
        for other in gone:
            other.close()
        return hosted

    def statistics(self, name: str, version: int) -> Statistics:
        """Of a version, also of one that is not in memory now."""
        with self._lock:
            return self._statistics.setdefault((name, version), Statistics())

    @property
    def loaded(self) -> list[Hosted]:
        """What is in memory."""
        with self._lock:
            return list(self._hosted.values())

    def drop(self, name: str, version: int) -> None:
        """Let a version go; who uses it now is still answered."""
        with self._lock:
            found = self._hosted.pop((name, version), None)
            self._meters.loaded.set(len(self._hosted))
        if found is not None and not found.users:
            found.close()

    def close(self) -> None:
        """Let all go."""
        for hosted in self.loaded:
            self.drop(hosted.name, hosted.version)

    def _look(self, key: tuple[str, int]) -> Hosted | None:
        with self._lock:
            found = self._hosted.get(key)
            if found is not None:
                self._hosted.move_to_end(key)
                found.users += 1
            return found

    def _load(self, key: tuple[str, int], digest: str) -> Hosted:
        session_type = runtime().Session
        content = b"".join(self._store.read(digest))
        try:
            session = session_type(content, self._settings.serve_device, self._settings.serve_threads)
            seconds = session.warm_up()
        except RelayError:
            raise
        except Exception as error:  # ONNX Runtime's own
            log.error("model %s %d: cannot be run: %s", *key, type(error).__name__)
            raise Refusal("model_unavailable", "the model could not be started on this machine") from None
        log.info("model %s %d: loaded on %s, first call %.0f ms", *key, session.provider, seconds * 1000)
        if session.degraded:
            log.warning("model %s %d: runs on %s, not on %s", *key, session.provider, self._settings.serve_device)
        return Hosted(*key, session, self._settings, self._meters, self.statistics(*key))

    def _make_room(self, keep: tuple[str, int]) -> list[Hosted]:
        """Let go of those that were not used for longest, while all together are over the budget; return the idle ones."""
        budget, gone = self._settings.serve_memory_mib << 20, []
        while len(self._hosted) > 1 and sum(map(_cost, self._hosted.values())) > budget:
            oldest = next(key for key in self._hosted if key != keep)
            gone.append(self._hosted.pop(oldest))
            log.info("model %s %d: let go, to make room", *oldest)
        return [hosted for hosted in gone if not hosted.users]


class Intake:
    """Bytes of images that are here at once, from their arrival to their answer.

    Args:
        limit: bytes.
        most: bytes of one request whose length is not told.
    """

    def __init__(self, limit: int, most: int) -> None:
        self._limit, self._most, self._lock, self._held = limit, most, threading.Lock(), 0

    @contextmanager
    def take(self, request: Request) -> Iterator[None]:
        """Room for a request's body. Raises Refusal `busy`."""
        declared = request.headers.get("content-length", "")
        size = (
            min(int(declared), self._most)
            if declared.isascii() and declared.isdigit() and len(declared) < 16
            else self._most
        )
        with self._lock:
            if self._held and self._held + size > self._limit:
                raise Refusal("busy", "too many images are on their way; try again", {"Retry-After": "1"})
            self._held += size
        try:
            yield
        finally:
            with self._lock:
                self._held -= size


def _cost(hosted: Hosted) -> int:
    return 2 * hosted.session.size + OVERHEAD


def runtime() -> Any:
    """The module that runs models. Raises Refusal `model_unavailable` where ONNX Runtime is not installed."""
    try:
        from relay_core.export import session
    except ModuleNotFoundError:
        raise Refusal(
            "model_unavailable", "ONNX Runtime is not installed here: pip install 'relay-learning[cpu]', or [gpu]"
        ) from None
    return session

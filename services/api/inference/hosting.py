"""Keep models in memory, loaded when they are called and dropped when memory runs short; limit the images in memory."""

from __future__ import annotations

import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
from prometheus_client import CollectorRegistry
from starlette.requests import Request

from relay_core.errors import RelayError
from services.api.inference.batching import Hosted, Meters, Statistics
from services.site import ArtifactStore, Refusal, Settings

OVERHEAD = 32 << 20
"""The estimated bytes of memory that a session needs besides twice the size of its file."""
log = logging.getLogger(__name__)


class Host:
    """Holds the models that this process serves.

    Args:
        settings: the site's settings.
        store: the store that holds the models' files.
        registry: the Prometheus registry of this process.
    """

    def __init__(self, settings: Settings, store: ArtifactStore, registry: CollectorRegistry) -> None:
        self._settings, self._store, self._meters = settings, store, Meters(registry)
        self._lock = threading.Lock()
        self._loading: dict[tuple[str, int], threading.Lock] = {}
        self._hosted: OrderedDict[tuple[str, int], Hosted] = OrderedDict()
        self._statistics: dict[tuple[str, int], Statistics] = {}

    @contextmanager
    def borrow(self, name: str, version: int, digest: str) -> Iterator[Hosted]:
        """Give a version of a model, in memory as long as the block lasts; the first call loads it and warms it up.

        Args:
            name: the model's name.
            version: the number of its version.
            digest: the SHA-256 of its file, which is verified.

        Raises:
            Refusal: `model_unavailable` where it cannot run here; `artifact_damaged` where its file is.
            ExportError: its file is no model that this version of relay exported.
        """
        hosted = self._borrow((name, version), digest)
        try:
            yield hosted
        finally:
            with self._lock:
                hosted.users -= 1
                last_user_left = hosted.users == 0 and self._hosted.get((name, version)) is not hosted
            if last_user_left:
                hosted.close()

    def _borrow(self, key: tuple[str, int], digest: str) -> Hosted:
        if (in_memory := self._look_up(key)) is not None:
            return in_memory
        with self._lock:
            loading = self._loading.setdefault(key, threading.Lock())
        with loading:  # only one of several first callers loads the model
            if (in_memory := self._look_up(key)) is not None:
                return in_memory
            hosted = self._load(key, digest)
            with self._lock:
                hosted.users += 1
                self._hosted[key] = hosted
                dropped = self._make_room(key)
                self._meters.loaded.set(len(self._hosted))
        for idle in dropped:
            idle.close()
        return hosted

    def statistics(self, name: str, version: int) -> Statistics:
        """Return the statistics of a version, also of one that is not in memory now."""
        with self._lock:
            return self._statistics.setdefault((name, version), Statistics())

    @property
    def loaded(self) -> list[Hosted]:
        """Return the models that are in memory."""
        with self._lock:
            return list(self._hosted.values())

    def drop(self, name: str, version: int) -> None:
        """Drop a version from memory; requests that use it now are still answered."""
        with self._lock:
            hosted = self._hosted.pop((name, version), None)
            self._meters.loaded.set(len(self._hosted))
        if hosted is not None and not hosted.users:
            hosted.close()

    def close(self) -> None:
        """Drop all models from memory."""
        for hosted in self.loaded:
            self.drop(hosted.name, hosted.version)

    def _look_up(self, key: tuple[str, int]) -> Hosted | None:
        with self._lock:
            hosted = self._hosted.get(key)
            if hosted is not None:
                self._hosted.move_to_end(key)
                hosted.users += 1
            return hosted

    def _load(self, key: tuple[str, int], digest: str) -> Hosted:
        session_type = runtime().OnnxModel
        content = b"".join(self._store.read(digest))
        try:
            session = session_type(content, self._settings.serve_device, self._settings.serve_threads)
            seconds = session.warm_up()
        except RelayError:
            raise
        except Exception as error:  # ONNX Runtime's own errors
            log.error("model %s %d: cannot be run: %s", *key, type(error).__name__)
            raise Refusal("model_unavailable", "the model could not be started on this machine") from None
        log.info("model %s %d: loaded on %s, first call %.0f ms", *key, session.provider, seconds * 1000)
        if session.degraded:
            log.warning("model %s %d: runs on %s, not on %s", *key, session.provider, self._settings.serve_device)
        return Hosted(*key, session, self._settings, self._meters, self.statistics(*key))

    def _make_room(self, keep: tuple[str, int]) -> list[Hosted]:
        """Drop the models longest unused while together they exceed the memory budget; return dropped ones without users."""
        budget, dropped = self._settings.serve_memory_mib << 20, []
        while len(self._hosted) > 1 and sum(map(_cost, self._hosted.values())) > budget:
            oldest = next(key for key in self._hosted if key != keep)
            dropped.append(self._hosted.pop(oldest))
            log.info("model %s %d: let go, to make room", *oldest)
        return [hosted for hosted in dropped if not hosted.users]


class Intake:
    """Limits the bytes of images in memory at once, from their arrival to the answer.

    Args:
        limit: the most bytes of all requests together; one caller may have half of it, and a single request always comes in.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._held = limit, Counter[str]()

    @asynccontextmanager
    async def body(self, request: Request, caller: str) -> AsyncIterator[bytes]:
        """Read a request's body, which counts as long as the block lasts. Raises Refusal `busy` where there is no room."""
        chunks, size = [], 0
        try:
            async for chunk in request.stream():
                own, others = self._held[caller] - size, self._held.total() - size
                if (others and others + size + len(chunk) > self._limit) or (
                    own and own + size + len(chunk) > self._limit // 2
                ):
                    raise Refusal("busy", "too many images are on their way; try again", {"Retry-After": "1"})
                size += len(chunk)
                self._held[caller] += len(chunk)
                chunks.append(chunk)
            yield b"".join(chunks)
        finally:
            self._held[caller] -= size
            if not self._held[caller]:
                del self._held[caller]


class Turns:
    """Lets each caller have one long piece of work done at a time, while others have theirs.

    Args:
        limit: the number of pieces of one caller that may wait.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._locks: dict[str, tuple[anyio.Lock, int]] = {}

    @asynccontextmanager
    async def take(self, caller: str) -> AsyncIterator[None]:
        """Wait for the caller's turn, which lasts as long as the block. Raises Refusal `busy` where too many wait."""
        lock, users = self._locks.get(caller, (anyio.Lock(), 0))
        if users > self._limit:
            raise Refusal("busy", "too many images of yours wait to be predicted; try again", {"Retry-After": "5"})
        self._locks[caller] = lock, users + 1
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks.pop(caller)
            if users > 1:
                self._locks[caller] = lock, users - 1


def _cost(hosted: Hosted) -> int:
    return 2 * hosted.session.size + OVERHEAD


def runtime() -> Any:
    """Return the module that runs models. Raises Refusal `model_unavailable` where ONNX Runtime is not installed."""
    try:
        from relay_core.inference import onnx_model
    except ModuleNotFoundError:
        raise Refusal(
            "model_unavailable", "ONNX Runtime is not installed here: pip install 'relay-learning[cpu]', or [gpu]"
        ) from None
    return onnx_model

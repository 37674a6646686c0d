"""Models in memory: loaded when they are wanted, let go when memory runs short; and room for images on their way."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry
from starlette.requests import Request

from relay_core.errors import RelayError
from services.api.inference.batching import Hosted, Meters, Statistics
from services.site import ArtifactStore, Refusal, Settings

OVERHEAD = 32 << 20
"""Bytes that a session needs besides twice its file (an estimate)."""
log = logging.getLogger(__name__)


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
        from relay_core.inference import onnx_model
    except ModuleNotFoundError:
        raise Refusal(
            "model_unavailable", "ONNX Runtime is not installed here: pip install 'relay-learning[cpu]', or [gpu]"
        ) from None
    return onnx_model

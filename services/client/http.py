"""Call a site's REST API over HTTP: a thin client that resumes downloads and follows jobs."""

from __future__ import annotations

import base64
import hashlib
import json
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from relay_core.errors import RelayError
from relay_core.files import sync

ENDS = ("succeeded", "failed", "cancelled")
"""A job ends with one of these events, unless a person retries it."""
PAUSES = (0.5, 5.0)
"""A client waits this many seconds before it tries a lost service again: the first pause, and the longest."""
PATIENCE = 120.0
"""A client gives up after this many seconds without an answer."""
LONG = httpx.Timeout(600, connect=5)
"""Timeout in seconds of requests with files: the service verifies a file, or syncs it to its disk, before it answers."""
CHUNK = 1 << 20
Progress = Callable[[int, int], object]


class ServiceUnreachable(RelayError):
    """There is no service at the address."""

    code = "service_unreachable"
    exit_code = 11


class DownloadDamaged(RelayError):
    """The fetched file has another digest than the service's file."""

    code = "download_damaged"
    exit_code = 12


class ServiceRefused(RelayError):
    """The service answered with a problem document."""

    exit_code = 9

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        self.status = status
        self.code = str(problem.get("code", "internal"))
        lines = [f"{problem.get('title', 'refused')}: {problem.get('detail', status)}"]
        lines += [f"  {entry.get('path')}: {entry.get('message')}" for entry in problem.get("errors", [])]
        super().__init__("\n".join(lines))


class Client:
    """A client calls the REST API of one site.

    Args:
        url: address of the service, such as http://127.0.0.1:8000.
        token: bearer token; None for requests that need none.
    """

    def __init__(self, url: str, token: str | None) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=httpx.Timeout(30, connect=5), trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._http.close()

    def call(self, method: str, path: str, **options: Any) -> Any:
        """Send a request and return the JSON of its answer.

        Raises:
            ServiceUnreachable: no service answers.
            ServiceRefused: the answer is a problem document.
        """
        try:
            answer = self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise ServiceUnreachable(f"{self._http.base_url}: {error}; is it running? relay up starts one") from None
        if answer.is_error:
            raise ServiceRefused(answer.status_code, _json(answer))
        return _json(answer)

    def ready(self) -> dict[str, Any]:
        """Return the answer of `/readyz`, whether the site is ready or not. Raises ServiceUnreachable."""
        try:
            return _json(self._http.get("/readyz"))
        except httpx.HTTPError as error:
            raise ServiceUnreachable(f"{self._http.base_url}: {error}; is it running? relay up starts one") from None

    def submit(self, body: dict[str, Any], key: str | None = None) -> dict[str, Any]:
        """Queue a job; with the same `key` it is queued once, however often it is asked for."""
        headers = {"Idempotency-Key": key or str(uuid.uuid4())}
        return dict(self.call("POST", "/api/v1/jobs", json=body, headers=headers))

    def export(self, body: dict[str, Any], key: str | None = None) -> dict[str, Any]:
        """Queue the building of a bundle, or the signing of a report; `key` as in `submit`."""
        return dict(self.call("POST", "/api/v1/exports", json=body, headers={"Idempotency-Key": key or str(uuid.uuid4())}))

    def upload(self, file: Path, purpose: str, show: Progress = lambda done, total: None) -> dict[str, Any]:
        """Upload a bundle and return the import that the service makes of it.

        Args:
            file: the bundle.
            purpose: `train` or `evaluate`.
            show: called with the bytes sent and the bytes in all.
        """
        total = file.stat().st_size

        def chunks() -> Iterator[bytes]:
            with file.open("rb") as source:
                while chunk := source.read(CHUNK):
                    yield chunk
                    show(source.tell(), total)

        headers = {"Content-Type": "application/vnd.relay.bundle", "Content-Length": str(total)}
        options: dict[str, Any] = {"params": {"purpose": purpose}, "content": chunks(), "timeout": LONG}
        options["headers"] = {**headers, "Idempotency-Key": str(uuid.uuid4())}
        return dict(self.call("POST", "/api/v1/imports", **options))

    def download(self, path: str, target: Path, show: Progress = lambda done, total: None) -> None:
        """Fetch a file; after a broken connection this call, or a later one, resumes where it broke.

        Args:
            path: the file's address on the service.
            target: file to write; an incomplete download lies beside it as `<name>.part`.
            show: called with the bytes received and the bytes in all.

        Raises:
            ServiceUnreachable: no service answers for `PATIENCE` seconds.
            ServiceRefused: the answer is a problem document.
            DownloadDamaged: the file has another digest than the service says.
        """
        part, pause, lost_since = target.with_name(target.name + ".part"), PAUSES[0], 0.0
        while True:
            begin = part.stat().st_size if part.is_file() else 0
            try:
                digest = self._fetch(path, part, show)
                break
            except httpx.HTTPError as error:
                reason = str(error)
            now = time.monotonic()
            if not lost_since or (part.is_file() and part.stat().st_size > begin):
                pause, lost_since = PAUSES[0], now
            if now - lost_since > PATIENCE:
                raise ServiceUnreachable(f"{self._http.base_url}: {reason}; asked again, it goes on from {part}")
            time.sleep(pause)
            pause = min(2 * pause, PAUSES[1])
        with part.open("rb") as file:
            actual = base64.b64encode(hashlib.file_digest(file, "sha256").digest()).decode()
        if digest != f"sha-256=:{actual}:":
            part.unlink()
            raise DownloadDamaged(f"{target.name}: what came has another digest than the service's file; fetch it again")
        sync(part)
        part.replace(target)

    def _fetch(self, path: str, part: Path, show: Progress) -> str:
        """Append to `part` the bytes that it lacks; return the whole file's digest from the header `Repr-Digest`."""
        head = self._http.head(path)
        if head.is_error:
            raise ServiceRefused(head.status_code, {"title": "refused", "detail": f"{path}: HTTP {head.status_code}"})
        etag, size = head.headers["ETag"], int(head.headers["Content-Length"])
        begin = part.stat().st_size if part.is_file() else 0
        if begin > size:
            part.unlink()
            begin = 0
        if begin == size:
            return str(head.headers["Repr-Digest"])
        headers = {"Range": f"bytes={begin}-", "If-Range": etag} if begin else {}
        with self._http.stream("GET", path, headers=headers, timeout=LONG) as answer:
            if answer.is_error:
                answer.read()
                raise ServiceRefused(answer.status_code, _json(answer))
            with part.open("ab" if answer.status_code == 206 else "wb") as file:
                for chunk in answer.iter_bytes():
                    file.write(chunk)
                    show(file.tell(), size)
        return str(head.headers["Repr-Digest"])

    def pages(self, path: str, **params: Any) -> Iterator[dict[str, Any]]:
        """Yield every item of a list that the service answers page by page."""
        while True:
            page = self.call("GET", path, params=params)
            yield from page["items"]
            if not page.get("next_cursor"):
                return
            params["cursor"] = page["next_cursor"]

    def follow(self, job_id: str, warn: Callable[[str], None] = lambda text: None) -> Iterator[dict[str, Any]]:
        """Yield a job's events until it ends; reconnect after a broken connection and go on after the last event.

        Args:
            job_id: id of the job.
            warn: called with a message when the connection is lost.

        Raises:
            ServiceUnreachable: no service answers at the start, or for `PATIENCE` seconds later.
            ServiceRefused: the answer is a problem document.
        """
        self.call("GET", f"/api/v1/jobs/{job_id}")
        last, event, pause, lost_since = 0, "", PAUSES[0], 0.0
        while True:
            try:
                for data in self._stream(job_id, last):
                    pause, lost_since = PAUSES[0], 0.0
                    if data is not None:
                        last, event = int(data["seq"]), data["event"]
                        yield data
                if event in ENDS:
                    return
                reason = "the stream ended"
            except httpx.HTTPError as error:
                reason = str(error)
            except ServiceRefused as error:
                if error.status < 500:
                    raise
                reason = str(error)
            now = time.monotonic()
            if not lost_since:
                lost_since = now
                warn(f"connection lost ({reason}); trying again")
            if now - lost_since > PATIENCE:
                raise ServiceUnreachable(f"{self._http.base_url}: {reason}; the job goes on, see: relay jobs watch {job_id}")
            time.sleep(pause)
            pause = min(2 * pause, PAUSES[1])

    def _stream(self, job_id: str, after: int) -> Iterator[dict[str, Any] | None]:
        """Yield None as soon as the service answers, then the job's events whose `seq` is above `after`."""
        headers = {"Last-Event-ID": str(after), "Accept": "text/event-stream"}
        with self._http.stream("GET", f"/api/v1/jobs/{job_id}/events", headers=headers, timeout=60) as answer:
            if answer.is_error:
                answer.read()
                raise ServiceRefused(answer.status_code, _json(answer))
            yield None
            for line in answer.iter_lines():
                if line.startswith("data:"):
                    yield json.loads(line.removeprefix("data:"))


def _json(answer: httpx.Response) -> dict[str, Any]:
    try:
        data = answer.json()
    except ValueError:
        data = {"detail": f"HTTP {answer.status_code}", "title": "not an answer of relay"}
    return data if isinstance(data, dict) else {"items": data}

"""A thin client of a site's REST API."""

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
"""Events that end a job, unless a person retries it."""
PAUSES = (0.5, 5.0)
"""Seconds between two looks for a lost service: at first, and at most."""
PATIENCE = 120.0
"""Seconds without an answer after which it is given up."""
LONG = httpx.Timeout(600, connect=5)
"""For files: the service verifies one before it answers, or syncs it to its disk."""
CHUNK = 1 << 20
Progress = Callable[[int, int], object]


class ServiceUnreachable(RelayError):
    """There is no service at the address."""

    code = "service_unreachable"
    exit_code = 11


class DownloadDamaged(RelayError):
    """What was fetched is not what the service has."""

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
    """Talks to one site.

    Args:
        url: of the service, such as http://127.0.0.1:8000.
        token: bearer token; None for what needs none.
    """

    def __init__(self, url: str, token: str | None) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=httpx.Timeout(30, connect=5), trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._http.close()

    def call(self, method: str, path: str, **options: Any) -> Any:
        """The JSON of an answer.

        Raises:
            ServiceUnreachable: nobody answers.
            ServiceRefused: the answer is a problem.
        """
        try:
            answer = self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise ServiceUnreachable(f"{self._http.base_url}: {error}; is it running? relay up starts one") from None
        if answer.is_error:
            raise ServiceRefused(answer.status_code, _json(answer))
        return _json(answer)

    def ready(self) -> dict[str, Any]:
        """What `/readyz` says, ready or not. Raises ServiceUnreachable."""
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
        """Bring a bundle; return the import.

        Args:
            file: the bundle.
            purpose: train or evaluate.
            show: told bytes sent and in all.
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
        """Fetch a file; a broken connection is taken up again where it broke, by a later call too.

        Args:
            path: its address.
            target: file to write; what is not whole lies beside it as `<name>.part`.
            show: told bytes at hand and in all.

        Raises:
            ServiceUnreachable: nobody answers for `PATIENCE` seconds.
            ServiceRefused: the answer is a problem.
            DownloadDamaged: what came is not what the service says it has.
        """
        part, pause, lost = target.with_name(target.name + ".part"), PAUSES[0], 0.0
        while True:
            begin = part.stat().st_size if part.is_file() else 0
            try:
                digest = self._fetch(path, part, show)
                break
            except httpx.HTTPError as error:
                why = str(error)
            now = time.monotonic()
            if not lost or (part.is_file() and part.stat().st_size > begin):
                pause, lost = PAUSES[0], now
            if now - lost > PATIENCE:
                raise ServiceUnreachable(f"{self._http.base_url}: {why}; asked again, it goes on from {part}")
            time.sleep(pause)
            pause = min(2 * pause, PAUSES[1])
        with part.open("rb") as file:
            found = base64.b64encode(hashlib.file_digest(file, "sha256").digest()).decode()
        if digest != f"sha-256=:{found}:":
            part.unlink()
            raise DownloadDamaged(f"{target.name}: what came has another digest than the service's file; fetch it again")
        sync(part)
        part.replace(target)

    def _fetch(self, path: str, part: Path, show: Progress) -> str:
        """Add to `part` what it lacks; return the digest of the whole, as the service tells it."""
        whole = self._http.head(path)
        if whole.is_error:
            raise ServiceRefused(whole.status_code, {"title": "refused", "detail": f"{path}: HTTP {whole.status_code}"})
        etag, size = whole.headers["ETag"], int(whole.headers["Content-Length"])
        begin = part.stat().st_size if part.is_file() else 0
        if begin > size:
            part.unlink()
            begin = 0
        if begin == size:
            return str(whole.headers["Repr-Digest"])
        headers = {"Range": f"bytes={begin}-", "If-Range": etag} if begin else {}
        with self._http.stream("GET", path, headers=headers, timeout=LONG) as answer:
            if answer.is_error:
                answer.read()
                raise ServiceRefused(answer.status_code, _json(answer))
            with part.open("ab" if answer.status_code == 206 else "wb") as file:
                for chunk in answer.iter_bytes():
                    file.write(chunk)
                    show(file.tell(), size)
        return str(whole.headers["Repr-Digest"])

    def pages(self, path: str, **params: Any) -> Iterator[dict[str, Any]]:
        """Every item of a list."""
        while True:
            page = self.call("GET", path, params=params)
            yield from page["items"]
            if not page.get("next_cursor"):
                return
            params["cursor"] = page["next_cursor"]

    def follow(self, job_id: str, warn: Callable[[str], None] = lambda text: None) -> Iterator[dict[str, Any]]:
        """A job's events to its end; a broken connection is taken up again where it broke.

        Raises:
            ServiceUnreachable: nobody answers at the start, or for `PATIENCE` seconds later.
            ServiceRefused: the answer is a problem.
        """
        self.call("GET", f"/api/v1/jobs/{job_id}")
        last, event, pause, lost = 0, "", PAUSES[0], 0.0
        while True:
            try:
                for data in self._stream(job_id, last):
                    pause, lost = PAUSES[0], 0.0
                    if data is not None:
                        last, event = int(data["seq"]), data["event"]
                        yield data
                if event in ENDS:
                    return
                why = "the stream ended"
            except httpx.HTTPError as error:
                why = str(error)
            except ServiceRefused as error:
                if error.status < 500:
                    raise
                why = str(error)
            now = time.monotonic()
            if not lost:
                lost = now
                warn(f"connection lost ({why}); trying again")
            if now - lost > PATIENCE:
                raise ServiceUnreachable(f"{self._http.base_url}: {why}; the job goes on, see: relay jobs watch {job_id}")
            time.sleep(pause)
            pause = min(2 * pause, PAUSES[1])

    def _stream(self, job_id: str, after: int) -> Iterator[dict[str, Any] | None]:
        """None as soon as the service answers, then the job's events after one."""
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

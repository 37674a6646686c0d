"""A thin client of a site's REST API."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self

import httpx

from relay_core.errors import RelayError

ENDS = ("succeeded", "failed", "cancelled")
"""Events that end a job, unless a person retries it."""
PAUSES = (0.5, 5.0)
"""Seconds between two looks for a lost service: at first, and at most."""
PATIENCE = 120.0
"""Seconds without an answer after which it is given up."""


class ServiceUnreachable(RelayError):
    """There is no service at the address."""

    code = "service_unreachable"
    exit_code = 8


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

"""Write process output to the database: JSON lines are job events, all other lines are the log."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy.dialects import postgresql, sqlite

from services.site import Claim, jobs, leases
from services.site.db import Database, Metric

MAX_LOG = 10_000
"""Number of log lines of an attempt that are kept."""


class ProcessOutput:
    """Takes a process's lines and writes them to the database in batches, under the job's claim.

    Args:
        database: the site's database.
        claim: the claim of the job.
        folder: the attempt's folder.
        data: the site's data root.
        names: further text that nobody should read -> text that takes its place.
    """

    def __init__(
        self, database: Database, claim: Claim, folder: Path, data: Path, names: Mapping[str, str] | None = None
    ) -> None:
        self.database, self.claim = database, claim
        self._places = [(f"{folder}/", ""), (f"{data}/", ""), (str(folder), "."), (str(data), "."), *(names or {}).items()]
        self._events: list[dict[str, Any]] = []
        self._metrics: dict[tuple[str, str, int], float] = {}
        self._progress: dict[str, Any] | None = None
        self._log_lines = 0
        self.pictures: list[str] = []
        """Paths below `folder` of the pictures that the process has said it drew, and that nobody has taken from here."""
        self.alive = time.monotonic()
        """Monotonic time in seconds of the last job event, which shows that the process makes progress."""
        self.training = False
        """Whether a site's training has started and not finished, so that steps are due; else silence may last longer."""
        self.last: dict[str, Any] = {}
        """The last JSON line that is no job event: the result, or an error."""

    def clean(self, text: str) -> str:
        """Return `text` without the names of this machine's folders, and without characters that a database cannot store."""
        text = text.replace("\0", "")
        for place, replacement in self._places:
            text = text.replace(place, replacement)
        return text

    def line(self, source: str, text: str) -> None:
        """Take a line of the stream `source`, which is `out` or `err`."""
        data = _parsed(text) if source == "out" else None
        if data is None:
            self._log_lines += 1
            if text.strip() and self._log_lines <= MAX_LOG:
                self._events.append({"event": "log", "line": self.clean(text)[:2000]})
            return
        if "event" not in data:
            self.last = data
            return
        if "path" in data:
            data["path"] = self.clean(str(data["path"]))
        if "message" in data:
            data["message"] = self.clean(str(data["message"]))
        self._events.append(data)
        self.alive = time.monotonic()
        self.training = data["event"] == "started" or (self.training and data["event"] != "finished")
        if data["event"] == "step":
            self._progress = {key: data.get(key) for key in ("site", "step", "steps", "images_per_second", "eta_seconds")}
            self._add(data, {**data["losses"], **data.get("figures", {}), "images_per_second": data["images_per_second"]})
        elif data["event"] == "scores":
            scores = {f"{data['test_site']}/{name}": value for name, value in data["scores"].items()}
            self._add(data, scores)
        elif data["event"] == "samples":
            self.pictures.append(str(data["path"]))
        elif data["event"] == "progress":
            self._progress = {"step": data.get("done"), "steps": data.get("total")}

    def _add(self, event: dict[str, Any], values: dict[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, int | float):
                self._metrics[event["site"], name, int(event["step"])] = float(value)

    def flush(self) -> None:
        """Write to the database the events, metrics and progress since the last call. Raises LeaseLost."""
        if not self._events:
            return
        events, metrics, progress = self._events, self._metrics, self._progress
        with self.database.write() as session:
            if progress:
                leases.held(session, self.claim, progress=progress)
            else:
                leases.held(session, self.claim)
            jobs.add_events(session, self.claim.job_id, self.claim.attempt, events)
            if metrics:
                insert = (sqlite if self.database.sqlite else postgresql).insert(Metric)
                changes = {"value": insert.excluded.value, "attempt": insert.excluded.attempt}
                rows = [
                    {"job_id": self.claim.job_id, "site": site, "name": name, "step": step, "value": value,
                     "attempt": self.claim.attempt}
                    for (site, name, step), value in metrics.items()
                ]  # fmt: skip
                keys = ["job_id", "site", "name", "step"]
                session.execute(insert.on_conflict_do_update(index_elements=keys, set_=changes), rows)
        self._events, self._metrics, self._progress = [], {}, None


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        data = json.loads(text, parse_constant=lambda name: None)  # a database's JSON knows no NaN
    except ValueError:
        return None
    return data if isinstance(data, dict) else None

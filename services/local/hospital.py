"""Drive one hospital of the demo through its REST API: a whole embedded site in a folder of its own."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

from relay_core.bundle import KeyFolder
from relay_core.config import RunFile
from relay_core.errors import RelayError
from services.client import Client, upload_run, watch_job
from services.trainer import guarded

PATIENCE = 90.0
"""A site has this many seconds to come up."""


class Hospital:
    """A hospital is one site of the demo.

    Every step is requested with its own idempotency key, so that a second call goes on where the first was stopped.

    Args:
        number: task_id of the hospital's site in the run.
        home: folder that the site keeps everything in.
        device: device that it trains on: auto, cpu, cuda or cuda:N.
    """

    def __init__(self, number: int, home: Path, device: str) -> None:
        self.number, self.home, self.device = number, home, device
        self.name = f"Hospital {number}"
        self._open = contextlib.ExitStack()
        self.keys = KeyFolder(home / "keys")
        if not self.keys.exists:
            self.keys.create(self.name, self.keys.keep_passphrase())

    def start(self) -> None:
        """Start the hospital's service. Call this in the thread that lives longest: the service ends with its thread."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        self.log = self.home / "up.log"
        self._before = self.log.stat().st_size if self.log.is_file() else 0
        command = [sys.executable, "-m", "relay_core", "up", "--home", str(self.home), "--device", self.device]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
        with self.log.open("ab") as file:
            self.process = subprocess.Popen(
                guarded([*command, "--port", self.url.rpartition(":")[2]]), stdout=file, stderr=file, start_new_session=True,
                env={**inherited, "PYTHONUNBUFFERED": "1", "RELAY_SITE_NAME": self.name},
            )  # fmt: skip

    def stop(self) -> None:
        """Stop the service; a job that was running goes on with the next start."""
        self._open.close()
        self.process.terminate()
        self.process.wait()

    def wait_until_up(self) -> None:
        """Wait until the service is up and connect to it. Raises RelayError where it does not come up."""
        give_up = time.monotonic() + PATIENCE
        while "Ctrl-C stops" not in self.log.read_text()[self._before :]:
            if self.process.poll() is not None or time.monotonic() > give_up:
                raise RelayError(f"{self.name} does not come up, see {self.log}")
            time.sleep(0.2)
        tokens = re.findall(r"RELAY_TOKEN=(\S+)", self.log.read_text())  # printed at the first start
        self.client = self._open.enter_context(Client(self.url, tokens[-1]))
        headers = {"Authorization": f"Bearer {tokens[-1]}"}
        self.files = self._open.enter_context(httpx.Client(base_url=self.url, headers=headers, trust_env=False))

    def join(self, run: RunFile) -> str:
        """Upload a run and make this hospital its site `number` there; return the run's id."""
        uploaded = upload_run(self.client, run, "")
        if uploaded["site"] != self.number:
            headers = {"If-Match": f'"{uploaded["version"]}"'}
            self.client.call("PATCH", f"/api/v1/runs/{uploaded['id']}", json={"site": self.number}, headers=headers)
        return str(uploaded["id"])

    def train(self, run_id: str) -> dict[str, Any]:
        """Train this hospital's site of the run, with a progress bar; return the finished job."""
        job = self.client.submit({"kind": "train", "run_id": run_id}, "demo-train")
        watch_job(self.client, job["id"])
        return self._job(job["id"])

    def export(self, checkpoint_id: str, target: Path) -> dict[str, Any]:
        """Build the bundle of a checkpoint and put it on the courier's disk; return its facts."""
        job = self._post("/api/v1/exports", {"checkpoint_id": checkpoint_id}, f"demo-export-{checkpoint_id}")
        bundle_id = self.wait(job)["result"]["bundle"]
        self._fetch(f"/api/v1/exports/{bundle_id}/download", target)
        return dict(self.client.call("GET", f"/api/v1/exports/{bundle_id}")["facts"])

    def receive(self, path: Path, purpose: str) -> dict[str, Any]:
        """Upload a bundle from the courier's disk, have it verified and accept it; return the import."""
        headers = {"Idempotency-Key": f"demo-{purpose}-{path.name}", "Content-Type": "application/vnd.relay.bundle"}
        with path.open("rb") as file:
            params = {"purpose": purpose}
            uploaded = self.client.call("POST", "/api/v1/imports", params=params, content=file, headers=headers)
        self.wait({"id": uploaded["job_id"]})
        imported = dict(self.client.call("GET", f"/api/v1/imports/{uploaded['id']}"))
        if imported["state"] == "quarantined":
            imported = dict(self.client.call("POST", f"/api/v1/imports/{uploaded['id']}/accept"))
        return imported

    def report(self, checkpoint_id: str, target: Path) -> None:
        """Score a checkpoint on this hospital's test images, and put the signed scores on the courier's disk."""
        job = self.client.submit({"kind": "evaluate", "checkpoint_id": checkpoint_id}, f"demo-evaluate-{checkpoint_id}")
        self.sign(self.wait(job)["result"]["evaluation"], target)

    def sign(self, evaluation_id: str, target: Path) -> None:
        """Put an evaluation's signed scores on the courier's disk."""
        self.wait(self._post("/api/v1/exports", {"evaluation_id": evaluation_id}, f"demo-report-{evaluation_id}"))
        self._fetch(f"/api/v1/evaluations/{evaluation_id}/report.json", target)

    def picture(self, job_id: str, name: str, target: Path) -> None:
        """Fetch the picture, among a job's files, whose name ends with `name`; do nothing where there is none."""
        files = [row["name"] for row in self.client.call("GET", f"/api/v1/jobs/{job_id}/files")["items"]]
        file_name = next((file for file in files if file.endswith(name)), None)
        if file_name is not None:
            self._fetch(f"/api/v1/jobs/{job_id}/files/{file_name}", target)

    def wait(self, job: dict[str, Any]) -> dict[str, Any]:
        """Follow a job to its end and return it. Raises RelayError where it did not succeed."""
        for _ in self.client.follow(job["id"]):
            pass
        ended = self._job(job["id"])
        if ended["state"] != "succeeded":
            raise RelayError(f"{self.name}: {ended['kind']} {ended['state']}: {(ended['error'] or {}).get('message', '')}")
        return ended

    def _job(self, job_id: str) -> dict[str, Any]:
        return dict(self.client.call("GET", f"/api/v1/jobs/{job_id}"))

    def _post(self, path: str, body: dict[str, Any], key: str) -> dict[str, Any]:
        return dict(self.client.call("POST", path, json=body, headers={"Idempotency-Key": key}))

    def _fetch(self, path: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with self.files.stream("GET", path) as answer, target.open("wb") as file:
            answer.raise_for_status()
            for chunk in answer.iter_bytes():
                file.write(chunk)

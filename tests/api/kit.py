"""A running API over a real database, seen from outside; the tests play its worker through the same database."""

from __future__ import annotations

import itertools
import json
import os
import secrets
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml
from sqlalchemy import select

from services.site import artifacts, audit, auth, bundle_exchange, jobs, leases, registry, workers
from services.site.artifacts import ArtifactStore
from services.site.db import Database
from services.site.db.models import AuditRecord, Bundle, Checkpoint, Evaluation, Job, Model, RosterCopy, new_id, now
from services.site.settings import Settings, load_settings
from tests.conftest import MODEL
from tests.ports import free_port

NUMBERS = itertools.count(1)
MATRIX = {"rows": ["Domain1"], "columns": ["Domain1", "Domain2"], "values": [[0.9, None]]}


def run_text(seed: int, sites: int = 2, **extra: Any) -> str:
    """A run file of its own digest."""
    entries = [
        {"kwargs": {"task_id": i, "task_name": f"R{seed}-{i}", "img_folder": f"Domain{i}"}} for i in range(1, sites + 1)
    ]
    common = {
        "random_seed": seed,
        "dataset": {"name": "fundus", "kwargs": {}},
        "strategy": {"name": "relay"},
        "model": {"name": "doublegan", "kwargs": MODEL},
        "train": {"num_mimgs": 48e-6, "batch_size": 8},
        **extra,
    }
    ids = list(range(1, sites + 1))
    return yaml.safe_dump({"common": common, "all_tasks_datasets": entries, "current_tasks": {"task_ids": ids}})


def facts(run_id: str, **more: Any) -> dict[str, Any]:
    """What a signed manifest says, of a model of its own."""
    signer = {"name": "north", "fingerprint": "f" * 64, "trusted": True}
    return {
        "digest": secrets.token_hex(32), "run": run_id, "hop": 1, "task_id": 1, "site": "North", "signer": signer,
        "recipient": None, "parent": None, "created_at": time.time(), "half": False, "version": "0", "step": 6, "images": 8,
        "metrics": {}, "history": [], "size": 8, "file_sha256": "0" * 64, **more,
    }  # fmt: skip


@dataclass
class Site:
    """A site whose API runs in a process of its own."""

    url: str
    settings: Settings
    database: Database
    store: ArtifactStore
    process: subprocess.Popen[bytes]
    tokens: dict[str, str] = field(default_factory=dict)
    _clients: list[httpx.Client] = field(default_factory=list)

    def __post_init__(self) -> None:
        for role in auth.ROLES:
            self.tokens[role] = self.token(role)
        self.viewer, self.operator, self.admin = (self.client(self.tokens[role]) for role in auth.ROLES)
        self.anonymous = self.client(None)

    def token(self, role: auth.Role, days: float | None = None) -> str:
        """A new token."""
        with self.database.write() as session:
            return auth.create_token(session, self.settings.key, f"test {role}", role, days)[1]

    def client(self, token: str | None, address: str = "127.0.0.1") -> httpx.Client:
        """A client that comes from one address of this machine."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        transport = httpx.HTTPTransport(local_address=address, limits=httpx.Limits(max_connections=200))
        client = httpx.Client(base_url=self.url, headers=headers, transport=transport, timeout=60)
        self._clients.append(client)
        return client

    def close(self) -> None:
        for client in self._clients:
            client.close()
        self.database.close()

    def folder(self, name: str | None = None) -> str:
        """A folder of images below the data root."""
        name = name or f"images/set-{next(NUMBERS)}"
        (self.settings.data_folder / name / "image").mkdir(parents=True)
        return name

    def dataset(self, name: str | None = None) -> dict[str, Any]:
        """A registered data set."""
        body = {"name": name or f"set-{next(NUMBERS)}", "path": self.folder(), "layout": "folder"}
        return ok(self.operator.post("/api/v1/datasets", json=body), 201)

    def run(self, sites: int = 2) -> dict[str, Any]:
        """A registered run, with a data set for each site."""
        answer = self.operator.post(
            "/api/v1/runs", content=run_text(next(NUMBERS), sites), headers={"Content-Type": "application/yaml"}
        )
        run = ok(answer, 201)
        for entry in run["sites"]:
            self.dataset(entry["name"])
        return run

    def submit(self, body: dict[str, Any] | None = None, key: str | None = None, status: int = 202) -> dict[str, Any]:
        """A queued job; by default one that needs no device."""
        body = body or {"kind": "preflight", "dataset_id": self.dataset()["id"]}
        headers = {"Idempotency-Key": key or secrets.token_hex(8)}
        return ok(self.operator.post("/api/v1/jobs", json=body, headers=headers), status)

    def claim(self, job_id: str) -> jobs.Claim:
        """Take a job as a worker does."""
        with self.database.write() as session:
            devices = [f"cuda:{next(NUMBERS)}" for _ in range(16)]
            found = leases.claim(session, worker="test", host="test", devices=devices, lease=600, job_id=job_id)
        assert found is not None
        return found

    def say(self, claim: jobs.Claim, *events: dict[str, Any]) -> None:
        """Add events as a worker does."""
        with self.database.write() as session:
            leases.held(session, claim)
            jobs.add_events(session, claim.job_id, claim.attempt, events)

    def finish(self, claim: jobs.Claim, state: Any = "succeeded", **values: Any) -> None:
        """End a job as a worker does."""
        with self.database.write() as session:
            leases.finish(session, claim, state, **values)

    def job(self, job_id: str) -> Job:
        """The row."""
        with self.database.read() as session:
            return session.get_one(Job, job_id)

    def damage(self, digest: str) -> None:
        """Change one bit of stored bytes."""
        with self.store.path(digest).open("r+b") as file:
            file.seek(10)
            (byte,) = file.read(1)
            file.seek(10)
            file.write(bytes([byte ^ 1]))

    def checkpoint(
        self, run: dict[str, Any] | None = None, content: bytes = b"", parent: str | None = None, steps: int = 6
    ) -> Checkpoint:
        """What a training of `steps` leaves at step 6."""
        run = run or self.run()
        job = self.submit({"kind": "train", "run_id": run["id"]})
        claim = self.claim(job["id"])
        content = content or secrets.token_bytes(64)
        digest, size = self.store.put([content])
        with self.database.write() as session:
            artifacts.keep(session, digest, size, "application/vnd.safetensors")
            row = Checkpoint(
                run_id=run["id"], job_id=job["id"], task_id=1, site="R", step=6, steps=steps, digest=digest,
                content_digest="0" * 64, parent_id=parent,
            )  # fmt: skip
            session.add(row)
            leases.finish(session, claim, "succeeded")
        return row

    def evaluation(self, checkpoint: Checkpoint) -> Evaluation:
        """What an evaluation leaves."""
        with self.database.write() as session:
            row = Evaluation(
                id=new_id("evaluation"), job_id=checkpoint.job_id, run_id=checkpoint.run_id, checkpoint_id=checkpoint.id,
                matrices={"dice_per_sample": MATRIX, "accuracy": MATRIX},
            )  # fmt: skip
            session.add(row)
            session.flush()
            self.attach(row.id, "dice_per_sample.csv", b"after,Domain1\n", "text/csv", session)
            self.attach(row.id, "dice_per_sample.png", b"\x89PNG...", "image/png", session)
        return row

    def export(self, checkpoint: Checkpoint | None = None, content: bytes = b"a bundle") -> Bundle:
        """What the building of a bundle leaves."""
        checkpoint = checkpoint or self.checkpoint()
        headers = {"Idempotency-Key": secrets.token_hex(8)}
        job = ok(self.operator.post("/api/v1/exports", json={"checkpoint_id": checkpoint.id}, headers=headers), 202)
        claim = self.claim(job["id"])
        files = {bundle_exchange.FILE: (*self.store.put([content]), bundle_exchange.MEDIA_TYPE)}
        with self.database.write() as session:
            row = bundle_exchange.built(session, session.get_one(Job, job["id"]), facts(checkpoint.run_id), files)
            leases.finish(session, claim, "succeeded", result={"bundle": row.id})
        return row

    def model(self, exported: Any, name: str | None = None, dice: float | None = None, **fields: Any) -> Model:
        """What the export of a model leaves: the next version of `name`, with this Dice on its tests."""
        name = name or f"model-{next(NUMBERS)}"
        checkpoint = fields.pop("checkpoint", None) or self.checkpoint()
        job = self.submit({"kind": "export_onnx", "checkpoint_id": checkpoint.id, "name": name})
        claim = self.claim(job["id"])
        proof = json.loads(json.dumps(exported.proof))
        for found in proof["tests"].values():
            found["dice"] = found["dice"] if dice is None else dice
        file = (*self.store.put([exported.content]), registry.MEDIA_TYPE)
        with self.database.write() as session:
            said = {"proof": proof, "facts": exported.facts}
            row = registry.publish(session, session.get_one(Job, job["id"]), said, file)
            leases.finish(session, claim, "succeeded", result={"model": row.name, "version": row.version})
        return row

    def promote(self, name: str, version: int, **body: Any) -> httpx.Response:
        """Put a version into production, having read what is there."""
        tag = self.viewer.get(f"/api/v1/models/{name}").headers.get("etag", '"0"')
        path = f"/api/v1/models/{name}/promote"
        return self.operator.post(path, json={"version": version, **body}, headers={"If-Match": tag})

    def bring(self, content: bytes = b"", key: str | None = None, **params: str) -> httpx.Response:
        """An upload; by default of a file that nobody brought before."""
        headers = {"Idempotency-Key": key or secrets.token_hex(8), "Content-Type": "application/vnd.relay.bundle"}
        content = content or secrets.token_bytes(32)
        return self.operator.post("/api/v1/imports", content=content, headers=headers, params=params)

    def quarantined(self, run_id: str, **more: Any) -> dict[str, Any]:
        """A brought bundle that a worker has verified."""
        brought = ok(self.bring(), 202)
        claim = self.claim(brought["job_id"])
        told = {"digest": "0" * 64, "relay": json.dumps({"task_id": 1, "site": "North", "step": 6, "steps": 6})}
        header = json.dumps({"__metadata__": told}).encode()
        weights = [struct.pack("<Q", len(header)), header, secrets.token_bytes(8)]
        files = {
            bundle_exchange.CHECKPOINT: (*self.store.put(weights), "application/vnd.safetensors"),
            "MODEL_CARD.md": (*self.store.put([b"# A model"]), "text/markdown; charset=utf-8"),
        }
        with self.database.write() as session:
            self.trusting(session)
            bundle_exchange.quarantine(session, session.get_one(Job, brought["job_id"]), facts(run_id, **more), files)
            leases.finish(session, claim, "succeeded")
        return ok(self.viewer.get(f"/api/v1/imports/{brought['id']}"))

    def trusting(self, session: Any, **more: Any) -> None:
        """The roster that a worker has just read: the signer of `facts` in it."""
        entry = {"fingerprint": "f" * 64, "name": "north", "run": None, "added_at": 1.0, "revoked_at": None, **more}
        session.merge(RosterCopy(id=1, entries=[entry], confirmed_at=now(session)))

    def attach(self, owner: str, name: str, content: bytes, media_type: str, session: Any = None) -> str:
        """Bytes in the store that `owner` needs; returns their digest."""
        digest, size = self.store.put([content])
        if session is not None:
            artifacts.attach(session, owner, name, digest, size, media_type)
            return digest
        with self.database.write() as own:
            artifacts.attach(own, owner, name, digest, size, media_type)
        return digest

    def audited(self, action: str, subject: str) -> list[AuditRecord]:
        """Rows of the audit log, whose chain must be whole."""
        with self.database.read() as session:
            audit.verify(session)
            found = select(AuditRecord).where(AuditRecord.action == action, AuditRecord.subject == subject)
            return list(session.scalars(found.order_by(AuditRecord.seq)))

    @contextmanager
    def worker(self, **facts: Any) -> Iterator[None]:
        """A worker that is seen."""
        name = f"worker-{next(NUMBERS)}"
        with self.database.write() as session:
            workers.seen(session, name, {"device": "cpu", "ops": "torch", **facts})
        yield
        with self.database.write() as session:
            workers.gone(session, name)


def ok(answer: httpx.Response, status: int = 200) -> Any:
    """The JSON of an answer that must have this status."""
    assert answer.status_code == status, (answer.status_code, answer.text)
    return answer.json() if answer.content else None


def refused(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The problem document of an answer that must be one."""
    assert answer.status_code == status, (answer.status_code, answer.text)
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["status"], problem["code"], problem["type"]) == (status, code, f"/problems/{code}")
    assert problem["error"] == problem["detail"] != ""
    assert problem["request_id"] == answer.headers["x-request-id"]
    return problem


@contextmanager
def running(folder: Path, database_url: str | None, **more: str) -> Iterator[Site]:
    """A site with `python -m services.api` serving it."""
    port = more.pop("RELAY_PORT", None) or free_port()
    variables = {
        "RELAY_HOME": str(folder), "RELAY_PORT": str(port), "RELAY_SECRET_KEY": secrets.token_hex(32),
        "RELAY_DATABASE_PASSWORD": secrets.token_hex(16), "RELAY_MIN_FREE_MIB": "1", **more,
    }  # fmt: skip
    if database_url is not None:
        variables["RELAY_DATABASE_URL"] = database_url
    log = (folder / "api.log").open("wb")
    process = subprocess.Popen([sys.executable, "-m", "services.api"], env={**os.environ, **variables}, stderr=log)
    site = None
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(url, process, folder / "api.log")
        given = {name.removeprefix("RELAY_").lower(): value for name, value in variables.items()}
        settings = load_settings(**given)
        settings.data_folder.mkdir(exist_ok=True)
        site = Site(url, settings, Database(settings.database), ArtifactStore(settings.artifact_folder), process)
        yield site
    finally:
        if site is not None:
            site.close()
        process.terminate()
        assert process.wait(20) in (0, -15)
        log.close()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(300):
        assert process.poll() is None, log.read_text()
        try:
            httpx.get(f"{url}/healthz", trust_env=False)
            return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError(log.read_text())

"""Health, readiness, metrics, headers, and a stop."""

import json
import os
import subprocess
import sys

import anyio
import httpx
import pytest
from sqlalchemy import text

from services.api.main import create_app
from services.site import jobs, sweep
from services.site.db import Database, migrate
from services.site.errors import CATALOGUE, Refusal
from services.site.settings import load_settings
from tests.api.kit import ok, refused, running


def test_the_process_answers(small_site):
    assert ok(small_site.anonymous.get("/healthz")) == {"status": "ok", "instance": None}


def test_ready_only_with_a_worker(site):
    answer = site.anonymous.get("/readyz")
    assert answer.status_code == 503
    found = answer.json()
    assert found["status"] == "not_ready"
    assert [name for name, check in found["checks"].items() if not check["ok"]] == ["worker"]
    with site.worker(device="cuda:0", ops="cuda"):
        found = ok(site.anonymous.get("/readyz"))
    assert found["status"] == "ready"
    assert found["checks"]["device"]["detail"] == "in use: cuda:0 (cuda ops)"
    assert found["checks"]["database"] == {"ok": True, "detail": "took a write"}


def test_a_gpu_that_is_asked_for_and_not_used_is_told(tmp_path):
    with running(tmp_path, None, RELAY_DEVICE="cuda", RELAY_MIN_FREE_MIB="1") as site, site.worker(device="cpu"):
        found = ok(site.anonymous.get("/readyz"))
        assert found["status"] == "degraded"
        assert "wanted: cuda" in found["checks"]["device"]["detail"]


def test_a_full_disk_takes_no_job(tmp_path):
    with running(tmp_path, None, RELAY_MIN_FREE_MIB="999999999") as site:
        body = {"kind": "preflight", "dataset_id": site.dataset()["id"]}
        refused(site.operator.post("/api/v1/jobs", json=body, headers={"Idempotency-Key": "x"}), 507, "storage_full")
        assert not ok(site.viewer.get("/api/v1/jobs"))["items"]
        with site.database.write() as session:
            job, _ = jobs.submit(session, kind="preflight", params={}, actor="test", key=None, body={})
            jobs.cancel(session, job.id, "test")
        refused(site.operator.post(f"/api/v1/jobs/{job.id}/retry"), 507, "storage_full")
        assert ok(site.viewer.get(f"/api/v1/jobs/{job.id}"))["state"] == "cancelled"
        assert site.anonymous.get("/readyz").json()["checks"]["storage"]["ok"] is False


def test_a_volume_that_is_away_is_named_and_takes_no_job(small_site):
    dataset, folder = small_site.dataset()["id"], small_site.store.folder
    body, hidden = {"kind": "preflight", "dataset_id": dataset}, folder.with_name("unmounted")
    folder.rename(hidden)
    folder.mkdir()
    try:
        with small_site.worker():
            answer = small_site.anonymous.get("/readyz")
            assert answer.status_code == 503
            assert "`artifacts`" in answer.json()["checks"]["volumes"]["detail"]
        refused(small_site.operator.post("/api/v1/jobs", json=body, headers={"Idempotency-Key": "away"}), 503, "volume_away")
        refused(small_site.bring(), 503, "volume_away")
        assert ok(small_site.viewer.get("/api/v1/system"))["storage_free_mib"] == 0
        assert small_site.anonymous.get("/metrics").status_code == 200
    finally:
        folder.rmdir()  # nothing was written beneath the mount point
        hidden.rename(folder)
    with small_site.worker():
        assert ok(small_site.anonymous.get("/readyz"))["status"] == "ready"


def test_a_worker_without_a_volume_is_told(small_site):
    lacks = {"work": "the volume `work` is away: its mark is not there"}
    with small_site.worker(volumes=lacks):
        answer = small_site.anonymous.get("/readyz")
        assert answer.status_code == 503
        assert answer.json()["checks"]["volumes"] == {"ok": False, "detail": lacks["work"]}
        with small_site.worker():  # one that has it
            found = ok(small_site.anonymous.get("/readyz"))
            assert found["checks"]["volumes"]["detail"] == "workers that wait for one: 1 of 2"


def test_a_restore_that_nobody_confirmed_is_told(small_site):
    sweep.hold(small_site.store.folder, "now")
    try:
        with small_site.worker():
            found = ok(small_site.anonymous.get("/readyz"))
        assert found["status"] == "degraded"
        assert "relay artifacts confirm" in found["checks"]["restore"]["detail"]
    finally:
        sweep.confirm(small_site.database, small_site.settings, "test", adopt=True)


def test_the_system_describes_itself(site):
    with site.worker():
        found = ok(site.viewer.get("/api/v1/system"))
    assert found["role"] == "viewer"
    assert found["database"] == ("sqlite" if site.database.sqlite else "postgresql")
    assert found["workers"][0]["facts"]["device"] == "cpu"


def test_metrics_count_in_the_database(site):
    site.finish(site.claim(site.submit()["id"]), "failed")
    again = site.submit()
    site.finish(site.claim(again["id"]), "failed")
    ok(site.operator.post(f"/api/v1/jobs/{again['id']}/retry"), 202)
    with site.worker(gpu_memory={"0": 1024}):
        answer = site.anonymous.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    values = dict(line.rsplit(" ", 1) for line in answer.text.splitlines() if not line.startswith("#"))
    failed = float(values['relay_jobs_total{kind="preflight",outcome="failed"}'])
    present = float(values['relay_jobs{kind="preflight",state="failed"}'])
    assert failed > present, "a retried job's failure still counts"
    assert float(values['relay_job_duration_seconds_count{kind="preflight"}']) >= 1
    assert float(values["relay_queue_age_seconds"]) >= 0
    assert float(values["relay_storage_free_bytes"]) > 0
    assert any(name.startswith("relay_build_info{") for name in values)
    assert any(name.startswith("relay_gpu_memory_bytes{") and value == "1024.0" for name, value in values.items())
    assert any(name.startswith("relay_worker_heartbeat_age_seconds{") for name in values)
    requests = [name for name in values if name.startswith("relay_http_request_duration_seconds_count")]
    assert any('route="/api/v1/jobs/{job_id}/retry"' in name for name in requests)
    assert "job-" not in "".join(requests)
    again = dict(line.rsplit(" ", 1) for line in site.anonymous.get("/metrics").text.splitlines() if line[0] != "#")
    assert float(again['relay_jobs_total{kind="preflight",outcome="failed"}']) == failed


def test_headers_of_every_answer(small_site):
    for path in ("/api/v1/system", "/nowhere", "/healthz"):
        answer = small_site.viewer.get(path, headers={"X-Request-ID": "abc.1"})
        assert answer.headers["x-request-id"] == "abc.1"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["referrer-policy"] == "no-referrer"
    assert small_site.viewer.get("/api/v1/system").headers["cache-control"] == "no-store"
    for given in ("a b", "x" * 65, "<script>"):
        assert small_site.viewer.get("/healthz", headers={"X-Request-ID": given}).headers["x-request-id"] != given
    assert "server" not in answer.headers


def test_what_is_not_there_is_a_problem_document(small_site):
    refused(small_site.viewer.get("/nowhere"), 404, "not_found")
    for path in ("", "None", "job-1", "%00", "a%2Fb"):
        refused(small_site.viewer.get(f"/api/v1/jobs/{path}"), 404, "not_found")
    answer = small_site.viewer.put("/api/v1/jobs")
    refused(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, HEAD, POST"
    answer = small_site.viewer.post(f"/api/v1/checkpoints/checkpoint-{'0' * 28}/download")
    assert answer.headers["allow"] == "GET, HEAD"
    for path in ("/docs", "/redoc"):
        refused(small_site.viewer.get(path), 404, "not_found")


def test_the_catalogue_is_public(small_site):
    for code, entry in CATALOGUE.items():
        found = ok(small_site.anonymous.get(f"/problems/{code}"))
        assert found == {"type": f"/problems/{code}", "title": entry.title, "status": entry.status}
    refused(small_site.anonymous.get("/problems/none"), 404, "not_found")


def test_the_log_is_json_without_queries(tmp_path):
    with running(tmp_path, None) as site:
        site.viewer.get("/api/v1/jobs", params={"cursor": "patient-name"})
    lines = [json.loads(line) for line in (tmp_path / "api.log").read_text().splitlines()]
    (line,) = [line for line in lines if line.get("path") == "/api/v1/jobs"]
    assert (line["method"], line["status"], line["client"]) == ("GET", 400, "127.0.0.1")
    assert "patient-name" not in (tmp_path / "api.log").read_text()


@pytest.mark.parametrize(("proxies", "client"), [("", "127.0.0.1"), ("127.0.0.1", "10.9.8.7")])
def test_a_proxy_is_believed_where_the_settings_name_it(tmp_path, proxies, client):
    with running(tmp_path, None, FORWARDED_ALLOW_IPS=proxies) as site:
        site.viewer.get("/api/v1/system", headers={"X-Forwarded-For": "10.9.8.7"})
    lines = [json.loads(line) for line in (tmp_path / "api.log").read_text().splitlines()]
    assert [line["client"] for line in lines if line.get("path") == "/api/v1/system"] == [client]


def test_an_open_stream_does_not_hold_a_stop_back(tmp_path):
    with running(tmp_path, None) as site:
        job = site.submit()
        with site.viewer.stream("GET", f"/api/v1/jobs/{job['id']}/events") as answer:
            assert answer.status_code == 200
            site.process.terminate()
            site.process.wait(8)


def test_a_database_that_is_not_migrated_is_refused(tmp_path):
    settings = load_settings(embedded=True, home=tmp_path)
    app = create_app(settings)

    async def start():
        async with app.router.lifespan_context(app):
            raise AssertionError("it started")

    with pytest.raises(Refusal, match="migrate"):
        anyio.run(start)
    database = Database(settings.database)
    migrate.upgrade(database)
    database.close()


def test_a_database_of_a_later_version_is_left_alone(tmp_path):
    settings = load_settings(embedded=True, home=tmp_path)
    database = Database(settings.database)
    migrate.upgrade(database)
    with database.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = 'later'"))
    database.close()
    command = [sys.executable, "-m", "services.api"]
    environment = {**os.environ, "RELAY_HOME": str(tmp_path), "RELAY_EMBEDDED": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "at revision later" in done.stderr
    assert "restore the backup" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_error_inside_is_told_without_its_words(tmp_path, caplog):
    app = create_app(load_settings(embedded=True, home=tmp_path))

    @app.get("/broken")
    def broken():
        raise RuntimeError("patient 4711 in /home/someone")

    async def ask():
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.get("/broken")

    answer = anyio.run(ask)
    problem = refused(answer, 500, "internal")
    assert "4711" not in answer.text
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.request_id == problem["request_id"]


def test_settings_that_are_not_safe_are_refused(tmp_path):
    command = [sys.executable, "-m", "services.api"]
    done = subprocess.run(
        command, env={"RELAY_HOME": str(tmp_path), "PATH": "/usr/bin"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 13
    assert "RELAY_SECRET_KEY" in done.stderr

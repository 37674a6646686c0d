"""Exports and imports over REST: what is handed on, and what is let in."""

import hashlib
import os
import shutil
import socket
import time

import httpx
import pytest

from relay_core.bundle.keys import KeyFolder
from services.site import bundle_exchange
from services.site.db.models import Job
from services.site.errors import Refusal
from services.trainer.worker_loop import WorkerLoop
from tests.api.kit import Site, facts, ok, refused, running
from tests.conftest import Toy

PASSPHRASE = "a passphrase of a test"


def post(site: Site, path: str, body: object = None, key: str = "k") -> httpx.Response:
    return site.operator.post(path, json=body, headers={"Idempotency-Key": key})


def test_an_export_is_submitted_once(site):
    checkpoint = site.checkpoint()
    body = {"checkpoint_id": checkpoint.id, "recipient": "south", "half": True}
    answer = post(site, "/api/v1/exports", body, f"e-{checkpoint.id}")
    job = ok(answer, 202)
    assert answer.headers["location"] == f"/api/v1/jobs/{job['id']}"
    assert (job["kind"], job["gpus"], job["run_id"], job["checkpoint_id"]) == ("export", 0, checkpoint.run_id, checkpoint.id)
    assert job["params"] == {"recipient": "south", "half": True, "parent": None}
    again = post(site, "/api/v1/exports", body, f"e-{checkpoint.id}")
    assert (ok(again, 202)["id"], again.headers["idempotency-replayed"]) == (job["id"], "true")
    other = post(site, "/api/v1/exports", {"checkpoint_id": checkpoint.id}, f"e-{checkpoint.id}")
    refused(other, 422, "idempotency_key_reused")
    refused(site.operator.post("/api/v1/exports", json=body), 400, "idempotency_key_missing")
    for wrong in ({}, {"checkpoint_id": "x"}, {**body, "evaluation_id": f"evaluation-{'0' * 28}"}, {**body, "more": 1}):
        refused(post(site, "/api/v1/exports", wrong, "wrong"), 422, "invalid_request")
    refused(post(site, "/api/v1/exports", {"checkpoint_id": f"checkpoint-{'0' * 28}"}, "none"), 404, "not_found")


def test_a_later_hop_needs_the_one_before(site):
    parent = site.checkpoint()
    child = site.checkpoint(parent=parent.id)
    problem = refused(post(site, "/api/v1/exports", {"checkpoint_id": child.id}, f"c-{child.id}"), 409, "bundle_incomplete")
    assert parent.id in problem["detail"]
    built = site.export(parent)
    job = ok(post(site, "/api/v1/exports", {"checkpoint_id": child.id}, f"c-{child.id}"), 202)
    assert job["params"]["parent"] == built.id


def test_a_report_needs_scores(site):
    checkpoint = site.checkpoint()
    evaluation = site.evaluation(checkpoint)
    body, path = {"evaluation_id": evaluation.id}, f"/api/v1/evaluations/{evaluation.id}/report.json"
    refused(post(site, "/api/v1/exports", body, f"r-{evaluation.id}"), 409, "bundle_incomplete")
    site.attach(checkpoint.id, "scores.json", b"{}", "application/json")
    assert ok(post(site, "/api/v1/exports", body, f"r-{evaluation.id}"), 202)["kind"] == "report"
    refused(site.viewer.get(path), 404, "not_found")
    site.attach(evaluation.id, "report.json", b'{"signed": 1}', "application/json")
    assert ok(site.viewer.get(path)) == {"signed": 1}


def test_exports_are_listed_and_fetched(site):
    row = site.export(content=b"some bundle")
    path = f"/api/v1/exports/{row.id}"
    shown = ok(site.viewer.get(path))
    assert (shown["checkpoint_id"], shown["size"], shown["facts"]["hop"]) == (row.checkpoint_id, 11, 1)
    assert ok(site.viewer.get("/api/v1/exports", params={"run_id": row.run_id}))["items"] == [shown]
    assert row.id not in str(ok(site.viewer.get("/api/v1/imports")))
    refused(site.viewer.get(f"/api/v1/imports/{row.id}"), 404, "not_found")
    refused(site.operator.post(f"/api/v1/imports/{row.id}/accept"), 404, "not_found")
    answer = site.operator.get(f"{path}/download")
    assert answer.content == b"some bundle"
    assert answer.headers["content-type"] == "application/vnd.relay.bundle"
    assert answer.headers["content-disposition"] == f'attachment; filename="{row.id}.relay"'
    assert site.operator.head(f"{path}/download").headers["etag"] == f'"{hashlib.sha256(b"some bundle").hexdigest()}"'
    (fetched,) = site.audited("export.download", row.id)  # a look at its size fetches nothing
    assert fetched.actor.startswith("test operator")


@pytest.mark.parametrize("what", ["export", "checkpoint"])
def test_a_download_goes_on_where_it_broke(small_site, what):
    content = os.urandom(2_500_000)
    row = small_site.export(content=content) if what == "export" else small_site.checkpoint(content=content)
    path = f"/api/v1/{what}s/{row.id}/download"
    tag = small_site.operator.head(path).headers["etag"]

    def get(ranged: str, **headers: str) -> httpx.Response:
        return small_site.operator.get(path, headers={"Range": ranged, **headers})

    size = len(content)
    for asked, first, last in (
        ("bytes=0-99", 0, 99), ("bytes=2000000-", 2_000_000, size - 1), ("bytes=-5", size - 5, size - 1),
        (f"bytes=1-{size * 2}", 1, size - 1), (f"bytes=-{size * 2}", 0, size - 1),
    ):  # fmt: skip
        answer = get(asked, **{"If-Range": tag})
        assert answer.status_code == 206, asked
        assert answer.content == content[first : last + 1]
        assert answer.headers["content-range"] == f"bytes {first}-{last}/{size}"
        assert answer.headers["content-length"] == str(last - first + 1)
        assert answer.headers["etag"] == tag
    for passed_over in ("bytes=5-2", "bytes=0-1,4-5", "lines=0-1", "nonsense"):
        answer = get(passed_over)
        assert (answer.status_code, answer.headers["accept-ranges"], len(answer.content)) == (200, "bytes", size)
    assert get("bytes=0-9", **{"If-Range": '"another"'}).status_code == 200
    answer = get(f"bytes={size}-")
    refused(answer, 416, "range_not_satisfiable")
    assert answer.headers["content-range"] == f"bytes */{size}"
    small_site.damage(row.digest)
    refused(get("bytes=2000000-"), 500, "artifact_damaged")  # though these bytes are right


def test_an_import_waits_for_its_verification(site):
    content = os.urandom(300_000)
    answer = site.bring(content, "i-1", purpose="evaluate")
    shown = ok(answer, 202)
    assert answer.headers["location"] == f"/api/v1/imports/{shown['id']}"
    assert (shown["state"], shown["purpose"], shown["run_id"], shown["error"]) == ("verifying", "evaluate", None, None)
    assert (shown["digest"], shown["size"]) == (hashlib.sha256(content).hexdigest(), 300_000)
    assert b"".join(site.store.read(shown["digest"])) == content
    again = site.bring(content, "i-1", purpose="evaluate")
    assert (ok(again, 202), again.headers["idempotency-replayed"]) == (shown, "true")
    refused(site.bring(content, "i-1"), 422, "idempotency_key_reused")
    refused(site.bring(b"other", "i-1", purpose="evaluate"), 422, "idempotency_key_reused")
    job = ok(site.viewer.get(f"/api/v1/jobs/{shown['job_id']}"))
    assert (job["kind"], job["gpus"], job["params"]["import"]) == ("import", 0, shown["id"])
    refused(site.viewer.get(f"/api/v1/imports/{shown['id']}/card"), 409, "conflict")
    refused(site.operator.post(f"/api/v1/imports/{shown['id']}/accept"), 409, "conflict")
    (row,) = site.audited("import.receive", shown["id"])
    assert row.detail["digest"] == shown["digest"]

    error = {"code": "signer_unknown", "message": "the bundle was signed with a key that is not trusted here"}
    site.finish(site.claim(job["id"]), "failed", error=error)
    found = ok(site.viewer.get(f"/api/v1/imports/{shown['id']}"))
    assert (found["state"], found["error"]) == ("refused", error)
    assert shown["id"] in [row["id"] for row in ok(site.viewer.get("/api/v1/imports", params={"state": "refused"}))["items"]]
    (row,) = site.audited("import.refuse", shown["id"])
    assert row.detail == {"code": "signer_unknown"}
    problem = refused(site.operator.post(f"/api/v1/imports/{shown['id']}/accept"), 409, "conflict")
    assert "is refused" in problem["detail"]
    ok(site.operator.post(f"/api/v1/jobs/{job['id']}/retry"), 202)
    assert ok(site.viewer.get(f"/api/v1/imports/{shown['id']}"))["state"] == "verifying"


def test_a_quarantined_import_is_accepted(site):
    run = site.run()
    shown = site.quarantined(run["id"])
    path = f"/api/v1/imports/{shown['id']}"
    assert (shown["state"], shown["run_id"], shown["facts"]["signer"]["name"]) == ("quarantined", run["id"], "north")
    card = site.viewer.get(f"{path}/card")
    assert (card.text, card.headers["content-type"]) == ("# A model", "text/markdown; charset=utf-8")
    body = {"kind": "train", "run_id": run["id"], "site": 2}
    refused(post(site, "/api/v1/jobs", body, f"before-{run['id']}"), 422, "checkpoint_invalid")
    refused(site.viewer.post(f"{path}/accept"), 403, "forbidden")
    accepted = ok(site.operator.post(f"{path}/accept"))
    assert (accepted["state"], accepted["reason"]) == ("accepted", None)
    assert accepted["decided_by"].startswith("test operator")
    checkpoint = ok(site.viewer.get(f"/api/v1/checkpoints/{accepted['checkpoint_id']}"))
    assert (checkpoint["task_id"], checkpoint["site"], checkpoint["step"]) == (1, "North", 6)
    assert (checkpoint["parent_id"], checkpoint["job_id"]) == (None, shown["job_id"])
    job = ok(post(site, "/api/v1/jobs", body, f"after-{run['id']}"), 202)
    assert job["checkpoint_id"] == checkpoint["id"]
    (row,) = site.audited("import.accept", shown["id"])
    assert (row.detail["signer"], row.detail["digest"]) == ("f" * 64, shown["content_digest"])
    refused(site.operator.post(f"{path}/accept"), 409, "conflict")
    refused(post(site, f"{path}/reject", {"reason": "late"}), 409, "conflict")
    export = post(site, "/api/v1/exports", {"checkpoint_id": checkpoint["id"]}, f"x-{run['id']}")
    assert shown["id"] in refused(export, 409, "conflict")["detail"]
    ok(site.operator.post(f"/api/v1/jobs/{job['id']}/cancel"), 202)
    ok(site.operator.delete(f"/api/v1/checkpoints/{checkpoint['id']}"), 204)
    assert ok(site.viewer.get(path))["state"] == "accepted"


def test_a_quarantined_import_is_rejected(site):
    run = site.run()
    path = f"/api/v1/imports/{site.quarantined(run['id'])['id']}"
    refused(post(site, f"{path}/reject", {}), 422, "invalid_request")
    rejected = ok(post(site, f"{path}/reject", {"reason": "Dice fell"}))
    assert (rejected["state"], rejected["reason"], rejected["checkpoint_id"]) == ("rejected", "Dice fell", None)
    refused(site.viewer.get(f"{path}/card"), 409, "conflict")
    refused(site.operator.post(f"{path}/accept"), 409, "conflict")
    listed = ok(site.viewer.get("/api/v1/imports", params={"run_id": run["id"], "state": "rejected"}))["items"]
    assert listed == [rejected]
    assert ok(site.viewer.get("/api/v1/imports", params={"run_id": run["id"], "state": "accepted"}))["items"] == []
    (row,) = site.audited("import.reject", rejected["id"])
    assert row.detail["reason"] == "Dice fell"


def test_an_older_one_is_not_accepted_over_a_newer_one(site):
    run = site.run()
    older, newer = (site.quarantined(run["id"], created_at=moment) for moment in (100.0, 200.0))
    ok(site.operator.post(f"/api/v1/imports/{newer['id']}/accept"))
    refused(site.operator.post(f"/api/v1/imports/{older['id']}/accept"), 409, "bundle_stale")


def test_one_model_is_let_in_once(site, monkeypatch):
    run = site.run()
    digest = hashlib.sha256(run["id"].encode()).hexdigest()
    first = site.quarantined(run["id"], digest=digest)
    brought = ok(site.bring(), 202)
    claim = site.claim(brought["job_id"])
    with pytest.raises(Refusal, match=first["id"]) as caught, site.database.write() as session:
        bundle_exchange.quarantine(session, session.get_one(Job, claim.job_id), facts(run["id"], digest=digest), {})
    assert caught.value.code == "bundle_used"
    with monkeypatch.context() as blind:  # as if the first had been committed after the look
        blind.setattr(bundle_exchange, "PRESENT", ())
        with pytest.raises(Refusal, match="a moment ago"), site.database.write() as session:
            bundle_exchange.quarantine(session, session.get_one(Job, claim.job_id), facts(run["id"], digest=digest), {})
    post(site, f"/api/v1/imports/{first['id']}/reject", {"reason": "make room"})
    with site.database.write() as session:
        bundle_exchange.quarantine(session, session.get_one(Job, claim.job_id), facts(run["id"], digest=digest), {})


def test_what_is_no_bundle_is_not_taken_in(tmp_path):
    with running(tmp_path, None, RELAY_MAX_BUNDLE_MIB="1") as site:
        kept = sorted(path for path in site.store.folder.rglob("*") if path.is_file())
        headers = {"Idempotency-Key": "k", "Content-Type": "application/octet-stream"}

        def bring(content, **more):
            return site.operator.post("/api/v1/imports", content=content, headers={**headers, **more})

        refused(bring(b"x", **{"Content-Type": "application/json"}), 415, "unsupported_media_type")
        refused(bring(b""), 400, "bad_request")
        refused(bring(bytes((1 << 20) + 1)), 413, "too_large")
        refused(bring(iter([bytes(1 << 20)] * 3)), 413, "too_large")  # of a size that nobody told
        refused(site.viewer.post("/api/v1/imports", content=b"x", headers=headers), 403, "forbidden")
        refused(bring(b"x", **{"Idempotency-Key": ""}), 422, "invalid_request")
        refused(site.operator.post("/api/v1/imports?purpose=play", content=b"x", headers=headers), 422, "invalid_request")
        with socket.create_connection(("127.0.0.1", site.settings.port)) as line:  # somebody pulls the plug
            request = ["POST /api/v1/imports HTTP/1.1", "Host: site", f"Authorization: Bearer {site.tokens['operator']}"]
            request += [*(f"{name}: {value}" for name, value in headers.items()), "Content-Length: 1000", "", "half of it"]
            line.sendall("\r\n".join(request).encode())
            time.sleep(0.5)
        time.sleep(0.5)
        assert sorted(path for path in site.store.folder.rglob("*") if path.is_file()) == kept
        assert ok(site.viewer.get("/api/v1/imports"))["items"] == []
        ok(bring(iter([bytes(1 << 19)] * 2)), 202)
        shutil.rmtree(site.store.folder / "staging")
        assert site.process.poll() is None
    assert '"ERROR"' not in (tmp_path / "api.log").read_text()


def test_a_full_volume_takes_nothing_in(tmp_path):
    with running(tmp_path, None, RELAY_MIN_FREE_MIB=str(1 << 40)) as site:
        refused(site.bring(), 507, "storage_full")


def test_a_file_in_the_inbox_becomes_an_import(tmp_path):
    folder = tmp_path / "inbox"
    folder.mkdir()
    (folder / "a.relay").write_bytes(b"from a USB disk")
    with running(tmp_path, None, RELAY_INBOX=str(folder)) as site:
        for _ in range(300):
            found = ok(site.viewer.get("/api/v1/imports"))["items"]
            if found and not (folder / "a.relay").exists():
                break
            time.sleep(0.1)
    (row,) = found
    assert (row["created_by"], row["state"]) == ("inbox", "verifying")
    assert [path.name for path in (folder / "taken").iterdir()] == [f"a.{row['digest'][:12]}.relay"]


def test_a_model_goes_from_one_site_to_the_next(tmp_path, toy: Toy, monkeypatch):
    """Real trainings, real bundles, two services."""
    monkeypatch.setenv("RELAY_KEY_PASSPHRASE", PASSPHRASE)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    text = toy.write().read_text()
    folders = [tmp_path / name for name in ("north", "south")]
    for folder in folders:
        folder.mkdir()
    with running(folders[0], None, **options(toy)) as north, running(folders[1], None, **options(toy)) as south:
        keys = [KeyFolder(site.settings.keys_folder) for site in (north, south)]
        for folder, name in zip(keys, ("north", "south"), strict=True):
            folder.create(name, PASSPHRASE)
        runs = [_join(site, text) for site in (north, south)]
        assert runs[0] == runs[1]
        trained = _done(north, ok(post(north, "/api/v1/jobs", {"kind": "train", "run_id": runs[0], "site": 1}), 202))
        body = {"checkpoint_id": trained["checkpoints"][0]}
        made = _done(north, ok(post(north, "/api/v1/exports", body, "e"), 202))["bundle"]
        file = north.operator.get(f"/api/v1/exports/{made}/download").content

        stranger = ok(south.bring(file), 202)
        assert _work(south, stranger["job_id"]).error["code"] == "signer_unknown"
        assert ok(south.viewer.get(f"/api/v1/imports/{stranger['id']}"))["state"] == "refused"
        roster = keys[1].roster
        roster.trust(keys[0].card)
        keys[1].save(roster)
        brought = ok(south.bring(file), 202)
        _done(south, {"id": brought["job_id"]})
        path = f"/api/v1/imports/{brought['id']}"
        found = ok(south.viewer.get(path))
        assert (found["state"], found["facts"]["signer"]["fingerprint"]) == ("quarantined", keys[0].card.fingerprint)
        assert found["facts"]["metrics"]["Domain1"]["dice_per_sample"] is not None
        assert "Domain1" in south.viewer.get(f"{path}/card").text
        accepted = ok(south.operator.post(f"{path}/accept"))
        again = ok(south.bring(file), 202)
        assert _work(south, again["job_id"]).error["code"] == "bundle_used"
        job = ok(post(south, "/api/v1/jobs", {"kind": "train", "run_id": runs[1], "site": 2}), 202)
        assert job["checkpoint_id"] == accepted["checkpoint_id"]
        assert _done(south, job)["checkpoints"]


def options(toy: Toy) -> dict[str, str]:
    return {"RELAY_DATA_ROOT": str(toy.data), "RELAY_DEVICE": "cpu"}


def _join(site: Site, text: str) -> str:
    """Register the run and the images of its sites."""
    run = ok(site.operator.post("/api/v1/runs", content=text, headers={"Content-Type": "application/yaml"}), 201)
    for entry in run["sites"]:
        body = {"name": entry["name"], "path": entry["name"], "layout": "fundus"}
        ok(site.operator.post("/api/v1/datasets", json=body), 201)
    return run["id"]


def _work(site: Site, job_id: str) -> Job:
    """Be the site's worker until nothing waits."""
    station = WorkerLoop(site.settings, lambda: False)
    while station.work_once():
        pass
    station.close()
    return site.job(job_id)


def _done(site: Site, job: dict) -> dict:
    row = _work(site, job["id"])
    assert (row.state, row.error) == ("succeeded", None)
    return row.result

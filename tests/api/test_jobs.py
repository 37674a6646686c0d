"""Jobs over REST: submitted once, cancelled, retried."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import func, select

from services.site import leases
from services.site.db.models import Dataset, Job, Run
from tests.api.kit import ok, refused


def submit(site, body, key="k", client=None):
    headers = {"Idempotency-Key": key} if key is not None else {}
    return (client or site.operator).post("/api/v1/jobs", json=body, headers=headers)


def test_a_training_is_accepted_and_done(site):
    run = site.run()
    answer = submit(site, {"kind": "train", "run_id": run["id"], "site": 1, "gpus": 2}, f"train-{run['id']}")
    job = ok(answer, 202)
    assert (job["state"], job["kind"], job["run_id"], job["gpus"]) == ("queued", "train", run["id"], 2)
    assert answer.headers["location"] == f"/api/v1/jobs/{job['id']}"
    assert "idempotency-replayed" not in answer.headers
    claim = site.claim(job["id"])
    running = ok(site.viewer.get(answer.headers["location"]))
    assert (running["state"], running["attempt"], running["worker"]) == ("running", 1, "test")
    site.finish(claim, result={"checkpoints": []})
    done = ok(site.viewer.get(answer.headers["location"]))
    assert (done["state"], done["result"]) == ("succeeded", {"checkpoints": []})
    assert done["created_at"] <= done["started_at"] <= done["finished_at"]
    params = {"state": "succeeded", "kind": "train", "run_id": run["id"]}
    assert ok(site.viewer.get("/api/v1/jobs", params=params))["items"] == [done]
    assert len(site.audited("job.submit", job["id"])) == 1


def test_jobs_of_one_checkpoint_are_found(site):
    checkpoints = [site.checkpoint(site.run()) for _ in range(2)]
    ids = [site.submit({"kind": "samples", "checkpoint_id": row.id})["id"] for row in checkpoints]
    for row, job_id in zip(checkpoints, ids, strict=True):
        found = ok(site.viewer.get("/api/v1/jobs", params={"checkpoint_id": row.id}))["items"]
        assert [job["id"] for job in found] == [job_id]


def test_more_gpus_than_any_worker_has_are_refused(site):
    run = site.run()
    body = {"kind": "train", "run_id": run["id"], "site": 1}
    with site.worker(gpus=0):
        problem = refused(submit(site, {**body, "gpus": 2}, f"none-{run['id']}"), 422, "device_unavailable")
        assert "has 0" in problem["detail"]
        ok(submit(site, body, f"cpu-{run['id']}"), 202)
        with site.worker(gpus=4):
            problem = refused(submit(site, {**body, "gpus": 5}, f"five-{run['id']}"), 422, "device_unavailable")
            assert "has 4" in problem["detail"]
            ok(submit(site, {**body, "gpus": 4}, f"four-{run['id']}"), 202)
    ok(submit(site, {**body, "gpus": 16}, f"later-{run['id']}"), 202)  # a worker may come that has them


def test_the_other_kinds(site):
    checkpoint = site.checkpoint()
    run = ok(site.viewer.get(f"/api/v1/runs/{checkpoint.run_id}"))
    given = site.dataset()
    job = site.submit({"kind": "evaluate", "checkpoint_id": checkpoint.id, "datasets": {"2": given["id"]}})
    assert (job["checkpoint_id"], job["params"]["datasets"]["2"]) == (checkpoint.id, given["id"])
    assert site.submit({"kind": "samples", "checkpoint_id": checkpoint.id, "per_site": 4})["params"] == {"per_site": 4}
    assert site.submit({"kind": "preflight", "dataset_id": given["id"], "previews": 0})["params"]["previews"] == 0
    compared = site.submit({"kind": "compare_sites", "checkpoint_id": checkpoint.id, "datasets": {"2": given["id"]}})
    assert (compared["params"]["images"], compared["params"]["datasets"]["2"], compared["gpus"]) == (300, given["id"], 1)
    second = site.submit({"kind": "train", "run_id": run["id"], "site": 2})
    assert second["checkpoint_id"] == checkpoint.id


def test_a_comparison_needs_something_to_compare(site):
    row = site.checkpoint()
    run = ok(site.viewer.get(f"/api/v1/runs/{row.run_id}"))
    body = {"kind": "compare_sites", "checkpoint_id": row.id}
    refused(submit(site, {**body, "images": 4}), 422, "invalid_request")

    def forget(entry):
        (found,) = ok(site.viewer.get("/api/v1/datasets", params={"name": entry["name"]}))["items"]
        ok(site.operator.delete(f"/api/v1/datasets/{found['id']}"), 204)

    forget(run["sites"][0])
    queued = ok(submit(site, body, f"one-{row.id}"), 202)["id"]
    ok(site.operator.post(f"/api/v1/jobs/{queued}/cancel"), 202)
    with site.database.write() as session:
        session.get_one(Run, row.run_id).strategy = "lwf"
    assert "nothing to compare" in refused(submit(site, body, f"lwf-{row.id}"), 422, "dataset_missing")["detail"]
    forget(run["sites"][1])
    refused(submit(site, body, f"none-{row.id}"), 422, "dataset_missing")


def test_a_key_makes_one_job_however_often_it_is_sent_at_once(site):
    body = {"kind": "preflight", "dataset_id": site.dataset()["id"]}
    key = f"at once {body['dataset_id']}".replace(" ", "-")
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda _: submit(site, body, key), range(100)))
    assert {ok(answer, 202)["id"] for answer in answers} == {answers[0].json()["id"]}
    assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
    with site.database.read() as session:
        assert session.scalar(select(func.count()).select_from(Job).where(Job.idempotency_key == key)) == 1
    refused(submit(site, {**body, "previews": 3}, key), 422, "idempotency_key_reused")
    other = submit(site, body, key, site.admin)
    assert ok(other, 202)["id"] != answers[0].json()["id"]


def test_a_repeated_key_needs_nothing_that_the_job_needed(site):
    made = site.dataset()
    body = {"kind": "preflight", "dataset_id": made["id"]}
    job = ok(submit(site, body, made["id"]), 202)
    with site.database.write() as session:
        session.delete(session.get_one(Dataset, made["id"]))
    answer = submit(site, body, made["id"])
    assert ok(answer, 202)["id"] == job["id"]
    assert answer.headers["idempotency-replayed"] == "true"
    refused(submit(site, body, f"new-{made['id']}"), 404, "not_found")


def test_a_key_is_needed(site):
    body = {"kind": "preflight", "dataset_id": site.dataset()["id"]}
    refused(submit(site, body, None), 400, "idempotency_key_missing")
    for key in ("", "two words", "x" * 201):
        refused(submit(site, body, key), 422, "invalid_request")


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"kind": "mine"}, "body"),
        ({"kind": None}, "body"),
        ({"gpus": 17}, "body.gpus"),
        ({"gpus": "many"}, "body.gpus"),
        ({"extra": 1}, "body.extra"),
        ({"datasets": {"x": "y"}}, "body.datasets.x"),
        ({"run_id": "short"}, "body.run_id"),
    ],
)
def test_a_body_that_is_not_valid_names_the_key(small_site, change, path):
    body = {"kind": "train", "run_id": "0" * 64, **change}
    problem = refused(submit(small_site, body), 422, "invalid_request")
    assert problem["errors"][0]["path"].startswith(path)
    assert "many" not in str(problem["errors"][0]["message"])


def test_an_unknown_kind_names_the_known_ones(small_site):
    problem = refused(submit(small_site, {"kind": "mine"}), 422, "invalid_request")
    assert "train, evaluate, samples, preflight" in problem["detail"]
    assert "mine" not in problem["detail"]


def test_json_that_is_none(small_site):
    headers = {"Idempotency-Key": "x", "Content-Type": "application/json"}
    refused(small_site.operator.post("/api/v1/jobs", content="{", headers=headers), 422, "invalid_request")
    refused(small_site.operator.post("/api/v1/jobs", content=b'"\xff"', headers=headers), 400, "bad_request")
    huge = b'{"kind": "' + b"x" * (3 << 20)
    refused(small_site.operator.post("/api/v1/jobs", content=huge, headers=headers), 413, "too_large")
    headers["Content-Type"] = "text/plain"
    refused(small_site.operator.post("/api/v1/jobs", content="{}", headers=headers), 415, "unsupported_media_type")


def test_what_a_job_needs_is_looked_up_before_it_is_accepted(site):
    run = site.run()
    before = len(ok(site.viewer.get("/api/v1/jobs", params={"run_id": run["id"]}))["items"])
    refused(submit(site, {"kind": "train", "run_id": "0" * 64}), 404, "not_found")
    refused(submit(site, {"kind": "train", "run_id": run["id"], "site": 9}), 422, "invalid_request")
    refused(submit(site, {"kind": "train", "run_id": run["id"], "site": 2}), 422, "checkpoint_invalid")
    refused(submit(site, {"kind": "train", "run_id": run["id"], "until": "solver"}), 422, "invalid_request")
    refused(submit(site, {"kind": "samples", "checkpoint_id": f"checkpoint-{'0' * 28}"}), 404, "not_found")
    for entry in run["sites"]:
        found = ok(site.viewer.get("/api/v1/datasets", params={"name": entry["name"]}))["items"][0]
        ok(site.operator.delete(f"/api/v1/datasets/{found['id']}"), 204)
    refused(submit(site, {"kind": "train", "run_id": run["id"]}), 422, "dataset_missing")
    assert len(ok(site.viewer.get("/api/v1/jobs", params={"run_id": run["id"]}))["items"]) == before


def test_a_checkpoint_whose_solver_alone_is_ready_is_gone_on_with_and_not_handed_on(site):
    run = site.run()
    before = site.checkpoint(run)
    ready = site.checkpoint(run, steps=9)
    assert [ok(site.viewer.get(f"/api/v1/checkpoints/{c.id}"))["finished"] for c in (before, ready)] == [True, False]
    body = {"kind": "train", "run_id": run["id"]}
    assert site.submit({**body, "site": 1, "checkpoint_id": ready.id})["checkpoint_id"] == ready.id
    assert site.submit({**body, "site": 2})["checkpoint_id"] == before.id
    for refusal in ({"site": 2, "checkpoint_id": ready.id}, {"site": 1, "checkpoint_id": before.id}):
        problem = refused(submit(site, {**body, **refusal}, f"{refusal['site']}-{run['id']}"), 422, "checkpoint_invalid")
        assert "finished" in problem["detail"]
    headers = {"Idempotency-Key": f"export-{run['id']}"}
    answer = site.operator.post("/api/v1/exports", json={"checkpoint_id": ready.id}, headers=headers)
    assert "alone is ready" in refused(answer, 409, "bundle_incomplete")["detail"]


def test_cancel_at_each_state(site):
    def cancel(job):
        return site.operator.post(f"/api/v1/jobs/{job['id']}/cancel")

    queued = site.submit()
    assert ok(cancel(queued), 202)["state"] == "cancelled"
    refused(cancel(queued), 409, "conflict")

    running = site.submit()
    claim = site.claim(running["id"])
    assert ok(cancel(running), 202)["state"] == "cancelling"
    assert ok(cancel(running), 202)["state"] == "cancelling"
    site.finish(claim, "cancelled")
    assert ok(site.viewer.get(f"/api/v1/jobs/{running['id']}"))["state"] == "cancelled"
    assert len(site.audited("job.cancel", running["id"])) == 1

    for state in ("succeeded", "failed"):
        ended = site.submit()
        site.finish(site.claim(ended["id"]), state)
        refused(cancel(ended), 409, "conflict")
    refused(site.operator.post(f"/api/v1/jobs/job-{'0' * 28}/cancel"), 404, "not_found")


def test_a_failed_job_is_retried(site):
    job = site.submit()
    path = f"/api/v1/jobs/{job['id']}/retry"
    refused(site.operator.post(path), 409, "conflict")
    site.finish(site.claim(job["id"]), "failed", error={"code": "out_of_memory", "message": "no memory"})
    assert ok(site.viewer.get(f"/api/v1/jobs/{job['id']}"))["error"] == {"code": "out_of_memory", "message": "no memory"}
    again = ok(site.operator.post(path), 202)
    assert (again["state"], again["error"], again["finished_at"]) == ("queued", None, None)
    claim = site.claim(job["id"])
    assert claim.attempt == 2
    refused(site.operator.post(path), 409, "conflict")
    site.finish(claim)
    refused(site.operator.post(path), 409, "conflict")


@pytest.mark.parametrize(("state", "step"), [("succeeded", 19249484), ("failed", 8)])
def test_the_progress_of_a_job_that_succeeded_ends_at_its_total(site, state, step):
    job_id = site.submit()["id"]
    claim = site.claim(job_id)
    progress = {"step": 8, "steps": 19249484, "eta_seconds": 3.0}
    with site.database.write() as session:
        leases.held(session, claim, progress=progress)
    error = {"code": "process_crashed", "message": "x"} if state == "failed" else None
    site.finish(claim, state, **({"error": error} if error else {}))
    shown = ok(site.viewer.get(f"/api/v1/jobs/{job_id}"))["progress"]
    assert (shown["step"], shown["steps"]) == (step, 19249484)
    assert shown["eta_seconds"] == (0.0 if state == "succeeded" else 3.0)

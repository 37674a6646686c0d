"""Checkpoints and evaluations over REST."""

import base64
import hashlib
import os

import httpx
import pytest

from services.site.db.models import Evaluation, Run
from tests.api.kit import MATRIX, ok, refused


def test_a_checkpoint_is_listed_pinned_and_deleted(site):
    row = site.checkpoint()
    path = f"/api/v1/checkpoints/{row.id}"
    answer = site.viewer.get(path)
    shown = ok(answer)
    assert (shown["digest"], shown["size"], shown["pinned"], answer.headers["etag"]) == (row.digest, 64, False, '"1"')
    for filters in ({"run_id": row.run_id}, {"job_id": row.job_id}):
        assert ok(site.viewer.get("/api/v1/checkpoints", params=filters))["items"] == [shown]

    refused(site.operator.patch(path, json={"pinned": True}), 428, "precondition_required")
    changed = ok(site.operator.patch(path, json={"pinned": True, "note": "best"}, headers={"If-Match": '"1"'}))
    assert changed == {**shown, "pinned": True, "note": "best", "version": 2}
    refused(site.operator.patch(path, json={"pinned": False}, headers={"If-Match": '"1"'}), 412, "precondition_failed")
    assert "pinned" in refused(site.operator.delete(path), 409, "in_use")["detail"]
    ok(site.operator.patch(path, json={"pinned": False}, headers={"If-Match": '"2"'}))
    ok(site.operator.delete(path), 204)
    refused(site.viewer.get(path), 404, "not_found")
    assert [len(site.audited(f"checkpoint.{what}", row.id)) for what in ("pin", "note", "delete")] == [2, 1, 1]


def test_a_checkpoint_that_something_needs_stays(site):
    row = site.checkpoint()
    child = site.checkpoint(parent=row.id)
    assert child.id in refused(site.operator.delete(f"/api/v1/checkpoints/{row.id}"), 409, "in_use")["detail"]
    ok(site.operator.delete(f"/api/v1/checkpoints/{child.id}"), 204)
    job = site.submit({"kind": "samples", "checkpoint_id": row.id})
    assert job["id"] in refused(site.operator.delete(f"/api/v1/checkpoints/{row.id}"), 409, "in_use")["detail"]
    site.finish(site.claim(job["id"]))
    evaluation = site.evaluation(row)
    ok(site.operator.delete(f"/api/v1/checkpoints/{row.id}"), 204)
    with site.database.read() as session:
        assert session.get_one(Evaluation, evaluation.id).checkpoint_id is None
    assert ok(site.viewer.get(f"/api/v1/evaluations/{evaluation.id}"))["checkpoint_id"] is None


def test_a_checkpoint_that_holds_images_of_patients_is_not_handed_out(site):
    """Of a run that an older version accepted."""
    row = site.checkpoint()
    with site.database.write() as session:
        session.get_one(Run, row.run_id).strategy = "rehearsal"
    refused(site.operator.get(f"/api/v1/checkpoints/{row.id}/download"), 403, "real_images")
    refused(
        site.operator.post("/api/v1/exports", json={"checkpoint_id": row.id}, headers={"Idempotency-Key": row.id}),
        403,
        "real_images",
    )


def test_a_download_is_verified_and_says_what_it_is(site):
    content = os.urandom(3_500_000)
    row = site.checkpoint(content=content)
    path = f"/api/v1/checkpoints/{row.id}/download"
    answer = site.operator.get(path)
    assert answer.content == content
    head = site.operator.head(path)
    assert head.content == b""
    for got in (answer, head):
        assert got.headers["content-length"] == str(len(content))
        assert got.headers["etag"] == f'"{row.digest}"'
        digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
        assert got.headers["repr-digest"] == f"sha-256=:{digest}:"
        assert got.headers["content-disposition"] == f'attachment; filename="{row.id}.safetensors"'
        assert got.headers["content-type"] == "application/octet-stream"
    (fetched,) = site.audited("download", row.id)  # a look at its size fetches nothing
    assert fetched.actor.startswith("test operator (")
    assert fetched.detail == {"digest": row.digest, "range": None}
    refused(site.viewer.get(path), 403, "forbidden")


def test_bytes_that_were_changed_on_disk_are_not_passed_on(site):
    small, large = site.checkpoint(content=b"small" * 100), site.checkpoint(content=os.urandom(3_000_000))
    for row in (small, large):
        site.damage(row.digest)
    refused(site.operator.get(f"/api/v1/checkpoints/{small.id}/download"), 500, "artifact_damaged")
    with pytest.raises(httpx.RemoteProtocolError):
        site.operator.get(f"/api/v1/checkpoints/{large.id}/download")
    site.store.path(small.digest).unlink()
    refused(site.operator.get(f"/api/v1/checkpoints/{small.id}/download"), 500, "artifact_damaged")


def test_an_evaluation_gives_its_matrix(site):
    row = site.evaluation(site.checkpoint())
    path = f"/api/v1/evaluations/{row.id}"
    shown = ok(site.viewer.get(path))
    assert (shown["metrics"], shown["matrices"]["accuracy"]) == (["accuracy", "dice_per_sample"], MATRIX)
    for filters in ({"run_id": row.run_id}, {"checkpoint_id": row.checkpoint_id}):
        (item,) = ok(site.viewer.get("/api/v1/evaluations", params=filters))["items"]
        assert item == {key: value for key, value in shown.items() if key != "matrices"}
    assert ok(site.viewer.get(f"{path}/matrix.json")) == shown["matrices"]
    assert ok(site.viewer.get(f"{path}/matrix.json", params={"metric": "accuracy"})) == {"accuracy": MATRIX}
    table = site.viewer.get(f"{path}/matrix.csv", params={"metric": "dice_per_sample"})
    assert (table.text, table.headers["content-type"]) == ("after,Domain1\n", "text/csv; charset=utf-8")
    assert site.viewer.get(f"{path}/matrix.png").headers["content-type"] == "image/png"
    for kind in ("json", "csv", "png"):
        problem = refused(site.viewer.get(f"{path}/matrix.{kind}", params={"metric": "hd95"}), 404, "not_found")
        assert "dice_per_sample" in problem["detail"]

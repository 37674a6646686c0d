"""Every file that leaves by the API leaves a row in the audit log: who fetched which bytes."""

from types import SimpleNamespace
from typing import Any

import pytest

from services.site.db.models import AuditRecord
from tests.api.kit import Site, ok


def files_of(site: Site) -> dict[str, tuple[str, str]]:
    """Address as the API documents it -> where such a file is, and what the log calls it."""
    checkpoint = site.checkpoint()
    evaluation = site.evaluation(checkpoint)
    site.attach(evaluation.id, "report.json", b"{}", "application/json")
    export = site.export(checkpoint)
    brought = site.quarantined(checkpoint.run_id)["id"]
    model = site.model(SimpleNamespace(content=b"onnx", proof={"tests": {}}, facts={}), checkpoint=checkpoint)
    dataset = site.dataset()["id"]
    site.attach(dataset, "preview-000.png", b"\x89PNG", "image/png")
    site.attach(checkpoint.job_id, "prediction.png", b"\x89PNG.", "image/png")
    base, evaluated = "/api/v1", f"/evaluations/{evaluation.id}"
    found = {
        "/checkpoints/{checkpoint_id}/download": (f"/checkpoints/{checkpoint.id}/download", checkpoint.id),
        "/exports/{bundle_id}/download": (f"/exports/{export.id}/download", export.id),
        "/imports/{bundle_id}/card": (f"/imports/{brought}/card", f"{brought}/MODEL_CARD.md"),
        "/models/{name}/versions/{version}/download": (f"/models/{model.name}/versions/1/download", f"{model.name}/1"),
        "/datasets/{dataset_id}/preview": (f"/datasets/{dataset}/preview", f"{dataset}/0"),
        "/jobs/{job_id}/files/{name}": (
            f"/jobs/{checkpoint.job_id}/files/prediction.png", f"{checkpoint.job_id}/prediction.png"
        ),
        **{f"/evaluations/{{evaluation_id}}/{name}": (f"{evaluated}/{name}", f"{evaluation.id}/{name}")
           for name in ("matrix.csv", "matrix.png", "report.json")},
    }  # fmt: skip
    return {base + address: (base + path, subject) for address, (path, subject) in found.items()}


def documented(schema: Any) -> set[str]:
    """Addresses whose answer is a stored file: it comes with the digest of its bytes."""
    return {
        path
        for path, methods in schema["paths"].items()
        if "Repr-Digest" in methods.get("get", {}).get("responses", {}).get("200", {}).get("headers", {})
    }


def test_each_download_is_in_the_audit_log_with_who(small_site: Site) -> None:
    files = files_of(small_site)
    assert documented(ok(small_site.anonymous.get("/openapi.json"))) == set(files)  # a new address belongs into this test
    token = small_site.tokens["operator"].split("_")[1]
    for path, subject in files.values():
        answer = small_site.operator.get(path)
        assert answer.status_code == 200, (path, answer.text)
        rows: list[AuditRecord] = [
            *small_site.audited("download", subject), *small_site.audited("export.download", subject)
        ]  # fmt: skip
        assert len(rows) == 1, path
        assert rows[0].actor == f"test operator ({token})"
        assert f'"{rows[0].detail["digest"]}"' == answer.headers["etag"]


@pytest.mark.parametrize("code", ["signer_revoked", "signer_unknown"])
def test_an_operator_is_told_whose_key_is_trusted_no_more(small_site: Site, code: str) -> None:
    brought = small_site.quarantined(small_site.run()["id"])
    with small_site.database.write() as session:
        change = {"revoked_at": 1.7e9} if code == "signer_revoked" else {"fingerprint": "0" * 64}
        small_site.trusting(session, **change)
    answer = small_site.operator.post(f"/api/v1/imports/{brought['id']}/accept")
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert "north, whose key ffff ffff" in answer.json()["detail"]
    assert ok(small_site.viewer.get(f"/api/v1/imports/{brought['id']}"))["state"] == "quarantined"

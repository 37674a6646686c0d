"""HTTP as RFC 9110 has it: HEAD, conditions, encodings, names of files, and what an answer's headers say."""

import base64
import gzip
import secrets

import pytest

from services.api.conditional import names
from services.api.problems import problem
from tests.api.kit import ok, refused

OPEN = ["/healthz", "/openapi.json", "/problems/not_found", "/v2", "/v2/health/live", "/v2/health/ready"]


@pytest.mark.parametrize("path", [*OPEN, "/readyz", "/metrics", "/api/v1/jobs", "/api/v1/system", "/api/v1/runs"])
def test_head_is_get_without_the_body(small_site, path):
    head, got = small_site.viewer.head(path), small_site.viewer.get(path)  # on one connection: a body would be in the way
    assert (head.status_code, head.content) == (got.status_code, b"")
    assert head.headers["content-type"] == got.headers["content-type"]
    assert int(head.headers["content-length"]) > 0
    if path in OPEN:
        assert head.headers["content-length"] == got.headers["content-length"]


def test_head_needs_what_get_needs(small_site):
    assert small_site.anonymous.head("/api/v1/jobs").status_code == 401
    assert small_site.viewer.head("/api/v1/audit").status_code == 403
    assert small_site.viewer.head("/nowhere").status_code == 404
    job = small_site.submit()["id"]
    answer = small_site.viewer.head(f"/api/v1/jobs/{job}/events")  # has no end before which it could be told of
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET")


@pytest.fixture(scope="module")
def downloads(small_site):
    """Every address that serves a stored file: address -> the ETag of its bytes."""
    checkpoint = small_site.checkpoint()
    evaluation, bundle = small_site.evaluation(checkpoint), small_site.export(checkpoint)
    brought = small_site.quarantined(checkpoint.run_id)["id"]
    report = small_site.attach(evaluation.id, "report.json", b"{}", "application/json")
    dataset = small_site.dataset()["id"]
    small_site.attach(dataset, "preview-000.png", b"picture", "image/png")
    file = small_site.attach(checkpoint.job_id, "samples.png", secrets.token_bytes(16), "image/png")
    paths = [
        f"/api/v1/checkpoints/{checkpoint.id}/download", f"/api/v1/exports/{bundle.id}/download",
        f"/api/v1/jobs/{checkpoint.job_id}/files/samples.png", f"/api/v1/datasets/{dataset}/preview",
        f"/api/v1/evaluations/{evaluation.id}/matrix.csv", f"/api/v1/evaluations/{evaluation.id}/matrix.png",
        f"/api/v1/evaluations/{evaluation.id}/report.json", f"/api/v1/imports/{brought}/card",
    ]  # fmt: skip
    tags = {path: small_site.operator.head(path).headers["etag"] for path in paths}
    assert {f'"{checkpoint.digest}"', f'"{report}"', f'"{file}"'} <= set(tags.values())
    return tags


def test_who_has_a_file_or_only_asks_about_it_fetches_nothing(small_site, downloads):
    with small_site.database.read() as session:
        before = session.connection().exec_driver_sql("SELECT count(*) FROM audit").scalar()
    for path, tag in downloads.items():
        head = small_site.operator.head(path)
        assert head.status_code == 200, path
        assert int(head.headers["content-length"]) > 0
        for value in (tag, f"W/{tag}", f'"other", {tag}', "*"):
            same = small_site.operator.get(path, headers={"If-None-Match": value, "Range": "bytes=0-1"})
            assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", tag), path
            assert "content-type" not in same.headers
    with small_site.database.read() as session:
        assert session.connection().exec_driver_sql("SELECT count(*) FROM audit").scalar() == before
    for path, tag in downloads.items():
        answer = small_site.operator.get(path, headers={"If-None-Match": f'"{"0" * 64}", "{tag[1:9]}"'})
        assert (answer.status_code, answer.headers["etag"]) == (200, tag)
        digest = base64.b64encode(bytes.fromhex(tag.strip('"'))).decode()
        assert answer.headers["repr-digest"] == f"sha-256=:{digest}:"


def test_what_has_an_etag_is_sent_once(small_site):
    run, dataset = small_site.run(), small_site.dataset()
    checkpoint = small_site.checkpoint(run)
    for path in (
        "/openapi.json", f"/api/v1/runs/{run['id']}", f"/api/v1/runs/{run['id']}/file",
        f"/api/v1/datasets/{dataset['id']}", f"/api/v1/checkpoints/{checkpoint.id}",
    ):  # fmt: skip
        tag = small_site.viewer.get(path).headers["etag"]
        for method in ("GET", "HEAD"):
            same = small_site.viewer.request(method, path, headers={"If-None-Match": f'"x" , {tag}'})
            assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", tag), path
            assert "content-length" not in same.headers
        for value in ('"x"', tag.strip('"'), "nonsense", ""):
            assert small_site.viewer.get(path, headers={"If-None-Match": value}).status_code == 200
    path = f"/api/v1/datasets/{dataset['id']}"
    ok(small_site.operator.patch(path, json={"note": "new"}, headers={"If-Match": "*"}))
    assert small_site.viewer.get(path, headers={"If-None-Match": '"1"'}).json()["note"] == "new"


@pytest.mark.parametrize(
    ("value", "status"),
    [
        ('"1"', 200), ("*", 200), ('"7", "1"', 200), (', "7" ,, "1",', 200), ('"a,b","1"', 200),
        ('"7"', 412), ('W/"1"', 412), ('"11"', 412), ("1", 422), ('"1', 422), ('"1" "2"', 422), ('*, "1"', 422), ("w/", 422),
    ],
)  # fmt: skip
def test_if_match_is_a_list_of_strong_tags(small_site, value, status):
    dataset = small_site.dataset()["id"]
    answer = small_site.operator.patch(f"/api/v1/datasets/{dataset}", json={"note": "x"}, headers={"If-Match": value})
    assert answer.status_code == status, answer.text


def test_a_list_of_tags_is_read_in_linear_time():
    assert not names('"' + ",W/" * 100_000, '"1"', weakly=True)
    assert names(", " * 100_000 + '"1"', '"1"', weakly=True)


def test_a_range_is_asked_for_in_any_case_and_only_of_the_same_version(small_site):
    row = small_site.checkpoint(content=b"0123456789")
    path, tag = f"/api/v1/checkpoints/{row.id}/download", f'"{row.digest}"'
    for value in ("bytes=2-4", "Bytes=2-4", "BYTES= 2-4"):
        part = small_site.operator.get(path, headers={"Range": value, "If-Range": tag})
        assert (part.status_code, part.content, part.headers["content-range"]) == (206, b"234", "bytes 2-4/10")
    for other in (f"W/{tag}", '"other"', "Wed, 21 Oct 2015 07:28:00 GMT"):
        assert small_site.operator.get(path, headers={"Range": "bytes=2-4", "If-Range": other}).content == b"0123456789"
    assert small_site.operator.head(path, headers={"Range": "bytes=2-4"}).headers["content-length"] == "10"
    for value in ("bytes=10-", "bytes=-0"):
        over = small_site.operator.get(path, headers={"Range": value})
        assert (over.status_code, over.headers["content-range"]) == (416, "bytes */10")
    assert [row.detail["range"] for row in small_site.audited("download", row.id)] == ["bytes=2-4"] * 3 + [None] * 3


@pytest.mark.parametrize(
    "path", ["/api/v1/jobs", "/api/v1/runs", "/api/v1/imports", "/api/v1/models/fundus/predict", "/v2/repository/index"]
)
def test_an_encoded_body_is_not_taken_for_a_plain_one(small_site, path):
    headers = {"Idempotency-Key": "x", "Content-Type": "application/vnd.relay.bundle"}
    for encoding in ("gzip", "br", "identity, zstd"):
        given = {**headers, "Content-Encoding": encoding}
        answer = small_site.operator.post(path, content=gzip.compress(b"{}"), headers=given)
        assert encoding in refused(answer, 415, "unsupported_media_type")["detail"]
        assert answer.headers["accept-encoding"] == "identity"
    assert small_site.anonymous.post(path, content=b"x", headers={"Content-Encoding": "br"}).status_code == 401
    plain = small_site.operator.post(path, content=b"", headers={**headers, "Content-Encoding": "identity"})
    assert "Content-Encoding" not in plain.text


def test_programs_may_send_what_they_compress(small_site):
    answer = small_site.operator.post("/v2/models/none/infer", content=b"x", headers={"Content-Encoding": "br"})
    refused(answer, 415, "unsupported_media_type")
    assert answer.headers["accept-encoding"] == "gzip, deflate"
    sent = small_site.operator.post("/v2/models/none/infer", content=b"x", headers={"Content-Encoding": "gzip"})
    refused(sent, 404, "not_found")


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("masks.zip", 'attachment; filename="masks.zip"'),
        ("Müller.csv", "attachment; filename=\"M_ller.csv\"; filename*=UTF-8''M%C3%BCller.csv"),
        ("眼底.csv", "attachment; filename=\"__.csv\"; filename*=UTF-8''%E7%9C%BC%E5%BA%95.csv"),
        ('a"b;c\\.csv', "attachment; filename=\"a_b_c_.csv\"; filename*=UTF-8''a%22b%3Bc%5C.csv"),
        ("a\r\nb.csv", "attachment; filename=\"a__b.csv\"; filename*=UTF-8''a%0D%0Ab.csv"),
    ],
)
def test_a_file_keeps_its_name(small_site, name, header):
    job = small_site.submit()["id"]
    small_site.attach(job, name, b"1", "text/csv")
    (listed,) = ok(small_site.viewer.get(f"/api/v1/jobs/{job}/files"))
    assert listed["name"] == name
    answer = small_site.viewer.get(f"/api/v1/jobs/{job}/files/{_quoted(name)}")
    assert (answer.status_code, answer.content, answer.headers["content-disposition"]) == (200, b"1", header)


def _quoted(name: str) -> str:
    return "".join(f"%{byte:02X}" for byte in name.encode())


def test_a_challenge_says_what_is_wrong_with_the_token(small_site):
    missing, wrong = small_site.anonymous.get("/api/v1/jobs"), small_site.client("relay_x_y").get("/api/v1/jobs")
    assert (missing.status_code, missing.headers["www-authenticate"]) == (401, 'Bearer realm="relay"')
    assert (wrong.status_code, wrong.headers["www-authenticate"]) == (401, 'Bearer realm="relay", error="invalid_token"')


@pytest.mark.parametrize("code", ["busy", "decoder_unavailable", "model_unavailable", "not_ready", "queue_full"])
def test_who_is_to_come_again_is_told_when(code):
    assert problem({"path": "/"}, code).headers["retry-after"] == "5"
    assert problem({"path": "/"}, code, headers={"Retry-After": "60"}).headers["retry-after"] == "60"

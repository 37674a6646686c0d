"""What one caller does, slowly, in masses or without a token, leaves the service to the others."""

import json
import socket
import threading
import time
from concurrent.futures import wait

import numpy as np
import pytest

from tests.api.kit import ok, refused, running
from tests.api.test_inference import change, hosted, images  # noqa: F401


@pytest.fixture(scope="module")
def strict(tmp_path_factory, exported):
    """A site that loses patience soon, and has few connections."""
    limits = {"RELAY_HEADER_SECONDS": "2", "RELAY_BODY_SECONDS": "3", "RELAY_CONNECTIONS": "40"}
    with running(tmp_path_factory.mktemp("strict"), None, **limits) as site:
        ok(site.promote("fundus", site.model(exported, "fundus").version))
        yield site


def connect(site, text, address="127.0.0.1"):
    """Send the beginning of a request, raw."""
    host, _, port = site.url.removeprefix("http://").partition(":")
    made = socket.create_connection((host, int(port)), timeout=20, source_address=(address, 0))
    made.sendall(text.encode())
    return made


def head(path, token, size, **more):
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {size}", "Content-Type: application/json"]
    lines += [f"Authorization: Bearer {token}"] if token else []
    return "\r\n".join([*lines, *(f"{k}: {v}" for k, v in more.items()), "", ""])


def answered(connection):
    """Everything that comes until the other end closes."""
    parts = []
    try:
        while part := connection.recv(1 << 16):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def test_bodies_that_trickle_hold_up_nobody_and_end(strict):
    paths = ["/api/v1/models/fundus/predict", "/v2/models/fundus/infer", "/api/v1/imports", "/api/v1/jobs"] * 2
    key = {"Idempotency-Key": "x"}
    slow = [
        connect(strict, head(p, strict.tokens["operator"], (1 if "jobs" in p else 256) << 20, **key) + "{") for p in paths
    ]
    try:
        ok(strict.viewer.post("/v2/models/fundus/infer", json=change()))
        ok(strict.operator.post("/v2/models/fundus/infer", json=change()))
        for connection in slow:
            assert answered(connection).startswith((b"HTTP/1.1 408 ", b"HTTP/1.1 415 ", b"HTTP/1.1 429 "))
    finally:
        for connection in slow:
            connection.close()


@pytest.mark.parametrize(
    "path", ["/api/v1/imports", "/api/v1/jobs", "/api/v1/models/fundus/predict", "/v2/models/fundus/infer"]
)
@pytest.mark.parametrize("token", [None, "relay_0000000000_wrong"])
def test_a_body_is_not_read_before_its_sender_is_known(strict, path, token):
    with connect(strict, head(path, token, 1 << 20)) as connection:  # and not a byte of it
        answer = answered(connection)
    assert answer.startswith(b"HTTP/1.1 401 "), "not 408, the answer to who waits for the body"
    assert b"connection: close" in answer.lower()
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "unauthenticated"


def test_headers_that_are_half_sent_are_not_waited_for(strict):
    silent = [connect(strict, text, "127.0.0.3") for text in ("", "GET / HT", "GET /healthz HTTP/1.1\r\nHost: x\r\n") * 4]
    ok(strict.anonymous.get("/healthz"))
    for connection in silent:
        assert answered(connection) == b""
        connection.close()
    with connect(strict, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n") as kept:
        said = b""
        while not said.endswith(b"}"):
            said += kept.recv(1 << 16)
        assert said.startswith(b"HTTP/1.1 200 ")
        kept.sendall(b"GET /hea")  # a second request on the same connection
        assert answered(kept) == b""


def test_invented_methods_are_refused_and_leave_no_trace_in_the_metrics(strict):
    for i in range(50):
        with connect(strict, f"M{i}X /api/v1/jobs HTTP/1.1\r\nHost: x\r\n\r\n") as connection:
            assert answered(connection).startswith(b"HTTP/1.1 405 ")
    text = strict.anonymous.get("/metrics").text
    assert 'method="OTHER"' in text
    assert "M1X" not in text


def test_a_body_of_two_lengths_is_refused(strict):
    two = head("/api/v1/jobs", strict.tokens["operator"], 5, **{"Transfer-Encoding": "chunked"})
    with connect(strict, two + "0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n") as connection:
        answer = answered(connection)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1") == 1, "what follows is no request"


def test_one_address_cannot_hold_every_connection(strict):
    many = []
    try:
        for _ in range(60):
            many.append(connect(strict, "GET /", "127.0.0.4"))
        ok(strict.client(strict.tokens["viewer"], "127.0.0.5").get("/api/v1/models"))
    finally:
        for connection in many:
            connection.close()


def test_many_tiny_images_are_many_images(strict, exported):
    most = (1 << 22) // exported.facts["resolution"] ** 2
    count = most + 1
    tiny = np.zeros((count, 3, 1, 1), np.float32)
    asked = {"inputs": [{"name": "image", "shape": list(tiny.shape), "datatype": "FP32",
                         "parameters": {"binary_data_size": tiny.nbytes}}]}  # fmt: skip
    text = json.dumps(asked)
    content = {"Inference-Header-Content-Length": str(len(text))}
    answer = strict.viewer.post("/v2/models/fundus/infer", content=text.encode() + tiny.tobytes(), headers=content)
    assert answer.status_code == 400
    assert f"one request to this model may have {most}" in refused(answer, 400, "inference_invalid")["detail"]


def test_callers_take_turns_and_large_requests_come_in_parts(hosted):  # noqa: F811
    session = hosted.session
    first = hosted.submit(images(1), ["mask"], "greedy")
    while not session.calls:
        time.sleep(0.01)
    large = [hosted.submit(images(100, seed=i), ["mask"], "greedy") for i in range(3)]
    other = hosted.submit(images(1, seed=9), ["mask"], "modest")
    calls_before = []
    other.add_done_callback(lambda _: calls_before.append(len(session.calls)))
    session.go.set()
    assert len(other.result(10)["mask"]) == 1
    assert calls_before[0] <= 3, "after one part of what the greedy caller wants"
    wait([first, *large], 10)
    for i, request in enumerate(large):
        np.testing.assert_array_equal(request.result()["mask"], images(100, seed=i)[:, 0])
    assert max(session.calls) <= 16
    assert hosted.statistics.images == 302
    assert hosted.statistics.success.count == 5


def test_one_caller_has_at_most_half_of_the_queue(hosted):  # noqa: F811
    first = hosted.submit(images(1), ["mask"], "greedy")
    while not hosted.session.calls:
        time.sleep(0.01)
    for _ in range(32):
        hosted.submit(images(1), ["mask"], "greedy")
    with pytest.raises(Exception, match="32 requests of yours wait"):
        hosted.submit(images(1), ["mask"], "greedy")
    other = hosted.submit(images(1), ["mask"], "modest")
    hosted.session.go.set()
    assert len(first.result(10)["mask"]) == len(other.result(10)["mask"]) == 1


def test_uploads_of_one_caller_wait_for_each_other_and_not_for_others(strict, exported):
    noise = np.random.default_rng(0).integers(0, 255, (3000, 3000, 3), np.uint8)
    from tests.imaging.test_study import png

    content, done = png(noise, compress_level=0), []

    def send(client, what):
        answer = client.post("/api/v1/models/fundus/predict", content=what)
        done.append((client, answer.status_code))

    other = strict.client(strict.token("viewer"))
    threads = [threading.Thread(target=send, args=(strict.viewer, content)) for _ in range(6)]
    for thread in threads:
        thread.start()
    while not done:
        time.sleep(0.01)
    send(other, exported.image())
    for thread in threads:
        thread.join()
    assert {status for _, status in done} == {200}
    assert [client for client, _ in done].index(other) < 5, "it did not wait for all of them"


def test_a_large_study_becomes_a_job(strict, exported, tmp_path):
    import io
    import zipfile

    from services.site import artifacts, jobs
    from services.trainer.worker_loop import WorkerLoop
    from tests.imaging import dicoms

    content = dicoms.packed(dicoms.stack(np.random.default_rng(1).integers(0, 900, (3, 24, 32)).astype(np.int16)))
    asked = {"content": content, "params": {"output": "all"}, "headers": {"Prefer": "wait=1, Respond-Async"}}
    answer = strict.viewer.post("/api/v1/models/fundus/predict", **asked)
    job = ok(answer, 202)
    assert (job["kind"], job["state"]) == ("predict_study", "queued")
    assert answer.headers["location"] == f"/api/v1/jobs/{job['id']}"
    assert answer.headers["preference-applied"] == "respond-async"
    assert ok(strict.viewer.get(f"/api/v1/jobs/{job['id']}/files")) == []
    worker = WorkerLoop(strict.settings, lambda: False)
    try:
        assert worker.work_once()
    finally:
        worker.close()
    job = ok(strict.viewer.get(answer.headers["location"]))
    assert (job["state"], job["error"]) == ("succeeded", None)
    assert job["result"]["slices"] == 3
    assert job["progress"]["steps"] == 3
    packed = strict.viewer.get(f"/api/v1/jobs/{job['id']}/files/prediction.zip").content
    del asked["headers"]
    now = strict.viewer.post("/api/v1/models/fundus/predict", **asked).content
    with zipfile.ZipFile(io.BytesIO(packed)) as late, zipfile.ZipFile(io.BytesIO(now)) as soon:
        assert late.namelist() == soon.namelist()
        for name in ("mask.nii.gz", "overlay-0002.png", "measurements.json"):
            assert late.read(name) == soon.read(name)
    with strict.database.read() as session:
        assert artifacts.attached(session, jobs.uploaded(job["id"])) == {}, "the study is not kept"
    assert not (strict.settings.work_folder / job["id"]).exists()
    other = strict.client(strict.token("viewer"))
    for path in ("files", "files/prediction.zip"):
        refused(other.get(f"/api/v1/jobs/{job['id']}/{path}"), 403, "forbidden")
    ok(strict.operator.get(f"/api/v1/jobs/{job['id']}/files"))


def test_a_study_whose_job_fails_is_not_kept_either(strict):
    from services.trainer.worker_loop import WorkerLoop

    send = {"content": b"no image", "headers": {"Prefer": "respond-async"}}
    sent = [ok(strict.viewer.post("/api/v1/models/fundus/predict", **send), 202)["id"] for _ in range(4)]
    refused(strict.viewer.post("/api/v1/models/fundus/predict", **send), 429, "busy")
    worker = WorkerLoop(strict.settings, lambda: False)
    try:
        assert worker.work_once()
    finally:
        worker.close()
    job = ok(strict.viewer.get(f"/api/v1/jobs/{sent[0]}"))
    assert (job["state"], job["error"]["code"]) == ("failed", "image_invalid")
    assert not (strict.settings.work_folder / sent[0]).exists()
    for job_id in sent[1:]:
        ok(strict.operator.post(f"/api/v1/jobs/{job_id}/cancel"), 202)


def test_a_study_too_large_to_wait_for_becomes_a_job_by_itself(strict, tmp_path):
    import nibabel as nib

    wide = nib.Nifti1Image(np.zeros((1024, 1024, 33), np.uint8), np.diag([1, 1, 2, 1]))
    answer = strict.viewer.post("/api/v1/models/fundus/predict", content=wide.to_bytes())
    job = ok(answer, 202)
    cancelled = ok(strict.operator.post(f"/api/v1/jobs/{job['id']}/cancel"), 202)
    assert cancelled["state"] == "cancelled"
    assert (
        "send the image again" in refused(strict.operator.post(f"/api/v1/jobs/{job['id']}/retry"), 409, "conflict")["detail"]
    )

"""The Open Inference Protocol, called as an unmodified client calls it, and as a careless one."""

import gzip
import json
import threading
import time
import zlib
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from relay_core.inference.onnx_model import OnnxModel
from tests.api.kit import ok, refused, running

BAD_IMAGE = {"name": "image", "shape": [1, 3, 2, 2], "datatype": "FP32", "data": [0.5] * 12}


@pytest.fixture(scope="module")
def served(tmp_path_factory, exported):
    """A site with a model in production."""
    with running(tmp_path_factory.mktemp("served"), None) as site:
        row = site.model(exported, "fundus")
        ok(site.promote("fundus", row.version))
        yield site


@pytest.fixture(scope="module")
def truth(exported):
    """The same model, in this process."""
    return OnnxModel(exported.content, "cpu")


def images(count=2, height=20, width=24, seed=0):
    return np.random.default_rng(seed).random((count, 3, height, width), dtype=np.float32)


def tensor(values):
    found = triton.InferInput("image", list(values.shape), "FP32")
    found.set_data_from_numpy(values)
    return found


@pytest.fixture
def client(served):
    with triton.InferenceServerClient(served.url.removeprefix("http://")) as found:
        yield found


def headers(site):
    return {"Authorization": f"Bearer {site.tokens['viewer']}"}


def test_an_unmodified_client_with_its_defaults(served, client, truth):
    values = images()
    made = client.infer("fundus", [tensor(values)], headers=headers(served))
    for name, wanted in zip(("logits", "probabilities", "confidence", "mask", "looks"), truth(values), strict=True):
        np.testing.assert_array_equal(made.as_numpy(name), wanted)
    answer = made.get_response()
    assert (answer["model_name"], answer["model_version"]) == ("fundus", "1")
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("fundus", headers=headers(served))
    assert not client.is_model_ready("nothing", headers=headers(served))
    found = client.get_model_metadata("fundus", headers=headers(served))
    assert found["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 3, -1, -1]}]
    assert {entry["name"]: entry["shape"] for entry in found["outputs"]}["probabilities"] == [-1, 3, -1, -1]
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    (entry,) = client.get_model_repository_index(headers=headers(served))
    assert (entry["name"], entry["version"], entry["state"]) == ("fundus", "1", "READY")
    (found,) = client.get_inference_statistics("fundus", headers=headers(served))["model_stats"]
    assert found["inference_count"] >= 2
    assert found["inference_stats"]["success"]["count"] >= 1
    assert found["inference_stats"]["success"]["ns"] > found["inference_stats"]["compute_infer"]["ns"] > 0


def test_a_classifier_by_an_unmodified_client(served, client, classifier):
    ok(served.promote("tumour", served.model(classifier, "tumour", dice=0.0).version))
    told = client.get_model_metadata("tumour", headers=headers(served))
    assert told["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 1, -1, -1]}]
    assert {entry["name"]: (entry["datatype"], entry["shape"]) for entry in told["outputs"]} == {
        "logits": ("FP32", [-1, 2]), "probabilities": ("FP32", [-1, 2]), "confidence": ("FP32", [-1]),
        "class": ("UINT8", [-1]), "looks": ("FP32", [-1, 3]),
    }  # fmt: skip
    values = images(3)[:, :1]
    made = client.infer("tumour", [tensor(values)], headers=headers(served))
    for entry, wanted in zip(told["outputs"], OnnxModel(classifier.content, "cpu")(values), strict=True):
        found = made.as_numpy(entry["name"])
        np.testing.assert_array_equal(found, wanted)
        assert (found.ndim, found.dtype) == (len(entry["shape"]), wanted.dtype)
    for name, channels, other in (("tumour", 1, "mask"), ("fundus", 3, "class")):
        body = {**change(shape=[1, channels, 2, 6 // channels]), "outputs": [{"name": other}]}
        problem = refused(served.viewer.post(f"/v2/models/{name}/infer", json=body), 400, "inference_invalid")
        assert f"there is no output '{other}'" in problem["error"]


@pytest.mark.parametrize("packing", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
def test_json_bytes_and_compressed_bodies_say_the_same(served, client, truth, binary, packing):
    values = images(1, seed=3)
    given = triton.InferInput("image", list(values.shape), "FP32")
    given.set_data_from_numpy(values, binary_data=binary)
    wanted = [triton.InferRequestedOutput("mask", binary_data=not binary), triton.InferRequestedOutput("probabilities")]
    made = client.infer(
        "fundus", [given], outputs=wanted, model_version="1", request_id="r-1", headers=headers(served),
        request_compression_algorithm=packing, response_compression_algorithm=packing,
    )  # fmt: skip
    _, probabilities, _, mask, _ = truth(values)
    np.testing.assert_array_equal(made.as_numpy("mask"), mask)
    np.testing.assert_allclose(made.as_numpy("probabilities"), probabilities, atol=1e-7)
    assert made.as_numpy("logits") is None
    assert made.get_response()["id"] == "r-1"


def test_errors_reach_the_client_as_sentences(served, client):
    for values, words in ((images()[:, :2], r"\[2, 2, 20, 24\]"), (images() * 255, "black is 0 and white is 1")):
        with pytest.raises(InferenceServerException, match=words):
            client.infer("fundus", [tensor(values)], headers=headers(served))
    with pytest.raises(InferenceServerException, match="model nothing is not known"):
        client.infer("nothing", [tensor(images())], headers=headers(served))
    with pytest.raises(InferenceServerException, match="has no version 7"):
        client.infer("fundus", [tensor(images())], model_version="7", headers=headers(served))
    with pytest.raises(InferenceServerException, match="there is nothing at this address"):
        client.get_model_config("fundus", headers=headers(served))
    with pytest.raises(InferenceServerException, match="Authorization"):
        client.infer("fundus", [tensor(images())])


def change(**fields):
    return {"inputs": [{**BAD_IMAGE, **fields}]}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not JSON"),
        (b"[1]", "not a JSON object"),
        (b"[" * 50000, "not JSON"),
        ({}, "inputs: give one"),
        ({"inputs": [BAD_IMAGE, BAD_IMAGE]}, "inputs: give one"),
        (change(name="picture"), "no input 'picture'"),
        (change(datatype="FP64"), "datatype 'FP64'"),
        (change(datatype=None), "takes FP32"),
        (change(shape=[1, 3, 2]), "the model takes"),
        (change(shape=[1, 3, 2, 2, 1]), "the model takes"),
        (change(shape=[1, 3, 0, 2]), "positive"),
        (change(shape=[1, 3, 2, -2]), "positive"),
        (change(shape=[1, 3, 2, True]), "positive"),
        (change(shape=[9, 3, 10000, 10000]), "one request may have"),
        (change(data=[0.5] * 11), "data has 11"),
        (change(data="abc"), "list of numbers"),
        (change(data=[[0.5], [0.5, 0.5]]), "list of numbers"),
        (change(data=[float("nan")] + [0.5] * 11), "not finite"),
        (change(data=[255.0] * 12), "black is 0"),
        (change(parameters={"binary_data_size": 48}), "48 are announced, 0 came"),
        ({**change(), "outputs": [{"name": "heat"}]}, "no output 'heat'"),
        ({**change(), "outputs": ["mask"]}, "list of objects"),
        ({**change(), "outputs": [{"name": "mask", "parameters": {"classification": 3}}]}, "classification"),
        ({**change(), "id": 7}, "id: a string"),
        ({**change(), "parameters": {"binary_data_output": "yes"}}, "true or false"),
    ],
)  # fmt: skip
def test_bad_requests_are_told_what_is_wrong(served, body, words):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    problem = refused(served.viewer.post("/v2/models/fundus/infer", content=content), 400, "inference_invalid")
    assert words in problem["error"]


def test_bad_frames_are_told_what_is_wrong(served):
    post = served.viewer.post
    head = json.dumps(change(parameters={"binary_data_size": 48})).encode()
    for length in ("-1", "many", "99999999", "1e3"):
        given = {"Inference-Header-Content-Length": length}
        refused(post("/v2/models/fundus/infer", content=head, headers=given), 400, "inference_invalid")
    given = {"Inference-Header-Content-Length": str(len(head))}
    problem = refused(post("/v2/models/fundus/infer", content=head + b"\0" * 47, headers=given), 400, "inference_invalid")
    assert "47 came" in problem["error"]
    whole = gzip.compress(json.dumps(change()).encode())
    for packed, encoding, status, code in (
        (whole[:-9], "gzip", 400, "bad_request"),
        (b"plain", "gzip", 400, "bad_request"),
        (whole, "deflate", 400, "bad_request"),
        (whole, "br", 415, "unsupported_media_type"),
        (zlib.compress(b"\0" * (300 << 20), 9), "deflate", 413, "too_large"),
    ):
        answer = post("/v2/models/fundus/infer", content=packed, headers={"Content-Encoding": encoding})
        refused(answer, status, code)
    ok(post("/v2/models/fundus/infer", json=change()))


def test_many_callers_share_batches_and_each_gets_its_own(served, truth):
    before = ok(served.viewer.get("/v2/models/fundus/versions/production/stats"))["model_stats"][0]
    failures = []

    def call(seed):
        values = images(1 + seed % 3, 16 + 4 * (seed % 2), 16, seed)
        given = {"name": "image", "shape": list(values.shape), "datatype": "FP32", "data": values.ravel().tolist()}
        body = {"inputs": [given], "outputs": [{"name": "mask"}, {"name": "confidence"}]}
        answer = ok(served.viewer.post("/v2/models/fundus/infer", json=body))
        found = {entry["name"]: np.array(entry["data"]).reshape(entry["shape"]) for entry in answer["outputs"]}
        _, _, confidence, mask, _ = truth(values)
        if (found["mask"] != mask).mean() > 0.01 or np.abs(found["confidence"] - confidence).max() > 1e-5:
            failures.append(seed)

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    after = ok(served.viewer.get("/v2/models/fundus/versions/production/stats"))["model_stats"][0]
    assert after["inference_count"] - before["inference_count"] == sum(1 + seed % 3 for seed in range(40))
    assert after["execution_count"] - before["execution_count"] < 40


def test_a_full_queue_is_told_when_to_come_again(tmp_path, exported):
    with running(tmp_path, None, RELAY_SERVE_QUEUE="2", RELAY_SERVE_BATCH="1") as site:
        ok(site.promote("fundus", site.model(exported, "fundus").version))
        values = images(24, 256, 256)
        head = json.dumps({
            "inputs": [{"name": "image", "shape": list(values.shape), "datatype": "FP32",
                        "parameters": {"binary_data_size": values.nbytes}}], "outputs": [{"name": "looks"}],
        }).encode()  # fmt: skip
        answers = []

        def call():
            given = {"Inference-Header-Content-Length": str(len(head))}
            answers.append(site.viewer.post("/v2/models/fundus/infer", content=head + values.tobytes(), headers=given))

        threads = [threading.Thread(target=call) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        busy = [answer for answer in answers if answer.status_code == 429]
        assert busy
        assert {answer.status_code for answer in answers} == {200, 429}
        assert refused(busy[0], 429, "busy")
        assert int(busy[0].headers["retry-after"]) >= 1
        text = site.anonymous.get("/metrics").text
        assert f'relay_infer_requests_total{{model="fundus",outcome="busy",version="1"}} {float(len(busy))}' in text


def test_who_may_call(served, tmp_path, exported):
    for path in ("/v2", "/v2/health/live", "/v2/health/ready"):
        ok(served.anonymous.get(path))
    for method, path in (
        ("GET", "/v2/models/fundus"),
        ("POST", "/v2/models/fundus/infer"),
        ("POST", "/v2/repository/index"),
    ):
        refused(served.anonymous.request(method, path, json={}), 401, "unauthenticated")
    with running(tmp_path, None, RELAY_SERVE_ANONYMOUS="true") as site:
        ok(site.promote("fundus", site.model(exported, "fundus").version))
        with triton.InferenceServerClient(site.url.removeprefix("http://")) as client:
            assert client.infer("fundus", [tensor(images())]).as_numpy("mask").shape == (2, 20, 24)
        refused(site.client("relay_0000000000_wrong").get("/v2/models/fundus"), 401, "unauthenticated")
        refused(site.anonymous.get("/api/v1/models"), 401, "unauthenticated")


def test_little_memory_keeps_what_is_in_use(tmp_path, exported):
    with running(tmp_path, None, RELAY_SERVE_MEMORY_MIB="40") as site:
        for name in ("one", "two"):
            ok(site.promote(name, site.model(exported, name).version))
        index = lambda: {e["name"]: e["state"] for e in ok(site.viewer.post("/v2/repository/index"))}  # noqa: E731
        for name, other in (("one", "two"), ("two", "one"), ("one", "two")):
            ok(site.viewer.post(f"/v2/models/{name}/infer", json=change()))
            assert index() == {name: "READY", other: "UNAVAILABLE"}
        assert "relay_models_loaded 1.0" in site.anonymous.get("/metrics").text


def test_a_gpu_that_is_not_there_is_told(tmp_path, exported):
    with running(tmp_path, None, RELAY_SERVE_DEVICE="cuda") as site, site.worker():
        ok(site.promote("fundus", site.model(exported, "fundus").version))
        answer = site.viewer.post("/v2/models/fundus/infer", json=change())
        assert ok(answer)
        found = ok(site.anonymous.get("/readyz"))
        if answer.headers["x-relay-provider"] == "CPUExecutionProvider":
            assert found["status"] == "degraded"
            assert found["checks"]["inference"] == {
                "ok": False, "detail": "provider: CPUExecutionProvider; wanted: cuda",
            }  # fmt: skip


def test_damaged_bytes_are_not_run(served, exported):
    from dataclasses import replace

    spoilt = replace(exported, content=exported.content + b"\0")  # bytes of its own in the store
    row = served.model(spoilt, "damaged")
    served.damage(row.digest)
    refused(served.viewer.post("/v2/models/damaged/versions/1/infer", json=change()), 500, "artifact_damaged")
    other = served.model(replace(exported, content=b"not a model"), "other")
    refused(served.viewer.get(f"/v2/models/other/versions/{other.version}/ready"), 422, "model_invalid")
    ok(served.viewer.post("/v2/models/fundus/infer", json=change()))


def test_what_is_in_production_is_loaded_before_the_first_call(tmp_path, exported):
    with running(tmp_path, None) as site:
        ok(site.promote("fundus", site.model(exported, "fundus").version))
    with running(tmp_path, None, RELAY_SECRET_KEY=site.settings.key.decode()) as again:
        for _ in range(100):
            (entry,) = ok(again.viewer.post("/v2/repository/index"))
            if entry["state"] == "READY":
                break
            time.sleep(0.1)
        assert entry["state"] == "READY"


def test_a_client_that_lists_encodings_gets_plain_bytes(served):
    answer = httpx.post(f"{served.url}/v2/models/fundus/infer", json=change(), headers=headers(served))
    assert "content-encoding" not in answer.headers
    assert answer.headers["cache-control"] == "no-store"


def test_large_requests_are_refused_before_they_are_worked_on(served):
    for shape in ([1, 3, 1, 1 << 20], [1, 3, 1 << 20, 1]):
        problem = refused(served.viewer.post("/v2/models/fundus/infer", json=change(shape=shape)), 400, "inference_invalid")
        assert "a side may have" in problem["error"]
    wide = change(shape=[1, 3, 4096, 4096], parameters={"binary_data_size": 3 << 26})
    head = json.dumps(wide).encode()
    content = head + b"\0" * (3 << 26)
    answer = served.viewer.post(
        "/v2/models/fundus/infer", content=content, headers={"Inference-Header-Content-Length": str(len(head))}
    )
    assert "the answer would have" in refused(answer, 413, "too_large")["error"]
    assert (
        "send the tensor as bytes"
        in refused(served.viewer.post("/v2/models/fundus/infer", content=b"[" + b"0," * (9 << 20)), 413, "too_large")[
            "error"
        ]
    )
    given = {"Inference-Header-Content-Length": "9" * 5000}
    refused(served.viewer.post("/v2/models/fundus/infer", content=b"{}", headers=given), 400, "inference_invalid")


class Slow:
    """A session whose calls wait until they are let go."""

    def __init__(self):
        self.go, self.calls = threading.Event(), []

    size = 1
    facts = SimpleNamespace(resolution=8)

    def __call__(self, images, outputs):
        self.calls.append(len(images))
        assert self.go.wait(10)
        if images.max() > 1:
            raise RuntimeError("what a runtime says")
        return [images[:, 0].copy() for _ in outputs]


@pytest.fixture
def hosted(tmp_path):
    from prometheus_client import CollectorRegistry

    from services.api.inference.batching import Hosted, Meters, Statistics
    from services.site.settings import load_settings

    made = Hosted("m", 1, Slow(), load_settings(embedded=True, home=tmp_path), Meters(CollectorRegistry()), Statistics())
    yield made
    made.session.go.set()
    made.close()


def test_a_caller_that_left_and_a_call_that_failed_harm_nobody_else(hosted):
    first = hosted.submit(images(1), ["mask"])
    while not hosted.session.calls:
        time.sleep(0.01)
    left, stays, other = (hosted.submit(images(1, seed=seed), ["mask"]) for seed in (1, 2, 3))
    assert left.cancel()
    hosted.session.go.set()
    assert first.result(10)["mask"].shape == (1, 20, 24)
    np.testing.assert_array_equal(stays.result(10)["mask"], images(1, seed=2)[:, 0])
    np.testing.assert_array_equal(other.result(10)["mask"], images(1, seed=3)[:, 0])
    assert hosted.session.calls == [1, 2]
    with pytest.raises(Exception, match="could not be run") as caught:
        hosted.run(images(1) + 5, ["mask"])
    assert "what a runtime says" not in str(caught.value)
    assert len(hosted.run(images(3), ["mask"])[0]) == 3
    assert hosted.statistics.fail.count == 1


def test_a_model_that_is_let_go_still_answers_who_has_it(hosted):
    waiting = hosted.submit(images(2), ["mask"])
    hosted.close()
    hosted.session.go.set()
    assert len(waiting.result(10)["mask"]) == 2
    with pytest.raises(Exception, match="let go"):
        hosted.submit(images(2), ["mask"])


def test_a_borrowed_model_outlives_its_eviction(tmp_path, exported):
    from prometheus_client import CollectorRegistry

    from services.api.inference.hosting import Host
    from services.site import marks
    from services.site.artifacts import ArtifactStore
    from services.site.settings import load_settings

    store = ArtifactStore(tmp_path / "store")
    marks.write(store.folder / marks.VOLUME, site="site-1")
    digest, _ = store.put([exported.content])
    host = Host(load_settings(embedded=True, home=tmp_path, serve_memory_mib=40), store, CollectorRegistry())
    with host.borrow("one", 1, digest) as one:
        with host.borrow("two", 1, digest):
            assert [hosted.name for hosted in host.loaded] == ["two"]
            assert len(one.run(images(1), ("mask",))[0]) == 1
        assert len(one.run(images(1), ("mask",))[0]) == 1
    with pytest.raises(Exception, match="let go"):
        one.submit(images(1), ("mask",))
    before = threading.active_count()
    for name in ("one", "two") * 3:
        with host.borrow(name, 1, digest) as found:
            found.run(images(1), ("mask",))
    time.sleep(0.2)
    assert threading.active_count() <= before + 1, "those that are let go leave no thread"
    host.close()

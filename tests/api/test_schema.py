"""Schemathesis against the running API: what it answers is what its OpenAPI document says, whatever it is sent."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.api.kit import Site, ok, running

EXAMPLES = os.environ.get("RELAY_TEST_EXAMPLES", "8")
SEED = os.environ.get("RELAY_TEST_SEED", "1")  # the suite asks the same every time; another seed explores

CONFIG = """
request-timeout = 20
max-stream-events = 1

# Rows that are there, so that not every address ends in 404.
[dictionaries]
datasets = {{ values = ["{dataset}"] }}
runs = {{ values = ["{run}"] }}
jobs = {{ values = ["{queued}", "{ended}"] }}
ended = {{ values = ["{ended}"] }}
checkpoints = {{ values = ["{checkpoint}"] }}
evaluations = {{ values = ["{evaluation}"] }}
bundles = {{ values = ["{built}", "{brought}"] }}
models = {{ values = ["fundus"] }}
versions = {{ values = ["1", "production"] }}
numbers = {{ values = [1] }}

[parameters]
"path.dataset_id" = {{ dictionary = "datasets", probability = 0.6 }}
"path.run_id" = {{ dictionary = "runs", probability = 0.6 }}
"path.job_id" = {{ dictionary = "jobs", probability = 0.6 }}
"path.checkpoint_id" = {{ dictionary = "checkpoints", probability = 0.6 }}
"path.evaluation_id" = {{ dictionary = "evaluations", probability = 0.6 }}
"path.bundle_id" = {{ dictionary = "bundles", probability = 0.6 }}
"path.name" = {{ dictionary = "models", probability = 0.6 }}
"body.dataset_id" = {{ dictionary = "datasets", probability = 0.8 }}
"body.run_id" = {{ dictionary = "runs", probability = 0.8 }}
"body.checkpoint_id" = {{ dictionary = "checkpoints", probability = 0.8 }}

# 428 is the status that RFC 6585 has for a missing If-Match.
[checks.missing_required_header]
expected-statuses = [400, 401, 403, 422, 428]

# A documented 503 (of /readyz, say) tells of a busy machine; an error of the code is in the log, which must hold none.
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", 503]

# No schema can say that a cursor was signed here ...
[[operations]]
include-operation-id-regex = "^list_"
checks.positive_data_acceptance.expected-statuses = ["2xx", 400, 404]

# ... which folders there are below the data root ...
[[operations]]
include-operation-id = "browse_folders"
checks.positive_data_acceptance.expected-statuses = ["2xx", 404, 422]

# ... which version of a row is the present one, which options a layout has, or which sites a run has ...
[[operations]]
include-operation-id-regex = "^change_"
checks.positive_data_acceptance.expected-statuses = ["2xx", 404, 412, 422]

# ... whether a tensor has as many values as its shape says, or bytes are an image ...
[[operations]]
include-operation-id-regex = "^(infer|predict)"
parameters = {{ "path.version" = {{ dictionary = "versions", probability = 0.6 }} }}
checks.positive_data_acceptance.expected-statuses = ["2xx", 400, 404, 422]

# ... which version may follow the present one ...
[[operations]]
include-operation-id-regex = "^(promote|roll_back|compare|get|delete|download)_model"
parameters = {{ "path.version" = {{ dictionary = "numbers", probability = 0.6 }} }}
checks.positive_data_acceptance.expected-statuses = ["2xx", 404, 409, 412, 416, 422]

# ... whether a bundle comes as the body or came in pieces ...
[[operations]]
include-operation-id = "submit_import"
checks.positive_data_acceptance.expected-statuses = ["2xx", 404, 409, 415, 422]

# ... or that a YAML mapping is a run file, and which data sets and checkpoints are there.
[[operations]]
include-operation-id-regex = "^(register|submit|preview_run|preview_key|trust_key|revoke_key)"
checks.positive_data_acceptance.expected-statuses = ["2xx", 404, 409, 422]

# ... where the next piece of an upload begins ...
[[operations]]
include-operation-id = "add_piece"
checks.positive_data_acceptance.expected-statuses = ["2xx", 404, 409, 413]

# ... or how many bytes a file has.
[[operations]]
include-operation-id-regex = "^download_"
checks.positive_data_acceptance.expected-statuses = ["2xx", 404, 416]

# What an export's request makes is a job, whose id is not the export's: that of its result is.
[[operations]]
include-operation-id = "submit_export"
phases.stateful.enabled = false

# The story of a job that has not ended is a stream without an end.
[[operations]]
include-operation-id = "stream_events"
phases.stateful.enabled = false
parameters = {{ "path.job_id" = {{ dictionary = "ended", probability = 1.0 }} }}
"""


@contextmanager
def trust_confirmed(site: Site) -> Iterator[None]:
    """A worker says again and again whom the site trusts, as a real one does: what is asked below may take minutes."""
    over = threading.Event()

    def confirm() -> None:
        while not over.wait(10):
            with site.database.write() as session:
                site.trusting(session)

    thread = threading.Thread(target=confirm)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_every_answer_is_a_documented_one(tmp_path, exported):
    # Many requests come with wrong tokens on purpose, and no job of a study ends: both limits are tested elsewhere.
    limits = {"RELAY_LOCKOUT_FAILURES": "1000000", "RELAY_SERVE_STUDIES": "1000000"}
    with running(tmp_path, None, **limits) as site, site.worker():
        ended = site.submit()["id"]
        site.finish(site.claim(ended))
        site.attach(ended, "samples.png", b"picture", "image/png")
        checkpoint = site.checkpoint()
        evaluation = site.evaluation(checkpoint)
        path = f"/api/v1/checkpoints/{checkpoint.id}"
        ok(site.operator.patch(path, json={"pinned": True}, headers={"If-Match": '"1"'}))  # it is not deleted so
        built, brought = site.export(checkpoint).id, site.quarantined(checkpoint.run_id)["id"]
        site.promote("fundus", site.model(exported, "fundus", checkpoint=checkpoint).version)
        dataset = site.dataset()["id"]
        queued = site.submit({"kind": "preflight", "dataset_id": dataset})["id"]
        config = tmp_path / "schemathesis.toml"
        config.write_text(
            CONFIG.format(
                dataset=dataset, run=checkpoint.run_id, queued=queued, ended=ended, checkpoint=checkpoint.id,
                evaluation=evaluation.id, built=built, brought=brought,
            )
        )  # fmt: skip
        command = [
            str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(config), "run",
            f"{site.url}/openapi.json", "--checks", "all", "--header", f"Authorization: Bearer {site.tokens['admin']}",
            "--max-examples", EXAMPLES, "--seed", SEED, "--generation-database", "none", "--no-color",
        ]  # fmt: skip
        with trust_confirmed(site):
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
        log = (tmp_path / "api.log").read_text()
    found = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert done.returncode == 0, done.stdout
    assert found, done.stdout
    assert int(found[2]) > 500
    assert '"ERROR"' not in log
    print(f"\nschemathesis: {found[0]}")


@pytest.mark.parametrize("name", ["Problem", "Job", "TrainRequest", "Checkpoint"])
def test_the_document_explains_itself(small_site, name):
    document = ok(small_site.anonymous.get("/openapi.json"))
    schema = document["components"]["schemas"][name]
    assert schema["description"]
    assert "HTTPValidationError" not in document["components"]["schemas"]
    ids = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(ids) == len(set(ids)) > 35

"""Events, log, metrics and files of a job."""

import json
import threading
import time

import pytest

from services.site.db.models import Metric
from tests.api.kit import ok, refused


def read_events(answer):
    """(id, event, data) of each server-sent event, as they come."""
    fields = {}
    for line in answer.iter_lines():
        if not line and fields:
            yield int(fields["id"]), fields["event"], json.loads(fields["data"])
            fields = {}
        elif line and not line.startswith(":"):
            name, _, value = line.partition(": ")
            fields[name] = value


def stream(site, job_id, headers=None, params=None):
    return site.viewer.stream("GET", f"/api/v1/jobs/{job_id}/events", headers=headers or {}, params=params or {})


def test_events_come_as_they_happen_and_a_broken_stream_goes_on(site):
    job = site.submit()
    claim = site.claim(job["id"])

    def tell():
        for step in range(1, 41):
            site.say(claim, {"event": "step", "step": step, "steps": 40})
            time.sleep(0.02)
        site.finish(claim)

    teller = threading.Thread(target=tell)
    teller.start()
    seen = []
    while not seen or seen[-1][1] != "succeeded":
        with stream(site, job["id"], {"Last-Event-ID": str(seen[-1][0])} if seen else None) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            for event in read_events(answer):
                seen.append(event)
                if len(seen) % 10 == 0:
                    break  # the connection breaks
    teller.join()
    assert [number for number, _, _ in seen] == list(range(1, 44))
    assert [kind for _, kind, _ in seen] == ["queued", "claimed", *["step"] * 40, "succeeded"]
    number, kind, data = seen[4]
    assert (data["seq"], data["event"], data["step"], data["attempt"]) == (number, kind, 3, 1)
    with stream(site, job["id"], params={"after": 42}) as answer:
        assert [kind for _, kind, _ in read_events(answer)] == ["succeeded"]
    with stream(site, job["id"], {"Last-Event-ID": "43"}) as answer:
        assert list(read_events(answer)) == []


@pytest.mark.parametrize("value", ["x", "-1", "1.5", "9999999999", "1\t2"])
def test_a_bad_last_event_id_is_refused(small_site, value):
    job = small_site.submit()
    headers = {"Last-Event-ID": value}
    refused(small_site.viewer.get(f"/api/v1/jobs/{job['id']}/events", headers=headers), 400, "bad_request")


def test_a_stream_of_no_job_is_refused(small_site):
    for path in ("events", "events.json", "log", "metrics", "files"):
        refused(small_site.viewer.get(f"/api/v1/jobs/job-{'0' * 28}/{path}"), 404, "not_found")


def test_many_open_streams_leave_room_for_requests(small_site):
    job = small_site.submit()
    client = small_site.client(small_site.tokens["viewer"])
    opened = [client.stream("GET", f"/api/v1/jobs/{job['id']}/events") for _ in range(100)]
    try:
        assert all(manager.__enter__().status_code == 200 for manager in opened)
        began = time.monotonic()
        for _ in range(20):
            ok(small_site.viewer.get(f"/api/v1/jobs/{job['id']}"))
        assert time.monotonic() - began < 10
    finally:
        for manager in opened:
            manager.__exit__(None, None, None)


def test_events_as_pages(site):
    job = site.submit()
    claim = site.claim(job["id"])
    site.say(claim, *({"event": "step", "step": i} for i in range(5)))
    path = f"/api/v1/jobs/{job['id']}/events.json"
    page = ok(site.viewer.get(path, params={"limit": 4}))
    assert ([event["seq"] for event in page["items"]], page["next_after"]) == ([1, 2, 3, 4], 4)
    page = ok(site.viewer.get(path, params={"after": 4}))
    assert ([event["seq"] for event in page["items"]], page["next_after"]) == ([5, 6, 7], None)
    assert set(page["items"][0]) == {"seq", "at", "attempt", "event", "step"}


def test_the_log_is_what_the_process_wrote(site):
    job = site.submit()
    claim = site.claim(job["id"])
    for i in range(6):
        site.say(claim, {"event": "step", "step": i}, {"event": "log", "line": f"line {i} ü"})
    answer = site.viewer.get(f"/api/v1/jobs/{job['id']}/log", params={"tail": 2})
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.text == "line 4 ü\nline 5 ü\n"
    assert len(site.viewer.get(f"/api/v1/jobs/{job['id']}/log").text.splitlines()) == 6


def test_metrics_are_thinned_and_keep_the_newest_point(site):
    job = site.submit()
    with site.database.write() as session:
        session.add_all(
            Metric(job_id=job["id"], site=place, name=name, step=step, value=step / 10, attempt=1)
            for place, name, count in (("A", "loss", 100), ("A", "dice", 7), ("B", "loss", 10))
            for step in range(1, count + 1)
        )
    path = f"/api/v1/jobs/{job['id']}/metrics"
    series = ok(site.viewer.get(path, params={"every": 10}))
    assert [(s["site"], s["name"], len(s["steps"]), s["steps"][-1]) for s in series] == [
        ("A", "dice", 7, 7), ("A", "loss", 10, 100), ("B", "loss", 10, 10),
    ]  # fmt: skip
    assert series[1]["steps"] == list(range(10, 101, 10))
    assert series[1]["values"][0] == 1.0
    for every in (1, 3, 9, 99, 10_000):
        (only,) = ok(site.viewer.get(path, params={"every": every, "site": "A", "name": "loss"}))
        assert len(only["steps"]) <= every
        assert only["steps"][-1] == 100
    assert ok(site.viewer.get(path, params={"name": "none"})) == []


@pytest.fixture(scope="module")
def long_job(site):
    """A job whose loss has 5,000 points, low but for one spike up and one down, and a constant."""
    job = site.submit()
    with site.database.write() as session:
        values = {1234: 9.0, 3456: -9.0}
        session.add_all(
            Metric(job_id=job["id"], site="A", name=name, step=step, value=value(step), attempt=1)
            for name, value in (("loss", lambda step: values.get(step, step % 7 / 10)), ("rate", lambda step: 0.5))
            for step in range(1, 5001)
        )
    return f"/api/v1/jobs/{job['id']}/metrics"


@pytest.mark.parametrize("points", [1, 2, 3, 4, 10, 999, 4999])
def test_a_thinned_series_hides_no_spike(site, long_job, points):
    loss, rate = ok(site.viewer.get(long_job, params={"points": points}))
    for shown in (loss, rate):
        assert 1 <= len(shown["steps"]) <= points
        assert shown["steps"] == sorted(set(shown["steps"]))
        assert shown["steps"][-1] == 5000
    if points > 2:
        assert (min(loss["values"]), max(loss["values"])) == (-9.0, 9.0)
        assert dict(zip(loss["steps"], loss["values"], strict=True))[1234] == 9.0
        assert set(rate["values"]) == {0.5}


def test_a_series_is_read_whole_in_pages_of_steps(site, long_job):
    steps = []
    for first in range(1, 5001, 1500):
        params = {"name": "loss", "points": 1500, "first": first, "last": first + 1499}
        (page,) = ok(site.viewer.get(long_job, params=params))
        steps += page["steps"]
    assert steps == list(range(1, 5001))
    (default,) = ok(site.viewer.get(long_job, params={"name": "loss"}))
    assert 900 < len(default["steps"]) <= 1000
    assert ok(site.viewer.get(long_job, params={"first": 6000})) == []
    for wrong in ({"points": 0}, {"points": 10_001}, {"first": -1}, {"last": 2**31}):
        refused(site.viewer.get(long_job, params=wrong), 422, "invalid_request")


def test_files_that_a_job_left(site):
    job = site.submit()
    digest = site.attach(job["id"], "samples.png", b"picture", "image/png")
    (file,) = ok(site.viewer.get(f"/api/v1/jobs/{job['id']}/files"))
    assert file == {"name": "samples.png", "size": 7, "media_type": "image/png", "digest": digest}
    answer = site.viewer.get(f"/api/v1/jobs/{job['id']}/files/samples.png")
    assert (answer.content, answer.headers["content-type"]) == (b"picture", "image/png")
    assert answer.headers["etag"] == f'"{digest}"'
    for name in ("other.png", "%00", "..%2f..%2fetc%2fpasswd"):
        refused(site.viewer.get(f"/api/v1/jobs/{job['id']}/files/{name}"), 404, "not_found")

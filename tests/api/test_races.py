"""Several clients at once: each change happens once or not at all, and nobody sees a 500."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from services.site import audit, job_plans, jobs
from tests.api.kit import NUMBERS, ok, refused, run_text


def at_once(count, call):
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(call, range(count)))


def statuses(answers):
    return sorted(answer.status_code for answer in answers)


def test_one_of_many_gets_the_name(site):
    body = {"name": f"race-{next(NUMBERS)}", "path": site.folder(), "layout": "folder"}
    assert statuses(at_once(12, lambda _: site.operator.post("/api/v1/datasets", json=body))) == [201] + [409] * 11


def test_a_run_is_registered_once(site):
    text = run_text(next(NUMBERS))
    headers = {"Content-Type": "text/yaml"}
    answers = at_once(12, lambda _: site.operator.post("/api/v1/runs", content=text, headers=headers))
    assert statuses(answers) == [200] * 11 + [201]
    assert len(site.audited("run.register", answers[0].json()["id"])) == 1


def test_one_of_many_changes_a_version(site):
    path = f"/api/v1/datasets/{site.dataset()['id']}"
    headers = {"If-Match": '"1"'}
    answers = at_once(12, lambda i: site.operator.patch(path, json={"note": f"by {i}"}, headers=headers))
    assert statuses(answers) == [200] + [412] * 11
    assert ok(site.viewer.get(path))["version"] == 2


def test_failed_logins_at_once_are_all_counted(site):
    address = "127.0.0.9"
    bad = site.client("relay_0123456789_wrong", address)
    answers = at_once(30, lambda _: bad.get("/api/v1/system"))
    assert set(statuses(answers)) <= {401, 429}
    refused(bad.get("/api/v1/system"), 429, "locked_out")
    assert len(site.audited("login.failed", address)) == 1


def test_a_job_is_cancelled_or_claimed_and_never_both(site):
    for _ in range(5):
        job = site.submit()
        answers = at_once(4, lambda i, job=job: site.operator.post(f"/api/v1/jobs/{job['id']}/cancel"))
        assert statuses(answers) == [202] + [409] * 3
        assert len(site.audited("job.cancelled", job["id"])) == 1


def test_what_a_job_is_just_being_queued_for_is_not_deleted(site):
    made, found = site.dataset(), []
    path = f"/api/v1/datasets/{made['id']}"
    deleting = threading.Thread(target=lambda: found.append(site.operator.delete(path)))
    with site.database.write() as session:
        asked = job_plans.preflight(session, made["id"])
        deleting.start()
        time.sleep(0.5)
        job, _ = jobs.submit(session, kind="preflight", params=asked.params, actor="test", key=None, body={})
    deleting.join()
    assert job.id in refused(found[0], 409, "in_use")["detail"]


def test_the_audit_chain_is_whole_after_all_that(site):
    with site.database.read() as session:
        assert audit.verify(session)[0] > 10

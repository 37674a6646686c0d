"""Who may do what, and how much of it."""

import re
from pathlib import Path

import pytest
from fastapi.routing import iter_route_contexts

from services.api.main import create_app
from services.site import auth
from tests.api.kit import ok, refused

JOB, DATASET, CHECKPOINT, BUNDLE = (f"{name}-{'0' * 28}" for name in ("job", "dataset", "checkpoint", "bundle"))
IDS = {
    "job_id": JOB, "dataset_id": DATASET, "checkpoint_id": CHECKPOINT, "run_id": "0" * 64, "name": "x",
    "evaluation_id": f"evaluation-{'0' * 28}", "bundle_id": BUNDLE, "fingerprint": "0" * 64, "upload": "12345678",
    "version": 1, "code": "not_found",
}  # fmt: skip
"""What stands in an address, for each parameter."""
OPERATORS = [
    ("POST", "/api/v1/datasets"),
    ("PATCH", f"/api/v1/datasets/{DATASET}"),
    ("DELETE", f"/api/v1/datasets/{DATASET}"),
    ("POST", "/api/v1/runs"),
    ("PATCH", f"/api/v1/runs/{'0' * 64}"),
    ("POST", "/api/v1/jobs"),
    ("POST", f"/api/v1/jobs/{JOB}/cancel"),
    ("POST", f"/api/v1/jobs/{JOB}/retry"),
    ("PATCH", f"/api/v1/checkpoints/{CHECKPOINT}"),
    ("DELETE", f"/api/v1/checkpoints/{CHECKPOINT}"),
    ("POST", "/api/v1/exports"),
    ("GET", f"/api/v1/exports/{BUNDLE}/download"),  # the networks leave the site with them
    ("HEAD", f"/api/v1/exports/{BUNDLE}/download"),
    ("GET", f"/api/v1/checkpoints/{CHECKPOINT}/download"),
    ("GET", "/api/v1/models/nothing/versions/1/download"),
    ("POST", "/api/v1/imports"),
    ("POST", f"/api/v1/imports/{BUNDLE}/accept"),
    ("PUT", "/api/v1/uploads/12345678"),
    ("GET", "/api/v1/uploads/12345678"),
    ("POST", f"/api/v1/imports/{BUNDLE}/reject"),
    ("POST", "/api/v1/run-previews"),
    ("GET", "/api/v1/folders"),  # names of folders may be patients'
]


def test_every_address_but_the_public_ones_asks_who_is_there(small_site):
    paths = ok(small_site.anonymous.get("/openapi.json"))["paths"]
    asked = 0
    for path, operations in paths.items():
        if not path.startswith(("/api/", "/v2/models", "/v2/repository")):
            continue
        for method in operations:
            answer = small_site.anonymous.request(method, path.format(**IDS))
            assert answer.status_code == 401, (method, path)
            assert answer.headers["www-authenticate"] == 'Bearer realm="relay"'
            asked += 1
    assert asked > 45


def test_what_needs_no_token_is_what_the_documentation_says(small_site):
    text = (Path(__file__).parents[2] / "docs/security.md").read_text()
    section = text.partition("## Without a token")[2].partition("\n## ")[0]
    documented = {(method, path) for method, path in re.findall(r"^\| ([A-Z]+) `([^`]+)` \|", section, re.MULTILINE)}
    open_to_all, asked = set(), 0
    for context in iter_route_contexts(create_app(small_site.settings).routes):
        if context.methods is None:
            assert context.path == "/web", "the page's files, which test_session asks for"
            continue
        for method in context.methods:
            answer = small_site.anonymous.request(method, context.path.format(**IDS))
            asked += 1
            if answer.status_code != 401:
                open_to_all.add((method, context.path))
    assert asked > 60
    assert open_to_all == documented


@pytest.mark.parametrize(("method", "path"), OPERATORS)
def test_a_viewer_changes_nothing_and_carries_no_networks_away(small_site, method, path):
    answer = small_site.viewer.request(method, path)
    if method == "HEAD":
        assert answer.status_code == 403
        return
    problem = refused(answer, 403, "forbidden")
    assert "operator" in problem["detail"]


def test_the_audit_log_is_the_admins(site):
    for client in (site.viewer, site.operator):
        refused(client.get("/api/v1/audit"), 403, "forbidden")
    job = site.submit()
    answer = site.admin.get("/api/v1/audit", params={"subject": job["id"]})
    (row,) = ok(answer)["items"]
    assert (row["action"], row["detail"]) == ("job.submit", {"kind": "preflight"})
    assert answer.headers["audit-head"] == row["hash"]
    (row,) = ok(site.admin.get("/api/v1/audit", params={"action": "job.submit", "limit": 1}))["items"]
    assert row["subject"] == job["id"]


def test_a_token_that_is_no_longer_good(site):
    expired = site.token("admin", days=-1)
    revoked = site.token("admin")
    good = site.client(revoked, "127.0.0.2")
    ok(good.get("/api/v1/system"))
    with site.database.write() as session:
        auth.revoke_token(session, revoked.split("_")[1])
    details = set()
    for token in (expired, revoked, "relay_x_y", "nonsense", revoked[:-1]):
        answer = site.client(token, "127.0.0.2").get("/api/v1/system")
        details.add(refused(answer, 401, "unauthenticated")["detail"])
    assert len(details) == 1, "the answer does not say what was wrong with the token"


def test_an_address_that_fails_too_often_is_locked_out(site):
    address = "127.0.0.3"
    bad = site.client("relay_0123456789_wrong", address)
    for _ in range(site.settings.lockout_failures):
        refused(bad.get("/api/v1/system"), 401, "unauthenticated")
    for _ in range(3):
        answer = bad.get("/api/v1/system")
        refused(answer, 429, "locked_out")
        assert 0 < int(answer.headers["retry-after"]) <= 301
    ok(site.client(site.tokens["viewer"], address).get("/api/v1/system"))  # nobody locks out those who have a token
    refused(bad.get("/api/v1/system"), 429, "locked_out")
    refused(site.client("relay_0123456789_wrong", "127.0.0.5").get("/api/v1/system"), 401, "unauthenticated")
    assert len(site.audited("login.failed", address)) == 1
    for _ in range(20):
        refused(site.client(None, "127.0.0.4").get("/api/v1/system"), 401, "unauthenticated")
    ok(site.client(site.tokens["viewer"], "127.0.0.4").get("/api/v1/system"))


def test_a_cursor_fits_its_own_list_alone(site):
    names = [site.dataset()["id"] for _ in range(5)]
    jobs = [site.submit()["id"] for _ in range(3)]
    seen, cursor = [], None
    while cursor is not None or not seen:
        page = ok(site.viewer.get("/api/v1/datasets", params={"limit": 2, **({"cursor": cursor} if cursor else {})}))
        seen += [item["id"] for item in page["items"]]
        cursor = page["next_cursor"]
    assert [item for item in seen if item in names] == names[::-1]
    assert seen == sorted(seen, reverse=True)

    cursor = ok(site.viewer.get("/api/v1/jobs", params={"limit": 1, "state": "queued"}))["next_cursor"]
    following = ok(site.viewer.get("/api/v1/jobs", params={"limit": 1, "state": "queued", "cursor": cursor}))
    assert following["items"][0]["id"] == jobs[1]
    for path, params in (
        ("/api/v1/jobs", {"cursor": cursor}),
        ("/api/v1/jobs", {"cursor": cursor, "state": "queued", "kind": "train"}),
        ("/api/v1/datasets", {"cursor": cursor}),
        ("/api/v1/jobs", {"cursor": ("B" if cursor[0] == "A" else "A") + cursor[1:], "state": "queued"}),
        ("/api/v1/jobs", {"cursor": cursor[:-2], "state": "queued"}),
        ("/api/v1/jobs", {"cursor": "x"}),
        ("/api/v1/jobs", {"cursor": "é%"}),
        ("/api/v1/jobs", {"cursor": ""}),
    ):
        refused(site.viewer.get(path, params=params), 400, "cursor_invalid")
    for limit in (0, 201, "x"):
        refused(site.viewer.get("/api/v1/jobs", params={"limit": limit}), 422, "invalid_request")


def test_runs_come_newest_first_over_pages(site):
    made = [site.run(1)["id"] for _ in range(3)]
    seen, cursor = [], None
    while cursor is not None or not seen:
        page = ok(site.viewer.get("/api/v1/runs", params={"limit": 1, **({"cursor": cursor} if cursor else {})}))
        seen += [item["id"] for item in page["items"]]
        cursor = page["next_cursor"]
    assert seen[:3] == made[::-1]
    assert len(seen) == len(set(seen))

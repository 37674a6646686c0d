"""Who signs in at the page stays so as long as there is work, and nobody else's page acts for them."""

import secrets

import pytest
from sqlalchemy import update

from services.api.site_page import FOLDER
from services.site import auth, sessions
from services.site.db import BrowserSession
from tests.api.kit import Site, ok, refused, running
from tests.ports import free_port

SESSION = "/api/v1/session"


def browser(site: Site, role: auth.Role = "operator", token: str | None = None):
    """A client that signed in with a token, and goes on with the cookie alone."""
    client = site.client(None)
    signed_in = client.post(SESSION, headers={"Authorization": f"Bearer {token or site.tokens[role]}"})
    client.headers["X-CSRF-Token"] = ok(signed_in)["csrf_token"]
    return client


def test_a_cookie_does_what_its_token_does(site):
    page = browser(site, "viewer")
    said = ok(page.get(SESSION))
    assert (said["role"], said["name"]) == ("viewer", "test viewer")
    assert said["csrf_token"] == page.headers["x-csrf-token"]
    ok(page.get("/api/v1/jobs"))
    refused(page.post("/api/v1/datasets", json={}), 403, "forbidden")
    refused(page.get("/api/v1/audit"), 403, "forbidden")
    assert browser(site, "operator").post("/api/v1/run-previews", content="x").status_code == 415
    assert [row.action for row in site.audited("session.begin", said["actor"].split("(")[1].rstrip(")"))][-1:] == [
        "session.begin"
    ]


def test_the_cookie_is_kept_from_scripts_and_other_sites(small_site):
    answer = small_site.client(None).post(SESSION, headers={"Authorization": f"Bearer {small_site.tokens['viewer']}"})
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert "Path=/api/v1" in cookie
    assert "Max-Age" not in cookie, "it ends with the browser"
    assert "Secure" not in cookie
    assert small_site.tokens["viewer"] not in cookie


def test_a_change_needs_what_the_own_page_alone_can_read(small_site):
    page = browser(small_site)
    body = {"kind": "preflight", "dataset_id": small_site.dataset()["id"]}
    for text in ("", "0" * 64, "é"):
        forged = {"X-CSRF-Token": text.encode(), "Idempotency-Key": "a-key"}
        refused(page.post("/api/v1/jobs", json=body, headers=forged), 401, "unauthenticated")
    refused(page.delete(SESSION, headers={"X-CSRF-Token": "0"}), 401, "unauthenticated")
    job = ok(page.post("/api/v1/jobs", json=body, headers={"Idempotency-Key": "a-key"}), 202)
    assert job["created_by"].startswith("test operator (")
    other = browser(small_site)
    refused(page.post(SESSION + "/worked", headers={"X-CSRF-Token": other.headers["x-csrf-token"]}), 401, "unauthenticated")


def age(site: Site, **columns: float) -> None:
    """Let all sessions have begun, or been worked with, so many seconds earlier."""
    changes = {name: getattr(BrowserSession, name) - seconds for name, seconds in columns.items()}
    with site.database.write() as session:
        session.execute(update(BrowserSession).values(**changes))


def test_a_session_ends_when_nobody_works_and_after_a_day_of_work(site):
    page = browser(site)
    age(site, seen_at=sessions.IDLE - 60)
    ok(page.get("/api/v1/jobs"))
    ok(page.post(SESSION + "/worked"), 204)
    age(site, seen_at=sessions.IDLE - 60)
    ok(page.get("/api/v1/jobs"))  # reading by itself, as a page that is left open does, does not keep it
    age(site, seen_at=120)
    refused(page.get("/api/v1/jobs"), 401, "unauthenticated")
    refused(page.post(SESSION + "/worked"), 401, "unauthenticated")
    page = browser(site)
    age(site, created_at=sessions.LONGEST + 1)
    refused(page.get("/api/v1/jobs"), 401, "unauthenticated")
    browser(site)
    with site.database.read() as session:
        assert session.query(BrowserSession).count() == 1, "sessions that are over are forgotten"


def test_signing_out_and_revoking_the_token_end_it(site):
    page, kept = browser(site), dict(browser(site).cookies)
    cookie = dict(page.cookies)
    ok(page.delete(SESSION), 204)
    assert not page.cookies
    stolen = site.client(None)
    stolen.cookies.update(cookie)
    refused(stolen.get("/api/v1/jobs"), 401, "unauthenticated")
    assert kept != cookie
    token = site.token("viewer")
    page = browser(site, token=token)
    with site.database.write() as session:
        auth.revoke_token(session, token.split("_")[1])
    refused(page.get("/api/v1/jobs"), 401, "unauthenticated")
    refused(site.client(None).post(SESSION), 401, "unauthenticated")


def test_a_link_signs_in_once(site):
    def follow(text: str):
        return site.client(None, "127.0.0.77").post(SESSION, headers={"Authorization": f"Bearer {text}"})

    admin = site.tokens["admin"].split("_")[1]
    with site.database.write() as session:
        text = sessions.link(session, site.settings.key, admin)
        late = sessions.link(session, site.settings.key, admin)
    refused(site.client(text, "127.0.0.77").get("/api/v1/jobs"), 401, "unauthenticated")  # it is no token
    assert ok(follow(text))["role"] == "admin"
    refused(follow(text), 401, "unauthenticated")
    age(site, created_at=sessions.LINK + 1)
    refused(follow(late), 401, "unauthenticated")
    refused(follow("link_nonsense"), 401, "unauthenticated")


def test_what_the_page_may_load_is_its_own_alone(small_site):
    answer = small_site.anonymous.get("/")
    assert answer.headers["content-type"].startswith("text/html")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    for path in FOLDER.rglob("*"):
        if path.is_file():
            ok_answer = small_site.anonymous.get(f"/web/{path.relative_to(FOLDER).as_posix()}")
            assert ok_answer.status_code == 200
    for path in ("/web/../main.py", "/web/%2e%2e/main.py", "/web/nothing.js", "/web/"):
        assert small_site.anonymous.get(path).status_code == 404


@pytest.mark.parametrize("path", ["..", "/", "a/../..", "a\\b", "nothing"])
def test_folders_are_listed_below_the_data_root_alone(small_site, path):
    answer = small_site.operator.get("/api/v1/folders", params={"path": path})
    assert answer.status_code in (404, 422)


def test_what_there_is_to_choose_from(small_site):
    small_site.folder("choose/one")
    (small_site.settings.data_folder / "choose" / "note.txt").write_text("x")
    found = ok(small_site.operator.get("/api/v1/folders", params={"path": "choose"}))
    assert found == {"path": "choose", "folders": ["choose/one"], "files": 1, "more": False}
    assert "choose" in ok(small_site.operator.get("/api/v1/folders"))["folders"]
    refused(small_site.viewer.get("/api/v1/folders"), 403, "forbidden")
    layouts = {entry["name"]: entry for entry in ok(small_site.viewer.get("/api/v1/layouts"))}
    settings = {entry["key"]: entry for entry in layouts["folder"]["settings"]}
    assert settings["num_classes"]["kind"] == "number"
    assert settings["fit"]["choices"] == ["stretch", "pad", "crop"]
    assert settings["mask_values"]["kind"] == "yaml"
    assert "task_name" not in settings
    recipes = {entry["name"]: entry for entry in ok(small_site.viewer.get("/api/v1/recipes"))}
    assert recipes["fundus-cpu"]["about"].startswith("Optic disc and cup")
    checked = ok(
        small_site.operator.post(
            "/api/v1/run-previews", content="extends: fundus-cpu\n", headers={"Content-Type": "application/yaml"}
        )
    )
    assert (checked["strategy"], len(checked["sites"])) == ("relay", 4)
    assert checked["id"] not in {run["id"] for run in ok(small_site.viewer.get("/api/v1/runs"))["items"]}  # only looked at


def test_behind_a_proxy_with_tls_the_cookie_goes_over_tls_alone(tmp_path):
    with running(tmp_path, None, FORWARDED_ALLOW_IPS="127.0.0.1") as site:
        headers = {"Authorization": f"Bearer {site.tokens['viewer']}", "X-Forwarded-Proto": "https"}
        assert "Secure" in site.anonymous.post(SESSION, headers=headers).headers["set-cookie"]


def test_a_session_outlives_a_restart_of_the_service(tmp_path):
    again = {"RELAY_SECRET_KEY": secrets.token_hex(32), "RELAY_PORT": str(free_port())}
    with running(tmp_path, None, **again) as site:
        page = browser(site)
        ok(page.get(SESSION))
    with running(tmp_path, None, **again) as site:
        later = site.client(None)
        later.cookies.update(page.cookies)
        ok(later.post(SESSION + "/worked", headers={"X-CSRF-Token": page.headers["X-CSRF-Token"]}), 204)
        ok(later.get("/api/v1/jobs"))


def test_signing_in_again_ends_the_session_before(site):
    page = browser(site)
    cookie = dict(page.cookies)
    ok(page.post(SESSION, headers={"Authorization": f"Bearer {site.tokens['operator']}"}))
    old = site.client(None)
    old.cookies.update(cookie)
    refused(old.get("/api/v1/jobs"), 401, "unauthenticated")
    ok(page.get("/api/v1/jobs"))


def test_a_link_is_not_used_up_by_looking(site):
    with site.database.write() as session:
        text = sessions.link(session, site.settings.key, site.tokens["viewer"].split("_")[1])
    headers = {"Authorization": f"Bearer {text}"}
    for method in ("GET", "HEAD", "DELETE"):
        assert site.client(None, "127.0.0.78").request(method, SESSION, headers=headers).status_code == 401
    ok(site.client(None, "127.0.0.78").post(SESSION, headers=headers))

"""`relay up` and its clients, as a person uses them."""

import base64
import hashlib
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from relay_core.bundle import KeyFolder
from services.client import http
from services.local import up as local_up
from services.site import load_settings
from tests.conftest import Toy
from tests.ports import free_port
from tests.services.processes import until
from tests.services.up import RELAY, Up


@pytest.fixture
def up(tmp_path: Path, phantom_data: Path) -> Iterator[Up]:
    site = Up(tmp_path, phantom_data)
    yield site
    site.stop()


def test_submit_follows_a_training_to_its_end(up: Up, toy: Toy) -> None:
    assert up.token, up.log.read_text()
    spoken = re.search(r"this site's key: ([0-9a-f ]{39})\n", up.log.read_text())[1]
    assert spoken in up.relay("keys", "fingerprint", "--keys", str(up.home / "keys")).stdout
    assert (up.home / "keys" / "passphrase").stat().st_mode & 0o777 == 0o600
    status = up.relay("status", "--json")
    assert status.returncode in (0, 1), status.stderr
    until(lambda: json.loads(up.relay("status", "--json").stdout)["ready"]["status"] == "ready", 30, "the worker is seen")
    done = up.relay("submit", str(toy.write()))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Domain2: relay on 8 images, 6 steps" in done.stderr
    job_id = done.stdout.strip()
    (listed,) = json.loads(up.relay("jobs", "--json").stdout)
    assert (listed["id"], listed["state"]) == (job_id, "succeeded")
    assert json.loads(up.relay("jobs", "show", job_id).stdout)["result"]["checkpoints"]
    assert up.relay("jobs", "watch", job_id).returncode == 0
    again = up.relay("jobs", "retry", job_id)
    assert again.returncode == 9
    assert "can be retried" in again.stderr
    assert "Traceback" not in again.stderr
    verified = json.loads(up.relay("audit", "verify", "--home", str(up.home), "--json").stdout)
    assert verified["rows"] >= 5


def test_ctrl_c_stops_everything_and_the_next_start_goes_on(up: Up, toy: Toy, tmp_path: Path, phantom_data: Path) -> None:
    train = {"num_mimgs": 4000e-6, "batch_size": 8, "log_every_n_steps": 1}
    job_id = up.relay("submit", str(toy.write(sites=1, train=train)), "--detach").stdout.strip()

    def job() -> dict:
        return json.loads(up.relay("jobs", "show", job_id).stdout)

    until(lambda: (job()["progress"] or {}).get("step", 0) >= 3, 60, "training begins")
    begin = time.monotonic()
    up.stop()
    assert time.monotonic() - begin < 30
    assert up.children() == []
    token = up.token
    second = Up(tmp_path, phantom_data)
    second.token, shown = token, second.token
    try:
        assert shown == ""  # only once
        up = second
        until(lambda: job()["attempt"] == 2 and (job()["progress"] or {}).get("step", 0) >= 4, 60, "it goes on")
        second.relay("jobs", "cancel", job_id)
        watched = second.relay("jobs", "watch", job_id)
        assert watched.returncode == 1
        assert "going on from step" in watched.stderr
    finally:
        second.stop()


class Elsewhere(BaseHTTPRequestHandler):
    """What another site's API answers."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"status": "ok", "instance": null}')

    def log_message(self, *arguments: object) -> None:
        pass


def test_the_first_token_waits_for_an_api_of_its_own(tmp_path: Path, phantom_data: Path) -> None:
    other = ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    threading.Thread(target=other.serve_forever, daemon=True).start()
    first = Up(tmp_path, phantom_data, other.server_port)
    assert first.process.wait(30) == 1
    assert "is the port taken?" in first.log.read_text()
    assert not first.token
    assert first.children() == []
    other.shutdown()
    other.server_close()
    second = Up(tmp_path, phantom_data, http_proxy="http://127.0.0.1:1")
    try:
        assert second.relay("jobs", token=second.token).returncode == 0, second.log.read_text()
    finally:
        second.stop()


def test_a_watcher_outlives_the_api(up: Up, toy: Toy, tmp_path: Path) -> None:
    train = {"num_mimgs": 4000e-6, "batch_size": 8, "log_every_n_steps": 1}
    job_id = up.relay("submit", str(toy.write(sites=1, train=train)), "--detach").stdout.strip()
    said = tmp_path / "watch.log"
    with said.open("wb") as file:
        watcher = subprocess.Popen(
            [*RELAY, "jobs", "watch", job_id], env=up.environment(up.token), stdout=file, stderr=file
        )  # fmt: skip
    until(lambda: "started" in said.read_text() or "on 8 images" in said.read_text(), 60, "the training is seen")
    (api,) = up.children("services.api")
    os.kill(api, signal.SIGKILL)
    until(lambda: "connection lost" in said.read_text(), 30, "the watcher notices")
    until(lambda: up.relay("jobs", "cancel", job_id).returncode == 0, 60, "the API is back")
    assert watcher.wait(60) == 1
    assert "cancelled" in said.read_text()


def _client(monkeypatch: pytest.MonkeyPatch, streams: list[httpx.Response]) -> http.Client:
    """A client whose service answers these streams one after another, and then that its database is away."""
    monkeypatch.setattr(http, "PAUSES", (0.01, 0.02))

    def answer(request: httpx.Request) -> httpx.Response:
        if not request.url.path.endswith("/events"):
            return httpx.Response(200, json={"state": "running"})
        return streams.pop(0) if streams else httpx.Response(503, json={"code": "database_unavailable"})

    made = http.Client("http://site", "token")
    monkeypatch.setattr(made, "_http", httpx.Client(base_url="http://site", transport=httpx.MockTransport(answer)))
    return made


def test_a_watcher_goes_on_while_it_is_answered_and_gives_up_when_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "PATIENCE", 5.0)
    lost: list[str] = []
    quiet = [httpx.Response(200, text=": nothing yet\n\n") for _ in range(20)]
    end = httpx.Response(200, text='data: {"seq": 1, "event": "succeeded"}\n\n')
    with _client(monkeypatch, [*quiet, httpx.Response(502), end]) as made:
        assert [data["event"] for data in made.follow("job", lost.append)] == ["succeeded"]
        lost.clear()
        monkeypatch.setattr(http, "PATIENCE", 0.1)
        with pytest.raises(http.ServiceUnreachable, match="the job goes on"):
            list(made.follow("job", lost.append))
    assert len(lost) == 1


def _files(monkeypatch: pytest.MonkeyPatch, content: bytes, breaks: list[int]) -> http.Client:
    """A client whose service has one file, and breaks off its answers after so many bytes."""
    monkeypatch.setattr(http, "PAUSES", (0.01, 0.02))
    tag, digest = '"tag"', base64.b64encode(hashlib.sha256(content).digest()).decode()
    asked: list[str | None] = []

    class Broken(httpx.SyncByteStream):
        def __init__(self, data: bytes) -> None:
            self.data = data

        def __iter__(self) -> Iterator[bytes]:
            if not breaks:
                yield self.data
                return
            yield self.data[: breaks.pop(0)]
            raise httpx.ReadError("broken")

    def answer(request: httpx.Request) -> httpx.Response:
        headers = {"ETag": tag, "Repr-Digest": f"sha-256=:{digest}:", "Content-Length": str(len(content))}
        if request.method == "HEAD":
            return httpx.Response(200, headers=headers)
        asked.append(request.headers.get("range"))
        begin = int(asked[-1].removeprefix("bytes=").rstrip("-")) if asked[-1] else 0
        headers["Content-Length"] = str(len(content) - begin)
        return httpx.Response(206 if begin else 200, headers=headers, stream=Broken(content[begin:]))

    made = http.Client("http://site", "token")
    monkeypatch.setattr(made, "_http", httpx.Client(base_url="http://site", transport=httpx.MockTransport(answer)))
    made.asked = asked  # type: ignore[attr-defined]
    return made


def test_a_download_goes_on_where_it_broke(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    content, target = os.urandom(1000), tmp_path / "a.relay"
    with _files(monkeypatch, content, [300, 300]) as made:
        made.download("/file", target)
        assert made.asked == [None, "bytes=300-", "bytes=600-"]
    assert target.read_bytes() == content
    assert list(tmp_path.iterdir()) == [target]
    part = tmp_path / "b.relay.part"
    part.write_bytes(b"another file's")
    with _files(monkeypatch, content, []) as made, pytest.raises(http.DownloadDamaged):
        made.download("/file", tmp_path / "b.relay")
    assert not part.exists()
    monkeypatch.setattr(http, "PATIENCE", 0.05)
    with _files(monkeypatch, content, [10] + [0] * 100) as made, pytest.raises(http.ServiceUnreachable, match="goes on"):
        made.download("/file", tmp_path / "b.relay")
    assert part.read_bytes() == content[:10]


def test_a_home_of_any_name_keeps_everything_in_it_to_itself(tmp_path: Path, phantom_data: Path) -> None:
    folder = tmp_path / "50% of #1 ? ü"
    folder.mkdir()
    up = Up(folder, phantom_data)
    try:
        assert up.token
        assert (up.home / "relay.db").is_file()
        for name in ("", "relay.db", "logs", "keys", "secret-key"):
            assert (up.home / name).stat().st_mode & 0o077 == 0, f"{name or 'the home'} is open to others"
    finally:
        os.kill(up.process.pid, signal.SIGHUP)  # the terminal was closed
        assert up.process.wait(60) == 0
    until(lambda: not up.children(), 10, "nothing of it is left")


def test_the_name_of_the_key_holds_and_another_one_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    KeyFolder(tmp_path / "keys").create("North", "twelve letters")
    given = {"embedded": True, "home": tmp_path}
    assert local_up.name_that_holds(load_settings(**given, site_name="South")) == "North"
    said = capsys.readouterr().err
    assert "RELAY_SITE_NAME is 'South', and this site goes on as 'North'" in said
    for settings in (load_settings(**given), load_settings(**given, site_name="North")):
        assert local_up.name_that_holds(settings) == "North"
        assert capsys.readouterr().err == ""


def test_one_home_one_site(up: Up) -> None:
    other = up.relay("up", "--home", str(up.home), "--port", str(free_port()))
    assert other.returncode == 1
    assert "another relay up serves" in other.stderr


def test_tokens_are_made_listed_and_revoked(up: Up) -> None:
    made = up.relay("token", "create", "nurse", "--role", "viewer", "--home", str(up.home))
    token = made.stdout.strip()
    assert up.relay("jobs", token=token).returncode == 0
    refused = up.relay("submit", "phantom", token=token)
    assert refused.returncode == 9
    assert "operator" in refused.stderr
    rows = json.loads(up.relay("token", "list", "--json", "--home", str(up.home)).stdout)
    (nurse,) = [row["id"] for row in rows if row["name"] == "nurse"]
    assert up.relay("token", "revoke", nurse, "--home", str(up.home)).returncode == 0
    assert up.relay("jobs", token=token).returncode == 9


def test_a_client_without_a_service_says_so(tmp_path: Path) -> None:
    environment = {**os.environ, "RELAY_URL": "http://127.0.0.1:1", "RELAY_TOKEN": "x"}
    for command in (["jobs"], ["status"], ["submit", "phantom"]):
        answer = subprocess.run(
            [*RELAY, *command], env=environment, capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path
        )
        assert answer.returncode == 11
        assert "relay up" in answer.stderr
        assert "Traceback" not in answer.stderr

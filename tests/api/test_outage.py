"""The database goes away and comes back, while the API runs."""

import contextlib
import os
import select
import socket
import subprocess
import sys
import threading
import time

import pytest
from sqlalchemy import make_url

from tests import postgres
from tests.api.kit import ok, refused, running
from tests.ports import free_port


class Wire:
    """A TCP connection to the database that can be cut."""

    def __init__(self, host, port):
        self.target = (host, port)
        self.whole = True
        self.pairs = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self._accept, daemon=True)
        self.thread.start()

    def _accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            if not self.whole:
                near.close()
                continue
            far = socket.create_connection(self.target)
            self.pairs.append((near, far))
            threading.Thread(target=self._carry, args=(near, far), daemon=True).start()

    def _carry(self, near, far):
        with contextlib.suppress(ConnectionError), near, far:
            while self.whole:
                for ready in select.select([near, far], [], [], 0.05)[0]:
                    data = ready.recv(65536)
                    if not data:
                        return
                    (far if ready is near else near).sendall(data)

    def close(self):
        self.whole = False
        self.listener.close()


@pytest.fixture
def postgres_url():
    with postgres.schema() as url:
        yield url


def test_an_outage_is_told_and_survived(postgres_url, tmp_path):
    url = make_url(postgres_url)
    wire = Wire(url.host, url.port)
    through = url.set(host="127.0.0.1", port=wire.port).render_as_string(hide_password=False)
    with running(tmp_path, through) as site:
        job = site.submit()
        with site.viewer.stream("GET", f"/api/v1/jobs/{job['id']}/events") as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("event: queued")
            wire.whole = False
            list(lines)  # the stream ends, and its client comes again with Last-Event-ID
        problem = refused(site.viewer.get("/api/v1/jobs"), 503, "database_unavailable")
        assert "127.0.0.1" not in problem["detail"]
        assert ok(site.anonymous.get("/healthz"))["status"] == "ok"
        time.sleep(5)  # the trial write of a probe counts for so long
        ready = site.anonymous.get("/readyz")
        assert (ready.status_code, ready.json()["checks"]["database"]["ok"]) == (503, False)
        assert "relay_database_up 0.0" in site.anonymous.get("/metrics").text
        wire.whole = True
        assert ok(site.viewer.get(f"/api/v1/jobs/{job['id']}"))["state"] == "queued"
        ok(site.operator.post(f"/api/v1/jobs/{job['id']}/cancel"), 202)
    wire.close()


def test_a_start_without_a_database_says_what_is_missing():
    port = free_port()
    variables = {
        "RELAY_EMBEDDED": "1", "RELAY_SECRET_KEY": "k" * 32, "RELAY_DATABASE_PASSWORD": "geheimgeheimgeheim",
        "RELAY_DATABASE_URL": f"postgresql+psycopg://relay@127.0.0.1:{port}/relay",
    }  # fmt: skip
    ended = subprocess.run(
        [sys.executable, "-m", "services.api"], env={**os.environ, **variables}, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert ended.returncode != 0
    assert "Traceback" not in ended.stderr
    assert f"127.0.0.1:{port}/relay cannot be opened" in ended.stderr
    assert "geheim" not in ended.stderr

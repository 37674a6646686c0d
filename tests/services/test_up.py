"""`relay up` and its clients, as a person uses them."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Toy
from tests.services.chaos import free_port
from tests.services.processes import until

RELAY = [sys.executable, "-m", "relay_core"]


class Up:
    """A running `relay up` and the commands given to it."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.home, self.port = folder / "home", free_port()
        self.home.mkdir(exist_ok=True)
        if not (self.home / "data").exists():
            shutil.copytree(data, self.home / "data")
        self.log = folder / "up.log"
        with self.log.open("wb") as file:
            command = [*RELAY, "up", "--home", str(self.home), "--port", str(self.port), "--device", "cpu"]
            self.process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, env=self.environment(""), cwd=folder, start_new_session=True
            )
        until(lambda: "Ctrl-C stops" in self.log.read_text() or self.process.poll() is not None, 60, "the site is up")
        found = re.search(r"RELAY_TOKEN=(\S+)", self.log.read_text())
        self.token = found.group(1) if found else ""

    def environment(self, token: str) -> dict[str, str]:
        plain = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
        return {**plain, "OMP_NUM_THREADS": "1", "RELAY_URL": f"http://127.0.0.1:{self.port}", "RELAY_TOKEN": token}

    def relay(self, *arguments: str, token: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*RELAY, *arguments], env=self.environment(self.token if token is None else token), capture_output=True,
            text=True, timeout=120, check=False, cwd=self.home,
        )  # fmt: skip

    def children(self) -> list[int]:
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    environment = (folder / "environ").read_bytes()
                except OSError:
                    continue
                if f"RELAY_HOME={self.home}".encode() in environment.split(b"\0"):
                    found.append(int(folder.name))
        return found

    def stop(self) -> None:
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGINT)
            self.process.wait(60)


@pytest.fixture
def up(tmp_path: Path, phantom_data: Path) -> Iterator[Up]:
    site = Up(tmp_path, phantom_data)
    yield site
    site.stop()


def test_submit_follows_a_training_to_its_end(up: Up, toy: Toy) -> None:
    assert up.token, up.log.read_text()
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
        assert answer.returncode == 8
        assert "relay up" in answer.stderr
        assert "Traceback" not in answer.stderr

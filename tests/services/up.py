"""A running `relay up` and the commands given to it."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from tests.ports import free_port
from tests.services.processes import until

RELAY = [sys.executable, "-m", "relay_core"]


class Up:
    """A running `relay up` and the commands given to it."""

    def __init__(self, folder: Path, data: Path, port: int | None = None, **variables: str) -> None:
        self.home, self.port = folder / "home", port or free_port()
        self.home.mkdir(exist_ok=True)
        if not (self.home / "data").exists():
            shutil.copytree(data, self.home / "data")
        self.log = folder / "up.log"
        with self.log.open("wb") as file:
            command = [*RELAY, "up", "--home", str(self.home), "--port", str(self.port), "--device", "cpu"]
            self.process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, env={**self.environment(""), **variables}, cwd=folder,
                start_new_session=True,
            )  # fmt: skip
        until(lambda: "Ctrl-C stops" in self.log.read_text() or self.process.poll() is not None, 60, "the site is up")
        found = re.search(r"RELAY_TOKEN=(\S+)", self.log.read_text())
        self.token = found.group(1) if found else ""
        self.link = (re.findall(r"http://\S+/#link_\S+", self.log.read_text()) or [""])[-1]

    def environment(self, token: str) -> dict[str, str]:
        plain = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
        return {**plain, "OMP_NUM_THREADS": "1", "RELAY_URL": f"http://127.0.0.1:{self.port}", "RELAY_TOKEN": token}

    def relay(self, *arguments: str, token: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*RELAY, *arguments], env=self.environment(self.token if token is None else token), capture_output=True,
            text=True, timeout=120, check=False, cwd=self.home,
        )  # fmt: skip

    def children(self, module: str = "") -> list[int]:
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    environment = (folder / "environ").read_bytes()
                    words = (folder / "cmdline").read_bytes()
                except OSError:
                    continue
                if f"RELAY_HOME={self.home}".encode() in environment.split(b"\0") and module.encode() in words:
                    found.append(int(folder.name))
        return found

    def stop(self) -> None:
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGINT)
            self.process.wait(60)

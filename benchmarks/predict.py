"""Seconds and memory of `predict` for large pictures and studies, through HTTP, with the network of the demo.

python -m benchmarks.predict [--slices 60 400] [--rounds 3]

Memory is the most that the API's process holds above what it held with the model loaded, and the most that the process that
decodes holds. A study that becomes a job is run by a worker beside the API; its seconds go from the request to the result.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import nibabel as nib
import numpy as np
import torch
from PIL import Image

from benchmarks.serve import register
from benchmarks.site import Site, running
from relay_core.config import load_run
from relay_core.export import onnx as exporting
from relay_core.inference import KEY, ModelFacts, ServedSolver
from relay_core.models import make_solver

PORT = 8768


def model() -> bytes:
    """The solver of the demo, untrained, as ONNX."""
    settings = load_run("phantom").sites()[0]
    torch.manual_seed(0)
    network = ServedSolver.of(make_solver(settings.solver), settings)
    made = exporting._to_onnx(network, settings)
    facts = ModelFacts(
        ("background", "disc", "cup"), 3, settings.resolution, (0.0, 1.0), None, "fp32", "0" * 64, "0" * 64, ("A",), {}
    )
    entry = made.metadata_props.add()
    entry.key, entry.value = KEY, facts.to_json()
    return bytes(made.SerializeToString())


def volume(slices: int, side: int = 512) -> bytes:
    """A NIfTI volume of noise, 16 bits a voxel."""
    values = np.random.default_rng(0).integers(0, 1000, (side, side, slices), np.int16)
    return bytes(nib.Nifti1Image(values, np.diag([0.7, 0.7, 2.0, 1.0])).to_bytes())


def picture(width: int = 5000, height: int = 4000) -> bytes:
    """A colour picture."""
    content = io.BytesIO()
    rows = np.random.default_rng(0).integers(0, 255, (height // 50, width // 50, 3), np.uint8)
    Image.fromarray(rows).resize((width, height)).save(content, "PNG")
    return content.getvalue()


class Memory:
    """The most MiB that a process, and each of its descendants, holds while a block lasts."""

    def __init__(self, pid: int) -> None:
        self.pid, self.own, self.below = pid, 0.0, 0.0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look 20 times a second."""
        over = threading.Event()

        def look() -> None:
            while not over.wait(0.05):
                self.own = max(self.own, held(self.pid))
                self.below = max([self.below, *(held(pid) for pid in descendants(self.pid))])

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def held(pid: int) -> float:
    """Resident MiB of a process; 0 where it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024
    except (OSError, StopIteration):
        return 0.0


def descendants(pid: int) -> list[int]:
    """Processes below a process."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(child) for child in task.read_text().split()]
        except OSError:
            continue
        found += [*children, *(below for child in children for below in descendants(child))]
    return found


def ask(site: Site, content: bytes) -> str:
    """Predict, and wait for the job where it becomes one; return which it was."""
    headers = {"Authorization": f"Bearer {site.token}"}
    answer = httpx.post(f"{site.url}/api/v1/models/bench/predict", content=content, headers=headers, timeout=1200)
    if answer.status_code == 200:
        return "answered at once"
    assert answer.status_code == 202, answer.text
    while (job := httpx.get(site.url + answer.headers["location"], headers=headers).json())["state"] != "succeeded":
        assert job["state"] in ("queued", "running"), job
        time.sleep(0.1)
    return "job"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slices", type=int, nargs="+", default=[60, 400])
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    inputs = {f"{n} slices of {args.side} x {args.side}": volume(n, args.side) for n in args.slices}
    inputs["a picture of 5000 x 4000"] = picture()
    with running(PORT, RELAY_SERVE_DEVICE="cpu", RELAY_MIN_FREE_MIB="1") as site:
        register(site, model())
        ask(site, volume(1, 32))  # loads the model, and the readers
        worker = subprocess.Popen(
            [sys.executable, "-m", "services.trainer.poll"],
            env={**os.environ, "RELAY_EMBEDDED": "1", "RELAY_HOME": str(site.settings.home), "RELAY_DEVICE": "cpu"},
        )  # fmt: skip
        try:
            print("| input | seconds (median, each) | API, MiB above the model | below it, MiB | |\n|---|--:|--:|--:|---|")
            for name, content in inputs.items():
                before, memory, seconds, how = held(site.process.pid), Memory(site.process.pid), [], ""
                for _ in range(args.rounds):
                    began = time.perf_counter()
                    with memory.watched():
                        how = ask(site, content)
                    seconds.append(time.perf_counter() - began)
                each = ", ".join(f"{one:.1f}" for one in seconds)
                line = f"{statistics.median(seconds):.1f} ({each}) | {memory.own - before:.0f} | {memory.below:.0f} | {how}"
                print(f"| {name} | {line} |", flush=True)
        finally:
            worker.terminate()
            worker.wait()


if __name__ == "__main__":
    main()

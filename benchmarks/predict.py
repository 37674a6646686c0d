"""Seconds and memory of `predict` for large pictures and studies, through HTTP, with the network of the demo.

    python -m benchmarks.predict [--slices 60 400] [--rounds 3]

Memory is the most that the API's process holds above what it held with the model loaded, and the most that the process that
decodes holds. A study that becomes a job is run by a worker beside the API; its seconds go from the request to the result.
"""

from __future__ import annotations

import argparse
import io
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import nibabel as nib
import numpy as np
from PIL import Image

from benchmarks import served
from benchmarks.record import Record, script
from benchmarks.site import Site, held, running


def volume(slices: int, side: int = 512) -> bytes:
    """A NIfTI volume of noise, 16 bits a voxel."""
    values = np.random.default_rng(0).integers(0, 1000, (side, side, slices), np.int16)
    return bytes(nib.Nifti1Image(values, np.diag([0.7, 0.7, 2.0, 1.0])).to_bytes())


def picture(width: int = 5000, height: int = 4000) -> bytes:
    """A colour picture."""
    content = io.BytesIO()
    rows = np.random.default_rng(0).integers(0, 255, (max(1, height // 50), max(1, width // 50), 3), np.uint8)
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
    answer = httpx.post(f"{site.url}/api/v1/models/{served.NAME}/predict", content=content, headers=headers, timeout=1200)
    if answer.status_code == 200:
        return "answered at once"
    assert answer.status_code == 202, answer.text
    while (job := httpx.get(site.url + answer.headers["location"], headers=headers).json())["state"] != "succeeded":
        assert job["state"] in ("queued", "running"), job
        time.sleep(0.1)
    return "job"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    served.arguments(parser, "phantom")
    parser.add_argument("--slices", type=int, nargs="+", default=[60, 400])
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--picture", type=int, nargs=2, default=[5000, 4000], metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--rounds", type=int, default=3)


COLUMNS = {
    "input": "",
    "seconds": ".1f",
    "shortest": ".1f",
    "longest": ".1f",
    "API, MiB above the model": ".0f",
    "below it, MiB": ".0f",
    "": "",
}


def measure(args: argparse.Namespace, record: Record) -> None:
    """Fill the table."""
    inputs = {f"{n} slices of {args.side} x {args.side}": volume(n, args.side) for n in args.slices}
    width, height = args.picture
    inputs[f"a picture of {width} x {height}"] = picture(width, height)
    with running(RELAY_SERVE_DEVICE="cpu", RELAY_MIN_FREE_MIB="1") as site, site.worker():
        served.register(site, served.model(args.recipe, tuple(args.set)))
        ask(site, volume(1, 32))  # loads the model, and the readers
        table = record.table("Large studies, median seconds", COLUMNS)
        for name, content in inputs.items():
            before, memory, seconds, how = held(site.process.pid), Memory(site.process.pid), [], ""
            for _ in range(args.rounds):
                began = time.perf_counter()
                with memory.watched():
                    how = ask(site, content)
                seconds.append(time.perf_counter() - began)
            spans = statistics.median(seconds), min(seconds), max(seconds)
            table.add(name, *spans, memory.own - before, memory.below, how)


main = script(
    __doc__, arguments, measure,
    toy={**served.TOY_SOLVER, "slices": [2], "side": 32, "picture": [64, 48], "rounds": 1},
)  # fmt: skip

if __name__ == "__main__":
    main()

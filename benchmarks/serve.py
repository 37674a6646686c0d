"""Throughput and latency of a served model through HTTP, against bare ONNX Runtime with as many callers.

    python -m benchmarks.serve --clients 1 4 16 64 --seconds 5 --rounds 3 [--memory 10000]

The model is a U-Net on ResNet-18 at 64 pixels (recipe `fundus`), one image a request. Both ways the model runs in a process
of its own with all cores, and callers are in another or, bare, threads beside it. Rounds alternate; medians are shown, and
the median of the ratios of neighbouring rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import numpy as np

from benchmarks import served
from benchmarks.record import Record, script
from benchmarks.site import Site, running
from relay_core.inference import OnnxModel

OUTPUTS = ("mask",)


def image() -> np.ndarray:
    """One image as a caller sends it."""
    return np.random.default_rng(0).random((1, 3, 64, 64), dtype=np.float32)


def bare(path: Path, clients: int, seconds: float) -> dict[str, float]:
    """Threads that call the runtime directly."""
    session, values = OnnxModel(path.read_bytes(), "cpu"), image()
    session.warm_up()
    times: list[float] = []
    end = time.perf_counter() + seconds

    def call() -> None:
        while (begin := time.perf_counter()) < end:
            session(values, OUTPUTS)
            times.append((time.perf_counter() - begin) * 1e3)

    threads = [threading.Thread(target=call) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return figures(times, seconds)


async def over_http(site: Site, clients: int, seconds: float, limit: int | None = None) -> dict[str, float]:
    """Connections that each send one request after the other, as bytes on a socket: the client costs next to nothing."""
    values = image()
    tensor = {
        "name": "image",
        "shape": list(values.shape),
        "datatype": "FP32",
        "parameters": {"binary_data_size": values.nbytes},
    }
    head = json.dumps(
        {"inputs": [tensor], "outputs": [{"name": name, "parameters": {"binary_data": True}} for name in OUTPUTS]}
    )
    lines = [
        "POST /v2/models/bench/infer HTTP/1.1", "Host: x", f"Authorization: Bearer {site.token}",
        f"Inference-Header-Content-Length: {len(head)}", f"Content-Length: {len(head) + values.nbytes}", "", "",
    ]  # fmt: skip
    request = "\r\n".join(lines).encode() + head.encode() + values.tobytes()
    host, port = site.url.removeprefix("http://").split(":")
    times: list[float] = []
    end = time.perf_counter() + seconds

    async def call() -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        while (begin := time.perf_counter()) < end and (limit is None or len(times) < limit):
            writer.write(request)
            answer = await reader.readuntil(b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200"), answer
            length = next(line for line in answer.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(length.split(b":")[1]))
            times.append((time.perf_counter() - begin) * 1e3)
        writer.close()

    await asyncio.gather(*(call() for _ in range(clients)))
    return figures(times, seconds)


def figures(times: list[float], seconds: float) -> dict[str, float]:
    """Images a second, median and 99th percentile in milliseconds."""
    times = sorted(times)
    return {"rate": len(times) / seconds, "p50": statistics.median(times), "p99": times[int(len(times) * 0.99)]}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    served.arguments(parser, "fundus")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=int, default=0, help="requests after which memory is compared")


COLUMNS = {
    "clients": "d", "bare images/s": ".1f", "HTTP images/s": ".1f", "ratio": ".2f", "bare p50 ms": ".1f",
    "bare p99 ms": ".1f", "HTTP p50 ms": ".1f", "HTTP p99 ms": ".1f",
}  # fmt: skip


def measure(args: argparse.Namespace, record: Record) -> None:
    """Fill the table."""
    queue = str(64 + 2 * max(args.clients))  # a client's next request may come before its last one has left
    with TemporaryDirectory() as folder, running(RELAY_SERVE_DEVICE="cpu", RELAY_SERVE_QUEUE=queue) as site:
        path = Path(folder) / "model.onnx"
        path.write_bytes(served.model(args.recipe, tuple(args.set)))
        served.register(site, path.read_bytes())
        ready = f"{site.url}/v2/models/{served.NAME}/ready"
        httpx.get(ready, headers={"Authorization": f"Bearer {site.token}"}, timeout=60)
        table = record.table("A served model through HTTP against bare ONNX Runtime", COLUMNS)
        for clients in args.clients:
            rounds: dict[str, list[dict[str, float]]] = {"bare": [], "http": []}
            for _ in range(args.rounds):
                command = [sys.executable, "-m", "benchmarks.serve", BARE, path, str(clients), str(args.seconds)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                rounds["bare"].append(json.loads(done.stdout))
                rounds["http"].append(asyncio.run(over_http(site, clients, args.seconds)))
            bare, http = ({key: statistics.median(one[key] for one in many) for key in many[0]} for many in rounds.values())
            ratio = statistics.median(b["rate"] / a["rate"] for a, b in zip(*rounds.values(), strict=True))
            spans = (bare["p50"], bare["p99"], http["p50"], http["p99"])
            table.add(clients, bare["rate"], http["rate"], ratio, *spans)
        if args.memory:
            before = site.memory_mib
            asyncio.run(over_http(site, 8, 1e9, args.memory))
            record.facts |= {"memory_mib": before, "memory_mib_after": site.memory_mib}
            record.note(f"Memory of the API process: {before:.0f} MiB, {site.memory_mib:.0f} after {args.memory} requests.")


BARE = "bare"
"""What runs in a process of its own: `python -m benchmarks.serve bare MODEL CLIENTS SECONDS`."""
_measured = script(
    __doc__, arguments, measure, toy={**served.TOY_SOLVER, "clients": [2], "seconds": 0.2, "rounds": 1, "memory": 9}
)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure; or call the bare runtime."""
    given = list(sys.argv[1:] if argv is None else argv)
    if given[:1] == [BARE]:
        print(json.dumps(bare(Path(given[1]), int(given[2]), float(given[3]))))
        return {}
    return _measured(given)


if __name__ == "__main__":
    main()

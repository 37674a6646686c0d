"""Throughput and latency of a served model through HTTP, against bare ONNX Runtime with as many callers.

python -m benchmarks.serve --clients 1 4 16 64 --seconds 5 --rounds 3 [--memory 10000]

The model is a U-Net on ResNet-18 at 64 pixels (recipe `fundus`), one image a request. Both ways the model runs in a process
of its own with all cores, and callers are in another or, bare, threads beside it; rounds alternate, medians are shown.
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
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import numpy as np
import torch

from benchmarks.site import Site, running
from relay_core.config import SolverSettings, load_run
from relay_core.export import onnx as exporting
from relay_core.inference import KEY, ModelFacts, OnnxModel, ServedSolver
from relay_core.models import make_solver
from services.site import ArtifactStore, jobs, registry
from services.site.db import Job, Run

OUTPUTS = ("mask",)


def model() -> bytes:
    """A solver of the fundus recipe, untrained, as ONNX."""
    settings = load_run("fundus").sites()[0]
    torch.manual_seed(0)
    network = ServedSolver(make_solver(SolverSettings.of("U-Net", backbone="resnet18")).eval(), 64, (-1.0, 1.0))
    made = exporting._to_onnx(network.eval(), settings)
    facts = ModelFacts(("background", "disc", "cup"), 3, 64, (0.0, 1.0), None, "fp32", "0" * 64, "0" * 64, ("A",), {})
    entry = made.metadata_props.add()
    entry.key, entry.value = KEY, facts.to_json()
    return bytes(made.SerializeToString())


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


def register(site: Site, content: bytes) -> None:
    """The model, in production."""
    store = ArtifactStore(site.settings.artifact_folder)
    file = (*store.put([content]), registry.MEDIA_TYPE)
    with site.database.write() as session:
        session.add(Run(id="0" * 64, name="bench", content="", strategy="relay", sites=[], site=None))
        session.flush()
        params = {"name": "bench", "precision": "fp32"}
        job, _ = jobs.submit(
            session,
            kind="export_onnx",
            params=params,
            actor="bench",
            key=None,
            body={},
            run_id="0" * 64,
            checkpoint_id="none",
        )
        said = {"proof": {"tests": {}}, "facts": {"channels": 3, "classes": ["a", "b", "c"]}}
        registry.publish(session, session.get_one(Job, job.id), said, file)
        registry.promote(session, "bench", 1, "bench", None)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=int, default=0, help="Requests after which memory is compared.")
    parser.add_argument("--port", type=int, default=8766)
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.bare:
        print(json.dumps(bare(args.bare, args.clients[0], args.seconds)))
        return
    with TemporaryDirectory() as folder, running(args.port, RELAY_SERVE_DEVICE="cpu") as site:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model())
        register(site, path.read_bytes())
        httpx.get(f"{site.url}/v2/models/bench/ready", headers={"Authorization": f"Bearer {site.token}"}, timeout=60)
        heads = ("clients", "bare images/s", "HTTP images/s", "ratio", "bare p50 / p99 ms", "HTTP p50 / p99 ms")
        print(f"| {' | '.join(heads)} |\n|{'--:|' * len(heads)}")
        for clients in args.clients:
            rounds: dict[str, list[dict[str, float]]] = {"bare": [], "http": []}
            for _ in range(args.rounds):
                command = [sys.executable, "-m", "benchmarks.serve", "--bare", str(path), "--clients", str(clients)]
                done = subprocess.run([*command, "--seconds", str(args.seconds)], check=True, capture_output=True, text=True)
                rounds["bare"].append(json.loads(done.stdout))
                rounds["http"].append(asyncio.run(over_http(site, clients, args.seconds)))
            found = {
                way: {key: statistics.median(one[key] for one in many) for key in many[0]} for way, many in rounds.items()
            }
            ratio = found["http"]["rate"] / found["bare"]["rate"]
            spans = [f"{one['p50']:.1f} / {one['p99']:.1f}" for one in found.values()]
            rates = f"{found['bare']['rate']:.1f} | {found['http']['rate']:.1f} | {ratio:.2f}"
            print(f"| {clients} | {rates} | {spans[0]} | {spans[1]} |", flush=True)
        if args.memory:
            before = site.memory_mib
            asyncio.run(over_http(site, 8, 1e9, args.memory))
            after = f"{site.memory_mib:.0f} MiB after {args.memory} requests"
            print(f"\nmemory of the API process: {before:.0f} MiB before, {after}")


if __name__ == "__main__":
    main()

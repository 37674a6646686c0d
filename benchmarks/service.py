"""Latency of one API process under a steady load: requests start on time, whether or not earlier ones have ended.

python -m benchmarks.service --reads 200 --posts 50 --seconds 60
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
import uuid

import httpx

from benchmarks.record import Record, Table, script
from benchmarks.site import running
from services.site.db import Dataset


async def load(client: httpx.AsyncClient, rate: float, seconds: float, requests: list[tuple[str, str, dict]]) -> list[float]:
    """Send `rate` requests a second in turn; return milliseconds of each. Raises where one is not answered 2xx."""
    times: list[float] = []

    async def one(method: str, path: str, body: dict) -> None:
        headers = {"Idempotency-Key": uuid.uuid4().hex} if method == "POST" else {}
        begin = time.perf_counter()
        answer = await client.request(method, path, json=body or None, headers=headers)
        times.append((time.perf_counter() - begin) * 1e3)
        answer.raise_for_status()

    begin, tasks = time.perf_counter(), []
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, begin + number / rate - time.perf_counter()))
        tasks.append(asyncio.create_task(one(*requests[number % len(requests)])))
    await asyncio.gather(*tasks)
    return sorted(times)


COLUMNS = {"load": "", "requests/s": "g", "requests": "d", "median ms": ".1f", "p99 ms": ".1f", "longest ms": ".1f"}


async def fill(url: str, token: str, dataset: str, args: argparse.Namespace, table: Table) -> None:
    """Fill the table, a load after the other."""

    def add(name: str, rate: float, times: list[float]) -> None:
        table.add(name, rate, len(times), statistics.median(times), times[int(len(times) * 0.99)], times[-1])

    headers = {"Authorization": f"Bearer {token}"}
    limits = httpx.Limits(max_connections=100, max_keepalive_connections=100)
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=30, limits=limits, trust_env=False) as client:
        post = ("POST", "/api/v1/jobs", {"kind": "preflight", "dataset_id": dataset})
        await load(client, 20, args.warm_up, [post])
        job = (await client.get("/api/v1/jobs?limit=1")).json()["items"][0]["id"]
        paths = [f"/api/v1/jobs/{job}", "/api/v1/jobs?limit=20", "/api/v1/datasets", f"/api/v1/jobs/{job}/metrics"]
        reads = [("GET", path, {}) for path in paths]
        add("reads", args.reads, await load(client, args.reads, args.seconds, reads))
        add("accepted POSTs", args.posts, await load(client, args.posts, args.seconds, [post]))
        both = await asyncio.gather(
            load(client, args.reads / 2, args.seconds, reads), load(client, args.posts / 2, args.seconds, [post])
        )
        add("both: reads", args.reads / 2, both[0])
        add("both: accepted POSTs", args.posts / 2, both[1])


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--reads", type=float, default=200)
    parser.add_argument("--posts", type=float, default=50)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--warm-up", type=float, default=2, help="seconds")


def measure(args: argparse.Namespace, record: Record) -> None:
    """Fill one table."""
    with running(RELAY_QUEUE_LIMIT="1000000") as site:
        (site.settings.data_folder / "one").mkdir(parents=True)
        dataset = Dataset(name="one", path="one", layout="fundus", options={})
        with site.database.write() as session:
            session.add(dataset)
        table = record.table("One API process under a steady load", COLUMNS)
        asyncio.run(fill(site.url, site.token, dataset.id, args, table))
        record.facts["memory_mib"] = site.memory_mib
        record.note(f"API process: {site.memory_mib:.0f} MiB; no answer was an error.")


main = script(__doc__, arguments, measure, toy={"reads": 40, "posts": 20, "seconds": 0.2, "warm_up": 0.1})

if __name__ == "__main__":
    main()

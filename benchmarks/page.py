"""How fast the site's page shows, with thousands of jobs and points, and what one that is left open costs API and training.

python -m benchmarks.page --jobs 5000 --points 200000 --hops 200

Time: from the change of the address, in a page that is signed in, until the page's content stands, in Chromium on the same
machine, median of `--repeat` visits; first: with an empty cache. Then trainings of one thread in turn, with their page open
and without. It needs Chromium and the package playwright.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import insert

from benchmarks.record import Record, script
from benchmarks.site import Site, running
from relay_core.data import make_phantoms
from services.site import audit, auth
from services.site.db import Bundle, Dataset, Job, JobEvent, Metric, Run, new_id

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--jobs", type=int, default=5000)
    parser.add_argument("--points", type=int, default=200_000, help="of metrics, of one job")
    parser.add_argument("--hops", type=int, default=200, help="of the bundle that is looked at")
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=30, help="that an open page is watched")
    parser.add_argument("--pairs", type=int, default=4, help="of trainings, one with its page open and one without")
    parser.add_argument("--steps", type=int, default=100, help="of each of them")


def fill(site: Site, args: argparse.Namespace) -> dict[str, str]:
    """Fill the database; return page -> its address."""
    run = Run(id="a" * 64, name="autumn", content="", strategy="relay",
              sites=[{"task_id": i, "name": f"Site{i}", "trained": True} for i in range(1, 201)])  # fmt: skip
    dataset = Dataset(name="Site1", path="one", layout="fundus", options={})
    hop = {"signer": "North", "fingerprint": "f" * 64, "trusted": True, "images": 60, "metrics": {}, "created_at": 1.0,
           "audit": None}  # fmt: skip
    history = [{**hop, "hop": i, "task_id": i, "site": f"Site{i}", "bundle": "0" * 64} for i in range(1, args.hops + 1)]
    facts = {"digest": "0" * 64, "run": run.id, "hop": args.hops, "task_id": args.hops, "site": f"Site{args.hops}",
             "signer": {"name": "North", "fingerprint": "f" * 64, "trusted": True}, "recipient": None, "created_at": 1.0,
             "half": False, "version": "0", "step": 6, "images": 60, "history": history,
             "metrics": {f"Site{i}": {"dice_per_sample": 0.9} for i in range(1, args.hops + 1)}}  # fmt: skip
    with site.database.write() as session:
        session.add_all([run, dataset])
        session.flush()
        given = {"kind": "train", "state": "succeeded", "params": {}, "created_by": "ana", "body_digest": "0" * 64}
        jobs = [Job(**given, gpus=1, run_id=run.id) for _ in range(args.jobs)]
        session.add_all(jobs)
        session.flush()
        job = jobs[-1]
        names = ("solver", "G_img", "D_img", "G_label", "D_label")
        rows = [{"job_id": job.id, "site": "Site1", "name": names[i % 5], "step": i // 5, "value": 1.0, "attempt": 1}
                for i in range(args.points)]  # fmt: skip
        for begin in range(0, len(rows), 5000):
            session.execute(insert(Metric), rows[begin : begin + 5000])
        session.add_all(
            [JobEvent(job_id=job.id, seq=i, attempt=1, data={"event": "log", "line": "a line"}) for i in range(1, 2001)]
        )
        job.events = 2000
        brought = {"direction": "import", "state": "quarantined", "purpose": "train", "size": 8, "created_by": "ana"}
        digests = {"digest": "0" * 64, "content_digest": "1" * 64}
        bundle = Bundle(**brought, **digests, id=new_id("bundle"), job_id=job.id, run_id=run.id, facts=facts)
        session.add(bundle)
        for i in range(200):
            audit.record(session, "ana", "job.submit", f"job-{i}", kind="train")
        session.flush()
        return {
            "overview": "/", "data sets": "/data", "data set": f"/data/{dataset.id}", "runs": "/runs",
            "new run": "/runs/new", "run": f"/runs/{run.id}", "jobs": "/jobs", "job": f"/jobs/{job.id}",
            "sites": "/sites", "models": "/models",
            "hand-off": "/handoff", "import": f"/imports/{bundle.id}", "keys": "/keys", "audit log": "/audit",
        }  # fmt: skip


def measure(args: argparse.Namespace, record: Record) -> None:
    """Visit every page, then leave the overview open."""
    from playwright.sync_api import sync_playwright

    with running(RELAY_RECONCILE="false") as site, sync_playwright() as driver:
        paths = fill(site, args)
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        first = _sign_in(page, site)
        record.note(f"From the sign-in to the first page with an empty cache: {first * 1e3:.0f} ms.")
        title = f"Pages with {args.jobs} jobs, {args.points} points, {args.hops} hops"
        table = record.table(title, {"page": "", "median ms": ".0f", "longest ms": ".0f"})
        for name, path in paths.items():
            times = [_visit(page, site.url, path) for _ in range(args.repeat)]
            table.add(name, statistics.median(times) * 1e3, max(times) * 1e3)
        costs = record.table("One page left open", {"page": "", "API process, share of a core": ".4f"})
        for name in ("overview", "job"):
            _visit(page, site.url, paths[name])
            time.sleep(2)
            before = _cpu_seconds(site.process.pid)
            time.sleep(args.seconds)
            costs.add(name, (_cpu_seconds(site.process.pid) - before) / args.seconds)
        _trainings(site, page, args, record)
        browser.close()


def _trainings(site: Site, page: Any, args: argparse.Namespace, record: Record) -> None:
    """Train with and without somebody who watches, in turn."""
    make_phantoms(site.settings.data_folder, 1, train=16, test=4)
    client = httpx.Client(base_url=f"{site.url}/api/v1", headers={"Authorization": f"Bearer {site.token}"}, trust_env=False)
    client.post("/datasets", json={"name": "Domain1", "path": "Domain1", "layout": "fundus"}).raise_for_status()
    run = f"extends: phantom\ncommon: {{train: {{num_mimgs: {args.steps * 16e-6}}}}}\ncurrent_tasks: {{task_ids: [1]}}\n"
    run_id = client.post("/runs", content=run, headers={"Content-Type": "application/yaml"}).json()["id"]
    rates: dict[bool, list[float]] = {True: [], False: []}
    with site.worker(OMP_NUM_THREADS="1"):
        for number in range(2 * args.pairs):
            watched = (number + number // 2) % 2 == 0  # the first of a pair is watched in every second one
            body = {"kind": "train", "run_id": run_id}
            job = client.post("/jobs", json=body, headers={"Idempotency-Key": f"train-{number}"}).json()["id"]
            page.goto(f"{site.url}/#/jobs/{job}" if watched else "about:blank")
            while client.get(f"/jobs/{job}").json()["state"] in ("queued", "running"):
                time.sleep(0.5)
            series = client.get(f"/jobs/{job}/metrics", params={"name": "images_per_second"}).json()
            rates[watched].append(statistics.median(series[0]["values"]))
    table = record.table("Trainings in turn", {"page of the job": "", "images/s": ".1f", "of the one without": ".3f"})
    without = statistics.median(rates[False])
    for name, watched in (("closed", False), ("open", True)):
        table.add(name, statistics.median(rates[watched]), statistics.median(rates[watched]) / without)


def _sign_in(page: Any, site: Site) -> float:
    page.goto(site.url)
    with site.database.write() as session:
        _, token = auth.create_token(session, site.settings.key, "visitor", "admin")
    page.locator("#token").fill(token)
    begin = time.perf_counter()
    page.locator("button[type=submit]").click()
    page.locator("nav").wait_for()
    page.locator("main:not([aria-busy]) h1").wait_for()
    return time.perf_counter() - begin


def _visit(page: Any, url: str, path: str) -> float:
    page.goto(f"{url}/#/nowhere")
    page.locator("main:not([aria-busy]) h1").wait_for()
    begin = time.perf_counter()
    page.goto(f"{url}/#{path}")
    page.locator("main:not([aria-busy]) .head h1, main:not([aria-busy]) h1[tabindex]").first.wait_for()
    return time.perf_counter() - begin


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


main = script(
    __doc__,
    arguments,
    measure,
    toy={"jobs": 20, "points": 100, "hops": 3, "repeat": 1, "seconds": 0.5, "pairs": 1, "steps": 2},
)

if __name__ == "__main__":
    main()

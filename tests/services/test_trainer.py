"""Real trainings through the worker's code, at toy size."""

import io
import json
import os
import shutil
import signal
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import select, update

from relay_core.inference.onnx_model import OnnxModel
from services.site import Refusal, job_plans, jobs, registry
from services.site.artifacts import attached
from services.site.db.engine import DatabaseError
from services.site.db.models import Checkpoint, Dataset, Evaluation, Job, JobEvent, Metric
from services.site.leases import Claim, LeaseLost
from services.trainer import training_process as child_module
from services.trainer.folder import attempt_folder
from services.trainer.process_output import ProcessOutput
from services.trainer.training_process import TrainingProcess
from services.trainer.worker_loop import WorkerLoop, tidy
from tests.conftest import Toy
from tests.services.conftest import SiteKit
from tests.services.volumes import fill


@pytest.fixture(autouse=True)
def _no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "PAUSE", 0.0)


@pytest.fixture
def station(small_site: SiteKit) -> WorkerLoop:
    made = WorkerLoop(small_site.settings, lambda: False)
    yield made
    made.close()


def events_of(site: SiteKit, job_id: str) -> list[dict]:
    with site.database.read() as session:
        rows = session.scalars(select(JobEvent).where(JobEvent.job_id == job_id).order_by(JobEvent.seq)).all()
    assert [row.seq for row in rows] == list(range(1, len(rows) + 1))
    return [row.data for row in rows]


def test_a_training_publishes_checkpoints_scores_and_series(small_site: SiteKit, station: WorkerLoop, toy_run: Path) -> None:
    job_id = small_site.submit_train(small_site.add_run(toy_run))
    assert station.work_once()
    job = small_site.job(job_id)
    assert (job.state, job.error) == ("succeeded", None)
    kinds = [event["event"] for event in events_of(small_site, job_id)]
    assert kinds[:2] == ["queued", "claimed"]
    assert kinds[-1] == "succeeded"
    assert kinds.count("step") == 12
    with small_site.database.read() as session:
        first, second = session.scalars(select(Checkpoint).order_by(Checkpoint.task_id)).all()
        assert (first.site, second.site, second.parent_id) == ("Domain1", "Domain2", first.id)
        for row in (first, second):
            content = b"".join(small_site.store.read(row.digest))
            assert row.content_digest.encode() in content
        evaluation = session.scalars(select(Evaluation)).one()
        assert evaluation.checkpoint_id == second.id
        assert evaluation.matrices["dice_per_sample"]["rows"] == ["Domain1", "Domain2"]
        assert {"dice_per_sample.csv", "dice_per_sample.png"} <= set(attached(session, evaluation.id))
        names = set(session.scalars(select(Metric.name).where(Metric.job_id == job_id)))
        assert {"solver", "images_per_second", "Domain1/dice_per_sample"} <= names
        assert {"task_1.samples.png", "task_2.predictions.png"} <= set(attached(session, job_id))
    text = json.dumps(events_of(small_site, job_id)) + json.dumps(job.result)
    assert str(small_site.settings.home) not in text
    assert not (small_site.settings.work_folder / job_id).exists()


def test_pictures_of_a_training_are_there_while_it_runs(small_site: SiteKit, station: WorkerLoop, toy: Toy) -> None:
    job_id = small_site.submit_train(small_site.add_run(toy.write(train={"num_mimgs": 4e-4, "log_every_n_steps": 1})))
    at_work = threading.Thread(target=station.work_once)
    at_work.start()
    seen: dict[str, set[str]] = {}
    while at_work.is_alive():
        with small_site.database.read() as session:
            seen[session.get_one(Job, job_id).state] = set(attached(session, job_id))
        time.sleep(0.1)
    at_work.join()
    early = {name for name in seen["running"] if name.startswith("task_1.samples-")}
    assert len(early) == 10
    with small_site.database.read() as session:
        files = attached(session, job_id)
        assert {"stage", "ada_img"} <= set(session.scalars(select(Metric.name).where(Metric.job_id == job_id)))
    assert early <= set(files)
    assert b"".join(small_site.store.read(files[min(early)].digest)).startswith(b"\x89PNG")


def test_the_second_site_starts_from_the_first_ones_checkpoint(
    small_site: SiteKit, station: WorkerLoop, toy_run: Path
) -> None:
    run = small_site.add_run(toy_run)
    whole = small_site.submit_train(run)
    station.work_once()
    ones = [small_site.submit_train(run, site=1)]
    station.work_once()
    ones.append(small_site.submit_train(run, site=2))
    station.work_once()
    with small_site.database.read() as session:
        rows = session.scalars(select(Checkpoint).order_by(Checkpoint.id)).all()
    digests = {job_id: [row.content_digest for row in rows if row.job_id == job_id] for job_id in (whole, *ones)}
    assert digests[whole] == digests[ones[0]] + digests[ones[1]]
    assert small_site.job(ones[1]).checkpoint_id == rows[2].id
    with small_site.database.read() as session:
        matrix = session.scalars(select(Evaluation).order_by(Evaluation.id.desc())).first().matrices["dice_per_sample"]
    assert matrix["rows"] == ["Domain1", "Domain2"]


def test_a_solver_is_published_before_its_generators_are_trained(
    small_site: SiteKit, station: WorkerLoop, phantom_data: Path, tmp_path: Path
) -> None:
    toy = Toy(phantom_data, tmp_path)
    path = toy.write(
        train={"num_mimgs": 48e-6, "solver_num_mimgs": 32e-6},
        model={"kwargs": {"num_stages": 1, "gan_after_solver": True, "gan_at_last_site": True, "gan_every": None}},
    )
    run, made = small_site.add_run(path), []
    whole = small_site.submit_train(run)
    station.work_once()
    for site in (1, 2):
        job_id = small_site.submit_train(run, site=site, until="solver")
        assert station.work_once()
        assert (small_site.job(job_id).state, small_site.job(job_id).error) == ("succeeded", None)
        (ready_id,) = small_site.job(job_id).result["checkpoints"]
        with small_site.database.read() as session:
            ready = session.get_one(Checkpoint, ready_id)
            assert (ready.step, ready.steps, ready.finished) == (4, 6, False)
            plan = job_plans.export_onnx(session, ready_id, name="early")
            with pytest.raises(Refusal, match=r"solver of .* alone is ready"):
                job_plans.export(session, ready_id)
        model = submit(small_site, "export_onnx", plan)
        job_id = small_site.submit_train(run, site=site, checkpoint_id=ready_id)
        assert station.work_once()
        assert station.work_once()
        assert small_site.job(model).result["version"] == site
        made += small_site.job(job_id).result["checkpoints"]
    with small_site.database.read() as session:
        first, second = (session.get_one(Checkpoint, each) for each in made)
        assert second.parent_id == first.id
        assert [second.finished, first.finished] == [True, True]
        at_once = [session.get_one(Checkpoint, each).content_digest for each in small_site.job(whole).result["checkpoints"]]
        assert [first.content_digest, second.content_digest] == at_once
        matrix = session.scalars(select(Evaluation).order_by(Evaluation.id.desc())).first().matrices["dice_per_sample"]
    assert matrix["rows"] == ["Domain1", "Domain2"]


def submit(site: SiteKit, kind: str, made: job_plans.JobPlan) -> str:
    with site.database.write() as session:
        return jobs.submit(
            session, kind=kind, params=made.params, actor="test", key=None, body={}, gpus=made.gpus, run_id=made.run_id,
            checkpoint_id=made.checkpoint_id,
        )[0].id  # fmt: skip


def test_a_checkpoint_is_scored_and_drawn(small_site: SiteKit, station: WorkerLoop, toy_run: Path) -> None:
    small_site.submit_train(small_site.add_run(toy_run))
    station.work_once()
    with small_site.database.read() as session:
        first = session.scalars(select(Checkpoint).order_by(Checkpoint.task_id)).first()
        trained = session.scalars(select(Evaluation)).one().matrices["dice_per_sample"]
        asked = {
            "evaluate": job_plans.evaluate(session, first.id),
            "samples": job_plans.samples(session, first.id, per_site=2),
            "compare_sites": job_plans.compare_sites(session, first.id, images=6),
        }
    done = {kind: submit(small_site, kind, made) for kind, made in asked.items()}
    for _ in done:
        assert station.work_once()
    for kind, job_id in done.items():
        assert (small_site.job(job_id).state, small_site.job(job_id).error) == ("succeeded", None), kind
    with small_site.database.read() as session:
        row = session.scalars(select(Evaluation).where(Evaluation.job_id == done["evaluate"])).one()
        assert row.checkpoint_id == first.id
        assert row.matrices["dice_per_sample"]["values"] == trained["values"][:1]
        assert "dice_per_sample.png" in attached(session, row.id)
        assert list(attached(session, done["samples"])) == ["samples.png"]
        files = attached(session, done["compare_sites"])
        assert list(files) == small_site.job(done["compare_sites"]).result["files"] == ["statistics.json"]
        statistics = json.loads(b"".join(small_site.store.read(files["statistics.json"].digest)))
    groups = [(group["site"], group["kind"], group["images"]) for group in statistics["groups"]]
    assert groups == [("Domain1", "replay", 6), ("Domain1", "images", 6), ("Domain2", "images", 6)]


def test_a_checkpoint_becomes_a_model_and_predicts_a_data_set(
    small_site: SiteKit, station: WorkerLoop, toy_run: Path
) -> None:
    small_site.submit_train(small_site.add_run(toy_run))
    station.work_once()
    with small_site.database.read() as session:
        last = session.scalars(select(Checkpoint).order_by(Checkpoint.task_id.desc())).first()
        dataset = session.scalars(select(Dataset).where(Dataset.name == "Domain1")).one()
        asked = {
            "export_onnx": job_plans.export_onnx(session, last.id, name="fundus"),
            "predict": job_plans.predict(session, last.id, dataset.id),
        }
    done = {kind: submit(small_site, kind, made) for kind, made in asked.items()}
    assert station.work_once()
    assert station.work_once()
    for kind, job_id in done.items():
        assert (small_site.job(job_id).state, small_site.job(job_id).error) == ("succeeded", None), kind
    assert small_site.job(done["export_onnx"]).result == {"model": "fundus", "version": 1}
    assert small_site.job(done["predict"]).result["images"] == 13
    with small_site.database.read() as session:
        row = registry.version(session, "fundus", 1)
        assert (row.checkpoint_id, row.precision) == (last.id, "fp32")
        assert set(row.facts["proof"]["tests"]) == {"Domain1", "Domain2"}
        assert OnnxModel(b"".join(small_site.store.read(row.digest)), "cpu").facts.checkpoint == last.content_digest
        files = attached(session, done["predict"])
        assert set(files) == {"predictions.masks.zip", "predictions.measurements.csv"}
        table = b"".join(small_site.store.read(files["predictions.measurements.csv"].digest)).decode().splitlines()
        packed = b"".join(small_site.store.read(files["predictions.masks.zip"].digest))
    assert len(table) == 1 + 2 * 13
    assert table[1].startswith("train/ROIs/image/0000.png,1,optic disc,")
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        assert len(archive.namelist()) == 13
    told = [event for event in events_of(small_site, done["predict"]) if event["event"] == "progress"]
    assert told
    assert told[-1]["total"] == 13


def test_a_preflight_reports_and_draws(small_site: SiteKit, station: WorkerLoop, toy_run: Path) -> None:
    small_site.add_run(toy_run)
    with small_site.database.read() as session:
        dataset = session.scalars(select(Dataset)).first()
        made = job_plans.preflight(session, dataset.id, previews=3)
    job_id = submit(small_site, "preflight", made)
    station.work_once()
    assert small_site.job(job_id).state == "succeeded", small_site.job(job_id).error
    with small_site.database.read() as session:
        report = session.get(Dataset, dataset.id).report
        assert (report["ok"], report["counts"]) == (True, {"train": 8, "test": 5})
        assert list(attached(session, dataset.id)) == [f"preview-{i:03d}.png" for i in range(3)]


def test_a_data_set_finds_its_rows_in_a_table_of_several_sites(
    small_site: SiteKit, station: WorkerLoop, tmp_path: Path
) -> None:
    small_site.settings.data_root = tmp_path / "images"
    for part in ("image", "mask"):
        (small_site.settings.data_root / "north" / part).mkdir(parents=True)
        for i in range(3):
            pixels = np.full((16, 16), 80 * i if part == "image" else i % 2, np.uint8)
            Image.fromarray(pixels).save(small_site.settings.data_root / "north" / part / f"{i}.png")
    rows = ["South,0,train", "North,0,train", "North,1,train", "North,2,test"]
    (small_site.settings.data_root / "north/table.csv").write_text("\n".join(["site,image,split", *rows]))
    with small_site.database.write() as session:
        options = {"num_classes": 2, "split_file": "table.csv"}
        row = Dataset(name="North", path="north", layout="folder", options=options)
        session.add(row)
        session.flush()
        made = job_plans.preflight(session, row.id)
    job_id = submit(small_site, "preflight", made)
    station.work_once()
    assert small_site.job(job_id).error is None
    with small_site.database.read() as session:
        assert session.get_one(Dataset, row.id).report["counts"] == {"train": 2, "test": 1}


def test_a_preflight_of_bad_files_names_them(
    small_site: SiteKit, station: WorkerLoop, toy_run: Path, phantom_data: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "images"
    shutil.copytree(phantom_data, bad)
    small_site.settings.data_root = bad
    image = next((bad / "Domain1").rglob("train/ROIs/image/*.png"))
    image.write_bytes(image.read_bytes()[:100])
    small_site.add_run(toy_run)
    with small_site.database.read() as session:
        dataset = session.scalars(select(Dataset).where(Dataset.name == "Domain1")).one()
        made = job_plans.preflight(session, dataset.id)
    job_id = submit(small_site, "preflight", made)
    station.work_once()
    assert small_site.job(job_id).state == "succeeded", small_site.job(job_id).error
    with small_site.database.read() as session:
        report = session.get(Dataset, dataset.id).report
    assert report["ok"] is False
    assert [problem["file"].rpartition("/")[2] for problem in report["problems"]] == [image.name]


def work_beside(station: WorkerLoop) -> threading.Thread:
    thread = threading.Thread(target=station.work_once)
    thread.start()
    return thread


def await_step(site: SiteKit, job_id: str, step: int) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        progress = site.job(job_id).progress
        if progress and progress["step"] >= step:
            return
        time.sleep(0.05)
    raise AssertionError("the training does not come on")


def trainer_pid(site: SiteKit, job_id: str) -> int:
    (note,) = (site.settings.work_folder / job_id).glob("attempt-*/process.json")
    return json.loads(note.read_text())["pid"]


def test_a_killed_training_goes_on_and_ends_like_an_undisturbed_one(
    small_site: SiteKit, station: WorkerLoop, toy: Toy
) -> None:
    long = {"num_mimgs": 800e-6, "batch_size": 8, "log_every_n_steps": 1, "checkpoint_seconds": 0}
    run = small_site.add_run(toy.write(sites=1, train=long), sites=1)
    calm = small_site.submit_train(run)
    station.work_once()
    job_id = small_site.submit_train(run)
    thread = work_beside(station)
    await_step(small_site, job_id, 5)
    os.killpg(trainer_pid(small_site, job_id), signal.SIGKILL)
    thread.join(60)
    job = small_site.job(job_id)
    assert (job.state, job.tries) == ("queued", 1)
    assert events_of(small_site, job_id)[-1]["code"] == "process_crashed"
    station.work_once()
    assert small_site.job(job_id).state == "succeeded"
    started = [event["step"] for event in events_of(small_site, job_id) if event["event"] == "started"]
    assert started[0] == 0
    assert started[1] >= 4, "a step is told before its checkpoint is written"
    with small_site.database.read() as session:
        digests = {row.job_id: row.content_digest for row in session.scalars(select(Checkpoint))}
    assert digests[job_id] == digests[calm]


def test_cancel_stops_the_process_and_retry_goes_on(small_site: SiteKit, station: WorkerLoop, toy: Toy) -> None:
    long = {"num_mimgs": 8000e-6, "batch_size": 8, "log_every_n_steps": 1}
    run = small_site.add_run(toy.write(sites=1, train=long), sites=1)
    job_id = small_site.submit_train(run)
    thread = work_beside(station)
    await_step(small_site, job_id, 3)
    pid = trainer_pid(small_site, job_id)
    with small_site.database.write() as session:
        jobs.cancel(session, job_id, "test")
    thread.join(30)
    assert small_site.job(job_id).state == "cancelled"
    assert not Path(f"/proc/{pid}").exists()
    with small_site.database.write() as session:
        jobs.retry(session, job_id, "test")
    thread = work_beside(station)
    await_step(small_site, job_id, 4)
    with small_site.database.write() as session:
        jobs.cancel(session, job_id, "test")
    thread.join(30)
    started = [event["step"] for event in events_of(small_site, job_id) if event["event"] == "started"]
    assert started[1] >= 3


def test_a_core_error_fails_the_job_with_its_own_code(small_site: SiteKit, station: WorkerLoop, toy: Toy) -> None:
    run = small_site.add_run(toy.write(sites=1, dataset={"kwargs": {"num_classes": 2}}, model={"kwargs": {"label_num_classes": 2, "solver_kwargs": {"num_classes": 2}}}), sites=1)  # fmt: skip  # noqa: E501
    job_id = small_site.submit_train(run)
    station.work_once()
    job = small_site.job(job_id)
    assert job.state == "failed"
    assert job.error["code"] == "data_invalid"
    assert "Domain1" in job.error["message"]
    assert ".png" not in job.error["message"]
    assert str(small_site.settings.data_folder) not in job.error["message"]


def test_three_crashes_are_the_end(small_site: SiteKit, station: WorkerLoop, toy: Toy) -> None:
    long = {"num_mimgs": 8000e-6, "batch_size": 8, "log_every_n_steps": 1}
    job_id = small_site.submit_train(small_site.add_run(toy.write(sites=1, train=long), sites=1))
    for _ in range(3):
        thread = work_beside(station)
        await_step(small_site, job_id, 1)
        os.killpg(trainer_pid(small_site, job_id), signal.SIGKILL)
        thread.join(60)
    job = small_site.job(job_id)
    assert (job.state, job.error["code"]) == ("failed", "process_crashed")
    assert "after 3 attempts" in job.error["message"]
    assert not station.work_once()


def test_a_database_that_is_away_for_a_while_costs_nothing(
    small_site: SiteKit, station: WorkerLoop, toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = {"num_mimgs": 1600e-6, "batch_size": 8, "log_every_n_steps": 1}
    job_id = small_site.submit_train(small_site.add_run(toy.write(sites=1, train=train), sites=1))
    thread = work_beside(station)
    await_step(small_site, job_id, 3)
    write, away = station.database.write, threading.Event()

    def gone():
        if away.is_set():
            raise DatabaseError("the database is not available")
        return write()

    monkeypatch.setattr(station.database, "write", gone)
    away.set()
    time.sleep(2)  # less than the lease
    away.clear()
    thread.join(600)
    job = small_site.job(job_id)
    assert (job.state, job.attempt, job.error) == ("succeeded", 1, None)
    assert [e["step"] for e in events_of(small_site, job_id) if e["event"] == "step"] == list(range(1, 201))


def test_a_database_that_is_away_as_a_training_ends_loses_neither_events_nor_metrics(
    small_site: SiteKit, station: WorkerLoop, toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = {"num_mimgs": 160e-6, "batch_size": 8, "log_every_n_steps": 1}
    job_id = small_site.submit_train(small_site.add_run(toy.write(sites=1, train=train), sites=1))
    write, close, failed = station.database.write, TrainingProcess.close, []

    def close_and_go_away(process):
        close(process)
        monkeypatch.setattr(station.database, "write", gone)

    def gone():
        failed.append(1)
        if len(failed) < 3:
            raise DatabaseError("the database is not available")
        return write()

    monkeypatch.setattr(TrainingProcess, "close", close_and_go_away)
    assert station.work_once()
    assert len(failed) > 2
    assert small_site.job(job_id).state == "succeeded"
    assert [e["step"] for e in events_of(small_site, job_id) if e["event"] == "step"] == list(range(1, 21))
    with small_site.database.read() as session:
        steps = session.scalars(select(Metric.step).where(Metric.job_id == job_id, Metric.name == "solver"))
        assert sorted(steps) == list(range(1, 21))


def test_a_lost_lease_ends_the_process_while_every_call_to_the_database_hangs(
    small_site: SiteKit, toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small_site.settings.model_copy(update={"lease": 2.0, "beat": 0.2})
    station = WorkerLoop(settings, lambda: False)
    train = {"num_mimgs": 1, "batch_size": 8, "log_every_n_steps": 1}
    job_id = small_site.submit_train(small_site.add_run(toy.write(sites=1, train=train), sites=1))
    thread = work_beside(station)
    await_step(small_site, job_id, 1)
    pid = trainer_pid(small_site, job_id)
    write, back = station.database.write, threading.Event()

    def hangs():
        back.wait()
        return write()

    monkeypatch.setattr(station.database, "write", hangs)
    end = time.monotonic() + 60
    while Path(f"/proc/{pid}/exe").exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}/exe").exists()
    assert thread.is_alive(), "it sits in the database still"
    back.set()
    thread.join(60)
    station.close()
    assert small_site.job(job_id).state in ("running", "queued"), "nobody says that it has ended"


def test_images_that_changed_after_the_preflight_are_said_or_refused(
    small_site: SiteKit, toy: Toy, phantom_data: Path, tmp_path: Path
) -> None:
    shutil.copytree(phantom_data, tmp_path / "own")
    settings = small_site.settings.model_copy(update={"data_root": tmp_path / "own"})
    run = small_site.add_run(toy.write(sites=1, train={"num_mimgs": 8e-6}), sites=1)
    with small_site.database.write() as session:
        dataset = session.scalars(select(Dataset)).one()
        plan = job_plans.preflight(session, dataset.id)
        jobs.submit(session, kind="preflight", params=plan.params, actor="test", key=None, body={})

    def trained(settings) -> tuple[Job, list[str]]:
        job_id = small_site.submit_train(run)
        station = WorkerLoop(settings, lambda: False)
        while station.work_once():
            pass
        station.close()
        said = [e["message"] for e in events_of(small_site, job_id) if e["event"] == "warning"]
        return small_site.job(job_id), [message for message in said if "preflight" in message]

    job, said = trained(settings)
    assert (job.state, said) == ("succeeded", [])
    mask = sorted((tmp_path / "own/Domain1/train/ROIs/mask").iterdir())[0]
    shutil.copy(sorted((tmp_path / "own/Domain1/test/ROIs/mask").iterdir())[0], mask)
    job, said = trained(settings)
    assert (job.state, len(said)) == ("succeeded", 1)
    job, said = trained(settings.model_copy(update={"changed_images": "error"}))
    assert (job.state, job.error["code"]) == ("failed", "data_invalid")
    assert mask.stem not in json.dumps(job.error)


def test_checkpoints_in_folders_of_the_run_files_choice_are_published(
    small_site: SiteKit, station: WorkerLoop, toy: Toy
) -> None:
    run = small_site.add_run(toy.write(sites=1, checkpoint={"save": {"dir": "seg/one"}}), sites=1)
    job_id = small_site.submit_train(run)
    station.work_once()
    job = small_site.job(job_id)
    assert job.state == "succeeded", job.error
    with small_site.database.read() as session:
        (row,) = session.scalars(select(Checkpoint)).all()
        assert list(attached(session, row.id)) == ["scores.json"]


def test_an_attempt_that_wakes_after_its_successor_leaves_it_alone(tmp_path: Path) -> None:
    early, late = (Claim("job-1", attempt, "w", "h", ()) for attempt in (1, 2))
    folder = attempt_folder(tmp_path, late)
    (folder / "task_1").mkdir()
    with pytest.raises(LeaseLost):
        attempt_folder(tmp_path, early)
    assert (folder / "task_1").is_dir()
    assert (attempt_folder(tmp_path, Claim("job-1", 3, "w", "h", ())) / "task_1").is_dir()
    assert not folder.exists()


def test_a_process_that_cannot_be_noted_does_not_live_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    def full(path: Path, content: bytes) -> None:
        started.append(json.loads(content)["pid"])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(child_module, "write_atomically", full)
    with pytest.raises(OSError, match="No space"):
        TrainingProcess(["sleep", "60"], tmp_path, dict(os.environ))
    assert not Path(f"/proc/{started[0]}/cmdline").exists()


def test_a_training_waits_for_room_and_then_publishes_once(
    artifact_volume: Path, small_site: SiteKit, station: WorkerLoop, toy_run: Path
) -> None:
    job_id = small_site.submit_train(small_site.add_run(toy_run))
    ballast = fill(artifact_volume)
    assert station.work_once()
    job = small_site.job(job_id)
    assert job.state == "queued"
    assert events_of(small_site, job_id)[-1]["code"] == "storage_full"
    with small_site.database.read() as session:
        assert session.scalars(select(Checkpoint)).all() == []
    ballast.unlink()
    assert station.work_once()
    assert small_site.job(job_id).state == "succeeded"
    with small_site.database.read() as session:
        assert len(session.scalars(select(Checkpoint)).all()) == 2
        for row in session.scalars(select(Checkpoint)):
            assert b"".join(small_site.store.read(row.digest))


def test_memory_and_hangs_are_told_from_crashes(small_site: SiteKit, tmp_path: Path) -> None:
    child = TrainingProcess([sys.executable, "-c", "raise MemoryError"], tmp_path, dict(os.environ))
    while not child.ended:
        child.take(0.1)
    assert child.out_of_memory
    child.close()
    says = ProcessOutput(small_site.database, Claim("job-1", 1, "w", "h", ()), tmp_path, tmp_path)
    for line in (
        '{"event": "started", "site": "a"}',
        '{"event": "step", "site": "a", "step": 1, "losses": {"x": NaN}, "images_per_second": 1}',
    ):
        says.line("out", line)
    assert says.training
    before = says.alive
    says.line("err", "a warning is no step")
    assert says.alive == before
    says.line("out", '{"event": "finished", "site": "a", "step": 1, "seconds": 1}')
    assert not says.training


def test_old_work_is_tidied_away(small_site: SiteKit, toy_run: Path) -> None:
    job_id = small_site.submit_train(small_site.add_run(toy_run))
    work = small_site.settings.work_folder
    for name in (job_id, "job-unknown"):
        (work / name / "attempt-1").mkdir(parents=True)
    assert tidy(small_site.database, small_site.settings) == 1
    with small_site.database.write() as session:
        jobs.cancel(session, job_id, "test")
    assert tidy(small_site.database, small_site.settings) == 0
    with small_site.database.write() as session:
        session.execute(update(Job).values(finished_at=1.0))
    assert tidy(small_site.database, small_site.settings) == 0, "a clock that jumped makes nothing old"
    note = work / job_id / "ended.json"
    note.write_text(json.dumps({**json.loads(note.read_text()), "age": 15 * 86400.0}))
    assert tidy(small_site.database, small_site.settings) == 1
    assert [path.name for path in work.iterdir()] == [".relay-volume"]

"""Two hops of every registered strategy through the service: it goes by what a strategy states, not by what it is called."""

import sys
from pathlib import Path

import pytest
from sqlalchemy import select

from relay_core.config import SEQUENCES, STRATEGIES, strategy_facts
from relay_core.errors import RunFileError
from services.site import Refusal, job_plans, runs
from services.site.db import Checkpoint, Evaluation, Run
from services.trainer.worker_loop import WorkerLoop
from tests.conftest import Toy
from tests.services.conftest import SiteKit

CHOICES = {
    **{name: {"name": name} for name in STRATEGIES.builtin if name != "baseline"},
    **{mode: {"name": "baseline", "kwargs": {"mode": mode}} for mode in SEQUENCES},
    "plug-in": {"name": "clinic_strategies:NEAR"},
}
PLUGIN = '''
from relay_core.config import Entry, StrategyFacts, StrategyKwargs, NoState
from relay_core.config import BaselineKwargs, RehearsalKwargs

def facts(**other):
    stated = dict(holds_real_images=False, sequence="continues", handed_over=NoState, has_generators=False, in_service=True)
    return StrategyFacts(**{**stated, **other})

class NearKwargs(StrategyKwargs):
    """Fine-tuning."""
    facts = facts()

class AtHomeKwargs(StrategyKwargs):
    """Not for a service."""
    facts = facts(in_service=False)

class SilentKwargs(StrategyKwargs):
    """States nothing."""

class HiddenKwargs(RehearsalKwargs):
    """States what rehearsal states."""
    facts = RehearsalKwargs.facts

class QuietKwargs(RehearsalKwargs):
    """Leaves it to its parent."""

class MemoryKwargs(BaselineKwargs):
    """A baseline that keeps images."""
    facts = facts(holds_real_images=True, in_service=False)

NEAR = Entry(NearKwargs, "relay_core.strategies.baseline:BaselineStrategy")
AT_HOME = Entry(AtHomeKwargs, "relay_core.strategies.baseline:BaselineStrategy")
SILENT = Entry(SilentKwargs, "relay_core.strategies.baseline:BaselineStrategy")
QUIET = Entry(QuietKwargs, "relay_core.strategies.rehearsal:RehearsalStrategy")
MEMORY = Entry(MemoryKwargs, "relay_core.strategies.baseline:BaselineStrategy")
HIDDEN = Entry(HiddenKwargs, "relay_core.strategies.rehearsal:RehearsalStrategy")
'''


@pytest.fixture(autouse=True)
def _plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins/clinic_strategies.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path / "plugins"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "plugins"))
    monkeypatch.setenv("RELAY_PLUGINS", "clinic_strategies")
    monkeypatch.delitem(sys.modules, "clinic_strategies", raising=False)


def written(toy: Toy, strategy: dict[str, object]) -> Path:
    """A run of two sites, two steps each."""
    return toy.write(strategy=strategy, train={"num_mimgs": 16e-6})


@pytest.mark.parametrize("choice", CHOICES)
def test_a_service_plays_two_hops_of_it_or_refuses_the_run(small_site: SiteKit, toy: Toy, choice: str) -> None:
    facts = strategy_facts(choice if choice != "plug-in" else "clinic_strategies:NEAR")
    if not facts.in_service:
        with pytest.raises(RunFileError, match=r"real images|a service may not run it"):
            small_site.add_run(written(toy, CHOICES[choice]))
        return
    run = small_site.add_run(written(toy, CHOICES[choice]))
    worker = WorkerLoop(small_site.settings, lambda: False)
    try:
        if facts.sequence == "at_once":
            jobs = [small_site.submit_train(run)]
            assert worker.work_once()
        else:
            jobs = []
            for site in (1, 2):
                jobs.append(small_site.submit_train(run, site=site))
                assert worker.work_once()
    finally:
        worker.close()
    for job_id in jobs:
        assert (small_site.job(job_id).state, small_site.job(job_id).error) == ("succeeded", None)
    with small_site.database.read() as session:
        checkpoints = session.scalars(select(Checkpoint).order_by(Checkpoint.id)).all()
        last = session.scalars(select(Evaluation).order_by(Evaluation.id.desc())).first().matrices["dice_per_sample"]
    parents = [row.parent_id for row in checkpoints]
    if facts.sequence == "continues":
        assert parents == [None, checkpoints[0].id]
        assert small_site.job(jobs[1]).checkpoint_id == checkpoints[0].id
        assert last["rows"] == ["Domain1", "Domain2"]
    elif facts.sequence == "anew":
        assert parents == [None, None]
        assert small_site.job(jobs[1]).checkpoint_id is None
    else:
        assert (parents, last["rows"]) == ([None], ["joint"])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("rehearsal", "keeps real images"),
        ("clinic_strategies:HIDDEN", "keeps real images"),
        ("clinic_strategies:QUIET", "does not state its facts"),
        ("clinic_strategies:MEMORY", "keeps real images"),
        ("local", "is not known"),
        ("clinic_strategies:AT_HOME", "a service may not run it"),
        ("clinic_strategies:SILENT", "does not state its facts"),
    ],
)
def test_what_holds_images_or_is_not_stated_is_not_accepted(small_site: SiteKit, toy: Toy, name: str, words: str) -> None:
    with pytest.raises(RunFileError, match=words):
        small_site.add_run(written(toy, {"name": name}))
    with small_site.database.read() as session:
        assert session.scalars(select(Run)).all() == []


def test_a_run_that_an_older_version_accepted_is_neither_trained_nor_handed_out(small_site: SiteKit, toy: Toy) -> None:
    run = small_site.add_run(written(toy, {"name": "lwf"}))
    with small_site.database.write() as session:
        row = session.get_one(Run, run.id)
        row.strategy = "rehearsal"
        session.flush()
        with pytest.raises(Refusal, match="not one that a service may run"):
            job_plans.train(session, run.id, site=1)
        with pytest.raises(Refusal, match="images of patients") as caught:
            runs.require_no_images(row)
    assert caught.value.status == 403


def test_a_job_that_an_older_version_queued_is_not_trained(small_site: SiteKit, toy: Toy) -> None:
    run = small_site.add_run(written(toy, {"name": "lwf"}))
    job_id = small_site.submit_train(run, site=1)
    with small_site.database.write() as session:
        session.get_one(Run, run.id).strategy = "rehearsal"
    worker = WorkerLoop(small_site.settings, lambda: False)
    try:
        assert worker.work_once()
    finally:
        worker.close()
    job = small_site.job(job_id)
    assert (job.state, job.error["code"]) == ("failed", "invalid_request")

"""`relay study` and `relay generated`: equal terms, one line a run, a report, going on where it was."""

import json

import pytest
import torch

from relay_core.config import load_run
from relay_core.engine import RelayRun
from relay_core.engine.checkpoint import find
from relay_core.errors import DataError, RunFileError, Stopped
from relay_core.experiments.comparison import Comparison, overrides_of
from relay_core.experiments.generators import score_generators, scores_text, with_nearest
from relay_core.experiments.report import Outcome, own_site, report_markdown
from relay_core.metrics import ScoreMatrix

CPU = torch.device("cpu")
NAMES = ("relay", "sequential", "joint", "local", "si strategy.kwargs.c=9", "sequential-plain")


def study(toy, names=NAMES, seeds=2, **kwargs):
    return Comparison(str(toy.folder / "run.yaml"), names, seeds, toy.folder / "study", toy.data, CPU, **kwargs)


def test_a_study_runs_stops_goes_on_and_reports(toy):
    toy.write(train={"num_mimgs": 16e-6})
    names, told = ("sequential", "joint", "si strategy.kwargs.c=9"), []
    with pytest.raises(Stopped):
        study(
            toy,
            names,
            stop=lambda: len(told) == 3,
            tell=lambda outcome, done, total: told.append((outcome.name, done, total)),
        )()
    assert [done for _, done, _ in told] == [1, 2, 3]
    events = []
    outcomes = study(toy, names, emit=events.append)()
    assert [(o.name, o.seed) for o in outcomes] == [(name, seed) for seed in (0, 1) for name in names]
    assert sum(event.kind == "started" and event.step == 0 for event in events) < 2 * 2 * len(names), (
        "finished runs are kept"
    )
    before = len(events)
    again = study(toy, names, emit=events.append)()
    assert len(events) == before
    assert [o.to_json() for o in again] == [o.to_json() for o in outcomes]
    text = (toy.folder / "study/study.md").read_text()
    assert all(f"| {name} | **" in text for name in names)
    assert "- sequential minus joint: " in text
    assert text.count("; by 10 subjects ") == 2  # of two sites, 5 each
    saved = json.loads((toy.folder / "study/sequential/seed-1/result.json").read_text())
    final = saved["matrices"]["dice_per_sample"]["values"][-1]
    assert [sum(s) / len(s) for s in saved["subjects"].values()] == pytest.approx(final)
    assert "## joint: mean of 2 seeds" in text
    assert "| si strategy.kwargs.c=9 |" in text.partition("## Other metrics")[2]
    saved = json.loads((toy.folder / "study/study.json").read_text())
    assert [Outcome.from_json(run).main.average() for run in saved["runs"]] == [o.main.average() for o in outcomes]
    assert (toy.folder / "study/study.png").read_bytes().startswith(b"\x89PNG")
    assert all(o.seconds > 0 for o in outcomes)


def test_every_run_of_a_study_has_the_same_budget_and_augmentation(toy):
    toy.write()
    settings = {name: run.site(1) for name, _, run in study(toy, seeds=1)._runs()}
    assert len({s.train.model_copy(update={"augment": "none"}).model_dump_json() for s in settings.values()}) == 1
    assert {name: s.train.augment for name, s in settings.items() if s.train.augment == "none"} == {
        "sequential-plain": "none"
    }
    assert len({s.solver.model_dump_json() for s in settings.values()}) == 1
    assert settings["si strategy.kwargs.c=9"].strategy.kwargs.c == 9
    assert [s.mode for s in settings.values()] == ["relay", "sequential", "joint", "local", "si", "sequential"]
    seeds = [run.site(1).random_seed for _, _, run in study(toy, ["si"], 3)._runs()]
    assert seeds == [0, 1, 2]


def test_what_a_study_cannot_be_made_of(toy):
    toy.write()
    with pytest.raises(RunFileError, match="'sequentail' is not known; did you mean 'sequential'"):
        overrides_of("sequentail")
    toy.write(strategy={"name": "baseline"}, model={"name": "U-Net", "kwargs": {"base_channels": 4}})
    with pytest.raises(RunFileError, match="relay needs model doublegan"):
        study(toy)()
    assert not (toy.folder / "study").exists()
    study(toy, ["local"], 1, overrides=["train.num_mimgs=1.6e-5"])()
    with pytest.raises(RunFileError, match="another run file"):
        study(toy, ["local"], 1)()


def test_own_site_is_the_diagonal(exported):
    matrix = next(
        iter(RelayRun(exported.toy.run(), exported.toy.folder / "out", exported.toy.data, CPU, resume=True)().values())
    )
    assert own_site(matrix) == pytest.approx((matrix.values[0][0] + matrix.values[1][1]) / 2)


def test_generated_images_are_scored_against_each_sites_own(exported):
    found = score_generators(find(exported.checkpoint, print), exported.toy.run(), exported.toy.data, None, 6, CPU)
    assert list(found) == ["Domain1"], "no generator learned the last site"
    for row in found.values():
        assert row["fid_solver_encoder"] >= 0
        assert (row["num_real"], row["num_generated"]) == (6, 6)
    assert "not Inception" in scores_text(found)


def test_external_sites_are_told_apart_and_the_worst_site_is_named():
    matrix = ScoreMatrix(["A", "B"], ["A", "B", "C"], "dice", [[0.9, 0.1, 0.2], [0.7, 0.8, 0.4]])
    distance = ScoreMatrix(["A", "B"], ["A", "B", "C"], "hd95", [[1.0, 9.0, 8.0], [3.0, 2.0, 6.0]], unit="mm")
    outcome = Outcome("relay", 0, {"dice": matrix, "hd95": distance}, 60.0, trained=["A", "B"])
    assert outcome.average() == pytest.approx(0.75)
    assert (outcome.worst(), outcome.external()) == (0.7, 0.4)
    assert Outcome("relay", 0, {"hd95": distance}, 60.0, trained=["A", "B"]).worst() == 3.0
    assert outcome.average(distance) == 2.5
    assert Outcome("relay", 0, {"dice": matrix}, 60.0).external() is None
    assert Outcome.from_json(outcome.to_json()).external() == 0.4
    federated = Outcome("fedavg", 0, {"dice": ScoreMatrix(["joint"], ["A", "B", "C"], "dice", [[0.6, 0.7, 0.8]])}, 60.0)
    text = report_markdown([outcome, federated], "x")
    assert "\n| relay | 0.750 | 0.750 | 0.700 | 0.400 |" in text
    head, _, *rows = [line for line in text.splitlines() if line.startswith("|")][:4]
    assert {row.count("|") for row in rows} == {head.count("|")}
    assert "\nfedavg: trained at all sites at once" in text


def test_samples_are_shown_beside_the_training_images_nearest_to_them(exported, tmp_path):
    from relay_core.engine import generated_rows, load_solver, site_data

    run, checkpoint = load_run(str(exported.toy.folder / "run.yaml")), find(exported.toy.folder / "out/task_1", print)
    rows = generated_rows(run.site(1), checkpoint, CPU, 3)
    shown = with_nearest(rows, checkpoint, run, exported.toy.data, CPU)
    assert [row[0] for row in shown] == ["Domain1", "Domain1: nearest training image"]
    real, _ = site_data(checkpoint, load_solver(checkpoint, CPU)[1], run, exported.toy.data, "train")["Domain1"].batch(
        range(8)
    )
    for image in shown[1][1]:
        assert min(float((image - each).abs().max()) for each in real) < 1e-6, "it is one of the training images"
    own = with_nearest([("Domain1", real[:4], torch.zeros(4, 16, 16), None)], checkpoint, run, exported.toy.data, CPU)
    torch.testing.assert_close(own[1][1], real[:4])  # an image that was copied is its own nearest
    with pytest.raises(DataError, match="none of the sites Domain1 is on this machine"):
        with_nearest(rows, checkpoint, run, tmp_path, CPU)

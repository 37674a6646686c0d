"""What few patients stand behind does not leave: scores, counts of rare classes, statistics, an audit's numbers."""

import json

import pytest

from relay_core.bundle import Gate, audit_words, writer
from relay_core.bundle.audit import is_audit_fact
from relay_core.bundle.collected import collected_matrices
from relay_core.bundle.signed_report import read_report, sign_report
from relay_core.bundle.withheld import withheld_class_counts, withheld_statistics
from relay_core.config import StrategyFacts
from relay_core.config.states import NoState, RelayState
from relay_core.metrics import headlines
from tests.bundle.kit import members
from tests.privacy.test_gate import CHECKPOINT, report


@pytest.fixture
def few(world, tmp_path):
    """The first site's scores, its own test set of four patients."""
    content = json.loads((world.checkpoint(1).parent / "scores.json").read_text())
    content["scores"]["Domain1"] |= {"num_samples": 4, "num_images": 40}
    path = tmp_path / "scores.json"
    path.write_text(json.dumps(content))
    return path


def test_a_mean_score_of_four_patients_is_withheld_from_bundle_and_history(world, few, tmp_path):
    writer.export_bundle(world.checkpoint(1), world.run, world.north, tmp_path / "one.relay", scores=few)
    parts = members(tmp_path / "one.relay")
    (record,) = json.loads(parts["history.json"])
    for metrics in (json.loads(parts["manifest.json"])["metrics"], record["metrics"]):
        hidden = metrics["Domain1"]
        assert hidden.pop("withheld") == 5
        assert hidden.pop("hd95_unit") == "px"
        assert {"dice", "dice_per_sample", "num_samples", "num_images"} <= hidden.keys()
        assert set(hidden.values()) == {None}
        assert metrics["Domain2"]["dice"] is not None
        assert metrics["Domain2"]["num_samples"] == 5
    card = parts["MODEL_CARD.md"].decode()
    assert "| Domain1 | Domain1 | withheld | withheld |" in card
    facts, _ = world.receive(tmp_path / "one.relay", 2, tmp_path / "out")
    assert headlines(facts.history[0]["metrics"]).startswith("Dice Domain1 withheld, Dice Domain2 0.")


def test_the_coordinator_gets_no_score_of_four_patients(world, few, tmp_path):
    sign_report(few, world.checkpoint(1), world.run, world.north, tmp_path / "report.json")
    matrix = collected_matrices([read_report(tmp_path / "report.json", world.south)], world.run)["dice_per_sample"]
    assert matrix.values[0][0] is None
    assert matrix.values[0][1] is not None
    assert "\N{EN DASH}" in matrix.to_markdown()


def test_scores_that_do_not_say_of_how_many_are_withheld(world, few, tmp_path):
    content = json.loads(few.read_text())
    del content["scores"]["Domain1"]["num_samples"]
    few.write_text(json.dumps(content))
    told = sign_report(few, world.checkpoint(1), world.run, world.north, tmp_path / "report.json")
    assert told.scores["Domain1"]["dice"] is None


@pytest.mark.parametrize(
    ("counts", "told"),
    [([40, 12], [40, 12]), ([57, 3], [55, 5]), ([50, 1, 0, 9], [46, 5, 0, 9]), ([3, 1], [5, 5]), (None, None)],
)
def test_how_many_images_of_a_rare_class_there_are_is_not_told(counts, told):
    slot = {"id": 0, "frequency": 60, **({} if counts is None else {"classes": counts})}
    facts = StrategyFacts(
        holds_real_images=False, sequence="continues", handed_over=RelayState, has_generators=True, in_service=True
    )
    hidden = withheld_class_counts({"previous": {}, "current": {"A": slot}, "stage": 1}, facts)
    assert hidden["current"]["A"].get("classes") == told
    assert hidden["stage"] == 1
    other = StrategyFacts(
        holds_real_images=False, sequence="continues", handed_over=NoState, has_generators=False, in_service=True
    )
    assert withheld_class_counts({"current": 3}, other) == {"current": 3}, "a plug-in's own words"


def test_statistics_of_few_images_are_left_out():
    assert withheld_statistics({"A": {"images": 4}, "B": {"images": 5}}) == {"B": {"images": 5}}


def test_the_numbers_of_an_audit_of_four_patients_are_withheld():
    fact, _ = Gate("off", audit=report(patients=(200, 4))).clear(CHECKPOINT, ["solver"])
    assert fact == {"outcome": "inconclusive", "override": None}
    assert is_audit_fact(fact)
    assert "withheld" in audit_words(fact)

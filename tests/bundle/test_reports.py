"""Signed evaluations, and the coordinator's matrix from them."""

import base64
import json

import pytest

from relay_core.bundle import canonical, signed_report, signing
from relay_core.bundle.collected import collected_matrices
from relay_core.bundle.values import is_name
from relay_core.errors import BundleError
from tests.bundle.kit import loose
from tests.bundle.mutations import JUNK


def refusal(code):
    return pytest.raises(BundleError, check=lambda error: error.code == code)


@pytest.fixture
def signed(world, tmp_path):
    """Each site's report of its own training."""
    paths = []
    for number, keys in ((1, world.north), (2, world.south), (3, world.west)):
        checkpoint, path = world.checkpoint(number), tmp_path / f"report-{number}.json"
        signed_report.sign_report(checkpoint.parent / "scores.json", checkpoint, world.run, keys, path)
        paths.append(path)
    return paths


@pytest.fixture
def toy_classification(toy):
    """A run of two sites that classify, and what one of its models scored."""
    solver = {"in_channels": 1, "num_classes": 2}
    run = toy.run(
        dataset={"name": "mediastinum-tumor", "kwargs": {"task": "classification", "class_by": "positive", "num_classes": 2,
                                                         "img_channels": 1}},
        strategy={"name": "baseline", "kwargs": {"mode": "sequential"}},
        model={"kwargs": {"task": "classification", "img_channels": 1, "label_num_classes": 2, "solver_kwargs": solver}},
        train={"loss": {"name": "cross_entropy"}},
    )  # fmt: skip
    names = ("accuracy", "accuracy_images", "accuracy_subjects", "f1", "auroc")
    return run, {f"Domain{i}": {name: 0.1 * i + 0.01 * k for k, name in enumerate(names)} for i in (1, 2)}


def test_the_matrix_of_all_reports_is_that_of_the_relay(world, signed, tmp_path):
    found = collected_matrices(
        [signed_report.read_report(path, world.north) for path in signed], world.run, tmp_path / "matrix"
    )
    trained = json.loads((world.folder / "trained/evaluation/dice_per_sample.json").read_text())
    assert found["dice_per_sample"].values == trained["values"]
    assert json.loads((tmp_path / "matrix/dice_per_sample.json").read_text())["values"] == trained["values"]
    some = collected_matrices([signed_report.read_report(signed[2], world.north)], world.run)["dice_per_sample"]
    assert some.rows == ["Domain3"], "who has not reported has no row"


def test_a_report_holds_means_alone(signed):
    told = canonical.load(base64.b64decode(json.loads(signed[0].read_bytes())["payload"]), "report")
    assert set(told["scores"]["Domain1"]) == {
        "accuracy", "balanced_accuracy", "dice", "dice_per_sample", "hd95", "hd95_unit", "num_images", "num_samples",
    }  # fmt: skip


def test_scores_of_another_checkpoint_or_run_are_not_signed(world, tmp_path):
    from relay_core.config import load_run

    scores = world.checkpoint(2).parent / "scores.json"
    with refusal("bundle_incomplete"):
        signed_report.sign_report(scores, world.checkpoint(1), world.run, world.north, tmp_path / "r.json")
    other = load_run(world.run_file, ["train.batch_size=4"])
    with refusal("bundle_other_run"):
        signed_report.sign_report(scores, world.checkpoint(2), other, world.south, tmp_path / "r.json")
    assert not (tmp_path / "r.json").exists()


def test_a_forged_report_is_refused(world, signed):
    envelope = json.loads(signed[0].read_bytes())
    told = json.loads(base64.b64decode(envelope["payload"]))
    told["scores"]["Domain1"]["dice_per_sample"] = 0.99
    envelope["payload"] = base64.b64encode(canonical.dump(told)).decode()
    signed[0].write_bytes(canonical.dump(envelope))
    with refusal("signature_invalid"):
        signed_report.read_report(signed[0], world.south)
    told["by"] = {"name": "north", "fingerprint": world.north.card.fingerprint}
    signed[0].write_bytes(canonical.dump(signing.envelope(canonical.dump(told), signed_report.PAYLOAD, world.stranger)))
    with refusal("signature_invalid"):
        signed_report.read_report(signed[0], world.south)
    told["by"] = {"name": "north", "fingerprint": world.stranger.card.fingerprint}
    signed[0].write_bytes(canonical.dump(signing.envelope(canonical.dump(told), signed_report.PAYLOAD, world.stranger)))
    with refusal("signer_unknown"):
        signed_report.read_report(signed[0], world.south)


def test_a_bundles_signature_is_no_report(world, signed):
    """What a key signed for one purpose does not pass for another."""
    envelope = json.loads(signed[0].read_bytes())
    made = signing.envelope(base64.b64decode(envelope["payload"]), "application/vnd.in-toto+json", world.north)
    signed[0].write_bytes(canonical.dump(made))
    with refusal("signature_invalid"):
        signed_report.read_report(signed[0], world.south)


def test_a_report_of_another_run_is_not_counted(world, signed):
    from relay_core.config import load_run

    other = load_run(world.run_file, ["train.batch_size=4"])
    with refusal("bundle_other_run"):
        collected_matrices([signed_report.read_report(signed[0], world.north)], other)


@pytest.mark.parametrize("key", ["run", "task_id", "site", "bundle", "scores", "created_at", "by", "format"])
def test_a_trusted_site_cannot_report_nonsense(world, signed, key):
    told = json.loads(base64.b64decode(json.loads(signed[0].read_bytes())["payload"]))
    fine = {"bundle": [None], "scores": [{}, {"a": {}}], "created_at": [1.5]}
    for junk in JUNK:
        if junk in fine.get(key, []) or (key == "site" and is_name(junk)):
            continue
        payload = loose({**told, key: junk})
        signed[0].write_bytes(canonical.dump(signing.envelope(payload, signed_report.PAYLOAD, world.north)))
        with refusal("bundle_damaged"):
            signed_report.read_report(signed[0], world.south)
    signed[0].write_bytes(canonical.dump(signing.envelope(loose({**told, "more": 1}), signed_report.PAYLOAD, world.north)))
    with refusal("bundle_damaged"):
        signed_report.read_report(signed[0], world.south)


@pytest.mark.parametrize("content", [
    b"", b"null", b"[]", b"{}", b'{"payload":1}', b'{"payload":"AAAA"}', b"[" * 100_000, b'{"payload":"W10="}',
    canonical.dump({"payload": base64.b64encode(b"[" * 100_000).decode()}),
])  # fmt: skip
def test_what_is_no_report_is_refused(world, tmp_path, content):
    (tmp_path / "r.json").write_bytes(content)
    with refusal("bundle_damaged"):
        signed_report.read_report(tmp_path / "r.json", world.north)


def test_a_report_too_large_is_not_read(world, tmp_path):
    with (tmp_path / "r.json").open("wb") as file:
        file.truncate(signed_report.MAX_SIZE + 1)
    with refusal("bundle_too_large"):
        signed_report.read_report(tmp_path / "r.json", world.north)


def test_the_coordinator_of_a_classification_sees_its_metrics(toy_classification, world):
    """Balanced accuracy, F1, AUROC, ...; no Dice, which no such site reports."""
    run, scores = toy_classification
    reports = [
        signed_report.SignedReport(run.digest, task_id, name, None, scores, 1.0 + task_id, "north")
        for task_id, name in ((1, "Domain1"), (2, "Domain2"))
    ]
    found = collected_matrices(reports, run)
    assert list(found) == ["accuracy", "accuracy_images", "accuracy_subjects", "f1", "auroc"]
    for name, matrix in found.items():
        assert matrix.values == [[scores["Domain1"][name], scores["Domain2"][name]]] * 2
    assert found["accuracy"].title.startswith("Balanced accuracy")


def test_distances_in_millimetres_and_in_pixels_are_not_averaged(world):
    row = {"dice_per_sample": 0.9, "dice": 0.9, "accuracy": 0.9}
    scores = {"Domain1": {**row, "hd95": 4.0, "hd95_unit": "mm"}, "Domain2": {**row, "hd95": 20.0, "hd95_unit": "px"}}
    reports = [signed_report.SignedReport(world.run.digest, 1, "Domain1", None, scores, 1.0, "north")]
    found = collected_matrices(reports, world.run)
    assert (found["hd95_mm"].average(), found["hd95_mm"].unit, found["hd95_px"].average()) == (4.0, "mm", 20.0)
    assert "hd95" not in found

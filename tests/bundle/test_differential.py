"""What a site says of its differentially private training travels, signed, and nothing by which it could be undone."""

import pytest
import torch

from relay_core.bundle import history, importer, privacy_words, writer
from relay_core.bundle.differential import is_privacy_fact
from relay_core.bundle.provenance import KnownRelays
from relay_core.cli.describe import describe, description_text
from relay_core.config import load_run
from relay_core.engine import RelayRun, checkpoint
from relay_core.engine.layout import hand_over_layout
from relay_core.errors import BundleError

FACT = {"unit": "image", "units": 8, "epsilon": 31.25, "delta": 1e-3, "max_grad_norm": 0.5, "spent": [[1.0, 0.5, 2, 2]]}


def test_epsilon_stands_in_history_and_card_and_the_secret_stays(toy, world, tmp_path, monkeypatch):
    secret = bytes(range(32, 64))
    monkeypatch.setattr("secrets.token_bytes", lambda n: secret)
    train = {"num_mimgs": 8e-6, "batch_size": 4, "privacy": {"max_grad_norm": 0.5, "delta": 1e-3}}
    run = load_run(str(toy.write(train=train, model={"kwargs": {"solver_kwargs": {"norm": "group"}}})))
    RelayRun(run, toy.folder / "out", toy.data, torch.device("cpu"), only=1)()
    last = checkpoint.newest(toy.folder / "out/task_1", print)
    exported = writer.export_bundle(last.path, run, world.north, tmp_path / "one.relay")
    known = KnownRelays({run.digest: (run, 2)}, [])
    facts, target = importer.import_bundle(tmp_path / "one.relay", known, world.south, tmp_path / "south", hand_over_layout)
    found = facts.history[0]["privacy"]
    assert found == exported.history[0]["privacy"] == last.meta["privacy"]
    assert found["spent"] == [[1.0, 0.5, 2, 2]]
    words = f"epsilon {found['epsilon']:g} at delta 0.001"
    assert words in privacy_words(found)
    assert words in (tmp_path / "bundle/MODEL_CARD.md").read_text()
    assert words in description_text(describe(last))
    assert secret not in last.path.read_bytes()
    assert secret not in (tmp_path / "one.relay").read_bytes()
    assert "looks" not in checkpoint.read(target).meta  # brightness and contrast of real images

    records = writer.Provenance.read(tmp_path / "bundle/provenance.json").history
    flattered = [{**records[0], "privacy": {**found, "epsilon": 0.1}}]
    with pytest.raises(BundleError, match="not signed"):
        history.check(flattered, None)


def test_without_it_nothing_is_said(world, tmp_path):
    facts = world.export(1, tmp_path / "one.relay")
    assert facts.history[0]["privacy"] is None
    assert privacy_words(None) == ""
    assert "differential" not in (tmp_path / "bundle/MODEL_CARD.md").read_text()


@pytest.mark.parametrize(
    "changes",
    [
        {"unit": "hospital"}, {"units": -1}, {"epsilon": -1}, {"epsilon": float("inf")}, {"delta": 0}, {"delta": 1},
        {"max_grad_norm": 0}, {"spent": [[1.0, 1.5, 1, 1]]}, {"spent": [[1.0, 0.5, 0, 1]]}, {"spent": [1]}, {"more": 1},
        {"spent": [[0, 0.5, 1, 1]]}, {"spent": {}}, {"spent": [[1.0, 0.5, 1, 1]] * 1001},
    ],
)  # fmt: skip
def test_what_is_not_sound_is_refused(changes):
    assert is_privacy_fact(FACT)
    assert not is_privacy_fact({**FACT, **changes})

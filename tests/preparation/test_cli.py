"""`relay prepare` as a person or a script meets it."""

import json

import pytest
from typer.testing import CliRunner

from relay_core.cli.prepare import prepare_app
from relay_core.errors import DataError, RelayError
from tests.preparation.phantoms import chest, hospital, pixels, table


def relay(*args):
    return CliRunner().invoke(prepare_app, [str(arg) for arg in args])


@pytest.fixture
def ct(tmp_path):
    return hospital(tmp_path)


def test_mediastinum(ct, tmp_path):
    out = tmp_path / "out"
    done = relay("mediastinum", *ct, out, "--select", "share", "--keep", 0.34, "--negatives", 1, "--workers", 1)
    assert done.exit_code == 0, done.exception
    assert f"2 studies (2 made now), 8 slices in {out}; see {out / 'report.md'}" in done.stdout.replace("\n", " ")
    assert len(table(out)) == 8
    options = ("--no-crop", "--hu-min", -1024, "--intercept", -1, "--keep", 1, "--prefix", "p_", "--json", "--workers", 1)
    done = relay("mediastinum", *ct, tmp_path / "json", *options)
    *_, last = done.stdout.splitlines()
    assert json.loads(last) == {"studies": 2, "made": 2, "slices": 2, "positive": 2, "report": "report.md"}
    assert (pixels(tmp_path / "json/images/p_a_0013.png").astype(int) - 1024 == chest()[13].clip(-1023) - 1).all()


def test_slices(ct, tmp_path):
    done = relay(
        "slices", ct[0], tmp_path / "out", "--window", "-160,240", "--every", 12, "--axis", "coronal", "--workers", 1
    )
    assert done.exit_code == 0, done.exception
    assert sorted(path.name for path in (tmp_path / "out/image").glob("a_*")) == [f"a_{i:04d}.png" for i in range(0, 96, 12)]
    options = ("--labels", ct[1], "--layout", "midline", "--select", "threshold", "--keep", 50, "--workers", 1)
    assert relay("slices", ct[0], tmp_path / "mid", *options).exit_code == 0
    assert sorted(path.name for path in (tmp_path / "mid/b").iterdir()) == ["0013.jpg", "mask_0013.png"]


def test_errors_are_known_ones(ct, tmp_path):
    (ct[1] / "b.nii.gz").unlink()
    done = relay("mediastinum", *ct, tmp_path / "out", "--workers", 1)
    assert isinstance(done.exception, DataError)
    assert "b.nii.gz: has no label volume" in str(done.exception)
    for options in (("--window", "1"), ("--window", "5,1"), ("--window", "a,b"), ("--axis", "up"), ("--select", "best")):
        done = relay("slices", ct[0], tmp_path / "other", *options)
        assert isinstance(done.exception, RelayError)
        assert options[0] in str(done.exception)
    assert relay("slices", ct[0], tmp_path / "other", "--every", 0).exit_code == 2
    assert not (tmp_path / "other").exists()

"""The matrix by hand: every expected number is worked out from the definitions."""

from __future__ import annotations

import csv
import io
import json
import math
import subprocess
import sys

import pytest
from PIL import Image

import relay_core.metrics
from relay_core.files import write_atomically
from relay_core.metrics import ScoreMatrix, compare_markdown, figures, write_matrix

SITES = ["A", "B", "C"]
VALUES = [[0.9, 0.5, 0.3], [0.7, 0.8, 0.4], [0.6, 0.85, 0.9]]


def relay(**change) -> ScoreMatrix:
    return ScoreMatrix(**({"rows": SITES, "columns": SITES, "metric": "dice", "values": VALUES} | change))


def test_numbers_by_hand():
    matrix = relay(start=[0.1, 0.2, 0.05])
    assert matrix.average() == pytest.approx((0.6 + 0.85 + 0.9) / 3)
    assert matrix.average_seen() == pytest.approx([0.9, 0.75, (0.6 + 0.85 + 0.9) / 3])
    assert matrix.backward_transfer() == pytest.approx(((0.6 - 0.9) + (0.85 - 0.8)) / 2)
    assert matrix.forward_transfer() == pytest.approx(((0.5 - 0.2) + (0.4 - 0.05)) / 2)
    assert matrix.forgetting() == pytest.approx(((0.9 - 0.6) + (0.8 - 0.85)) / 2)
    assert matrix.final() == VALUES[-1]


def test_columns_may_stand_in_another_order():
    turned = relay(columns=SITES[::-1], values=[row[::-1] for row in VALUES], start=[0.05, 0.2, 0.1])
    assert turned.summary() == pytest.approx(relay(start=[0.1, 0.2, 0.05]).summary())


def test_forgetting_looks_at_every_earlier_row():
    matrix = relay(values=[[0.5, 0.7, 0.1], [0.8, 0.6, 0.1], [0.6, 0.5, 0.9]])
    assert matrix.forgetting() == pytest.approx(((0.8 - 0.6) + (0.7 - 0.5)) / 2)
    assert matrix.backward_transfer() == pytest.approx(((0.6 - 0.5) + (0.5 - 0.6)) / 2)


def test_distances_forget_upwards():
    matrix = relay(metric="hd95", values=[[2.0, 9.0, 9.0], [4.0, 3.0, 9.0], [8.0, 3.0, 2.0]], unit="mm")
    assert matrix.lower_is_better
    assert matrix.title == "95 % Hausdorff distance [mm]"
    assert matrix.forgetting() == pytest.approx(((8 - 2) + (3 - 3)) / 2)
    assert matrix.backward_transfer() == pytest.approx(((8 - 2) + (3 - 3)) / 2)


def test_without_start_there_is_no_forward_transfer():
    assert relay().forward_transfer() is None


def test_joint_is_a_single_row():
    joint = relay(rows=["joint"], values=[[0.9, 0.8, 0.7]], start=[0.1, 0.1, 0.1])
    assert joint.average() == pytest.approx(0.8)
    assert joint.average_seen() == pytest.approx([0.8])
    assert joint.backward_transfer() is joint.forward_transfer() is joint.forgetting() is None


def test_first_hop_of_a_relay():
    first = relay(rows=["A"], values=VALUES[:1], start=[0.1, 0.1, 0.1])
    assert first.average_seen() == [0.9]
    assert first.backward_transfer() is first.forward_transfer() is first.forgetting() is None


def test_local_models_are_no_sequence():
    local = relay(sequential=False, start=[0.1, 0.1, 0.1])
    assert local.average() == pytest.approx(sum(map(sum, VALUES)) / 9)
    assert local.final() == pytest.approx([sum(column) / 3 for column in zip(*VALUES, strict=True)])
    assert local.average_seen() == [0.9, 0.8, 0.9]
    assert local.backward_transfer() is local.forward_transfer() is local.forgetting() is None


def test_a_number_that_needs_a_missing_value_is_none():
    matrix = relay(values=[[0.9, None, 0.3], [0.7, 0.8, math.nan], [0.6, 0.85, 0.9]], start=[0.1, 0.1, math.inf])
    assert matrix.values[1][2] is None
    assert matrix.start == [0.1, 0.1, None]
    assert matrix.average() is not None
    assert matrix.backward_transfer() == pytest.approx(-0.125)
    assert matrix.forward_transfer() is None
    assert matrix.forgetting() is None
    assert relay(values=[*VALUES[:2], [0.6, None, 0.9]]).average() is None


def test_a_site_visited_twice_has_no_transfer():
    assert relay(rows=["A", "B", "A"]).backward_transfer() is None


@pytest.mark.parametrize(
    "change",
    [
        {"rows": [], "values": []},
        {"columns": [], "values": [[], [], []]},
        {"columns": ["A", "A", "B"]},
        {"values": VALUES[:2]},
        {"values": [[0.1, 0.2]] * 3},
        {"start": [0.1]},
    ],
)
def test_what_does_not_fit_is_refused(change):
    with pytest.raises(ValueError, match=r"score matrix|must be"):
        relay(**change)


@pytest.mark.parametrize("start", [None, [0.1, None, 0.05]])
def test_json_round_trip(start):
    matrix = relay(values=[[0.1 + 0.2, None, 0.3], *VALUES[1:]], start=start, sequential=False, unit="mm")
    assert ScoreMatrix.from_json(matrix.to_json()) == matrix
    assert json.loads(relay().to_json())["summary"]["backward_transfer"] == relay().backward_transfer()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', '{"format": 2, "rows": []}'])
def test_other_json_is_refused(text):
    with pytest.raises(ValueError):  # noqa: PT011  json's own words for text that is no JSON
        ScoreMatrix.from_json(text)


@pytest.mark.parametrize("values", [5, [["x", 0.1, 0.2]] * 3, [0.1, 0.2, 0.3]])
def test_json_with_other_types_is_refused(values):
    content = json.loads(relay().to_json()) | {"values": values}
    with pytest.raises(ValueError, match="not a score matrix"):
        ScoreMatrix.from_json(json.dumps(content))


def test_csv_keeps_full_precision():
    matrix = relay(rows=["A", 'B, "b"', "C"], values=[[0.1 + 0.2, None, 0.3], *VALUES[1:]], start=[0.1, 0.2, 0.3])
    lines = list(csv.reader(io.StringIO(matrix.to_csv())))
    assert lines[0] == ["after", "A", "B", "C"]
    assert lines[1] == ["A", "0.30000000000000004", "", "0.3"]
    assert lines[2][0] == 'B, "b"'
    assert lines[4] == ["(untrained)", "0.1", "0.2", "0.3"]


def test_markdown_has_the_table_and_the_averages():
    lines = relay(rows=["A|x", "B", "C"], values=[[0.9, None, 0.3], *VALUES[1:]]).to_markdown().splitlines()
    assert lines[0] == "### Dice (all pixels)"
    assert lines[3] == "|---|--:|--:|--:|--:|"
    assert lines[4].startswith("| A\\|x | 0.900 | \N{EN DASH} | 0.300 |")
    text = relay(start=[0.1, 0.2, 0.05]).to_markdown()
    assert "| C | 0.600 | 0.850 | 0.900 | 0.783 |" in text
    assert "| (untrained) | 0.100 | 0.200 | 0.050 |  |" in text
    assert "- average: 0.783" in text
    assert "- backward transfer: \N{MINUS SIGN}0.125" in text
    assert "- forward transfer: +0.325" in text


def test_compare_has_a_line_a_run():
    joint = ScoreMatrix(["joint"], ["A", "B", "D"], "dice", [[0.9, 0.8, 0.7]])
    lines = compare_markdown({"relay": relay(), "joint": joint}).splitlines()
    assert lines[2] == "| run | average | BWT | FWT | A | B | C | D |"
    assert lines[4] == "| relay | 0.783 | \N{MINUS SIGN}0.125 | \N{EN DASH} | 0.600 | 0.850 | 0.900 | \N{EN DASH} |"
    assert lines[5].startswith("| joint | 0.800 | \N{EN DASH} | \N{EN DASH} | 0.900 | 0.800 | \N{EN DASH} | 0.700")


def test_compare_refuses_none_and_mixed_metrics():
    with pytest.raises(ValueError, match="none"):
        compare_markdown({})
    with pytest.raises(ValueError, match="one common metric"):
        compare_markdown({"a": relay(), "b": relay(metric="hd95")})


def test_write_gives_four_whole_files(tmp_path):
    folder = tmp_path / "new" / "folder"
    paths = write_matrix(relay(), folder, "dice")
    assert sorted(path.name for path in folder.iterdir()) == ["dice.csv", "dice.json", "dice.md", "dice.png"]
    assert set(paths) == set(folder.iterdir())
    assert ScoreMatrix.from_json((folder / "dice.json").read_text(encoding="utf-8")) == relay()
    assert (folder / "dice.md").read_text(encoding="utf-8") == relay().to_markdown()
    with Image.open(folder / "dice.png") as image:
        image.load()
        assert image.format == "PNG"
        assert min(image.size) > 300


def test_a_failed_drawing_writes_nothing(tmp_path, monkeypatch):
    def fail(matrix: ScoreMatrix) -> bytes:
        raise MemoryError

    monkeypatch.setattr(figures, "render_heat_map", fail)
    with pytest.raises(MemoryError):
        write_matrix(relay(), tmp_path, "dice")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_rename_keeps_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_atomically(path, b"old")

    def fail(descriptor: int) -> None:
        raise OSError(28, "no space")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="no space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_matrix_and_its_figures_import_no_torch():
    code = (
        "import sys, relay_core.metrics, relay_core.metrics.matrix as m, relay_core.metrics.compare;"
        "assert 'matplotlib' not in sys.modules and 'scipy' not in sys.modules;"
        "from relay_core.metrics.figures import render_heat_map;"
        "render_heat_map(m.ScoreMatrix(['a'], ['a'], 'dice', [[1.0]]));"
        "assert 'torch' not in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_door_names_what_it_gives():
    for name in relay_core.metrics.__all__:
        assert getattr(relay_core.metrics, name) is not None
    with pytest.raises(AttributeError, match="no_such"):
        relay_core.metrics.no_such  # noqa: B018

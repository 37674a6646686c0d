"""Every script of benchmarks/ works, at toy size: its record has the fields and figures that RESULTS.md is written from."""

import importlib
import json
import math
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUNS = {
    "bundle size": ["MB", "of the checkpoint"],
    "bundle speed": ["seconds", "peak MB"],
    "bundle half": ["Dice, float32", "Dice, half", "difference"],
    "dp": ["epsilon, site 1", "site 1 after site 2", "mean after site 2"],
    "discriminators": ["MB it received", "mean of seen"],
    "export zoo": ["MB", "largest difference"],
    "export precision": ["ms", "fp32 / it", "Dice Domain1", "pixels that differ"],
    "input": ["its own seconds", "when due", "ahead", "ratio"],
    "mutations": ["answers to the attacker", "predict p99 ms", "infer p99 ms", "failed", "API MiB"],
    "page": ["median ms", "longest ms"],
    "predict": ["seconds", "API, MiB above the model", "below it, MiB"],
    "privacy": ["solver, AUC", "all together", "outcome"],
    "serve": ["bare images/s", "HTTP images/s", "ratio", "HTTP p99 ms"],
    "service": ["requests/s", "median ms", "p99 ms"],
    "site": ["median"],
}
"""Script and part -> headings of its table, or of the first."""
ELSEWHERE = {"check_ops", "ops", "relay", "throughput", "train"}
"""Scripts that test_on_gpu.py runs."""
NO_TABLE = {"__init__", "needs", "record", "series", "served", "timing", "trained"}
"""Files that the scripts share."""
ABSENT = {"of the checkpoint", "epsilon, site 1"}
"""Figures that not every row has."""


def test_no_script_is_left_out():
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - NO_TABLE
    assert {words.split()[0] for words in RUNS} | ELSEWHERE == scripts
    steps = [line.split() for line in (ROOT / "benchmarks/gpu.txt").read_text().splitlines() if line[:1] != "#"]
    assert {words[2] for words in steps} == ELSEWHERE


@pytest.mark.filterwarnings("ignore")  # of the exporter and the quantiser, which the commands do not show either
@pytest.mark.parametrize("words", RUNS)
def test_a_script_runs(words, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(ROOT)
    name, *part = words.split()
    path = tmp_path / "record.json"
    importlib.import_module(f"benchmarks.{name}").main([*part, "--toy", "--json", str(path)])
    record = json.loads(path.read_text())
    assert record["benchmark"] == name
    assert record["toy"]
    assert record["complete"]
    assert record["machine"]["cores"] > 0
    assert record["machine"]["cpu"]
    assert record["date"][:2] == "20"
    table = record["tables"][0]
    assert table["rows"]
    assert "TOY SIZES" in (printed := capfd.readouterr().out)
    assert f"| {' | '.join(table['columns'])} |" in printed
    for row in table["rows"]:
        assert list(row) == list(table["columns"])
        for heading in RUNS[words]:
            value = row[heading]
            if isinstance(value, float | int):
                assert math.isfinite(value)
                assert value >= 0 or "difference" in heading or "above" in heading  # memory may be given back
            else:
                assert value or heading in ABSENT, heading

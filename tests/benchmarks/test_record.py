"""What a record says of a run, and how a series deals with steps that fail or take too long."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import needs, record, series
from benchmarks.throughput import union

ROOT = Path(__file__).parents[2]


def measured(content=lambda r: None, argv=()):
    def measure(args, made):
        content(made)

    return record.script("A test.", lambda parser: parser.add_argument("--size", type=int, default=9), measure, {"size": 1})(
        argv
    )


def test_a_record_names_machine_commit_and_date():
    found = measured()
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found["commit"] == (git.stdout.strip() if git.returncode == 0 else None)
    assert found["machine"].keys() >= {"cpu", "cores", "memory_gib", "torch", "python", "gpus"}
    assert found["date"].endswith("+00:00")
    assert found["arguments"] == {"size": 9}
    assert record.told(found).startswith("Commit ")


def test_toy_sizes_win_and_are_said():
    found = measured(argv=["--toy", "--size", "5"])
    assert found["arguments"] == {"size": 1}
    assert "TOY SIZES" in record.told(found)


def test_a_busy_machine_is_never_called_quiet():
    found = measured()
    assert "NOT quiet" in record.told({**found, "quiet": False, "other_work_cores": 1.4})
    assert "1.4 cores" in record.told({**found, "quiet": False, "other_work_cores": 1.4})


def test_a_run_that_is_cut_short_leaves_its_rows(tmp_path):
    def breaks(made):
        made.table("Speed", {"op": "", "ms": ".1f"}).add("copy", 1.25)
        raise KeyboardInterrupt

    path = tmp_path / "record.json"
    with pytest.raises(KeyboardInterrupt):
        measured(breaks, ["--json", str(path)])
    left = json.loads(path.read_text())
    assert left["tables"][0]["rows"] == [{"op": "copy", "ms": 1.25}]
    assert not left["complete"]


def test_outside_a_git_checkout_the_commit_is_the_given_one(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setenv("RELAY_COMMIT", "abc")
    assert record.commit() == {"commit": "abc", "changed": None}


def test_a_missing_figure_is_an_empty_cell(capsys):
    table = record.Table("Speed", {"op": "", "share": ".0%"})
    table.add("copy", None)
    table.add("fill", 0.5)
    assert capsys.readouterr().out.splitlines()[-2:] == ["| copy |  |", "| fill | 50% |"]


def test_steps_that_fail_or_take_too_long_do_not_stop_the_others(tmp_path, monkeypatch):
    package = tmp_path / "benchmarks"
    package.mkdir()
    write = "import sys, pathlib; pathlib.Path(sys.argv[sys.argv.index('--json') + 1]).write_text"
    (package / "__init__.py").touch()
    (package / "bad.py").write_text("raise SystemExit('no such thing')")
    (package / "slow.py").write_text("import time; time.sleep(60)")
    (package / "good.py").write_text(f"{write}({json.dumps(json.dumps(measured()))})")
    (tmp_path / "steps.txt").write_text("# order\nbad 9 bad\nslow 1 slow --size 3\ngood 9 good\n")
    monkeypatch.setattr(series, "ROOT", tmp_path)
    summary = series.main(["--steps", str(tmp_path / "steps.txt"), "--out", str(tmp_path / "out")])
    states = {step["name"]: step["state"] for step in summary["steps"]}
    assert states["bad"].startswith("failed")
    assert states["slow"].startswith("too slow")
    assert states["good"] == "ok"
    assert list(summary["records"]) == ["good"]
    told = (tmp_path / "out/summary.md").read_text()
    assert "no such thing" in told
    assert "`python -m benchmarks.slow --size 3`: too slow" in told
    assert json.loads((tmp_path / "out/summary.json").read_text()) == summary


def test_no_step_begins_after_the_time_of_all(tmp_path):
    (tmp_path / "steps.txt").write_text("one 9 ops\n")
    summary = series.main(["--steps", str(tmp_path / "steps.txt"), "--out", str(tmp_path / "out"), "--within", "1"])
    assert summary["steps"][0]["state"].startswith("left out")


def test_busy_time_counts_what_overlaps_once():
    assert union([(5, 7), (0, 2), (1, 3), (1.5, 1.6)]) == pytest.approx(5)
    assert union([]) == 0


def test_what_is_missing_is_named_with_the_way_to_bring_it(tmp_path):
    (tmp_path / "list.txt").write_text("# none\nnumpy\nno-such-package\n")
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks/needs.py"), str(tmp_path / "list.txt")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "missing here: no-such-package\n" in done.stderr
    assert "pip download --no-deps --dest wheels" in done.stderr
    assert needs.missing(needs.listed(ROOT / "benchmarks/on_gpu.txt")) == []

"""RESULTS.md says of every table when it was made; the scripts understand its commands, and the steps of a series."""

import importlib
import re
import subprocess
from pathlib import Path

import pytest

from benchmarks import record

ROOT = Path(__file__).parents[2]
LINES = (ROOT / "benchmarks/RESULTS.md").read_text().splitlines()
STEPS = [line for name in ("quick.txt", "gpu.txt") for line in (ROOT / "benchmarks" / name).read_text().splitlines()]
COMMANDS = [re.sub(r"[][]|#.*", "", line).split()[2:] for line in LINES if line.startswith("python -m benchmarks.")]
COMMANDS += [[f"benchmarks.{words[0]}", *words[1:]] for words in (line.split()[2:] for line in STEPS if line[:1] != "#")]


def tables():
    """First line of each table, and the first line of words below it."""
    for i, line in enumerate(LINES):
        if line.startswith("|") and not LINES[i - 1].startswith("|"):
            below = next(one for one in LINES[i:] if one and not one.startswith(("|", "<!--")))
            yield pytest.param(below, id=f"line {i + 1}")


@pytest.mark.parametrize("below", list(tables()))
def test_a_table_names_its_commit(below):
    assert re.match(r"(Written|Measured) at commit `[0-9a-f]{7}` \(\d{4}-\d\d-\d\d\)", below)


def test_the_commits_are_there():
    if subprocess.run(["git", "rev-parse", "5b665ab"], cwd=ROOT, capture_output=True, check=False).returncode:
        pytest.skip("the history is not here")
    named = set(re.findall(r"`([0-9a-f]{7})` \((\d{4}-\d\d-\d\d)\)", "\n".join(LINES)))
    for commit, date in named:
        told = ["git", "log", "-1", "--format=%ad", "--date=short", commit]
        assert subprocess.run(told, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip() == date


class Understood(Exception):
    """The arguments were understood."""


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_is_understood(command, monkeypatch):
    def stop(*_):
        raise Understood

    monkeypatch.setattr(record, "Record", stop)
    module, *words = command
    with pytest.raises(Understood):
        importlib.import_module(module).main(words)

"""benchmarks/on_gpu.sh, rehearsed without a GPU and without every package that a machine for it may lack."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

from benchmarks import needs

ROOT = Path(__file__).parents[2]
BLOCK = """
import sys
from importlib.machinery import PathFinder
FOREIGN = {foreign!r}
class Listed:
    find_distributions = staticmethod(PathFinder.find_distributions)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in FOREIGN else PathFinder.find_spec(name, path, target)
sys.meta_path[:] = [Listed() if finder is PathFinder else finder for finder in sys.meta_path]
"""
"""A sitecustomize.py that hides packages."""


LACKS = """
import importlib.metadata as metadata
found = metadata.version
def version(name):
    if name == "pydantic":
        raise metadata.PackageNotFoundError(name)
    return found(name)
metadata.version = version
"""
"""A sitecustomize.py that hides one distribution."""


def rehearse(folder, **variables):
    """Call on_gpu.sh; the records go to `folder/out`, and `folder/sitecustomize.py` runs in every process."""
    given = {
        "PYTHON": sys.executable,
        "PYTHONPATH": str(folder),
        "WHEELS": str(folder / "wheels"),
        "CUDA_VISIBLE_DEVICES": "",
        "RELAY_OPS": "reference",  # whether there is a library or not: none is compiled for its own tests
    }
    command = ["sh", str(ROOT / "benchmarks/on_gpu.sh"), str(folder / "out")]
    return subprocess.run(command, env={**os.environ, **given, **variables}, capture_output=True, text=True, check=False)


def closure(name, found):
    """A distribution and what it requires."""
    name = re.split(r"[^A-Za-z0-9._-]", name)[0].lower().replace("_", "-")
    if name in found or needs.missing([name]):
        return found
    found.add(name)
    for requirement in importlib.metadata.requires(name) or []:
        if "extra ==" not in requirement:
            closure(requirement, found)
    return found


def test_a_rehearsal_measures_everything_with_the_listed_packages_alone(tmp_path):
    here = closure("torch", {name.lower() for name in needs.listed(ROOT / "benchmarks/on_gpu.txt")})
    foreign = {
        module
        for module, owners in importlib.metadata.packages_distributions().items()
        if not {owner.lower().replace("_", "-") for owner in owners} & {name.replace("_", "-") for name in here}
    } - {"relay_core", "services", "benchmarks", "tests"}
    assert foreign > {"fastapi", "celery", "SimpleITK", "typer"}
    (tmp_path / "sitecustomize.py").write_text(BLOCK.format(foreign=foreign))
    out, done = tmp_path / "out", rehearse(tmp_path)
    summary = json.loads((out / "summary.json").read_text()) if (out / "summary.json").is_file() else {"steps": []}
    logs = "\n".join(path.read_text()[-3000:] for path in sorted(out.glob("*.log")))
    assert [step["state"] for step in summary["steps"]] == ["ok"] * 6, done.stderr + logs
    assert done.returncode == 0
    assert "a rehearsal" in done.stderr
    records = summary["records"]
    assert all(record["toy"] and record["complete"] for record in records.values())
    tests, ops, throughput, relay, sanitizer, compared = (
        records[step["name"]]["tables"][0]["rows"] for step in summary["steps"]
    )
    assert [row["result"] for row in tests] == ["ok", "ok"]
    assert re.match(r"tests [1-9]\d*, failures 0, errors 0", tests[1]["what it says"])
    assert {row["op"].split(",")[0].split()[0] for row in ops} == {"bias_act", "epilogue", "upfirdn2d"}
    assert all(row["GB/s"] > 0 and row["copy GB/s"] > 0 for row in ops)
    assert all(row["images/s"] > 0 and 0 <= row["idle"] <= 1 for row in throughput)
    assert [row["after"] for row in relay] == ["Domain1", "Domain2"]
    assert all(row["torch / library"] > 0 for row in compared)
    phases = {row["cpu"]: row["fundus-cpu"] for row in records["iteration"]["tables"][1]["rows"]}
    assert phases.keys() >= {"iteration, second site", "G step", "D step", "path length + R1", "solver step", "replay"}
    assert phases["G step"] + phases["D step"] + phases["solver step"] > 0
    assert {row["check"] for row in sanitizer} == {"memcheck", "racecheck", "initcheck", "synccheck"}
    assert json.loads((out / "throughput.json").read_text()) == records["throughput"]


def test_a_machine_that_lacks_packages_hears_so_first(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(LACKS)
    done = rehearse(tmp_path)
    assert done.returncode == 1
    assert "1 packages are missing here: pydantic" in done.stderr
    assert "--constraint constraints.txt" in done.stderr
    assert not (tmp_path / "out").exists()


def test_wheels_are_used_as_they_lie(tmp_path):
    """What is there as a wheel alone is imported from it: here a torch that is too old, which the script refuses."""
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels/torch-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("torch-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: torch\nVersion: 1.0\n")
    done = rehearse(tmp_path)
    assert done.returncode == 1
    assert "torch 2.11 or later is needed, and never carried: here is 1.0" in done.stderr

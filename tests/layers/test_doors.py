"""Doors and windows: what a package offers stands in its `__init__.py`, and code outside takes nothing else."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import relay_core
import services

ROOT = Path(__file__).parents[2]
GROUND = {"relay_core.errors", "relay_core.events", "relay_core.files", "relay_core.distributed", "relay_core.texts"}
"""Single files that every room stands on: they are their own doors."""
PACKAGES = sorted(
    module.name
    for package in (relay_core, services)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if module.ispkg and ".migrations" not in module.name
)


def module_of(path):
    """`relay_core/engine/train.py` -> `relay_core.engine.train`."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports():
    """(file, line, package that the importing module is in, module imported from, names)."""
    for top in ("relay_core", "services", "benchmarks"):
        for path in sorted((ROOT / top).rglob("*.py")):
            if "migrations" in path.parts:
                continue
            module = module_of(path)
            inside = module if path.name == "__init__.py" else module.rpartition(".")[0]
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in ("relay_core", "services"):
                    yield path, node.lineno, inside, node.module, [alias.name for alias in node.names]
                elif isinstance(node, ast.Import):
                    for alias in node.names:
                        if alias.name.partition(".")[0] in ("relay_core", "services") and "." in alias.name:
                            yield path, node.lineno, inside, alias.name, []


def test_nobody_climbs_through_a_window():
    climbers = []
    for path, line, inside, source, names in imports():
        package = source if source in PACKAGES or source in ("relay_core", "services") else source.rpartition(".")[0]
        own = f"{inside}.".startswith(f"{package}.") or (path.name == "__init__.py" and source.startswith(f"{inside}."))
        if own or source in GROUND or source in ("relay_core", "services"):
            continue
        offered = getattr(importlib.import_module(package), "__all__", []) if source == package else []
        where = f"{path.relative_to(ROOT)}:{line}"
        climbers += [f"{where}: {source} does not offer {name}" for name in names if name not in offered]
        climbers += [f"{where}: import {source}"] if not names else []
    assert not climbers, "\n".join(climbers)


def test_only_the_ground_floor_lies_at_the_root():
    files = {module_of(path) for path in (ROOT / "relay_core").glob("*.py")}
    assert files == GROUND | {"relay_core", "relay_core.__main__"}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_door_opens(package):
    """Each name is there, once; what a type checker sees of a late door is what the door gives."""
    door = importlib.import_module(package)
    offered = getattr(door, "__all__", [])
    assert len(offered) == len(set(offered))
    for name in offered:
        assert getattr(door, name) is not None, name
    tree = ast.parse((ROOT / package.replace(".", "/") / "__init__.py").read_text())
    for block in (node for node in tree.body if isinstance(node, ast.If)):
        seen = {
            alias.asname or alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
        }
        assert seen == set(offered)


@pytest.mark.parametrize("room", ["services.site", "services.api", "services.trainer", "services.client"])
def test_what_a_room_takes_from_late_doors_needs_no_torch(room):
    """The contracts cannot see through a late door: here every name that the room takes is fetched, torch forbidden."""
    taken = {
        (source, name)
        for path, _, inside, source, names in imports()
        for name in names
        if f"{inside}.".startswith(f"{room}.") and source.startswith("relay_core")
    }
    assert taken
    lines = [f"from {source} import {name}" for source, name in sorted(taken)]
    blocked = "import sys\nfor name in ('torch', 'matplotlib', 'scipy', 'onnx'):\n    sys.modules[name] = None\n"
    code = blocked + "\n".join(lines)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

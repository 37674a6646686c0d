"""Commands that other packages add to `relay`."""

import subprocess
import sys
from importlib import metadata
from types import ModuleType

import pytest
import typer


@pytest.fixture
def offer(monkeypatch):
    """Pretend that packages are installed whose entry points have these values."""

    def install(*values):
        def entry_points(*, group):
            assert group == "relay_core.commands"
            return metadata.EntryPoints(metadata.EntryPoint(f"e{i}", value, group) for i, value in enumerate(values))

        monkeypatch.setattr(metadata, "entry_points", entry_points)

    return install


@pytest.fixture
def plugin(monkeypatch):
    """A package with a command `greet`."""
    module = ModuleType("relay_plugin")

    def register(app: typer.Typer) -> None:
        @app.command()
        def greet(name: str) -> None:
            """Say hello."""
            print(f"hello {name}")

    module.register = register
    monkeypatch.setitem(sys.modules, "relay_plugin", module)


def test_a_plugin_adds_a_command(offer, plugin, here):
    offer("relay_plugin:register")
    assert here("greet", "site").stdout == "hello site\n"
    text = here("--help").stdout
    assert "Say hello." in text
    assert "train" in text


def test_without_plugins_there_are_the_core_s_commands(offer, plugin, here):
    offer()
    assert here("greet", "site").returncode == 2
    assert "fundus-cpu" in here("recipes").stdout


def test_a_plugin_without_its_dependencies_is_left_out(offer, plugin, here, monkeypatch):
    broken = ModuleType("relay_broken")

    def register(app):
        raise ImportError("no module named fastapi")

    broken.register = register
    monkeypatch.setitem(sys.modules, "relay_broken", broken)
    offer("relay_not_installed:register", "relay_broken:register", "relay_plugin:register")
    assert here("greet", "site").stdout == "hello site\n"
    done = here("recipes")
    assert (done.returncode, done.stderr) == (0, "")


def test_help_loads_nothing_heavy():
    code = """
import sys
sys.argv = ["relay", "--help"]
from relay_core.cli.app import main
try:
    main()
except SystemExit as end:
    assert not end.code
heavy = {"torch", "numpy", "pydantic", "yaml", "PIL", "matplotlib", "sqlalchemy", "fastapi"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "preflight" in done.stdout

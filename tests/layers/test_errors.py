"""Exit codes: a script that calls `relay` can tell every kind of error from every other."""

import importlib
import pkgutil

import relay_core
import services
from relay_core.errors import RelayError

NO_CODE_OF_THEIR_OWN = {"Refusal", "LeaseLost", "DatabaseError"}
"""Errors within a service, which no command ends with but as any error (1)."""
USAGE = 2
"""What typer leaves with."""


def kinds(error):
    """An error and all that derive from it."""
    return {error}.union(*(kinds(child) for child in error.__subclasses__()))


def test_no_two_errors_share_an_exit_code():
    for package in (relay_core, services):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith(("__main__", ".env")) and ".versions" not in module.name:
                importlib.import_module(module.name)
    ours = [kind for kind in kinds(RelayError) if kind.__module__.partition(".")[0] in ("relay_core", "services")]
    owners: dict[int, list[str]] = {USAGE: ["usage"]}
    for kind in ours:
        if kind.__name__ not in NO_CODE_OF_THEIR_OWN:
            owners.setdefault(kind.exit_code, []).append(kind.__name__)
    assert {code: names for code, names in owners.items() if len(names) > 1} == {}
    assert len(owners) > 12

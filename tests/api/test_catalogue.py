"""The error catalogue is complete, and nothing in it is idle."""

import ast
from pathlib import Path

import services
from relay_core.errors import BundleError
from services.site.errors import CATALOGUE

SERVICES = Path(services.__file__).parent
CORE = SERVICES.parent / "relay_core"


def trees(*folders):
    for folder in folders:
        for path in folder.rglob("*.py"):
            yield path, ast.parse(path.read_text())


def refusals():
    """(place, code) of each `Refusal("code", ...)` and `problem(scope, "code", ...)`."""
    for path, tree in trees(SERVICES):
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            position = {"Refusal": 0, "problem": 1}.get(node.func.id)
            if position is not None and len(node.args) > position and isinstance(node.args[position], ast.Constant):
                yield f"{path.name}:{node.lineno}", node.args[position].value


def error_classes():
    """(place, code) of each exception class that has a code."""
    for path, tree in trees(SERVICES, CORE):
        for node in ast.walk(tree):
            for line in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(line, ast.Assign) and line.targets[0].id == "code" and isinstance(line.value, ast.Constant):
                    yield f"{path.name}:{line.lineno}", line.value.value


def test_every_refusal_and_every_error_has_an_entry():
    found = [*refusals(), *error_classes()]
    assert len(found) > 50
    assert [(place, code) for place, code in found if code not in CATALOGUE] == []
    assert set(CATALOGUE) >= BundleError.CODES


def test_every_entry_is_used():
    literals = {
        node.value
        for path, tree in trees(SERVICES)
        if path.name != "errors.py"
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    used = literals | {code for _, code in error_classes()} | BundleError.CODES
    assert set(CATALOGUE) <= used, set(CATALOGUE) - used


def test_an_entry_is_an_http_error_with_a_title():
    for code, entry in CATALOGUE.items():
        assert 400 <= entry.status < 600, code
        assert entry.title[0].isupper(), code
        assert not entry.title.endswith("."), code

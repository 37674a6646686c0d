"""The tables of `relay jobs`, `models`, `exports`, `imports` and `token list`: nothing that a person goes by is cut."""

from functools import partial

import pytest
from rich.console import Console

from services.client import tables
from services.client.bundles import exports_table, imports_table
from services.client.models import models_table, show_comparison
from services.client.tables import jobs_table, tokens_table

ID = "0123456789abcdef0123456789ab"
LONG = "Universitätsklinikum Sankt Irgendwo an der Donau"


def job(kind, state, **more):
    made = {"created_by": f"{LONG} (3f9c01d2ab)", "created_at": "2026-11-28T17:45:37.1Z", "progress": None}
    return {"id": f"job-{ID}", "kind": kind, "state": state, **made, **more}


JOBS = [
    job("import", "succeeded", progress={"step": 19249484, "steps": 19249484}),
    job("predict_study", "cancelling", progress={"step": 1, "steps": 3}),
    job("train", "queued"),
]
BUNDLE = {"id": f"bundle-{ID}", "size": 123_456_789, "created_at": "2026-11-28T17:45:37Z", "purpose": "evaluate"}
FACTS = {"hop": 12, "site": LONG, "recipient": "f" * 64, "signer": {"name": LONG}}
MODEL = {
    "name": "optic-disc-and-cup", "version": 12, "production": True, "precision": "fp32", "size": 123_456_789,
    "created_at": "2026-11-28T17:45:37Z", "facts": {},
    "proof": {"tests": {f"{LONG} {i}": {"dice": 0.9} for i in range(4)}},
}  # fmt: skip
SHOWN = {
    "jobs": (jobs_table, JOBS, [f"job-{ID}", "succeeded", "cancelling", "predict_study", "100 %", "33 %", "11-28 17:45"]),
    "exports": (exports_table, [{**BUNDLE, "facts": FACTS}], [f"bundle-{ID}", "12", "ffffffff", "123.5", "2026-11-28"]),
    "imports": (
        imports_table, [{**BUNDLE, "state": "quarantined", "facts": FACTS}, {**BUNDLE, "state": "refused", "facts": None}],
        [f"bundle-{ID}", "quarantined", "refused", "evaluate", "12"],
    ),
    "models": (models_table, [MODEL], ["optic-disc-and-cup", "12", "*", "fp32", "123.5", "2026-11-28"]),
    "tokens": (
        partial(tokens_table, now=0),
        [{"id": "3f9c01d2ab", "name": LONG, "role": "operator", "revoked": None, "expires": 9}],
        ["3f9c01d2ab", "operator", "valid until 1970-01-01"],
    ),
    "comparison": (
        show_comparison, {"worse": [], "sites": [{"site": LONG * 2, "current": 0.9, "new": None, "difference": None}]},
        ["0.900", "in production", "difference"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SHOWN)
def test_in_80_columns_only_names_of_people_and_places_are_cut(name, capsys, monkeypatch):
    show, rows, whole = SHOWN[name]
    monkeypatch.setattr(tables, "Console", partial(Console, force_terminal=True, width=80, color_system=None))
    show(rows)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    for text in whole:
        assert any(text in line for line in lines), text


@pytest.mark.parametrize("width", [20, 40])
def test_a_narrower_terminal_cuts_no_state_either(width, capsys, monkeypatch):
    monkeypatch.setattr(tables, "Console", partial(Console, force_terminal=True, width=width, color_system=None))
    jobs_table(JOBS)
    assert "succeeded" in capsys.readouterr().out


@pytest.mark.parametrize("name", SHOWN)
def test_what_goes_to_a_program_is_whole(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    show, rows, whole = SHOWN[name]
    show(rows)
    out = capsys.readouterr().out
    assert LONG in out
    for text in whole:
        assert text in out

"""A seeded thousand of spoilt bundles; `python -m tests.bundle.mutations` makes as many as wanted."""

from relay_core.errors import BundleError
from tests.bundle.mutations import bombard


def test_a_thousand_mutations_are_refused_and_leave_nothing(world, tmp_path):
    tally = bombard(world, tmp_path / "mutations", count=1000, seed=42)
    assert tally.faults == []
    assert sum(tally.codes.values()) == 1000
    cannot_come_from_a_file = {
        "key_missing",
        "key_locked",
        "bundle_incomplete",
        "parent_differs",
        "audit_invalid",
        "release_refused",
    }
    assert set(tally.codes) == BundleError.CODES - cannot_come_from_a_file, "each check has refused something"

"""The hand-off: a signed file that carries a trained model from one hospital to the next. FORMAT.md specifies it."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from relay_core.bundle.audit import (
        AUDIT,
        AUDIT_FORMAT,
        MAX_REASON,
        PERMUTATIONS,
        Gate,
        Policy,
        ReleaseMode,
        Verdict,
        audit_words,
        holm,
        is_reason,
        judge,
    )
    from relay_core.bundle.collected import collected_matrices
    from relay_core.bundle.compare import differences, differences_text
    from relay_core.bundle.container import Progress
    from relay_core.bundle.differential import privacy_words
    from relay_core.bundle.facts import BundleFacts
    from relay_core.bundle.importer import import_bundle
    from relay_core.bundle.keys import KeyFolder
    from relay_core.bundle.provenance import KnownRelays
    from relay_core.bundle.reader import opened
    from relay_core.bundle.release import sign_folder, verify_folder
    from relay_core.bundle.signed_audit import read_audit, sign_audit
    from relay_core.bundle.signed_report import SignedReport, read_report, sign_report
    from relay_core.bundle.statements import read_statement, sign_statement
    from relay_core.bundle.trust import Card, Roster
    from relay_core.bundle.values import MIN_COUNT, day, is_count, is_name, spoken_fingerprint
    from relay_core.bundle.weights import check_networks
    from relay_core.bundle.writer import Provenance, export_bundle
else:
    __getattr__, __dir__, __all__ = lazy_loader.attach(
        __name__,
        [],
        {
            "audit": [
                "AUDIT",
                "AUDIT_FORMAT",
                "MAX_REASON",
                "PERMUTATIONS",
                "Gate",
                "Policy",
                "ReleaseMode",
                "Verdict",
                "audit_words",
                "holm",
                "is_reason",
                "judge",
            ],
            "collected": ["collected_matrices"],
            "compare": ["differences", "differences_text"],
            "container": ["Progress"],
            "differential": ["privacy_words"],
            "facts": ["BundleFacts"],
            "importer": ["import_bundle"],
            "keys": ["KeyFolder"],
            "provenance": ["KnownRelays"],
            "reader": ["opened"],
            "release": ["sign_folder", "verify_folder"],
            "signed_audit": ["read_audit", "sign_audit"],
            "signed_report": ["SignedReport", "read_report", "sign_report"],
            "statements": ["read_statement", "sign_statement"],
            "trust": ["Card", "Roster"],
            "values": ["MIN_COUNT", "day", "is_count", "is_name", "spoken_fingerprint"],
            "weights": ["check_networks"],
            "writer": ["Provenance", "export_bundle"],
        },
    )

"""Privacy audits: what somebody who holds a bundle could find out about the images that its networks were trained on."""

from relay_core.privacy import attacks
from relay_core.privacy.audit import Audit, Pairs
from relay_core.privacy.combined import judged
from relay_core.privacy.copies import copying, map_distances, pixel_distances
from relay_core.privacy.report import audit_text, write_audit
from relay_core.privacy.statistics import Groups

__all__ = [
    "Audit",
    "Groups",
    "Pairs",
    "attacks",
    "audit_text",
    "copying",
    "judged",
    "map_distances",
    "pixel_distances",
    "write_audit",
]

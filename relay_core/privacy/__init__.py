"""Privacy audits: what somebody who holds a bundle could find out about the images that its networks were trained on."""

from relay_core.privacy.audit import Audit, Pairs
from relay_core.privacy.report import audit_text, write_audit

__all__ = ["Audit", "Pairs", "audit_text", "write_audit"]

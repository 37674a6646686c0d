"""Serve the audit log."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response
from sqlalchemy import select

from services.api import pages, schemas
from services.api.deps import Admin, Site
from services.api.docs import refusals, success
from services.api.pages import PageQuery
from services.site import audit
from services.site.db import AuditRecord

router = APIRouter(prefix="/api/v1/audit", tags=["audit"])

_HEAD = {
    "description": "Hash of the newest row of the whole log: note it down.",
    "required": True,
    "schema": {"type": "string"},
}


@router.get("/verification", responses=refusals("forbidden", "audit_broken"))
def verify_audit(site: Site, caller: Admin) -> schemas.AuditVerified:
    """Check the whole chain of the log. That its end was cut off, a head noted down earlier tells, or a signed one."""
    with site.database.read() as session:
        rows, head = audit.verify(session)
    return schemas.AuditVerified(rows=rows, head=head)


@router.get(
    "",
    responses={
        **success(200, "A page of the log.", headers={"Audit-Head": _HEAD}),
        **refusals("forbidden", "cursor_invalid"),
    },
)
def list_audit(
    site: Site,
    caller: Admin,
    paging: PageQuery,
    response: Response,
    action: Annotated[schemas.Words | schemas.Absent, Query(description="Such as job.submit.")] = None,
    subject: Annotated[schemas.Words | schemas.Absent, Query(description="The id of what was changed.")] = None,
) -> schemas.Page[schemas.AuditRecord]:
    """Who did what, newest first. `relay audit verify` checks the chain, against a head noted down earlier."""
    filters = {"action": action, "subject": subject}
    with site.database.read() as session:
        rows, cursor = pages.read(session, site.settings.key, AuditRecord, paging, filters, [AuditRecord.seq])
        head = session.scalars(select(AuditRecord.hash).order_by(AuditRecord.seq.desc()).limit(1)).first()
    response.headers["Audit-Head"] = head or audit.GENESIS
    return schemas.Page(items=[schemas.AuditRecord.model_validate(row) for row in rows], next_cursor=cursor)

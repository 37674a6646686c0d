"""Serve whom this site trusts; a worker, which has the folder of keys, carries changes out."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Response
from sqlalchemy.orm import Session

from services.api import schemas
from services.api.deps import Admin, IdempotencyKey, ServiceParts, Site, Viewer
from services.api.docs import LOCATION, REPLAYED, changes, refusals, success
from services.site import Identity, JobPlan, Refusal, job_plans, jobs, workers
from services.site.db import RosterCopy

router = APIRouter(prefix="/api/v1/keys", tags=["keys"])
previews = APIRouter(prefix="/api/v1/key-previews", tags=["keys"])

_ACCEPTED = success(202, "Accepted: a worker does it.", headers=LOCATION | REPLAYED)
_CODES = ("idempotency_key_missing", "idempotency_key_reused", "queue_full")


@router.get("", responses=refusals())
def list_keys(site: Site, caller: Viewer) -> schemas.Keys:
    """This site's own key, and the sites that it trusts, as a worker last read them."""
    with site.database.read() as session:
        copy = session.get(RosterCopy, 1)
        entries = list(copy.entries) if copy is not None else []
        card = _own_card(session)
    own = next((entry for entry in entries if _is_own(entry)), None)
    trusted = [schemas.TrustedKey(**entry) for entry in entries if not _is_own(entry)]
    return schemas.Keys(
        own=schemas.TrustedKey(**own) if own is not None else None, card=card, trusted=trusted,
        confirmed_at=copy.confirmed_at if copy is not None else None,
    )  # fmt: skip


@previews.post("", responses=changes())
def preview_key(body: Annotated[schemas.TrustRequest, Body()], caller: Viewer) -> schemas.KeyPreview:
    """Say whose a card is, before it is trusted: compare the fingerprint by telephone. A worker checks the card itself."""
    try:
        content = json.loads(body.card)
        name, key = str(content["name"]), str(content["public_key"])
    except (ValueError, TypeError, KeyError):
        raise Refusal("invalid_request", "card: this is not a site's card (card.json)") from None
    return schemas.KeyPreview(name=name[:100], fingerprint=hashlib.sha256(key.encode()).hexdigest())


@router.post("", status_code=202, responses={**_ACCEPTED, **changes(*_CODES)})
def trust_key(
    body: Annotated[schemas.TrustRequest, Body()], key: IdempotencyKey, site: Site, caller: Admin, response: Response
) -> schemas.Job:
    """Trust a site by its card, after comparing its fingerprint by telephone. The job fails where it is no card."""
    plan = job_plans.trust_card(body.card, body.run_id)
    return _submitted(site, caller, plan, key, body.model_dump(mode="json"), response)


@router.post(
    "/{fingerprint}/revoke",
    status_code=202,
    responses={**_ACCEPTED, **refusals("forbidden", "not_found", "conflict", *_CODES)},
)
def revoke_key(
    fingerprint: Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")], key: IdempotencyKey, site: Site, caller: Admin,
    response: Response,
) -> schemas.Job:  # fmt: skip
    """Trust a key no more: what has it anywhere in its history is refused once a worker's heartbeat has carried it out."""
    with site.database.read() as session:
        copy = session.get(RosterCopy, 1)
        known = [entry for entry in (copy.entries if copy else []) if entry["fingerprint"] == fingerprint]
    if not known:
        raise Refusal("not_found", "the site knows no key of this fingerprint")
    if _is_own(known[0]):
        raise Refusal("conflict", "this is the site's own key; a new one is made with: relay keys create")
    return _submitted(site, caller, job_plans.revoke_key(fingerprint), key, {"revoke": fingerprint}, response)


def _submitted(
    site: ServiceParts, caller: Identity, plan: JobPlan, key: str, body: dict[str, Any], response: Response
) -> schemas.Job:
    with site.database.write() as session:
        row, is_new = jobs.submit(
            session, kind="keys", params=plan.params, actor=caller.actor, key=key, body=body,
            queue_limit=site.settings.queue_limit,
        )  # fmt: skip
        job = schemas.Job.model_validate(row)
    if is_new:
        site.doorbell.ring(job.id)
    else:
        response.headers["Idempotency-Replayed"] = "true"
    response.headers["Location"] = f"/api/v1/jobs/{job.id}"
    return job


def _own_card(session: Session) -> str | None:
    told = [row for row in workers.lately(session, workers.FORGET) if row.facts.get("card")]
    return str(max(told, key=lambda row: row.seen_at).facts["card"]) if told else None


def _is_own(entry: dict[str, Any]) -> bool:
    return not entry["added_at"]

"""Carry out what an admin asked for at the API: to trust a card, or to revoke a key. No process and no device is needed.

A worker's heartbeat does it, so that a revocation does not wait for a training that runs.
"""

from __future__ import annotations

import logging
import os
import platform

from sqlalchemy import select

from relay_core.bundle import Card, KeyFolder
from relay_core.errors import BundleError, RelayError
from services.site import Settings, leases, need, trust
from services.site.db import Database, Job

log = logging.getLogger(__name__)


def carry_out(database: Database, settings: Settings, worker: str) -> bool:
    """Carry out the oldest change of keys that waits; return whether there was one that this worker may carry out.

    A worker whose folder of keys is only to be read leaves it to another one.
    """
    if not os.access(settings.keys_folder, os.W_OK):
        return False
    with database.read() as session:
        if session.scalars(select(Job.id).where(Job.state == "queued", Job.kind == "keys").limit(1)).first() is None:
            return False
    with database.write() as session:
        claim = leases.claim(
            session, worker=worker, host=platform.node(), devices=(), lease=settings.lease, key_changes=True
        )
    if claim is None:
        return False
    with database.read() as session:
        job = need(session, Job, claim.job_id)
    error = None
    try:
        _change(database, settings, job)
    except RelayError as refused:
        log.warning("%s: %s", job.id, refused)
        error = {"code": refused.code, "message": str(refused)}
    with database.write() as session:
        leases.finish(session, claim, "failed" if error else "succeeded", error=error)
    return True


def _change(database: Database, settings: Settings, job: Job) -> None:
    """Change the roster in the name of whoever asked.

    Raises:
        BundleError: no card, an unknown key, or a card whose key was revoked after somebody asked to trust it.
        Refusal: `volume_away`.
    """
    with database.read() as session:
        trust.require_keys(session, settings.keys_folder)
    folder = KeyFolder(settings.keys_folder)
    with trust.changing(database, settings.keys_folder, job.created_by), folder.changing() as roster:
        if "revoke" in job.params:
            roster.revoke(job.params["revoke"])
            return
        card = Card.from_json(job.params["card"].encode(), "the card")
        known = roster.of(card.fingerprint)
        if known is not None and (known.revoked_at or 0.0) > job.created_at:
            raise BundleError("signer_revoked", f"the key of {card.name} was revoked after this was asked for; ask again")
        roster.trust(card, job.params["run"])

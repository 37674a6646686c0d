"""Bring the database up to date: before the API serves, or by `relay migrate` where the API may not change tables."""

from __future__ import annotations

from sqlalchemy.exc import OperationalError

import relay_core
from services.site import Refusal
from services.site.db import Database, DatabaseError, migrate, roles


def bring_up_to_date(database: Database) -> None:
    """Migrate the database to this version's tables; nothing is done where it has them.

    Raises:
        Refusal: `not_ready` where a later version has migrated it already.
        DatabaseError: the database cannot be opened, or its user may not migrate it.
    """
    try:
        current = migrate.current(database)
    except OperationalError as error:
        reason = f"{error.orig}".strip().splitlines()[0]
        raise DatabaseError(
            f"{database.url!r} cannot be opened: {reason}; start it, or correct RELAY_DATABASE_URL"
        ) from error
    if current not in {None, *migrate.known()}:
        raise Refusal(
            "not_ready",
            f"the database is at revision {current}, which version {relay_core.__version__} does not know: a later version "
            "migrated it; run that one, or restore the backup from before the upgrade",
        )
    if current == migrate.head():
        return
    with roles.owners_work(database, "relay migrate"):
        migrate.upgrade(database)

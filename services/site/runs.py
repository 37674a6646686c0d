"""Register run files at a site: a run file is what all sites of a relay share, and its digest is the run's id."""

from __future__ import annotations

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from relay_core.config import RunFile, parse_run, strategy_facts
from relay_core.errors import RunFileError
from services.site import audit
from services.site.db import Run
from services.site.errors import Refusal

MAX_NAME = 100
"""Largest number of characters in a site's name."""
MAX_STRATEGY = 50
"""Largest number of characters in a strategy's name, which a plug-in may choose."""


def register(session: Session, text: str, name: str, actor: str) -> tuple[Run, bool]:
    """Read and keep a short run file in one call; a long one would hold the transaction while it is read."""
    return keep(session, read(text, name), actor)


def read(text: str, name: str) -> Run:
    """Parse and check a run file; return the row to keep. A long one takes seconds: read it outside of a transaction.

    Raises:
        RunFileError: the file is not valid, or no service may run it; the message names the line and key, or the site.
        Refusal: `path_escape` where a setting names a file by an absolute path or through `..`.
    """
    run = parse_run(text, name)
    if outside := run.outside_paths():
        raise Refusal("path_escape", f"{name}: paths must be relative and without ..: {', '.join(outside)}")
    names = {task_id: run.site(task_id).name for task_id in run.all_ids}
    for task_id, site_name in names.items():
        if len(site_name) > MAX_NAME or not site_name.isprintable():
            rule = f"a task_name has at most {MAX_NAME} characters, none of them a control character"
            raise RunFileError(f"{name}: site {task_id}: {rule}")
    sites = run.sites()
    if len(sites[0].mode) > MAX_STRATEGY:
        raise RunFileError(f"{name}: a strategy's name has at most {MAX_STRATEGY} characters here")
    for site in sites:
        site.require_consistent()
        if site.facts.holds_real_images:
            raise RunFileError(
                f"{name}: strategy {site.strategy.name} keeps real images in its checkpoints, which may not leave their "
                "machine: the service does not run it; relay train does, for a study on one machine"
            )
        if not site.facts.in_service:
            raise RunFileError(
                f"{name}: strategy {site.strategy.name} states that a service may not run it: use relay train"
            )
    if len({site.mode for site in sites}) > 1:
        raise RunFileError(f"{name}: the sites of one run need the same strategy")
    return Run(
        id=run.digest,
        name=name,
        content=run.canonical(),
        strategy=sites[0].mode,
        sites=[{"task_id": i, "name": names[i], "trained": i in run.task_ids} for i in run.all_ids],
    )


def keep(session: Session, row: Run, actor: str) -> tuple[Run, bool]:
    """Add the row that `read` made, unless the run is registered; return the kept row and whether it is new."""
    existing = session.get(Run, row.id)
    if existing is not None:
        return existing, False
    try:
        with session.begin_nested():
            session.add(row)
    except IntegrityError:  # PostgreSQL: another process committed the same run meanwhile
        return session.get_one(Run, row.id), False
    audit.record(session, actor, "run.register", row.id, name=row.name)
    return row, True


def require_may_run(row: Run) -> None:
    """Refuse to train a run whose strategy is not for a service.

    Raises:
        Refusal: `invalid_request`.
        RunFileError: the strategy is not known here, or states no facts.
    """
    facts = strategy_facts(row.strategy)
    if facts.holds_real_images or not facts.in_service:
        raise Refusal(
            "invalid_request", f"the strategy of run {row.name}, {row.strategy}, is not one that a service may run"
        )


def require_no_images(row: Run) -> None:
    """Refuse to hand out a checkpoint of a run whose strategy keeps images of patients.

    Raises:
        Refusal: `real_images`.
        RunFileError: the strategy is not known here, or does not state whether it keeps any.
    """
    if strategy_facts(row.strategy).holds_real_images:
        raise Refusal("real_images", f"the checkpoints of strategy {row.strategy} hold images of patients")


def run_file(row: Run) -> RunFile:
    """Parse the run file that a row keeps."""
    return parse_run(row.content, row.name)

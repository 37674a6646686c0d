"""Models that are served: versions of a name, and which of them is in production.

Every function works in the caller's transaction. A version is made by an export job here, from weights that were verified;
no ONNX file comes from anywhere else.
"""

from __future__ import annotations

from typing import Any, Literal, cast

from sqlalchemy import func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from relay_core.config import Task
from relay_core.inference import SCORE
from services.site import artifacts, audit
from services.site.db import Job, Model, ModelName, Promotion
from services.site.errors import Refusal

FILE = "model.onnx"
MEDIA_TYPE = "application/vnd.onnx"
Precision = Literal["fp32", "fp16", "int8"]
EQUAL = 1e-4
"""Dice, or accuracy, by which two models may differ and still count as equally good."""


def publish(session: Session, job: Job, said: dict[str, Any], file: tuple[str, int, str]) -> Model:
    """A proved model becomes the next version of its name.

    Args:
        session: in the transaction that ends the job.
        job: the export.
        said: {proof, facts} of the exported model.
        file: digest, size and media type of its bytes.
    """
    name = str(job.params["name"])
    row = Model(
        name=name, version=_next_version(session, name), precision=job.params["precision"], run_id=job.run_id,
        checkpoint_id=job.checkpoint_id, job_id=job.id, digest=file[0], facts=said, created_by=job.created_by,
    )  # fmt: skip
    artifacts.keep(session, *file)
    session.add(row)
    session.flush()
    artifacts.attach(session, row.id, FILE, *file)
    audit.record(session, job.created_by, "model.publish", row.id, name=name, version=row.version, digest=row.digest)
    return row


def _next_version(session: Session, name: str) -> int:
    """A number that the name never had; of two exports that end together the second waits for the first."""
    insert = (postgresql if session.get_bind().dialect.name == "postgresql" else sqlite).insert(ModelName)
    again = insert.values(name=name, last=1).on_conflict_do_update(
        index_elements=["name"], set_={"last": ModelName.last + 1}
    )
    return int(session.scalars(again.returning(ModelName.last)).one())


def version(session: Session, name: str, wanted: int | None = None, *, hold: bool = False) -> Model:
    """A version of a model; without a number the one in production; with `hold` nobody else changes it in this transaction.

    Raises:
        Refusal: `not_found`.
    """
    if wanted is None:
        current = production(session, name)
        if current is None:
            known = session.scalar(select(func.count()).where(Model.name == name))
            what = "has no version in production: promote one" if known else "is not known here"
            raise Refusal("not_found", f"model {name} {what}")
        wanted = current.version
    found = select(Model).where(Model.name == name, Model.version == wanted)
    row = session.scalars(found.with_for_update() if hold else found).first()
    if row is None:
        raise Refusal("not_found", f"model {name} has no version {wanted}")
    return row


def production(session: Session, name: str) -> Promotion | None:
    """The last change of what is in production."""
    last = select(Promotion).where(Promotion.name == name).order_by(Promotion.number.desc()).limit(1)
    return session.scalars(last).first()


def in_production(session: Session) -> dict[str, int]:
    """Name -> version in production, of all models."""
    newest = select(Promotion.name, func.max(Promotion.number).label("number")).group_by(Promotion.name).subquery()
    same = (Promotion.name == newest.c.name) & (Promotion.number == newest.c.number)
    return dict(session.execute(select(Promotion.name, Promotion.version).join(newest, same)).tuples().all())


def compare(new: Model, current: Model | None) -> dict[str, Any]:
    """Dice per sample, or of classifiers accuracy, on each test set, of a version and of the one in production.

    Returns:
        {metric, sites: [{site, current, new, difference}], worse: [site]}; a test set that only the current one was proved
        on counts as worse, because nobody knows; so does every one where one of the two is a classifier, and one is not.
    """
    ours, theirs = _scores(new), _scores(current) if current is not None else {}
    comparable = current is None or task_of(current) == task_of(new)
    sites: list[dict[str, Any]] = []
    for site in dict.fromkeys([*theirs, *ours]):
        before, after = theirs.get(site), ours.get(site)
        difference = round(after - before, 6) if before is not None and after is not None and comparable else None
        sites.append({"site": site, "current": before, "new": after, "difference": difference})
    worse = [
        row["site"] for row in sites
        if row["current"] is not None and (row["difference"] is None or row["difference"] < -EQUAL)
    ]  # fmt: skip
    return {"metric": SCORE[task_of(new)], "sites": sites, "worse": worse}


def task_of(row: Model) -> Task:
    """What a version was trained for."""
    return cast(Task, row.facts["facts"].get("task", "segmentation"))


def _scores(row: Model) -> dict[str, float]:
    return {site: found[SCORE[task_of(row)]] for site, found in row.facts["proof"]["tests"].items()}


def promote(session: Session, name: str, wanted: int, actor: str, reason: str | None, action: str = "promote") -> Promotion:
    """Put a version into production.

    Raises:
        Refusal: `not_found`; `conflict` where it is there already, or somebody promoted at the same moment;
            `reason_missing` where it is worse than the current one on a test set, and nobody says why.
    """
    row, last = version(session, name, wanted, hold=True), production(session, name)
    if last is not None and last.version == wanted:
        raise Refusal("conflict", f"version {wanted} of {name} is in production already")
    compared = compare(row, version(session, name, last.version) if last else None)
    if compared["worse"] and not (reason or "").strip():
        raise Refusal(
            "reason_missing",
            f"version {wanted} is worse than version {last.version if last else '-'} on {', '.join(compared['worse'])}, or "
            "was not tested there: give a reason",
            extra={"comparison": compared},
        )
    made = Promotion(
        name=name, number=last.number + 1 if last else 1, version=wanted, actor=actor, reason=reason, comparison=compared
    )
    try:
        with session.begin_nested():
            session.add(made)
    except IntegrityError:
        raise Refusal(
            "conflict", f"somebody changed what is in production of {name} at the same moment; look again"
        ) from None
    audit.record(
        session, actor, f"model.{action}", row.id, name=name, version=wanted, reason=reason, worse=compared["worse"]
    )
    session.refresh(made)
    return made


def roll_back(session: Session, name: str, actor: str, reason: str) -> Promotion:
    """Back to the version that was in production before the last change. Raises Refusal `not_found`, `conflict`."""
    last = production(session, name)
    if last is None:
        raise Refusal("conflict", f"model {name} has nothing in production")
    before = session.get(Promotion, (name, last.number - 1))
    if before is None:
        raise Refusal("conflict", f"version {last.version} of {name} is the first that was promoted: nothing was before it")
    return promote(session, name, before.version, actor, reason, "rollback")


def delete(session: Session, name: str, number: int, actor: str) -> None:
    """Delete a version. Raises Refusal `not_found`, `in_use` where it is in production, or a rollback would want it."""
    row, last = version(session, name, number, hold=True), production(session, name)
    before = session.get(Promotion, (name, last.number - 1)) if last else None
    if number in (last.version if last else None, before.version if before else None):
        raise Refusal("in_use", f"version {number} of {name} is in production, or was before: a rollback would want it")
    artifacts.detach(session, row.id)
    session.delete(row)
    audit.record(session, actor, "model.delete", row.id, name=name, version=number, digest=row.digest)

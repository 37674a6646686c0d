"""Register the models that are served: the versions of each name, and which of them is in production.

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
from services.site import artifacts, audit, trust
from services.site.db import Job, Model, ModelName, Promotion
from services.site.errors import Refusal

FILE = "model.onnx"
MEDIA_TYPE = "application/vnd.onnx"
Precision = Literal["fp32", "fp16", "int8"]
EQUAL = 1e-4
"""Difference in Dice, or in accuracy, up to which two models count as equally good."""


def publish(session: Session, job: Job, said: dict[str, Any], file: tuple[str, int, str]) -> Model:
    """Register a proved model as the next version of its name.

    Args:
        session: in the transaction that ends the job.
        job: the export job.
        said: {proof, facts}: how the exported model was proved, and what it states about itself.
        file: digest, size in bytes and media type of the ONNX file in the store.
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
    """Return a number that the name never had; of two exports that end together the second waits for the first."""
    insert = (postgresql if session.get_bind().dialect.name == "postgresql" else sqlite).insert(ModelName)
    upsert = insert.values(name=name, last=1).on_conflict_do_update(
        index_elements=["name"], set_={"last": ModelName.last + 1}
    )
    return int(session.scalars(upsert.returning(ModelName.last)).one())


def version(session: Session, name: str, wanted: int | None = None, *, hold: bool = False) -> Model:
    """Return a version of a model: number `wanted`, or without a number the one in production.

    With `hold` the row stays locked until the transaction ends.

    Raises:
        Refusal: `not_found` where there is no such version, or none is in production.
    """
    if wanted is None:
        current = production(session, name)
        if current is None:
            version_count = session.scalar(select(func.count()).where(Model.name == name))
            problem = "has no version in production: promote one" if version_count else "is not known here"
            raise Refusal("not_found", f"model {name} {problem}")
        wanted = current.version
    query = select(Model).where(Model.name == name, Model.version == wanted)
    row = session.scalars(query.with_for_update() if hold else query).first()
    if row is None:
        raise Refusal("not_found", f"model {name} has no version {wanted}")
    return row


def production(session: Session, name: str) -> Promotion | None:
    """Return the last promotion of a model, which says what is in production; None where nothing ever was."""
    last = select(Promotion).where(Promotion.name == name).order_by(Promotion.number.desc()).limit(1)
    return session.scalars(last).first()


def in_production(session: Session) -> dict[str, int]:
    """Return name -> number of the version in production, for all models that have one."""
    newest = select(Promotion.name, func.max(Promotion.number).label("number")).group_by(Promotion.name).subquery()
    is_newest = (Promotion.name == newest.c.name) & (Promotion.number == newest.c.number)
    return dict(session.execute(select(Promotion.name, Promotion.version).join(newest, is_newest)).tuples().all())


def compare(new: Model, current: Model | None) -> dict[str, Any]:
    """Compare a version with the one in production on each test set: by Dice per sample, or for classifiers by accuracy.

    Returns:
        {metric, sites: [{site, current, new, difference}], worse: [site]}; a test set that only the current one was proved
        on counts as worse, because nobody knows; so does every test set where just one of the two is a classifier.
    """
    new_scores, current_scores = _scores(new), _scores(current) if current is not None else {}
    comparable = current is None or task_of(current) == task_of(new)
    sites: list[dict[str, Any]] = []
    for site in dict.fromkeys([*current_scores, *new_scores]):
        before, after = current_scores.get(site), new_scores.get(site)
        difference = round(after - before, 6) if before is not None and after is not None and comparable else None
        sites.append({"site": site, "current": before, "new": after, "difference": difference})
    worse = [
        row["site"] for row in sites
        if row["current"] is not None and (row["difference"] is None or row["difference"] < -EQUAL)
    ]  # fmt: skip
    return {"metric": SCORE[task_of(new)], "sites": sites, "worse": worse}


def task_of(row: Model) -> Task:
    """Return the task that a version was trained for, such as segmentation."""
    return cast(Task, row.facts["facts"].get("task", "segmentation"))


def _scores(row: Model) -> dict[str, float]:
    return {site: scores[SCORE[task_of(row)]] for site, scores in row.facts["proof"]["tests"].items()}


def promote(session: Session, name: str, wanted: int, actor: str, reason: str | None, action: str = "promote") -> Promotion:
    """Put a version into production.

    Raises:
        Refusal: `not_found`; `conflict` where it is there already, or somebody promoted at the same moment;
            `reason_missing` where it is worse than the current one on a test set, and no reason is given; `signer_revoked`
            or `signer_unknown` where its weights came in a bundle of a key that is trusted no more.
    """
    row, last = version(session, name, wanted, hold=True), production(session, name)
    trust.require_line(session, row.checkpoint_id)
    if last is not None and last.version == wanted:
        raise Refusal("conflict", f"version {wanted} of {name} is in production already")
    comparison = compare(row, version(session, name, last.version) if last else None)
    if comparison["worse"] and not (reason or "").strip():
        raise Refusal(
            "reason_missing",
            f"version {wanted} is worse than version {last.version if last else '-'} on {', '.join(comparison['worse'])}, "
            "or was not tested there: give a reason",
            extra={"comparison": comparison},
        )
    promotion = Promotion(
        name=name, number=last.number + 1 if last else 1, version=wanted, actor=actor, reason=reason, comparison=comparison
    )
    try:
        with session.begin_nested():
            session.add(promotion)
    except IntegrityError:
        raise Refusal(
            "conflict", f"somebody changed what is in production of {name} at the same moment; look again"
        ) from None
    audit.record(
        session, actor, f"model.{action}", row.id, name=name, version=wanted, reason=reason, worse=comparison["worse"]
    )
    session.refresh(promotion)
    return promotion


def roll_back(session: Session, name: str, actor: str, reason: str) -> Promotion:
    """Promote again the version that was in production before the last promotion. Raises Refusal `not_found`, `conflict`."""
    last = production(session, name)
    if last is None:
        raise Refusal("conflict", f"model {name} has nothing in production")
    previous = session.get(Promotion, (name, last.number - 1))
    if previous is None:
        raise Refusal("conflict", f"version {last.version} of {name} is the first that was promoted: nothing was before it")
    return promote(session, name, previous.version, actor, reason, "rollback")


def delete(session: Session, name: str, number: int, actor: str) -> None:
    """Delete a version. Raises Refusal `not_found`, or `in_use` where it is in production or a rollback would want it."""
    row, last = version(session, name, number, hold=True), production(session, name)
    previous = session.get(Promotion, (name, last.number - 1)) if last else None
    if number in (last.version if last else None, previous.version if previous else None):
        raise Refusal("in_use", f"version {number} of {name} is in production, or was before: a rollback would want it")
    artifacts.detach(session, row.id)
    session.delete(row)
    audit.record(session, actor, "model.delete", row.id, name=name, version=number, digest=row.digest)

"""Prove that the site's volumes are mounted, so that nothing is written beneath a mount point while one is away.

A volume that the site writes to holds a mark, the file `.relay-volume` with the site's id, and the database knows that it
was marked. The folder of images is mounted read-only: it counts as there while a registered data set's folder is there.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from relay_core.errors import RelayError
from services.site import marks
from services.site.artifacts import ArtifactStore
from services.site.db import Artifact, Database, Dataset, Volume, new_id
from services.site.errors import Refusal
from services.site.settings import Settings

WRITTEN = ("artifacts", "work")
"""Names of the volumes that are marked, as jobs write to them."""
ALL = (*WRITTEN, "data")
_LOCK = 0x766F6C756D65  # "volume": PostgreSQL's advisory lock of the one who marks


def folder_of(settings: Settings, name: str) -> Path:
    """Return the folder of the volume `name`."""
    return {"artifacts": settings.artifact_folder, "work": settings.work_folder, "data": settings.data_folder}[name]


def is_marked(folder: Path) -> bool:
    """Return whether a folder holds a mark: the quick proof, without the database, that something is mounted there."""
    return marks.is_marked(folder)


def away(database: Database, settings: Settings, *names: str) -> dict[str, str]:
    """Return what is wrong with each of the volumes `names` that is not there: name -> what and what to do.

    A volume that this site never used is marked first.
    """
    with database.read() as session:
        known = {row.name: row.site for row in session.scalars(select(Volume))}
        problems = {"data": _data_away(session, settings)} if "data" in names else {}
    for name in [name for name in names if name in WRITTEN]:
        try:
            if name not in known:
                with database.write() as session:
                    known |= _mark_first(session, settings, name)
            problems[name] = _problem(folder_of(settings, name), known.get(name))
        except OSError as error:
            problems[name] = f"it cannot be marked: {error.strerror}"
    return {name: f"the volume `{name}` is away: {problem}" for name, problem in problems.items() if problem}


def marks_away(session: Session, settings: Settings, way_out: str) -> dict[str, str]:
    """Return what is wrong with each volume that the database knows and that is not there, as `away`; nothing is marked."""
    rows = session.execute(select(Volume.name, Volume.site)).all()
    problems = {name: _problem(folder_of(settings, name), site, way_out) for name, site in rows}
    return {name: f"the volume `{name}` is away: {problem}" for name, problem in problems.items() if problem}


def adopt(session: Session, settings: Settings, name: str) -> None:
    """Mark a volume as this site's, whatever it held before: an administrator says that it is the right one."""
    row = session.get(Volume, name)
    if row is None:
        row = Volume(name=name, site=_known_site(session) or new_id("site"))
        session.add(row)
        session.flush()
    marks.write(folder_of(settings, name) / marks.VOLUME, site=row.site)


def _problem(folder: Path, site: str | None, way_out: str = "relay artifacts confirm --adopt") -> str | None:
    mark = _site_in(folder)
    if site is not None and mark == site:
        return None
    if mark:
        return f"another site's is mounted there; mount this site's, or take it over: {way_out}"
    return f"its mark is not there; mount it, or where it is the right one: {way_out}"


def _site_in(folder: Path) -> str | None:
    """Return the site id that a folder's mark holds; None without a mark, "" where it cannot be read."""
    mark = marks.read(folder / marks.VOLUME)
    return None if mark is None else str(mark.get("site", ""))


def _mark_first(session: Session, settings: Settings, name: str) -> dict[str, str]:
    """Mark a volume that this database has not marked yet, if it is new or holds what the database knows of it."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    row = session.get(Volume, name)
    if row is not None:
        return {name: row.site}
    folder = folder_of(settings, name)
    mark = _site_in(folder)
    if name == "artifacts":
        newest = session.scalars(select(Artifact).order_by(Artifact.created_at.desc()).limit(1)).first()
        ours = ArtifactStore(folder).path(newest.digest).is_file() if newest else mark is None or _is_empty(folder)
    else:
        ours = mark is None or mark == _known_site(session) or _is_empty(folder)
    if not ours or mark == "":
        return {}
    site = _known_site(session) or mark or new_id("site")
    marks.write(folder / marks.VOLUME, site=site)
    session.add(Volume(name=name, site=site))
    return {name: site}


def _known_site(session: Session) -> str | None:
    return session.scalar(select(Volume.site).limit(1))


def _is_empty(folder: Path) -> bool:
    return all(path.name.startswith(".") for path in folder.iterdir())


def _data_away(session: Session, settings: Settings) -> str | None:
    paths = session.scalars(select(Dataset.path)).all()
    for path in paths:
        try:
            if next((settings.data_folder / path).iterdir(), None) is not None:
                return None
        except OSError:
            continue
    return f"none of the {len(paths)} registered data sets' folders holds a file; mount the images" if paths else None


@contextmanager
def pinned(folder: Path) -> Iterator[Path]:
    """Give a path to the marked volume in `folder` that leads to it, and nowhere else, also where it is unmounted meanwhile.

    So nothing is written beneath the mount point, however shortly after the look at the mark. (Elsewhere than on Linux the
    path is the folder's own.)

    Raises:
        Refusal: `volume_away`: the folder holds no mark.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        by_handle = Path(f"/proc/{os.getpid()}/fd/{handle}")
        place = by_handle if by_handle.is_dir() else folder
        if not marks.is_marked(place):
            raise Refusal("volume_away", f"the volume in {folder.name} is away: its mark is not there; mount it")
        yield place
    finally:
        os.close(handle)


@contextmanager
def locked(home: Path) -> Iterator[None]:
    """Hold the lock of an embedded site's folder; the kernel frees it however this process ends.

    Raises:
        RelayError: another process serves the site, or restores it.
    """
    home.mkdir(parents=True, exist_ok=True)
    with (home / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RelayError(f"another relay up serves {home}; stop it, or choose another --home") from None
        yield

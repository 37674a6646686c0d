"""Which studies two folders hold, and whether their names can stand beside those of other hospitals."""

from __future__ import annotations

import contextlib
import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from relay_core.errors import DataError, Problem
from relay_core.preparation.volumes import SUFFIXES, stem_of, suffix_of

TABLE = "meta.txt"
_BESIDE = (".raw", ".zraw", ".raw.gz", ".txt", ".csv", ".json", ".md")
"""Names of files that may lie beside volumes."""
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Source:
    """A study's volume, and its labels."""

    study: str
    image: Path
    labels: Path | None


def list_studies(images: Path, labels: Path | None, prefix: str) -> tuple[list[Source], dict[str, Problem]]:
    """Pair volumes and labels by name.

    Args:
        images: folder of one file or DICOM folder a study.
        labels: the same of its labels; None: there are none.
        prefix: stands before each study's id.

    Returns:
        The studies that are whole, sorted, and what is wrong with the others, by study (or file, where it is none's).

    Raises:
        DataError: a folder is missing, or holds no volume at all.
    """
    volumes, problems = _volumes(images)
    masks, more = _volumes(labels) if labels is not None else ({}, {})
    problems |= more
    found = []
    for study in sorted(volumes.keys() | masks.keys()):
        mine, theirs = volumes.get(study, []), masks.get(study, [])
        problem = _problem(prefix + study, mine, theirs, labels is not None)
        if problem is not None:
            problems[prefix + study] = problem
        else:
            found.append(Source(prefix + study, mine[0], theirs[0] if theirs else None))
    return sorted(found, key=lambda source: source.study), problems


def _problem(study: str, images: list[Path], labels: list[Path], labelled: bool) -> Problem | None:
    """Why these are no study."""
    if not images:
        return Problem(labels[0].name, "is a label volume of a study that has no image volume; add that, or take this away")
    if labelled and not labels:
        return Problem(images[0].name, "has no label volume of its name; add one, or take this away")
    for same in (images, labels):
        if len(same) > 1:
            names = ", ".join(path.name for path in same)
            return Problem(same[1].name, f"stands for a study that has more than one volume ({names}); leave one")
    if not _SAFE.fullmatch(study):
        return Problem(images[0].name, "names no study: rename it with letters, digits, '.', '_' and '-', 100 at most")
    return None


def _volumes(folder: Path) -> tuple[dict[str, list[Path]], dict[str, Problem]]:
    """Paths by study, and what is no volume."""
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; give one with a volume a study")
    found: dict[str, list[Path]] = {}
    problems = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or (path.is_file() and path.name.lower().endswith(_BESIDE)):
            continue
        if path.is_dir() or suffix_of(path):
            found.setdefault(stem_of(path), []).append(path)
        else:
            message = f"is of an unsupported type; give {', '.join(SUFFIXES)} or a folder of DICOM, or take it away"
            problems[path.name] = Problem(path.name, message)
    if not found:
        raise DataError(f"{folder} holds no volume; give a file a study ({', '.join(SUFFIXES)}), or a folder of DICOM")
    return found, problems


def studies_beside(out: Path) -> dict[str, str]:
    """Study ids that stand in the tables of the folders beside `out`, with the folder's name."""
    found: dict[str, str] = {}
    for table in sorted(out.absolute().parent.glob(f"*/{TABLE}")):
        if table.parent.resolve() != out.resolve():
            found.update(dict.fromkeys(_ids(table), table.parent.name))
    return found


def _ids(table: Path) -> Iterator[str]:
    opened = table.open(encoding="utf-8-sig", errors="replace", newline="")
    with contextlib.suppress(csv.Error), opened as file:  # a neighbour's broken table is the neighbour's
        for row in csv.DictReader(file, skipinitialspace=True):
            if row.get("study_id"):
                yield row["study_id"].strip()

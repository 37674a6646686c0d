"""Find the studies in a folder of images and one of labels, and the study ids that other hospitals' folders use."""

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
"""Endings of files that may lie beside volumes and are not volumes."""
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Source:
    """The volume of a study and its labels, as files or DICOM folders."""

    study: str
    image: Path
    labels: Path | None


def list_studies(images: Path, labels: Path | None, prefix: str) -> tuple[list[Source], dict[str, Problem]]:
    """Pair volumes and labels by name.

    Args:
        images: folder with one file or DICOM folder for each study.
        labels: folder of the label volumes, laid out alike; None: there are no labels.
        prefix: text that is put before each study's id.

    Returns:
        The usable studies, sorted by id, and the problems of the others by study id (or by file name, where a file
        belongs to no study).

    Raises:
        DataError: if a folder is missing, or holds no volume at all.
    """
    volumes, problems = _list_volumes(images)
    masks, label_problems = _list_volumes(labels) if labels is not None else ({}, {})
    problems |= label_problems
    sources = []
    for study in sorted(volumes.keys() | masks.keys()):
        image_paths, label_paths = volumes.get(study, []), masks.get(study, [])
        problem = _study_problem(prefix + study, image_paths, label_paths, labels is not None)
        if problem is not None:
            problems[prefix + study] = problem
        else:
            sources.append(Source(prefix + study, image_paths[0], label_paths[0] if label_paths else None))
    return sorted(sources, key=lambda source: source.study), problems


def _study_problem(study: str, images: list[Path], labels: list[Path], labelled: bool) -> Problem | None:
    """Return why these volumes do not make up a study that can be used, or None if they do."""
    if not images:
        return Problem(labels[0].name, "is a label volume of a study that has no image volume; add that, or take this away")
    if labelled and not labels:
        return Problem(images[0].name, "has no label volume of its name; add one, or take this away")
    for paths in (images, labels):
        if len(paths) > 1:
            names = ", ".join(path.name for path in paths)
            return Problem(paths[1].name, f"stands for a study that has more than one volume ({names}); leave one")
    if not _SAFE.fullmatch(study):
        return Problem(images[0].name, "names no study: rename it with letters, digits, '.', '_' and '-', 100 at most")
    return None


def _list_volumes(folder: Path) -> tuple[dict[str, list[Path]], dict[str, Problem]]:
    """Return study -> paths of its volumes, and file name -> problem of everything that is no volume."""
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; give one with a volume a study")
    paths_of_study: dict[str, list[Path]] = {}
    problems = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or (path.is_file() and path.name.lower().endswith(_BESIDE)):
            continue
        if path.is_dir() or suffix_of(path):
            paths_of_study.setdefault(stem_of(path), []).append(path)
        else:
            message = f"is of an unsupported type; give {', '.join(SUFFIXES)} or a folder of DICOM, or take it away"
            problems[path.name] = Problem(path.name, message)
    if not paths_of_study:
        raise DataError(f"{folder} holds no volume; give a file a study ({', '.join(SUFFIXES)}), or a folder of DICOM")
    return paths_of_study, problems


def studies_beside(out: Path) -> dict[str, str]:
    """Return study id -> folder name for the studies in the tables of the folders beside `out`."""
    folder_of_study: dict[str, str] = {}
    for table in sorted(out.absolute().parent.glob(f"*/{TABLE}")):
        if table.parent.resolve() != out.resolve():
            folder_of_study.update(dict.fromkeys(_study_ids(table), table.parent.name))
    return folder_of_study


def _study_ids(table: Path) -> Iterator[str]:
    opened = table.open(encoding="utf-8-sig", errors="replace", newline="")
    with contextlib.suppress(csv.Error), opened as file:  # a broken table beside `out` is another hospital's concern
        for row in csv.DictReader(file, skipinitialspace=True):
            if row.get("study_id"):
                yield row["study_id"].strip()

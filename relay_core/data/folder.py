"""Any segmentation set: a folder of images, a folder of masks."""

from __future__ import annotations

import csv
import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from relay_core.config import FolderKwargs
from relay_core.data.pairs import SPLITS, Layout, Listing, Pair, Split, data_error, list_files, match
from relay_core.errors import DataError, Problem
from relay_core.imaging import stem_of


@dataclass(frozen=True)
class _Row:
    number: int
    key: str
    split: str
    subject: str | None
    mine: bool


class FolderLayout(Layout):
    """`{image,mask}` split by a CSV file or by patient, or `{train,test}/{image,mask}`."""

    expected = "{image,mask}/* or {train,test}/{image,mask}/* (image_dir and mask_dir rename them)"

    def list_pairs(self, folder: Path, kwargs: FolderKwargs, split: Split) -> Listing:
        """List one split.

        Raises:
            DataError: the folders are not there, or the split file cannot be used.
        """
        if not (folder / kwargs.image_dir).is_dir() and any((folder / s / kwargs.image_dir).is_dir() for s in SPLITS):
            return self._list_split_folders(folder, kwargs, split)
        images, masks, problems = self._files(folder, folder, kwargs)
        subjects = _subjects(images, kwargs, problems)
        if kwargs.split_file is None:
            sides = split_subjects(subjects.values(), kwargs.test_share, kwargs.split_seed)
            side_of: dict[str, str] = {stem: sides[subjects[stem]] for stem in images}
        else:
            side_of = _read_split(folder, kwargs, images, subjects, problems)
        chosen = {stem: path for stem, path in images.items() if side_of.get(stem) in SPLITS}
        extra = {stem: path for stem, path in masks.items() if stem in chosen or stem not in images}
        problems += match(chosen, extra, folder) + _leaks(chosen, side_of, subjects)
        stems = [stem for stem in chosen if side_of[stem] == split and stem in masks]
        return Listing([Pair(images[s], masks[s], subjects[s]) for s in stems], problems)

    def has_test(self, folder: Path, kwargs: FolderKwargs) -> bool:
        """Whether a share, a file or a folder sets test images apart."""
        return kwargs.test_share > 0 or kwargs.split_file is not None or not (folder / kwargs.image_dir).is_dir()

    def class_of(self, value: int, kwargs: FolderKwargs) -> int | None:
        """Return the class id by `mask_values`, or the value itself where there is no such table."""
        if kwargs.mask_values is not None:
            return kwargs.mask_values.get(value)
        return value if 0 <= value < kwargs.num_classes else None

    def hint(self, unknown: list[int], values: list[int], kwargs: FolderKwargs) -> str:
        """Say which setting to change."""
        if kwargs.mask_values is not None:
            return f"mask_values names only {', '.join(map(str, sorted(kwargs.mask_values)))}"
        if unknown == [255] and set(values) <= {0, 255}:
            return f"num_classes is {kwargs.num_classes}; for a 0/255 mask set mask_values: {{0: 0, 255: 1}}"
        return f"classes are 0 to {kwargs.num_classes - 1}; set mask_values to give each value its class"

    def _list_split_folders(self, folder: Path, kwargs: FolderKwargs, split: Split) -> Listing:
        """Each side has its own folder; the other side is looked at only for patients on both sides."""
        if kwargs.split_file is not None:
            raise DataError(f"{folder} has train and test folders: give either them or split_file")
        if not (folder / split / kwargs.image_dir).is_dir():
            raise DataError(f"{folder} has no folder {split}/{kwargs.image_dir}; expected {self.expected}")
        images, masks, problems = self._files(folder, folder / split, kwargs)
        subjects = _subjects(images, kwargs, problems)
        other = folder / SPLITS[split == "train"] / kwargs.image_dir
        if kwargs.patient_pattern is not None and other.is_dir():
            across = set(_subjects(list_files(other, folder)[0], kwargs, []).values())
            shared = sorted(across & set(subjects.values()))
            problems += [Problem(f"patient {s}", "has images in train and in test") for s in shared]
        pairs = [Pair(path, masks[stem], subjects[stem]) for stem, path in images.items() if stem in masks]
        return Listing(pairs, problems + match(images, masks, folder))

    def _files(
        self, folder: Path, base: Path, kwargs: FolderKwargs
    ) -> tuple[dict[str, Path], dict[str, Path], list[Problem]]:
        for directory in (base / kwargs.image_dir, base / kwargs.mask_dir):
            if not directory.is_dir():
                raise DataError(f"{folder} has no folder {directory.relative_to(folder).as_posix()}; "
                                f"expected {self.expected}")  # fmt: skip
        images, image_problems = list_files(base / kwargs.image_dir, folder)
        masks, mask_problems = list_files(base / kwargs.mask_dir, folder)
        return images, masks, image_problems + mask_problems


def split_subjects(subjects: Iterable[str], test_share: float, seed: int) -> dict[str, Split]:
    """Give every subject a side.

    The order comes from a digest of seed and name, so it is the same on every machine and with every library version,
    and hardly changes when a subject is added. With a share above 0 and two subjects or more no side is empty.
    """
    order = sorted(set(subjects), key=lambda s: (hashlib.sha256(f"{seed}:{s}".encode()).digest(), s))
    count = min(max(round(test_share * len(order)), 1), max(len(order) - 1, 0)) if test_share > 0 else 0
    return {subject: "test" if rank < count else "train" for rank, subject in enumerate(order)}


def _subjects(images: dict[str, Path], kwargs: FolderKwargs, problems: list[Problem]) -> dict[str, str]:
    if kwargs.patient_pattern is None:
        return {stem: stem for stem in images}
    subjects = {}
    for stem, path in images.items():
        found = re.search(kwargs.patient_pattern, stem)
        if found is None:
            problems.append(Problem(f"{kwargs.image_dir}/{path.name}", "does not match patient_pattern"))
        subjects[stem] = stem if found is None else (found[1] if found.re.groups else found[0]) or stem
    return subjects


def _leaks(chosen: Iterable[str], side_of: dict[str, str], subjects: dict[str, str]) -> list[Problem]:
    sides: dict[str, set[str]] = defaultdict(set)
    for stem in chosen:
        sides[subjects[stem]].add(side_of[stem])
    return [Problem(f"patient {s}", "has images in train and in test") for s in sorted(sides) if len(sides[s]) > 1]


def _read_split(
    folder: Path, kwargs: FolderKwargs, images: dict[str, Path], subjects: dict[str, str], problems: list[Problem]
) -> dict[str, str]:
    """Return stem -> train, test, ignore, or `elsewhere` for another site's images; fills in subjects and problems."""
    assert kwargs.split_file is not None
    by, rows = _read_rows(folder / kwargs.split_file, kwargs)
    label = Path(kwargs.split_file).name
    table: dict[str, _Row] = {}
    for row in rows:
        key = stem_of(Path(row.key)) if by == "image" and row.key not in images else row.key
        known = table.setdefault(key, row)
        if known.mine and row.mine and known.split != row.split:
            problems.append(Problem(label, f"rows {known.number} and {row.number} give {row.key} different splits"))
        elif row.mine and not known.mine:
            table[key] = row
    present = set(images) if by == "image" else set(subjects.values())
    for key, row in table.items():
        if row.mine and row.split != "ignore" and key not in present:
            problems.append(Problem(label, f"row {row.number}: there is no {by} {row.key}"))
    side_of: dict[str, str] = {}
    for stem, path in images.items():
        found = table.get(stem if by == "image" else subjects[stem])
        if found is None:
            message = f"has no row in {label} (split: ignore leaves it out)"
            problems.append(Problem(f"{kwargs.image_dir}/{path.name}", message))
            continue
        side_of[stem] = found.split if found.mine else "elsewhere"
        if by == "image" and found.subject and kwargs.patient_pattern is None:
            subjects[stem] = found.subject
    return side_of


def _read_rows(path: Path, kwargs: FolderKwargs) -> tuple[str, list[_Row]]:
    """Return whether rows name images or subjects, and the rows."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"split_file {path.name} is missing") from None
    except (OSError, UnicodeDecodeError):
        raise DataError(f"split_file {path.name} cannot be read as UTF-8 text") from None
    lines = text.splitlines()
    delimiter = ";" if lines and ";" in lines[0] and "," not in lines[0] else ","
    reader = csv.DictReader(lines, delimiter=delimiter, skipinitialspace=True)
    try:
        raws, columns = list(reader), [(c or "").strip() for c in reader.fieldnames or ()]
    except csv.Error as error:
        raise DataError(f"split_file {path.name} is not a CSV table: {error}") from None
    by = next((c for c in ("image", "subject") if c in columns), None)
    if by is None or "split" not in columns:
        raise DataError(f"split_file {path.name} needs the columns image,split or subject,split; it has {columns}")
    if "site" in columns and kwargs.task_name is None:
        raise DataError(f"split_file {path.name} has a column site, so the data set needs a task_name")
    rows, problems, sites = [], [], set()
    for number, raw in enumerate(raws, start=2):
        row = {(k or "").strip(): v.strip() for k, v in raw.items() if isinstance(v, str)}
        split, site = row.get("split", ""), row.get("site")
        sites.add(site or "")
        if split not in (*SPLITS, "ignore"):
            problems.append(Problem(path.name, f"row {number}: split {split!r} is not train, test or ignore"))
        rows.append(_Row(number, row.get(by, ""), split, row.get("subject"), site is None or site == kwargs.task_name))
    if problems:
        raise data_error(f"split_file {path.name} cannot be used", problems)
    if "site" in columns and kwargs.task_name not in sites:
        raise DataError(f"split_file {path.name} has no row of site {kwargs.task_name}; it has {sorted(sites)}")
    return by, rows

"""The data set `folder`: images in a folder, with masks in another one or with classes in a table."""

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
    """A row of the split file."""

    number: int
    """Number of the row in the file; the first after the header is 2."""
    key: str
    """Image or subject that the row names."""
    split: str
    subject: str | None
    mine: bool
    """Whether the row is of the site that is read."""
    label: str | None = None
    """Class of the image; None: the table has none."""


class FolderLayout(Layout):
    """The layout `{image,mask}`, split by a CSV file or by patient, or `{train,test}/{image,mask}`."""

    expected = "{image,mask}/* or {train,test}/{image,mask}/* (image_dir and mask_dir rename them)"

    def list_pairs(self, folder: Path, kwargs: FolderKwargs, split: Split) -> Listing:
        """List the pairs of one split.

        Raises:
            DataError: if the folders are missing, or the split file cannot be used.
        """
        if not (folder / kwargs.image_dir).is_dir() and any((folder / s / kwargs.image_dir).is_dir() for s in SPLITS):
            return self._list_split_folders(folder, kwargs, split)
        if kwargs.task == "classification":
            return self._list_classified(folder, kwargs, split)
        images, masks, problems = self._list_images_and_masks(folder, folder, kwargs)
        subjects = _subjects_of(images, kwargs, problems)
        if kwargs.split_file is None:
            split_of_subject = split_subjects(subjects.values(), kwargs.test_share, kwargs.split_seed)
            split_of: dict[str, str] = {stem: split_of_subject[subjects[stem]] for stem in images}
        else:
            split_of, _ = _read_split(folder, kwargs, images, subjects, problems)
        chosen = {stem: path for stem, path in images.items() if split_of.get(stem) in SPLITS}
        relevant_masks = {stem: path for stem, path in masks.items() if stem in chosen or stem not in images}
        problems += match(chosen, relevant_masks, folder) + _subjects_in_both_splits(chosen, split_of, subjects)
        stems = [stem for stem in chosen if split_of[stem] == split and stem in masks]
        return Listing([Pair(images[s], masks[s], subjects[s]) for s in stems], problems)

    def _list_classified(self, folder: Path, kwargs: FolderKwargs, split: Split) -> Listing:
        """List the images of one split with the classes that the table gives them."""
        _require_folder(folder, folder / kwargs.image_dir, f"{kwargs.image_dir}/* and {kwargs.split_file}")
        images, problems = list_files(folder / kwargs.image_dir, folder)
        subjects = _subjects_of(images, kwargs, problems)
        split_of, row_of = _read_split(folder, kwargs, images, subjects, problems)
        names, pairs = kwargs.names(), []
        for stem, path in images.items():
            row = row_of.get(stem)
            if row is None or split_of[stem] not in SPLITS or row.label in kwargs.ignore_classes:
                split_of.pop(stem, None)
                continue
            if row.label not in names:
                said = f"class {row.label!r} is not in class_names ({', '.join(names)}; ignore_classes leaves a class out)"
                problems.append(Problem(Path(str(kwargs.split_file)).name, f"row {row.number}: {said}"))
            elif split_of[stem] == split:
                pairs.append(Pair(path, None, subjects[stem], names.index(row.label)))
        problems += _subjects_in_both_splits([stem for stem in images if split_of.get(stem) in SPLITS], split_of, subjects)
        return Listing(pairs, problems)

    def has_test(self, folder: Path, kwargs: FolderKwargs) -> bool:
        """Return whether `test_share`, a split file or a test folder sets test images apart."""
        return kwargs.test_share > 0 or kwargs.split_file is not None or not (folder / kwargs.image_dir).is_dir()

    def class_of(self, value: int, kwargs: FolderKwargs) -> int | None:
        """Return the class id by `mask_values`, or without it the value itself; None for a value that has no class."""
        if kwargs.mask_values is not None:
            return kwargs.mask_values.get(value)
        return value if 0 <= value < kwargs.num_classes else None

    def hint(self, unknown: list[int], values: list[int], kwargs: FolderKwargs) -> str:
        """Return which setting to change, for an error message."""
        if kwargs.mask_values is not None:
            return f"mask_values names only {', '.join(map(str, sorted(kwargs.mask_values)))}"
        if unknown == [255] and set(values) <= {0, 255}:
            return f"num_classes is {kwargs.num_classes}; for a 0/255 mask set mask_values: {{0: 0, 255: 1}}"
        return f"classes are 0 to {kwargs.num_classes - 1}; set mask_values to give each value its class"

    def _list_split_folders(self, folder: Path, kwargs: FolderKwargs, split: Split) -> Listing:
        """List a split that has its own folder; the other split's folder is read only to find patients in both splits."""
        if kwargs.split_file is not None:
            raise DataError(f"{folder} has train and test folders: give either them or split_file")
        if not (folder / split / kwargs.image_dir).is_dir():
            raise DataError(f"{folder} has no folder {split}/{kwargs.image_dir}; expected {self.expected}")
        images, masks, problems = self._list_images_and_masks(folder, folder / split, kwargs)
        subjects = _subjects_of(images, kwargs, problems)
        other_images = folder / SPLITS[split == "train"] / kwargs.image_dir
        if kwargs.patient_pattern is not None and other_images.is_dir():
            other_subjects = set(_subjects_of(list_files(other_images, folder)[0], kwargs, []).values())
            shared = sorted(other_subjects & set(subjects.values()))
            problems += [Problem(f"patient {s}", "has images in train and in test") for s in shared]
        pairs = [Pair(path, masks[stem], subjects[stem]) for stem, path in images.items() if stem in masks]
        return Listing(pairs, problems + match(images, masks, folder))

    def _list_images_and_masks(
        self, folder: Path, base: Path, kwargs: FolderKwargs
    ) -> tuple[dict[str, Path], dict[str, Path], list[Problem]]:
        for directory in (base / kwargs.image_dir, base / kwargs.mask_dir):
            _require_folder(folder, directory, self.expected)
        images, image_problems = list_files(base / kwargs.image_dir, folder)
        masks, mask_problems = list_files(base / kwargs.mask_dir, folder)
        return images, masks, image_problems + mask_problems


def _require_folder(folder: Path, directory: Path, expected: str) -> None:
    if not directory.is_dir():
        raise DataError(f"{folder} has no folder {directory.relative_to(folder).as_posix()}; expected {expected}")


def split_subjects(subjects: Iterable[str], test_share: float, seed: int) -> dict[str, Split]:
    """Assign every subject to `train` or `test`.

    The order comes from a digest of seed and name, so it is the same on every machine and with every library version,
    and hardly changes when a subject is added. With a share above 0 and at least two subjects, no split is empty.
    """
    ranked = sorted(set(subjects), key=lambda s: (hashlib.sha256(f"{seed}:{s}".encode()).digest(), s))
    count = min(max(round(test_share * len(ranked)), 1), max(len(ranked) - 1, 0)) if test_share > 0 else 0
    return {subject: "test" if rank < count else "train" for rank, subject in enumerate(ranked)}


def _subjects_of(images: dict[str, Path], kwargs: FolderKwargs, problems: list[Problem]) -> dict[str, str]:
    if kwargs.patient_pattern is None:
        return {stem: stem for stem in images}
    subjects = {}
    for stem, path in images.items():
        matched = re.search(kwargs.patient_pattern, stem)
        if matched is None:
            problems.append(Problem(f"{kwargs.image_dir}/{path.name}", "does not match patient_pattern"))
        subjects[stem] = stem if matched is None else (matched[1] if matched.re.groups else matched[0]) or stem
    return subjects


def _subjects_in_both_splits(chosen: Iterable[str], split_of: dict[str, str], subjects: dict[str, str]) -> list[Problem]:
    splits: dict[str, set[str]] = defaultdict(set)
    for stem in chosen:
        splits[subjects[stem]].add(split_of[stem])
    return [Problem(f"patient {s}", "has images in train and in test") for s in sorted(splits) if len(splits[s]) > 1]


def _read_split(
    folder: Path, kwargs: FolderKwargs, images: dict[str, Path], subjects: dict[str, str], problems: list[Problem]
) -> tuple[dict[str, str], dict[str, _Row]]:
    """Return stem -> train, test, ignore, or elsewhere for another site's images, and stem -> row.

    Also updates `subjects` and `problems`.
    """
    assert kwargs.split_file is not None
    key_column, rows = _read_rows(folder / kwargs.split_file, kwargs)
    file_name = Path(kwargs.split_file).name
    row_of: dict[str, _Row] = {}
    for row in rows:
        key = stem_of(Path(row.key)) if key_column == "image" and row.key not in images else row.key
        earlier = row_of.setdefault(key, row)
        if earlier.mine and row.mine and earlier.split != row.split:
            problems.append(Problem(file_name, f"rows {earlier.number} and {row.number} give {row.key} different splits"))
        elif earlier.mine and row.mine and earlier.label != row.label:
            problems.append(Problem(file_name, f"rows {earlier.number} and {row.number} give {row.key} different classes"))
        elif row.mine and not earlier.mine:
            row_of[key] = row
    present = set(images) if key_column == "image" else set(subjects.values())
    for key, row in row_of.items():
        if row.mine and row.split != "ignore" and key not in present:
            problems.append(Problem(file_name, f"row {row.number}: there is no {key_column} {row.key}"))
    split_of: dict[str, str] = {}
    rows_of_stems: dict[str, _Row] = {}
    for stem, path in images.items():
        listed = row_of.get(stem if key_column == "image" else subjects[stem])
        if listed is None:
            message = f"has no row in {file_name} (split: ignore leaves it out)"
            problems.append(Problem(f"{kwargs.image_dir}/{path.name}", message))
            continue
        rows_of_stems[stem] = listed
        split_of[stem] = listed.split if listed.mine else "elsewhere"
        if key_column == "image" and listed.subject and kwargs.patient_pattern is None:
            subjects[stem] = listed.subject
    return split_of, rows_of_stems


def _read_rows(path: Path, kwargs: FolderKwargs) -> tuple[str, list[_Row]]:
    """Return the column that names images or subjects (`image` or `subject`), and the rows of the split file."""
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
        raw_rows, columns = list(reader), [(c or "").strip() for c in reader.fieldnames or ()]
    except csv.Error as error:
        raise DataError(f"split_file {path.name} is not a CSV table: {error}") from None
    key_column = next((c for c in ("image", "subject") if c in columns), None)
    if key_column is None or "split" not in columns:
        raise DataError(f"split_file {path.name} needs the columns image,split or subject,split; it has {columns}")
    if kwargs.task == "classification" and kwargs.class_column not in columns:
        raise DataError(f"split_file {path.name} needs the column {kwargs.class_column} (class_column); it has {columns}")
    if "site" in columns and kwargs.task_name is None:
        raise DataError(f"split_file {path.name} has a column site, so the data set needs a task_name")
    rows, problems, sites = [], [], set()
    for number, raw_row in enumerate(raw_rows, start=2):
        row = {(k or "").strip(): v.strip() for k, v in raw_row.items() if isinstance(v, str)}
        split, site = row.get("split", ""), row.get("site")
        sites.add(site or "")
        if split not in (*SPLITS, "ignore"):
            problems.append(Problem(path.name, f"row {number}: split {split!r} is not train, test or ignore"))
        mine = site is None or site == kwargs.task_name
        label = row.get(kwargs.class_column, "") if kwargs.task == "classification" else None
        rows.append(_Row(number, row.get(key_column, ""), split, row.get("subject"), mine, label))
    if problems:
        raise data_error(f"split_file {path.name} cannot be used", problems)
    if "site" in columns and kwargs.task_name not in sites:
        raise DataError(f"split_file {path.name} has no row of site {kwargs.task_name}; it has {sorted(sites)}")
    return key_column, rows

"""Write one study's slices as files and record them.

The files are staged, then moved into place, and recorded last, so that the next call knows what a killed process left.
"""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from relay_core.errors import DataError, Problem
from relay_core.files import sync, write_atomically
from relay_core.preparation.preparation_report import picture
from relay_core.preparation.slicing import LAYOUTS, Cut, Mediastinum, Slices
from relay_core.preparation.studies import Source
from relay_core.preparation.volumes import files_of, read_volume

RECORDS = ".prepared"
HEADER = (
    "instance_id", "study_id", "img_file", "label_file", "positive", "position", "spacing_slice", "spacing_row",
    "spacing_column", "hu_min",
)  # fmt: skip
KEYS = {"layout", "options", "inputs", "files", "rows", "facts", "picture"}
Record = dict[str, Any]
"""The record of one study, with the keys `KEYS`; `inputs` is None until all its files are in place."""


@dataclass(frozen=True)
class PreparationJob:
    """The job of preparing one study."""

    source: Source
    out: Path
    task: Mediastinum | Slices
    options: str
    """Digest of the version and all options of the preparation."""
    picture: str | None
    """Path of the study's picture relative to `out`; None: the study gets no picture."""

    def inputs(self) -> dict[str, list[int]]:
        """Return name -> size in bytes and modification time in ns of each file that the study is read from."""
        stamps = {}
        for kind, path in (("image", self.source.image), ("labels", self.source.labels)):
            if path is not None:
                for file in files_of(path):
                    stat = file.stat()
                    stamps[f"{kind}/{file.relative_to(path.parent).as_posix()}"] = [stat.st_size, stat.st_mtime_ns]
        return stamps

    def done(self) -> bool:
        """Return whether an earlier call made the study with the same options from the same inputs, and its files exist."""
        record = read_record(self.out, self.source.study)
        return (
            record is not None
            and record["options"] == self.options
            and record["inputs"] == self.inputs()
            and all((self.out / name).is_file() for name in record["files"])
        )

    def make(self) -> Problem | None:
        """Write the study's files and record anew.

        Returns:
            None, or the problem of a study that cannot be used; then none of its files is left.

        Raises:
            OSError: if `out` cannot be written, or the disk is full.
        """
        study, inputs = self.source.study, self.inputs()
        forget(self.out, study)
        try:
            volume = read_volume(
                self.source.image, self.source.labels, rescaled=self.task.rescaled, structures=self.task.structures
            )
            cut = self.task.cut(study, volume)
        except DataError as error:
            return error.problems[0]
        except OSError as error:  # while the study was read
            # no space is left for a decoder's temporary file, which is not the study's fault
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            return Problem(self.source.image.name, f"cannot be read: {error.strerror or error}")
        except MemoryError:
            return Problem(self.source.image.name, "does not fit into memory; give fewer --workers, or a larger machine")
        staging = self.out / RECORDS / f"{study}.making"
        try:
            files = list(self._write_files(cut, staging))
            record = {
                "layout": self.task.layout, "options": self.options, "inputs": None, "files": files,
                "rows": list(self._table_rows(cut)), "facts": cut.facts, "picture": self.picture,
            }  # fmt: skip
            _write_record(self.out, study, record)
            _move(staging, self.out, files)
            _write_record(self.out, study, {**record, "inputs": inputs})
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return None

    def _file_names(self, number: int) -> list[str]:
        return [pattern.format(study=self.source.study, slice=number) for pattern in LAYOUTS[self.task.layout]]

    def _write_files(self, cut: Cut, folder: Path) -> Iterator[str]:
        for i, number in enumerate(cut.numbers):
            stacks = (cut.pixels,) if cut.masks is None else (cut.pixels, cut.masks)
            for name, pixels in zip(self._file_names(number), stacks, strict=False):
                _save(Image.fromarray(pixels[i]), folder / name)
                yield name
        if self.picture is not None:
            _save(picture(cut), folder / self.picture)
            yield self.picture

    def _table_rows(self, cut: Cut) -> Iterator[list[str]]:
        spacing = ["", "", ""] if cut.spacing is None else [f"{mm:.6g}" for mm in cut.spacing]
        for i, number in enumerate(cut.numbers):
            positive = int(cut.masks is not None and bool(cut.masks[i].any()))
            study = self.source.study
            hu_min = [str(self.task.hu_min)] if isinstance(self.task, Mediastinum) else [""]
            yield [f"{study}_{number:04d}", study, *self._file_names(number), str(positive), str(number), *spacing, *hu_min]


def read_record(out: Path, study: str) -> Record | None:
    """Return a study's record, or None where there is none or it is damaged."""
    try:
        record: Record = json.loads((out / RECORDS / f"{study}.json").read_bytes())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.keys() == KEYS else None


def recorded(out: Path) -> dict[str, Record]:
    """Return study -> record of all intact records, sorted by study."""
    names = sorted(path.name.removesuffix(".json") for path in (out / RECORDS).glob("[!.]*.json"))
    return {name: record for name in names if (record := read_record(out, name)) is not None}


def forget(out: Path, study: str) -> None:
    """Delete the files that were made of a study, then its record. Raises OSError."""
    record = read_record(out, study) or {"layout": "", "files": []}
    for name in record["files"]:
        (out / name).unlink(missing_ok=True)
    if record["layout"] == "midline":
        with contextlib.suppress(OSError):  # the folder holds other files
            (out / study).rmdir()
    (out / RECORDS / f"{study}.json").unlink(missing_ok=True)


def _write_record(out: Path, study: str, record: Record) -> None:
    write_atomically(out / RECORDS / f"{study}.json", json.dumps(record).encode())


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=95) if path.suffix == ".jpg" else image.save(path)
    sync(path)


def _move(staging: Path, out: Path, files: list[str]) -> None:
    folders = {(out / name).parent for name in files}
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    for name in files:
        (staging / name).replace(out / name)
    for folder in folders:
        sync(folder)

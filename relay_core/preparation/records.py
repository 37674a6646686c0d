"""One study's slices as files: written aside, moved into place, recorded last, so that a kill leaves nothing in doubt."""

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
"""These of one study; `inputs` is None while its files are on their way."""


@dataclass(frozen=True)
class PreparationJob:
    """One study to prepare."""

    source: Source
    out: Path
    task: Mediastinum | Slices
    options: str
    """Digest of all options."""
    picture: str | None
    """Where its picture goes, relative to `out`; None: it gets none."""

    def inputs(self) -> dict[str, list[int]]:
        """Size and time of each file that it is read from."""
        found = {}
        for kind, path in (("image", self.source.image), ("labels", self.source.labels)):
            if path is not None:
                for file in files_of(path):
                    stat = file.stat()
                    found[f"{kind}/{file.relative_to(path.parent).as_posix()}"] = [stat.st_size, stat.st_mtime_ns]
        return found

    def done(self) -> bool:
        """Whether an earlier call with the same options made it of the same files, and it is all there."""
        record = read_record(self.out, self.source.study)
        return (
            record is not None
            and record["options"] == self.options
            and record["inputs"] == self.inputs()
            and all((self.out / name).is_file() for name in record["files"])
        )

    def make(self) -> Problem | None:
        """Write the study's files anew; of one that cannot be used nothing stays. Raises OSError."""
        study, inputs = self.source.study, self.inputs()
        forget(self.out, study)
        try:
            volume = read_volume(self.source.image, self.source.labels, rescaled=self.task.rescaled)
            cut = self.task.cut(study, volume)
        except DataError as error:
            return error.problems[0]
        except OSError as error:  # of reading
            if error.errno in (errno.ENOSPC, errno.EDQUOT):  # a decoder's own file: no fault of this study's
                raise
            return Problem(self.source.image.name, f"cannot be read: {error.strerror or error}")
        except MemoryError:
            return Problem(self.source.image.name, "does not fit into memory; give fewer --workers, or a larger machine")
        making = self.out / RECORDS / f"{study}.making"
        try:
            files = list(self._write(cut, making))
            record = {
                "layout": self.task.layout, "options": self.options, "inputs": None, "files": files,
                "rows": list(self._rows(cut)), "facts": cut.facts, "picture": self.picture,
            }  # fmt: skip
            _write_record(self.out, study, record)
            _move(making, self.out, files)
            _write_record(self.out, study, {**record, "inputs": inputs})
        finally:
            shutil.rmtree(making, ignore_errors=True)
        return None

    def _names(self, number: int) -> list[str]:
        return [pattern.format(study=self.source.study, slice=number) for pattern in LAYOUTS[self.task.layout]]

    def _write(self, cut: Cut, folder: Path) -> Iterator[str]:
        for i, number in enumerate(cut.numbers):
            stack = (cut.pixels,) if cut.masks is None else (cut.pixels, cut.masks)
            for name, pixels in zip(self._names(number), stack, strict=False):
                _save(Image.fromarray(pixels[i]), folder / name)
                yield name
        if self.picture is not None:
            _save(picture(cut), folder / self.picture)
            yield self.picture

    def _rows(self, cut: Cut) -> Iterator[list[str]]:
        spacing = ["", "", ""] if cut.spacing is None else [f"{mm:.6g}" for mm in cut.spacing]
        for i, number in enumerate(cut.numbers):
            positive = int(cut.masks is not None and bool(cut.masks[i].any()))
            study = self.source.study
            coded = [str(self.task.hu_min)] if isinstance(self.task, Mediastinum) else [""]
            yield [f"{study}_{number:04d}", study, *self._names(number), str(positive), str(number), *spacing, *coded]


def read_record(out: Path, study: str) -> Record | None:
    """A study's record; None where there is none, or it is damaged."""
    try:
        found: Record = json.loads((out / RECORDS / f"{study}.json").read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.keys() == KEYS else None


def recorded(out: Path) -> dict[str, Record]:
    """All records by study, sorted."""
    names = sorted(path.name.removesuffix(".json") for path in (out / RECORDS).glob("[!.]*.json"))
    return {name: record for name in names if (record := read_record(out, name)) is not None}


def forget(out: Path, study: str) -> None:
    """Take away what was made of a study, its record last. Raises OSError."""
    record = read_record(out, study) or {"layout": "", "files": []}
    for name in record["files"]:
        (out / name).unlink(missing_ok=True)
    if record["layout"] == "midline":
        with contextlib.suppress(OSError):  # it holds files of others
            (out / study).rmdir()
    (out / RECORDS / f"{study}.json").unlink(missing_ok=True)


def _write_record(out: Path, study: str, record: Record) -> None:
    write_atomically(out / RECORDS / f"{study}.json", json.dumps(record).encode())


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=95) if path.suffix == ".jpg" else image.save(path)
    sync(path)


def _move(made: Path, out: Path, files: list[str]) -> None:
    folders = {(out / name).parent for name in files}
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    for name in files:
        (made / name).replace(out / name)
    for folder in folders:
        sync(folder)

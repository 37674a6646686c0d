"""The data set `nnunet`: the raw folder of nnU-Net, volumes in `imagesTr` and `labelsTr`, read slice by slice."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from relay_core.config import NnunetKwargs
from relay_core.data.pairs import Listing, Pair, Split, relative
from relay_core.data.slices import Slice, SlicedLayout
from relay_core.errors import DataError, Problem
from relay_core.imaging import Display, Spacing, is_litter, stretch, to_channels
from relay_core.preparation import AXES, SUFFIXES, Volume, read_volume, stem_of, suffix_of, turned

DESCRIPTION, IMAGES, LABELS = "dataset.json", "imagesTr", "labelsTr"
_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")
_lock = threading.Lock()


@dataclass(frozen=True)
class _Description:
    """What is used of `dataset.json`."""

    channels: dict[int, str]
    """Number -> name."""
    labels: dict[int, str]
    """Id -> name."""


class NnunetLayout(SlicedLayout):
    """The layout `imagesTr/<case>_<channel>.nii.gz` with `labelsTr/<case>.nii.gz` and `dataset.json`."""

    expected = f"{DESCRIPTION}, {IMAGES}/<case>_0000.nii.gz and {LABELS}/<case>.nii.gz"

    def list_pairs(self, folder: Path, kwargs: NnunetKwargs, split: Split) -> Listing:
        """List the slices of one split.

        Raises:
            DataError: if the folder is no raw data set of nnU-Net, or one of a kind that is not read.
        """
        _require_known(_described(folder), folder, kwargs)
        images, labels = _files(folder / IMAGES), _files(folder / LABELS)
        problems: list[Problem] = []
        slices: list[Slice] = []
        cases = sorted({match["case"] for stem in images if (match := _CHANNEL.fullmatch(stem))} | labels.keys())
        for case in cases:
            files = [images.get(f"{case}_{channel:04d}") for channel in kwargs.channels]
            missing = [f"{IMAGES}/{case}_{c:04d}.*" for c, file in zip(kwargs.channels, files, strict=True) if file is None]
            if case not in labels:
                missing.append(f"{LABELS}/{case}.*")
            if missing:
                problems.append(Problem(case, f"lacks {', '.join(missing)}"))
                continue
            assert files[0] is not None
            try:
                slices += _slices_of(case, files[0], labels[case], kwargs)
            except DataError as error:
                problems += [Problem(relative(labels[case], folder), problem.message) for problem in error.problems]
        return self.choose(slices, problems, folder, kwargs, split)

    def read_pair_image(self, pair: Pair, kwargs: NnunetKwargs) -> tuple[npt.NDArray[Any], Spacing | None]:
        """Read a slice: (C, H, W) float32 in 0..1, and the spacing."""
        assert pair.slice is not None
        assert pair.mask is not None
        suffix = pair.image.name.removeprefix(f"{pair.subject}_{kwargs.channels[0]:04d}")
        planes, spacing = [], None
        for channel in kwargs.channels:
            file = pair.image.with_name(f"{pair.subject}_{channel:04d}{suffix}")
            volume = _read(file, pair.mask)
            plane = turned(volume.values, kwargs.axis)[pair.slice]
            planes.append(_shades(plane, kwargs.window))
            if volume.spacing is not None:
                _, rows, columns = AXES[kwargs.axis]
                spacing = volume.spacing[rows], volume.spacing[columns]
        shades = planes[0] if len(planes) == 1 else np.stack(planes, axis=-1)
        return to_channels(shades, kwargs.img_channels), spacing

    def read_pair_mask(self, pair: Pair, kwargs: NnunetKwargs) -> npt.NDArray[Any]:
        """Read the labels (H, W) of a slice."""
        assert pair.slice is not None
        assert pair.mask is not None
        labels = _read(pair.image, pair.mask).labels
        assert labels is not None
        return np.ascontiguousarray(turned(labels, kwargs.axis)[pair.slice])

    def read_image(self, path: Path, kwargs: NnunetKwargs) -> tuple[npt.NDArray[Any], Spacing | None]:
        """Refuse: a file alone is a volume, not a slice. Raises DataError."""
        message = (
            "is a volume of nnU-Net's; the service, or relay export-onnx and relay predict-study, predict whole volumes"
        )
        raise DataError("a file cannot be used", [Problem(path.name, message)])

    def class_of(self, value: int, kwargs: NnunetKwargs) -> int | None:
        """Return the class id: labels are class ids already."""
        return value if 0 <= value < kwargs.num_classes else None

    def hint(self, unknown: list[int], values: list[int], kwargs: NnunetKwargs) -> str:
        """Return how many classes there are, for an error message."""
        return f"num_classes is {kwargs.num_classes}, so labels go from 0 to {kwargs.num_classes - 1} (see {DESCRIPTION})"


def _described(folder: Path) -> _Description:
    path = folder / DESCRIPTION
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        channels = found.get("channel_names") or found.get("modality")  # of the second and the first version
        return _Description({int(n): str(name) for n, name in channels.items()}, _ids(found["labels"]))
    except FileNotFoundError:
        raise DataError(f"{folder} has no {DESCRIPTION}; expected {NnunetLayout.expected}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{path} does not say channel_names and labels as nnU-Net's does") from None


def _ids(labels: Mapping[str, Any]) -> dict[int, str]:
    """Return id -> name; the first version of the format has the ids as keys."""
    regions = [name for name, value in labels.items() if isinstance(value, list)]
    if regions or "ignore" in labels:
        what = f"regions ({', '.join(regions[:3])})" if regions else "an ignore label"
        raise DataError(f"{DESCRIPTION} has {what}, which is not read here; give each pixel one class of 0, 1, 2, ...")
    if all(name.isdigit() for name in labels):
        return {int(value): str(name) for value, name in labels.items()}
    return {int(value): str(name) for name, value in labels.items()}


def _require_known(found: _Description, folder: Path, kwargs: NnunetKwargs) -> None:
    unknown = sorted(set(kwargs.channels) - found.channels.keys())
    if unknown:
        there = ", ".join(f"{number} ({name})" for number, name in sorted(found.channels.items()))
        raise DataError(f"{folder}: channels names {unknown[0]}; {DESCRIPTION} has {there}")
    highest = max(found.labels)
    if highest >= kwargs.num_classes:
        names = ", ".join(f"{number} {name}" for number, name in sorted(found.labels.items()))
        raise DataError(f"{folder}: num_classes is {kwargs.num_classes}, and {DESCRIPTION} has the labels {names}: "
                        f"set num_classes: {highest + 1}")  # fmt: skip


def _files(folder: Path) -> dict[str, Path]:
    """Return stem -> file of the volumes in a folder."""
    if not folder.is_dir():
        raise DataError(f"{folder.parent} has no folder {folder.name}; expected {NnunetLayout.expected}")
    volumes = (path for path in sorted(folder.iterdir()) if suffix_of(path) and path.is_file() and not is_litter(path.name))
    files = {stem_of(path): path for path in volumes}
    if not files:
        raise DataError(f"{folder} holds no volume ({', '.join(SUFFIXES)}); sets of 2-D pictures are data set folder")
    return files


def _slices_of(case: str, image: Path, labels: Path, kwargs: NnunetKwargs) -> list[Slice]:
    labelled = _labelled(image, labels, kwargs.axis, *_stamp(image), *_stamp(labels))
    numbers = range(0, len(labelled), kwargs.every)
    chosen = [n for n in numbers if labelled[n] or kwargs.select == "all"]
    return [Slice(Pair(image, labels, case, slice=n), labelled[n]) for n in chosen]


@lru_cache(4096)
def _labelled(image: Path, labels: Path, axis: str, *stamps: int) -> tuple[bool, ...]:
    """Whether each slice shows anything but background."""
    found = _read(image, labels).labels
    assert found is not None
    return tuple(bool(plane.any()) for plane in turned(found, axis))


def _shades(plane: npt.NDArray[Any], window: tuple[float, float] | None) -> npt.NDArray[np.float32]:
    """Return a slice's values as shades, as a served model shows NIfTI: by the window, or from its own extremes."""
    return stretch(plane) if window is None else Display.between(*window).shades(plane)


def _read(image: Path, labels: Path) -> Volume:
    """Return a case; the last cases stay in memory."""
    with _lock:  # threads that want slices of one case wait for it, rather than all reading it
        return _cached(image, labels, *_stamp(image), *_stamp(labels))


@lru_cache(6)
def _cached(image: Path, labels: Path, *stamps: int) -> Volume:
    return read_volume(image, labels)


def _stamp(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_mtime_ns, state.st_size

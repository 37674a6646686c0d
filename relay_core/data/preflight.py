"""Check every file of a site's data, and load one split of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from relay_core.config import DATASETS, CommonDatasetKwargs, dataset_class
from relay_core.data import site
from relay_core.data.pairs import SPLITS, Layout, Listing, Pair, Split, data_error
from relay_core.data.site import THREADS, Decoder, Sample, SiteData, set_digest, to_unit
from relay_core.errors import DataError, Problem
from relay_core.imaging import Spacing


@dataclass(frozen=True)
class PreflightReport:
    """The contents of a site's data; dictionaries by split have the keys `train` and, where there is one, `test`."""

    name: str
    """The data set's name in the run file."""
    folder: Path
    counts: dict[str, int] = field(default_factory=dict)
    """Split -> number of pairs."""
    class_shares: dict[str, list[float]] = field(default_factory=dict)
    """Split -> share of each class id among the pixels before resizing (classification: the images); sums to 1."""
    subjects: dict[str, int] = field(default_factory=dict)
    """Split -> number of patients."""
    sizes: dict[tuple[int, int], int] = field(default_factory=dict)
    """(height, width) in pixels -> number of images of that size, over both splits."""
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    """Pairs of a train file and a test file with the same pixels; a test on such files flatters the model."""
    repeats: dict[str, list[tuple[str, ...]]] = field(default_factory=dict)
    """Split -> groups of files of that split that have the same pixels."""
    digests: dict[str, str] = field(default_factory=dict)
    """Split -> digest of its images and classes; a training says when they are others."""


@dataclass(frozen=True)
class Survey:
    """The result of reading every file of a site: a report, the problems, and the pairs that can be used."""

    report: PreflightReport
    problems: tuple[Problem, ...]
    """The problems of all bad files, each once; the data can be used if there are none."""
    usable: dict[str, list[Pair]]
    """Split -> the pairs that can be read and used."""
    decoder: Decoder
    """The decoder that reads the usable pairs again."""

    def require_usable(self) -> None:
        """Raise a DataError that names every bad file, if there is one."""
        _raise_if_bad(self.report.folder, self.problems)


def survey(
    name: str, kwargs: CommonDatasetKwargs, folder: Path, progress: Callable[[int, int], object] = lambda done, total: None
) -> Survey:
    """Read and check all files of both splits of a site, and collect what is wrong with them.

    Args:
        name: the data set's name, a key of `DATASETS`.
        kwargs: the data set's settings, of the class that belongs to its name.
        folder: the site's folder.
        progress: called after each image with the number of images done and the number of all images.

    Raises:
        DataError: if the folder as a whole cannot be read as this data set.
        RunFileError: if there is no such data set.
    """
    layout = _make_layout(name, kwargs)
    splits = [s for s in SPLITS if s == "train" or layout.has_test(folder, kwargs)]
    listings = {split: _list_split(layout, kwargs, folder, split) for split in splits}
    report, decoder = PreflightReport(name, folder), Decoder(layout, kwargs, folder, None)
    problems = [problem for listing in listings.values() for problem in listing.problems]
    total, done = sum(len(listing.pairs) for listing in listings.values()), 0
    usable: dict[str, list[Pair]] = {}
    by_digest: dict[str, dict[str, list[str]]] = {}
    sizes: Counter[tuple[int, int]] = Counter()
    for split, listing in listings.items():
        class_pixels = np.zeros(kwargs.num_classes + len(kwargs.groups), dtype=np.int64)
        usable[split], by_digest[split] = [], {}
        fingerprints = []
        for pair, sample in zip(listing.pairs, decoder.each(listing.pairs), strict=True):
            done += 1
            progress(done, total)
            if isinstance(sample, DataError):
                problems += sample.problems
                continue
            class_pixels += sample.class_counts
            sizes[sample.original.height, sample.original.width] += 1
            usable[split].append(pair)
            fingerprints.append(sample.fingerprint)
            by_digest[split].setdefault(sample.digest, []).append(pair.shown(folder))
        report.counts[split] = len(listing.pairs)
        report.digests[split] = set_digest(fingerprints)
        report.subjects[split] = len({pair.subject for pair in listing.pairs})
        report.class_shares[split] = (class_pixels / max(int(class_pixels.sum()), 1)).tolist()
        report.repeats[split] = [tuple(files) for files in by_digest[split].values() if len(files) > 1]
    report.sizes.update(sorted(sizes.items()))
    test_files = by_digest.get("test", {})
    report.duplicates.extend(
        (files[0], test_files[digest][0]) for digest, files in by_digest["train"].items() if digest in test_files
    )
    return Survey(report, tuple(dict.fromkeys(problems)), usable, decoder)


def listed(name: str, kwargs: CommonDatasetKwargs, folder: Path) -> list[Pair]:
    """List the pairs of both splits of a site without reading the images. Raises the errors of `survey`."""
    layout = _make_layout(name, kwargs)
    splits = [s for s in SPLITS if s == "train" or layout.has_test(folder, kwargs)]
    return [pair for split in splits for pair in _list_split(layout, kwargs, folder, split).pairs]


def image_reader(name: str, kwargs: CommonDatasetKwargs) -> Callable[[Path], tuple[npt.NDArray[Any], Spacing | None]]:
    """Return a function that reads an image as training does: pixels (C, H, W) and spacing; it raises DataError."""
    layout = _make_layout(name, kwargs)
    return lambda path: layout.read_image(path, kwargs)


def preflight(name: str, kwargs: CommonDatasetKwargs, folder: Path) -> PreflightReport:
    """Check all files of both splits of a site.

    Args:
        name: the data set's name, a key of `DATASETS`.
        kwargs: the data set's settings, of the class that belongs to its name.
        folder: the site's folder.

    Raises:
        DataError: if something is missing or wrong; its `problems` names every bad file.
        RunFileError: if there is no such data set.
    """
    checked = survey(name, kwargs, folder)
    checked.require_usable()
    return checked.report


def has_test(name: str, kwargs: CommonDatasetKwargs, folder: Path) -> bool:
    """Return whether a site has test images; with `test_share: 0` it has none, on purpose."""
    return _make_layout(name, kwargs).has_test(folder, kwargs)


def load_site(
    name: str, kwargs: CommonDatasetKwargs, *, folder: Path, split: Split, resolution: int, workers: int = 0
) -> SiteData:
    """Check and load one split of a site, decoding each file once.

    Args:
        name: the data set's name, a key of `DATASETS`.
        kwargs: the data set's settings, of the class that belongs to its name; `img_size` there overrides `resolution`.
        folder: the site's folder.
        split: `train` or `test`.
        resolution: side of the model's input in pixels.
        workers: number of threads that decode; 0 takes as many as the machine has cores, 8 at most.

    Raises:
        DataError: if something is missing or wrong; its `problems` names every bad file.
        RunFileError: if there is no such data set.
    """
    layout = _make_layout(name, kwargs)
    listing = _list_split(layout, kwargs, folder, split)
    decoder = Decoder(layout, kwargs, folder, kwargs.img_size or resolution, workers or THREADS)
    problems, store, originals = list(listing.problems), _Store(len(listing.pairs)), []
    fingerprints = []
    for sample in decoder.each(listing.pairs):
        if isinstance(sample, DataError):
            problems += sample.problems
            continue
        originals.append(sample.original)
        fingerprints.append(sample.fingerprint)
        store.add(sample)
    _raise_if_bad(folder, problems)
    return SiteData(decoder, listing.pairs, originals, split, store.tensors(), fingerprints)


class _Store:
    """A store that keeps samples as long as the whole split is expected to fit into memory."""

    def __init__(self, expected: int) -> None:
        self._expected = expected
        self._bytes = 0
        self._samples: list[tuple[Tensor, Tensor]] | None = []

    def add(self, sample: Sample) -> None:
        if self._samples is None:
            return
        self._bytes = max(self._bytes, sample.image.nbytes + sample.label.nbytes)
        if self._bytes * self._expected > site.IN_MEMORY_BYTES:
            self._samples = None
            return
        self._samples.append((sample.image, sample.label))

    def tensors(self) -> tuple[Tensor, Tensor] | None:
        if self._samples is None:
            return None
        images = [image for image, _ in self._samples]
        if any(image.dtype != torch.uint8 for image in images):
            images = [to_unit(image) for image in images]
        return torch.stack(images), torch.stack([label for _, label in self._samples])


def _make_layout(name: str, kwargs: CommonDatasetKwargs) -> Layout:
    settings_class = dataset_class(name)
    if not isinstance(kwargs, settings_class):
        raise TypeError(f"data set {name!r} takes {settings_class.__name__}, got {type(kwargs).__name__}")
    layout: Layout = DATASETS.load(name)()
    return layout


def _list_split(layout: Layout, kwargs: CommonDatasetKwargs, folder: Path, split: Split) -> Listing:
    if not folder.is_dir() or not any(folder.iterdir()):
        state = "is empty" if folder.is_dir() else "is not there"
        raise DataError(f"the site's folder {folder} {state}; expected in it: {layout.expected}")
    listing = layout.list_pairs(folder, kwargs, split)
    if not listing.pairs and not listing.problems:
        reason = "; test_share is 0" if split == "test" and not layout.has_test(folder, kwargs) else ""
        raise DataError(f"{folder} has no {split} images{reason}; expected in it: {layout.expected}")
    return listing


def _raise_if_bad(folder: Path, problems: Sequence[Problem]) -> None:
    if problems:
        count = len(set(problems))
        raise data_error(f"{folder.name} cannot be used: {count} problem{'s' if count > 1 else ''}", problems)

"""This module decodes, checks and resizes the labelled images of one split of one site, ready for a network.

Shapes: B batch, C channels, R side in pixels after resizing, H and W height and width in the file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from relay_core.config import CommonDatasetKwargs, Fit, Groups
from relay_core.data.pairs import Layout, Pair, Split, relative
from relay_core.errors import DataError, Problem
from relay_core.imaging import Spacing, axes, shrink, shrink_mask

IN_MEMORY_BYTES = 2 * 1024**3
"""A split of up to so many bytes after resizing is kept in memory; a larger one is decoded batch by batch."""

THREADS = min(8, os.cpu_count() or 1)
"""Number of threads that decode images where the settings name none."""


@dataclass(frozen=True)
class Original:
    """The size and spacing of an image file before resizing, which writing a prediction back needs."""

    image: Path
    height: int
    width: int
    spacing: Spacing | None
    """Millimetres from row to row and from column to column of the original pixels; None where they are not known."""


@dataclass(frozen=True)
class Sample:
    """A decoded and resized pair of an image and its label."""

    image: Tensor
    """Pixels (C, R, R), uint8 0..255 or float32 0..1."""
    label: Tensor
    """Class ids uint8, (R, R) for segmentation and () for classification."""
    original: Original
    class_counts: npt.NDArray[np.int64]
    """Number of pixels of each class, then of each group, before resizing; for
    classification 1 for the image's class and 0 elsewhere."""
    digest: str
    """Hash of the decoded image before resizing, for finding files with the same pixels."""
    fingerprint: str
    """Hash of all that a training or a score takes from the pair: pixels, classes, name, patient and spacing."""


@dataclass(frozen=True)
class Decoder:
    """A decoder reads, checks and resizes the pairs of one site."""

    layout: Layout
    kwargs: CommonDatasetKwargs
    folder: Path
    size: int | None
    """Side R in pixels after resizing; None checks the pairs only and leaves the samples' images and labels empty."""
    workers: int = THREADS
    """Number of threads that decode."""

    def __call__(self, pair: Pair) -> Sample:
        """Decode, check and resize a pair.

        Raises:
            DataError: if the pair cannot be used; it holds one problem for each thing that is wrong with either file.
        """
        pixels, ids, spacing = self.read(pair)
        original = Original(pair.image, pixels.shape[1], pixels.shape[2], spacing)
        counts = np.bincount(ids.ravel(), minlength=self.kwargs.num_classes + len(self.kwargs.groups))
        digest = hashlib.blake2b(repr(pixels.shape).encode() + pixels.tobytes(), digest_size=16).hexdigest()
        identity = hashlib.blake2b(repr((pair.name, pair.subject, spacing, digest, ids.shape)).encode(), digest_size=8)
        identity.update(ids.tobytes())
        fit = self.kwargs.fit
        image, label = resize_image(pixels, self.size, fit), resize_mask(ids, self.size, fit)
        return Sample(image, label, original, counts, digest, identity.hexdigest())

    def read(self, pair: Pair) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint8], Spacing | None]:
        """Decode and check a pair without resizing it.

        Shape:
            image (C, H, W), uint8 0..255 or float32 0..1; class ids (H, W), or () for classification; the spacing in mm.

        Raises:
            DataError: if the pair cannot be used; it holds one problem for each thing that is wrong with either file.
        """
        problems: list[Problem] = []
        image = self._read_or_note(lambda: self.layout.read_pair_image(pair, self.kwargs), pair.image, problems)
        is_classification = self.kwargs.task == "classification"
        ids = self._read_class(pair, problems) if is_classification else self._read_class_ids(pair, image, problems)
        if problems or image is None or ids is None:
            raise DataError("a pair cannot be used", problems)
        return image[0], ids, image[1] or pair.spacing

    def _read_class(self, pair: Pair, problems: list[Problem]) -> npt.NDArray[np.uint8]:
        """Return the class of the whole image, as an array without axes."""
        if pair.label is None or not 0 <= pair.label < self.kwargs.num_classes:
            defect = "has no class" if pair.label is None else f"is of class {pair.label}"
            classes = f"classes are 0 to {self.kwargs.num_classes - 1} (num_classes)"
            problems.append(Problem(relative(pair.image, self.folder), f"{defect}; {classes}"))
            return np.zeros((), np.uint8)
        return np.array(pair.label, np.uint8)

    def _read_class_ids(self, pair: Pair, image: Any, problems: list[Problem]) -> npt.NDArray[np.uint8] | None:
        mask = pair.mask
        assert mask is not None
        values = self._read_or_note(lambda: self.layout.read_pair_mask(pair, self.kwargs), mask, problems)
        ids = None if values is None else self._read_or_note(lambda: self._map_to_class_ids(values, mask), mask, problems)
        if image is not None and values is not None and image[0].shape[1:] != values.shape:
            (ih, iw), (mh, mw) = image[0].shape[1:], values.shape
            message = f"is {mw}x{mh} pixels (width x height), its image is {iw}x{ih}"
            problems.append(Problem(relative(mask, self.folder), message))
        if problems or image is None or ids is None:
            return None
        return self.layout.refine(ids, pair, self.kwargs)

    def each(self, pairs: Sequence[Pair]) -> Iterator[Sample | DataError]:
        """Decode pairs on several threads and yield, in order, each sample or the error of a pair that cannot be used."""

        def attempt(pair: Pair) -> Sample | DataError:
            try:
                return self(pair)
            except DataError as error:
                return error

        with ThreadPoolExecutor(self.workers) as pool:
            for start in range(0, len(pairs), 64):  # in windows of 64, so that few results wait in memory
                yield from pool.map(attempt, pairs[start : start + 64])

    def _read_or_note(self, read: Any, path: Path, problems: list[Problem]) -> Any:
        try:
            return read()
        except DataError as error:
            problems += [Problem(relative(path, self.folder), p.message) for p in error.problems]
            return None

    def _map_to_class_ids(self, values: npt.NDArray[Any], path: Path) -> npt.NDArray[np.uint8]:
        countable = values.dtype in (np.uint8, np.uint16)
        present_array = np.flatnonzero(np.bincount(values.ravel())) if countable else np.unique(values)
        present_values = [int(v) for v in present_array]
        classes = [self.layout.class_of(v, self.kwargs) for v in present_values]
        known = self.kwargs.num_classes + len(self.kwargs.groups)
        unknown = [v for v, c in zip(present_values, classes, strict=True) if c is None or c >= known]
        if unknown:
            shown = ", ".join(map(str, unknown[:5])) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
            hint = self.layout.hint(unknown, present_values, self.kwargs)
            message = f"has unknown mask value{'s' if len(unknown) > 1 else ''} {shown}; {hint}"
            raise DataError("a mask cannot be used", [Problem(path.name, message)])
        table = np.array(classes, dtype=np.uint8)
        return table[np.searchsorted(present_array, values)]


class SiteData:
    """The labelled images of one split of one site, as `load_site` makes them.

    They are in memory where `samples` are given, else they are decoded for every batch; both give the same values.
    """

    def __init__(
        self,
        decoder: Decoder,
        pairs: Sequence[Pair],
        originals: Sequence[Original],
        split: Split,
        samples: tuple[Tensor, Tensor] | None,
        fingerprints: Sequence[str] = (),
    ) -> None:
        kwargs, size = decoder.kwargs, decoder.size
        assert size is not None
        self.site: str = kwargs.task_name or decoder.folder.name
        self.split: Split = split
        self.num_classes: int = kwargs.num_classes
        self.merged: Groups = tuple(kwargs.groups[i] for i in kwargs.merged)
        """Groups of classes that this site's labels do not tell apart."""
        self.groups: Groups = kwargs.groups
        """All groups of the run; label `num_classes + i` stands for one of the classes of group i."""
        self.task = kwargs.task
        self.replicas: int = kwargs.num_replica
        """How often an epoch shows each image; `len` and `batch` count each image once."""
        self.size: int = size
        """Side R of images and labels in pixels."""
        self.names: list[str] = [pair.name for pair in pairs]
        """File stems of the images, in the order of the data set: sorted by name, or as its table lists them."""
        self.subjects: list[str] = [pair.subject for pair in pairs]
        self.originals: list[Original] = list(originals)
        self.fingerprints: list[str] = list(fingerprints)
        """A hash of each image, its classes, name, patient and spacing, as they were when the set was loaded."""
        self.spacing: list[Spacing | None] = [_resized_spacing(original, size, kwargs.fit) for original in originals]
        """Millimetres of one RESIZED pixel, row then column; None where the original spacing is not known."""
        self._decoder, self._pairs, self._samples = decoder, list(pairs), samples

    def __len__(self) -> int:
        return len(self._pairs)

    def __getstate__(self) -> dict[str, Any]:
        """Leave what is in memory out of a copy for another process, which decodes it anew if it needs it."""
        return {**self.__dict__, "_samples": None}

    @property
    def digest(self) -> str:
        """Digest of the whole set: it is another one as soon as a pixel, a mask or a name is."""
        return set_digest(self.fingerprints)

    @property
    def in_memory(self) -> bool:
        """Whether the decoded images are kept in memory."""
        return self._samples is not None

    def batch(self, index: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """Return images and labels on the CPU.

        Args:
            index: B positions, 0 to len - 1.

        Shape:
            images (B, C, R, R) float32 in `out_range`; labels (B, R, R) int64, or (B,) for classification.

        Raises:
            IndexError: if a position lies outside the data.
            DataError: if a file changed since it was checked (only where the split is not in memory).
        """
        images, labels = self.unit_batch(index)
        return self._in_range(images), labels

    def decoded(self, position: int) -> tuple[Tensor, Tensor]:
        """Return one image and its label as they are kept in memory, a quarter of what `batch` makes of them.

        Shape:
            image (C, R, R), uint8 0..255 or float32 0..1; label (R, R), or () for classification, uint8.

        Raises:
            DataError: if a file changed since it was checked (only where the split is not in memory).
        """
        if self._samples is not None:
            return self._samples[0][position], self._samples[1][position]
        sample = self._decode([position])[0]
        return sample.image, sample.label

    def at_own_size(self, position: int) -> tuple[Tensor, Tensor, Spacing | None]:
        """Return one image and its label as they are in the files, and the millimetres of a pixel.

        Shape:
            image (C, H, W) float32 in 0..1; label (H, W), or () for classification, int64.

        Raises:
            DataError: if a file changed since it was checked.
        """
        pixels, ids, spacing = self._decoder.read(self._pairs[position])
        return to_unit(torch.from_numpy(np.array(pixels))), torch.from_numpy(ids).long(), spacing

    def batch_of_one(self, position: int, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `batch` returns for the image at `position`, from what `decoded` returned in another process."""
        return self._in_range(to_unit(image[None])), label[None].long()

    def unit_batch(self, index: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """Return what `batch` returns, but with images in 0..1."""
        positions = torch.as_tensor(index, dtype=torch.long, device="cpu").reshape(-1)
        if len(positions) and (int(positions.min()) < 0 or int(positions.max()) >= len(self)):
            raise IndexError(f"positions go from 0 to {len(self) - 1}")
        return self._decode_batch(positions.tolist()) if self._samples is None else _take_batch(self._samples, positions)

    def _decode_batch(self, positions: list[int]) -> tuple[Tensor, Tensor]:
        samples = self._decode(positions)
        if not samples:
            shape = () if self.task == "classification" else (self.size, self.size)
            return torch.empty(0, self._decoder.kwargs.img_channels, self.size, self.size), torch.empty(0, *shape).long()
        return torch.stack([to_unit(sample.image) for sample in samples]), torch.stack([s.label for s in samples]).long()

    def _decode(self, positions: list[int]) -> list[Sample]:
        samples = []
        for sample in self._decoder.each([self._pairs[i] for i in positions]):
            if isinstance(sample, DataError):
                raise sample
            samples.append(sample)
        return samples

    def _in_range(self, images: Tensor) -> Tensor:
        low, high = self._decoder.kwargs.out_range
        return images.mul_(high - low).add_(low)


def set_digest(fingerprints: Iterable[str]) -> str:
    """Return the digest (hexadecimal SHA-256) of a set of images, whatever their order, from their fingerprints."""
    return hashlib.sha256("".join(sorted(fingerprints)).encode()).hexdigest()


def to_unit(image: Tensor) -> Tensor:
    """Return a fresh float32 copy in 0..1 of a uint8 or float32 image."""
    return image.float().div_(255) if image.dtype == torch.uint8 else image.clone()


def resize_image(pixels: npt.NDArray[Any], size: int | None, fit: Fit = "stretch") -> Tensor:
    """Resize (C, H, W) to (C, size, size), bilinear with antialiasing; uint8 is rounded to uint8 again.

    A size of None gives an empty tensor. See `imaging.fit` for images that are not square.
    """
    if size is None:
        return torch.empty(0)
    image = torch.from_numpy(np.array(pixels))
    if image.shape[1:] == (size, size):
        return image
    if fit == "stretch":
        resized = F.interpolate(image[None].float(), (size, size), mode="bilinear", antialias=True, align_corners=False)[0]
    else:
        resized = torch.from_numpy(shrink(np.asarray(pixels[None], np.float32), size, fit)[0])
    return resized.round_().clamp_(0, 255).to(torch.uint8) if image.dtype == torch.uint8 else resized.clamp_(0, 1)


def resize_mask(ids: npt.NDArray[np.uint8], size: int | None, fit: Fit = "stretch") -> Tensor:
    """Resize (H, W) to (size, size) by the nearest pixel centre; a class without axes, (), stays as it is.

    A size of None gives an empty tensor.
    """
    if size is None:
        return torch.empty(0)
    mask = torch.from_numpy(ids)
    if mask.ndim == 0 or mask.shape == (size, size):
        return mask
    if fit != "stretch":
        return torch.from_numpy(shrink_mask(ids, size, fit))
    return F.interpolate(mask[None, None], (size, size), mode="nearest-exact")[0, 0]


def _take_batch(samples: tuple[Tensor, Tensor], positions: Tensor) -> tuple[Tensor, Tensor]:
    images, labels = samples
    return to_unit(images[positions]), labels[positions].long()


def _resized_spacing(original: Original, size: int, fit: Fit) -> Spacing | None:
    if original.spacing is None:
        return None
    rows, columns = axes(original.height, original.width, size, fit)
    return original.spacing[0] * rows.step, original.spacing[1] * columns.step

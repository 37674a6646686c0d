"""Slices of 3-D studies: which of them train, which test, and how many without a finding are shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from relay_core.config.datasets import SlicedKwargs
from relay_core.data.folder import split_subjects
from relay_core.data.pairs import Layout, Listing, Pair, Split
from relay_core.errors import DataError, Problem


@dataclass(frozen=True)
class Slice:
    """A slice of a study."""

    pair: Pair
    positive: bool
    """Whether it shows a finding."""

    @property
    def key(self) -> str:
        """Study and file, as it is split."""
        return f"{self.pair.subject}/{self.pair.image.name}"


class SlicedLayout(Layout):
    """What data sets of slices share: splits by study or slice, few negatives, classes of whole slices."""

    def has_test(self, folder: Path, kwargs: SlicedKwargs) -> bool:
        """Whether a share or a list sets studies apart."""
        return kwargs.test_share > 0 if kwargs.test_studies is None else bool(kwargs.test_studies)

    def choose(
        self, slices: Sequence[Slice], problems: list[Problem], kwargs: SlicedKwargs, split: Split,
        positive: Callable[[Slice], bool] = lambda s: s.positive,
    ) -> Listing:  # fmt: skip
        """The slices of one split, with their classes where a class of the slice is learned."""
        side_of = _sides(slices, kwargs)
        chosen = [s for s in slices if side_of[s.pair.subject if kwargs.split_by == "study" else s.key] == split]
        if split == "train" and kwargs.negatives_per_positive is not None:
            chosen = _fewer_negatives(chosen, kwargs.negatives_per_positive, positive)
        if kwargs.task == "classification":
            return Listing([_labelled(s, kwargs, positive) for s in chosen], problems)
        return Listing([s.pair for s in chosen], problems)


def _sides(slices: Sequence[Slice], kwargs: SlicedKwargs) -> dict[str, Split]:
    studies = {s.pair.subject for s in slices}
    if kwargs.test_studies is not None:
        unknown = sorted(set(kwargs.test_studies) - studies)
        if unknown:
            raise DataError(f"test_studies names {', '.join(unknown[:5])}, and there is no such study; there are "
                            f"{', '.join(sorted(studies)[:5])}{', ...' if len(studies) > 5 else ''}")  # fmt: skip
        return {study: "test" if study in kwargs.test_studies else "train" for study in studies}
    names = studies if kwargs.split_by == "study" else {s.key for s in slices}
    return split_subjects(names, kwargs.test_share, kwargs.split_seed)


def _fewer_negatives(slices: list[Slice], ratio: float, positive: Callable[[Slice], bool]) -> list[Slice]:
    """All positive slices, and `ratio` times as many of the negative ones, evenly over their order."""
    negatives = [i for i, s in enumerate(slices) if not positive(s)]
    wanted = min(len(negatives), round(ratio * (len(slices) - len(negatives))))
    kept = {negatives[(2 * k + 1) * len(negatives) // (2 * wanted)] for k in range(wanted)}
    out = set(negatives) - kept
    return [s for i, s in enumerate(slices) if i not in out]


def _labelled(s: Slice, kwargs: SlicedKwargs, positive: Callable[[Slice], bool]) -> Pair:
    if kwargs.class_by == "positive":
        return replace(s.pair, label=int(positive(s)))
    label = (kwargs.task_id or 1) - 1
    if label >= kwargs.num_classes:
        raise DataError(f"class_by is site, and site {label + 1} is more than num_classes {kwargs.num_classes}")
    return replace(s.pair, label=label)

"""Split the slices of 3-D studies into training and test slices, and limit how many without a finding are used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from relay_core.config import SlicedKwargs
from relay_core.data.folder import split_subjects
from relay_core.data.pairs import Layout, Listing, Pair, Split
from relay_core.errors import DataError, Problem


@dataclass(frozen=True)
class Slice:
    """A slice of a study, as an image-mask pair."""

    pair: Pair
    positive: bool
    """Whether the slice shows a finding."""

    @property
    def key(self) -> str:
        """The study and file name that identify the slice when slices, not studies, are split."""
        number = "" if self.pair.slice is None else f"/{self.pair.slice}"
        return f"{self.pair.subject}/{self.pair.image.name}{number}"


class SlicedLayout(Layout):
    """The base of layouts of slices: splits by study or slice, limited negatives, and classes of whole slices."""

    def has_test(self, folder: Path, kwargs: SlicedKwargs) -> bool:
        """Return whether the settings set studies apart for testing, by `test_share`, `test_count` or `test_studies`."""
        if kwargs.test_studies is None and kwargs.test_count is not None:
            return kwargs.test_count > 0
        return kwargs.test_share > 0 if kwargs.test_studies is None else bool(kwargs.test_studies)

    def choose(
        self, slices: Sequence[Slice], problems: list[Problem], folder: Path, kwargs: SlicedKwargs, split: Split,
        positive: Callable[[Slice], bool] = lambda s: s.positive,
    ) -> Listing:  # fmt: skip
        """Choose the slices of one split, and give them classes where a class of the whole slice is learned.

        Args:
            slices: all slices of the site.
            problems: what is wrong with the site's files so far; they go into the listing.
            folder: the site's folder, for messages.
            kwargs: the data set's settings.
            split: `train` or `test`.
            positive: tells whether a slice shows a finding.

        Raises:
            DataError: if `test_studies` names a study that is not there, or the settings leave no slice; not raised where
                there are `problems`, which must be solved first. Also if `class_by: site` gives no class in range.
        """
        split_of = _assign_splits(slices, folder, kwargs, bool(problems))
        chosen = [s for s in slices if split_of[s.pair.subject if kwargs.split_by == "study" else s.key] == split]
        if slices and not chosen and not problems and self.has_test(folder, kwargs):
            reason = (
                f"a single {kwargs.split_by} cannot be split; test_share: 0 trains without a test set"
                if split == "test"
                else "test_studies names all studies, and none is left to train"
            )
            raise DataError(f"{folder}: {reason}")
        if split == "train" and kwargs.negatives_per_positive is not None:
            thinned = _fewer_negatives(chosen, kwargs.negatives_per_positive, positive)
            if chosen and not thinned and not problems:
                raise DataError(f"{folder}: negatives_per_positive is {kwargs.negatives_per_positive:g}, and none of "
                                f"the {len(chosen)} training slices is positive")  # fmt: skip
            chosen = thinned
        if kwargs.task == "classification":
            return Listing([_pair_with_class(s, folder, kwargs, positive) for s in chosen], problems)
        return Listing([s.pair for s in chosen], problems)


def _assign_splits(slices: Sequence[Slice], folder: Path, kwargs: SlicedKwargs, has_problems: bool) -> dict[str, Split]:
    studies = {s.pair.subject for s in slices}
    if kwargs.test_studies is not None:
        unknown = sorted(set(kwargs.test_studies) - studies)
        if unknown and not has_problems:
            raise DataError(f"{folder}: test_studies names {', '.join(unknown[:5])}, and there is no such study; "
                            f"there are {', '.join(sorted(studies)[:5])}{', ...' if len(studies) > 5 else ''}")  # fmt: skip
        return {study: "test" if study in kwargs.test_studies else "train" for study in studies}
    names = studies if kwargs.split_by == "study" else {s.key for s in slices}
    share = kwargs.test_share if kwargs.test_count is None else min(kwargs.test_count / max(len(names), 1), 1.0)
    return split_subjects(names, share, kwargs.split_seed)


def _fewer_negatives(slices: list[Slice], ratio: float, positive: Callable[[Slice], bool]) -> list[Slice]:
    """Keep all positive slices and `ratio` times as many negative ones, taken evenly over their order."""
    negatives = [i for i, s in enumerate(slices) if not positive(s)]
    wanted = min(len(negatives), round(ratio * (len(slices) - len(negatives))))
    kept = {negatives[(2 * k + 1) * len(negatives) // (2 * wanted)] for k in range(wanted)}
    dropped = set(negatives) - kept
    return [s for i, s in enumerate(slices) if i not in dropped]


def _pair_with_class(s: Slice, folder: Path, kwargs: SlicedKwargs, positive: Callable[[Slice], bool]) -> Pair:
    if kwargs.class_by == "positive":
        return replace(s.pair, label=int(positive(s)))
    label = (kwargs.task_id or 1) - 1
    if label >= kwargs.num_classes:
        raise DataError(f"{folder}: class_by is site, and site {label + 1} is more than num_classes "
                        f"{kwargs.num_classes}")  # fmt: skip
    return replace(s.pair, label=label)

"""A site's images against those of the sites before, by statistics of single images: their distributions, side by side."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from scipy.stats import ks_2samp
from torch import Tensor

from relay_core.bundle import MIN_COUNT
from relay_core.config import RunFile, SiteSettings
from relay_core.data import SiteData
from relay_core.engine import BATCH, Checkpoint, generated_rows, load_solver, site_data
from relay_core.errors import DataError
from relay_core.experiments.generators import real_images
from relay_core.experiments.report import DASH
from relay_core.imaging import out_of_distribution
from relay_core.metrics import WITHHELD, SolverFeatures, image_statistics, map_statistics, scored_as, table_row
from relay_core.replay import resize_images, resize_labels
from relay_core.texts import markdown

BINS = 20
"""Bins of a histogram; a statistic of whole numbers has one for each number, where they are fewer."""
TAIL = 0.01
"""Share of a group's images, at either end, that may lie beyond the histogram; they are counted in its outermost bins."""
NEIGHBOURS = 5
"""The distance in the network's features is that to the n-th nearest image of the replay."""
_Key = tuple[str, int]
"""Name of a statistic, and the class that it is of; 0: of the image."""


def compare_sites(
    checkpoint: Checkpoint, run: RunFile, data_root: Path | None, count: int, device: torch.device
) -> dict[str, Any]:
    """Return how the training images that are on this machine differ from those of the sites before, safe for JSON.

    A group is what the checkpoint's generators draw of a site (`replay`), or the training images of a site that is here
    (`images`). All are measured at the size that the generators draw. Each statistic is a number for each image: those of
    `relay_core.metrics.image_statistics` and, for segmentation, of `map_statistics` for each class but the background; and

    - `unlike`: the out-of-distribution score, of the image at the solver's resolution as when it is predicted
      (`imaging.out_of_distribution`); left out where the checkpoint has no feature statistics.
    - `network_distance`: how far the solver's features, scaled to length 1, are from the 5th nearest image of the whole
      replay, not counting the image itself (Sun 2022, arXiv 2204.06507); left out where there is no replay.

    Returns:
        `checkpoint`, its digest; `resolution`, the side in pixels of the images that were compared; `groups`, a list of
        {site, kind, images}; `statistics`, a list of {name, class, edges, groups, pairs}. There `groups` has for each group
        {images, shares, median, quartiles}, with the share of its images in each bin between `edges`, or {images, withheld}
        where fewer than 5 images can be told of; `pairs` has {groups: [i, j], ks, p} for every two groups that are not
        withheld: the Kolmogorov-Smirnov statistic, 0 (alike) to 1 (no overlap), and its p value. A statistic
        that is withheld of all groups is left out.

    Args:
        checkpoint: a checkpoint of any strategy; without generators only what is on this machine is compared.
        run: the run file that names the sites' images.
        data_root: the folder that the images lie in; None takes the run file's `root_path`.
        count: most images of a group, at least 5.
        device: the device to generate and to run the solver on.

    Raises:
        DataError: no site's images are on this machine, or there is nothing to compare them with.
        RunFileError: the run has other classes or channels than the checkpoint.
    """
    solver, settings = load_solver(checkpoint, device)
    network = SolverFeatures(solver, settings.data.out_range)
    here = site_data(checkpoint, settings, run, data_root, "train")
    if not here:
        raise DataError(f"none of the image folders of {run.path} is on this machine; give --data-root")
    rows = generated_rows(settings, checkpoint, device, count)
    if len(here) + len(rows) < 2:
        raise DataError(
            f"nothing to compare: the checkpoint draws no images of sites before (strategy {checkpoint.meta['strategy']}), "
            f"and {next(iter(here))} is the only site whose images are on this machine"
        )
    names, looks = settings.data.names(), checkpoint.meta.get("looks", {})
    groups: list[dict[str, Any]] = []
    values: list[dict[_Key, np.ndarray]] = []
    features: list[Tensor] = []
    for one in _groups(rows, here, settings, count):
        groups.append({"site": one.site, "kind": one.kind, "images": len(one.images)})
        values.append(_statistics(one, len(names), looks))
        parts = resize_images(one.images, settings.resolution).split(BATCH)
        features.append(torch.nn.functional.normalize(torch.cat([network(part).cpu().double() for part in parts])))
    for i, distances in enumerate(_distances(features, len(rows))):
        values[i]["network_distance", 0] = distances
    statistics = [
        {"name": name, "class": names[i] if i else None, **compared([v.get((name, i), np.empty(0)) for v in values])}
        for name, i in dict.fromkeys(key for each in values for key in each)
    ]
    return {
        "checkpoint": checkpoint.digest,
        "resolution": rows[0][1].shape[-1] if rows else settings.resolution,
        "groups": groups,
        "statistics": [one for one in statistics if one["edges"]],
    }


@dataclass(frozen=True)
class _Group:
    """Images of one site that are compared with others."""

    site: str
    kind: Literal["replay", "images"]
    images: Tensor
    """(N, C, R, R) in [-1, 1], at the generators' size."""
    predicted: Tensor
    """The same as the solver sees them in a prediction: not reduced to the generators' size."""
    maps: Tensor
    """Class ids (N, R, R), or (N,) for classification."""
    untold: frozenset[int] = frozenset()
    """Classes that the site's labels do not tell apart from others."""


def _groups(rows: list[Any], here: dict[str, SiteData], settings: SiteSettings, count: int) -> Iterator[_Group]:
    """Yield the replay's rows (see `generated_rows`), then the training images that are here."""
    for site, images, maps, _ in rows:
        yield _Group(site, "replay", images.float(), resize_images(images.float(), settings.resolution), maps)
    side, classes = rows[0][1].shape[-1] if rows else settings.resolution, settings.data.num_classes
    for site, data in here.items():
        images, maps = real_images(data, count)
        if maps.ndim > 1:
            maps = resize_labels(scored_as(classes, data.groups, ())[maps], side, classes)
        untold = frozenset(i for members in data.merged for i in members)
        yield _Group(site, "images", resize_images(images, side), images, maps, untold)


def _statistics(group: _Group, classes: int, looks: Mapping[str, out_of_distribution.Looks]) -> dict[_Key, np.ndarray]:
    """Return the values (N,) of each statistic of a group's images that needs no other group."""
    parts = [image_statistics(_unit(part)) for part in group.images.split(BATCH)]
    found = {(name, 0): np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if group.maps.ndim > 1:
        for i in set(range(1, classes)) - group.untold:
            found |= {(name, i): values for name, values in map_statistics(group.maps.numpy(), i).items()}
    rows = np.concatenate([out_of_distribution.image_features(_unit(part)) for part in group.predicted.split(BATCH)])
    scores = [score[0] for row in rows if (score := out_of_distribution.ood_score(row[None], looks)) is not None]
    return found | ({("unlike", 0): np.array(scores)} if scores else {})


def _unit(images: Tensor) -> np.ndarray:
    """Return images in [-1, 1] with values in 0..1."""
    unit: np.ndarray = ((images + 1) / 2).clamp(0, 1).cpu().numpy()
    return unit


def _distances(features: Sequence[Tensor], replayed: int) -> list[np.ndarray]:
    """Return each image's distance to the replay, which is the first `replayed` groups; nothing where there is no replay."""
    if not replayed:
        return []
    known = torch.cat(list(features[:replayed]))
    nth = min(NEIGHBOURS, len(known) - 1)  # an image of the replay is itself the nearest to it
    return [torch.cdist(f, known).kthvalue(nth + (i < replayed), dim=1).values.numpy() for i, f in enumerate(features)]


def compared(groups: Sequence[np.ndarray]) -> dict[str, Any]:
    """Return the histograms of one statistic over shared bins, and how far apart its groups are; see `compare_sites`.

    Args:
        groups: the values (N,) of each group; of fewer than 5 nothing is told but their number.
    """
    told = [group if len(group) >= MIN_COUNT else None for group in groups]
    edges = _edges([group for group in told if group is not None])
    pairs = []
    for (i, one), (j, other) in combinations(enumerate(told), 2):
        if one is not None and other is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # too small for the exact way: asymptotic
                found = ks_2samp(one, other)
            pairs.append({"groups": [i, j], "ks": _short(found.statistic), "p": _short(found.pvalue)})
    described = [_histogram(group, edges) for group in groups]
    return {"edges": [_short(edge) for edge in edges], "groups": described, "pairs": pairs}


def _edges(groups: Sequence[np.ndarray]) -> np.ndarray:
    """Return the edges of bins that all but the tails of every group lie in."""
    if not groups:
        return np.empty(0)
    low = min(float(np.quantile(group, TAIL)) for group in groups)
    high = max(float(np.quantile(group, 1 - TAIL)) for group in groups)
    first, last = np.floor(low), np.ceil(high)
    if last - first < BINS and all((group == np.round(group)).all() for group in groups):
        return np.arange(first, last + 2) - 0.5
    edges: np.ndarray = np.histogram_bin_edges(np.empty(0), BINS, (low, high))
    return edges


def _histogram(values: np.ndarray, edges: np.ndarray) -> dict[str, Any]:
    if len(values) < MIN_COUNT:
        return {"images": len(values), WITHHELD: MIN_COUNT}
    counts, _ = np.histogram(values.clip(edges[0], edges[-1]), edges)
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
    return {
        "images": len(values),
        "shares": [_short(count / len(values)) for count in counts],
        "median": _short(median),
        "quartiles": [_short(low), _short(high)],
    }


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def sites_text(found: dict[str, Any]) -> str:
    """Return what `compare_sites` found as Markdown: a table of medians, and one of distances from the images here."""
    titles = [f"{markdown(group['site'])}, {group['kind']} ({group['images']})" for group in found["groups"]]
    lines = [table_row(["statistic", *titles]), "|---|" + "--:|" * len(titles)]
    for one in found["statistics"]:
        lines.append(table_row([_title(one), *(_middle(group) for group in one["groups"])]))
    lines += ["", f"median (quartiles) of single images at {found['resolution']} x {found['resolution']} pixels"]
    kinds = [group["kind"] for group in found["groups"]]
    shown = [(i, j) for i, j in combinations(range(len(kinds)), 2) if "images" in (kinds[i], kinds[j])]
    heads = [f"{titles[i]} and {titles[j]}" for i, j in shown]
    lines += ["", table_row(["statistic", *heads]), "|---|" + "--:|" * len(heads)]
    for one in found["statistics"]:
        apart = {tuple(pair["groups"]): f"{pair['ks']:.3f}" for pair in one["pairs"]}
        lines.append(table_row([_title(one), *(apart.get(pair, DASH) for pair in shown)]))
    return "\n".join([*lines, "", "how far apart: Kolmogorov-Smirnov statistic, 0 (alike) to 1 (no overlap)"])


def _title(statistic: dict[str, Any]) -> str:
    name = statistic["name"].replace("_", " ")
    return name if statistic["class"] is None else f"{name} of {markdown(statistic['class'])}"


def _middle(group: dict[str, Any]) -> str:
    if WITHHELD in group:
        return DASH
    return f"{group['median']:.4g} ({group['quartiles'][0]:.4g} to {group['quartiles'][1]:.4g})"

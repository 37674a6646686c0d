"""The catalogue: everything that a run file may name, with its settings, as Markdown, from the registries themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic.fields import FieldInfo

from relay_core.config import (
    DATASETS,
    LOSSES,
    MODELS,
    STRATEGIES,
    CommonDatasetKwargs,
    Corrections,
    DiscriminatorKwargs,
    GeneratorKwargs,
    OptimizerConf,
    OptimizerSettings,
    PrivacySettings,
    Registry,
    SchedulerSettings,
    Settings,
    TrainSettings,
)
from relay_core.metrics import METRICS, table_row

PARTS = (
    ("Data sets", "dataset", DATASETS),
    ("Networks", "model", MODELS),
    ("Strategies", "strategy", STRATEGIES),
    ("Losses", "train.loss", LOSSES),
)
"""Each part of the catalogue: its heading, its key in the run file, its registry."""


def catalogue(plugins: bool = True) -> str:
    """Return the catalogue as Markdown.

    Args:
        plugins: whether to list what installed packages add; without it the text is that of `docs/catalogue.md`.
    """
    lines = [
        "# Catalogue", "",
        "Everything that a run file may name, made from the registries by `relay catalogue`. Each is written as "
        "`{name: ..., kwargs: {...}}`. How to add your own: [extend.md](extend.md).", "",
    ]  # fmt: skip
    for heading, key, registry in PARTS:
        lines += [f"## {heading} (`{key}`)", "", *_registry(registry, plugins)]
    lines += [
        "## Training (`train`)", "", *_settings(TrainSettings), "",
        "### `train.optimizer`", "", *_settings(OptimizerSettings), "",
        "### `train.optimizer.lr_scheduler`", "", *_settings(SchedulerSettings), "",
        "### `train.privacy`", "", *_settings(PrivacySettings), "",
        "## Metrics", "",
        "Of every test set, with 95 % confidence intervals by t and by bootstrap (5,000 draws), and as a matrix of sites by "
        "test sets, with average, backward and forward transfer and forgetting.", "",
        table_row(["metric", "task", "title", "what it is"]), "|---|---|---|---|",
        *(table_row([f"`{m.name}`", ", ".join(m.tasks), m.title, m.averaged]) for m in METRICS.values()),
        "",
        "Of the generators, by `relay generated`: `fid` and `kid` with a feature network from an ONNX file, or "
        "`fid_solver_encoder` and `kid_solver_encoder` with the features of the site's own solver, which are not comparable "
        "with anybody's Inception FID; precision, recall, density and coverage of the same features; of label maps their "
        "variety (Dice of pairs), areas, pieces and raggedness beside those of the real maps, and how far the solver agrees "
        "with the map that an image was drawn from.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _registry(registry: Registry, plugins: bool) -> Iterator[str]:
    names = list(registry) if plugins else list(registry.builtin)
    yield table_row(["name", "what it is"])
    yield "|---|---|"
    users: dict[type[Settings], list[str]] = {}
    for name in names:
        yield table_row([f"`{name}`", registry[name].summary])
        users.setdefault(registry[name].kwargs, []).append(name)
    yield ""
    if registry is DATASETS:
        yield from ["### Settings of every data set", "", *_settings(CommonDatasetKwargs), ""]
    if registry is MODELS:
        nested: dict[str, type[Settings]] = {
            "optimizer_conf": OptimizerConf,
            "G_img_kwargs": GeneratorKwargs,
            "D_img_kwargs": DiscriminatorKwargs,
            "corrections": Corrections,
        }
        for key, inner in nested.items():
            yield from [f"### `{key}` of `doublegan`", "", *_settings(inner), ""]
    for kwargs, users_of_kwargs in users.items():
        base = CommonDatasetKwargs if registry is DATASETS else None
        if rows := list(_settings(kwargs, base)):
            yield from [f"### Settings of {', '.join(f'`{name}`' for name in users_of_kwargs)}", "", *rows, ""]


def _settings(kwargs: type[Settings], base: type[Settings] | None = None) -> Iterator[str]:
    """Yield the lines of a table of the settings, less those that `base` has alike."""
    rows = [
        table_row([f"`{key}`", _default(field), field.description or ""])
        for key, field in kwargs.model_fields.items()
        if base is None or not _alike(field, base.model_fields.get(key))
    ]
    if rows:
        yield from [table_row(["key", "default", "meaning"]), "|---|---|---|", *rows]


def _alike(field: FieldInfo, base_field: FieldInfo | None) -> bool:
    return base_field is not None and (field.description, _default(field)) == (base_field.description, _default(base_field))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "needed"
    return f"`{_plain(field.get_default(call_default_factory=True, validated_data={}))}`"


def _plain(value: Any) -> str:
    """Return a default as YAML writes it; for nested settings only `{...}`."""
    if isinstance(value, Settings):
        return "{...}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_plain(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_plain, value)) + "]"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)

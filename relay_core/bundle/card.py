"""Writes `MODEL_CARD.md`, the facts that a person at the next hospital reads before the model is used."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from relay_core.bundle.audit import audit_words
from relay_core.bundle.differential import privacy_words
from relay_core.bundle.history import Record
from relay_core.bundle.values import MIN_COUNT, spoken_fingerprint
from relay_core.config import DoubleGanKwargs, RunFile, SiteSettings
from relay_core.metrics import Metric, is_withheld, metrics_of
from relay_core.texts import markdown


def model_card(made: Mapping[str, Any], records: Sequence[Record], run: RunFile) -> str:
    """Return the model card in Markdown.

    Args:
        made: the manifest.
        records: the history, its last hop included.
        run: the relay's run file.
    """
    settings = run.site(made["task_id"])
    metrics = metrics_of(settings.data.task)
    generator_note = " The generators draw pseudo images for that training only." if settings.facts.has_generators else ""
    images = sum(record["images"] for record in records)
    shapes = {name: shape for name, (_, shape) in made["tensors"].items()}
    networks = list(dict.fromkeys(name.split("/")[1] for name in shapes))
    return "\n".join([
        f"# Relay model, hop {made['hop']} of {len(run.task_ids)}",
        "",
        f"Trained at {len(records)} site{'s' if len(records) > 1 else ''} in turn on {images} labelled images; none of them "
        "is in this file. Signed by "
        f"{_plain(made['signer']['name'])}, key `{spoken_fingerprint(made['signer']['fingerprint'])}`.",
        "",
        "| hop | site | labelled images | steps | signed | relay |",
        "|--:|---|--:|--:|---|---|",
        *(
            f"| {r['hop']} | {_plain(r['site'])} | {r['images']} | {r['steps']} | {_date(r['created_at'])} | "
            f"{_plain(r['relay'])} |"
            for r in records
        ),
        "",
        "## Scores",
        "",
        "Each site's solver on the test sets that its site had, when it left that site; withheld where a test set has fewer "
        f"than {MIN_COUNT} patients.",
        "",
        f"| after | test set | {' | '.join(metric.title for metric in metrics)} |",
        f"|---|---|{'--:|' * len(metrics)}",
        *(
            f"| {_plain(record['site'])} | {_plain(name)} | {' | '.join(_score(metric, row) for metric in metrics)} |"
            for record in records
            for name, row in record["metrics"].items()
        ),
        "",
        "## Settings",
        "",
        f"- run `{made['run']}`, strategy {settings.strategy.name}, data set {settings.dataset.name}, "
        f"{_size(settings)}, {settings.data.num_classes} classes",
        f"- networks: {', '.join(networks)}; weights carried in {'half' if made['half'] else 'single'} precision",
        f"- relay {_plain(made['relay'])}; `run.yaml` in this bundle has every setting",
        "",
        "## Intended use",
        "",
        f"{settings.data.task.capitalize()} of images like those of the sites above, as a research aid; and as the start of "
        f"the next site's training.{generator_note}",
        "",
        "## Limits",
        "",
        "- Not a medical device: nobody has validated it for a decision about a patient.",
        "- The scores above are of the sites' own test sets; on other scanners and populations expect less.",
        "- Generators can remember training images. What each site's test found before it released the model, which is no "
        "proof that nothing else can be found:",
        *(
            f"  - {_plain(r['site'])}: {markdown(audit_words(r.get('audit')) + privacy_words(r.get('privacy')))}"
            for r in records
        ),
        "",
    ])  # fmt: skip


def _size(settings: SiteSettings) -> str:
    side, kwargs = settings.resolution, settings.model.kwargs
    drawn = kwargs.img_resolution if settings.facts.has_generators and isinstance(kwargs, DoubleGanKwargs) else side
    fit = {"stretch": "", "pad": ", padded to a square", "crop": ", cropped to a square"}[settings.data.fit]
    return f"{side} x {side} pixels{fit}" + (f" (generated images {drawn} x {drawn})" if drawn != side else "")


def _plain(text: str) -> str:
    return markdown(text[:100])


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


def _score(metric: Metric, scores: Mapping[str, Any]) -> str:
    """Return a score with its unit as text; empty where the test set has no such score, a word where it is withheld."""
    if is_withheld(scores):
        return "withheld"
    value = scores.get(metric.name)
    return f"{metric.text(float(value))} {metric.unit(scores)}".rstrip() if isinstance(value, int | float) else ""

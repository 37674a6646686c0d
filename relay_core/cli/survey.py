"""The output of `relay preflight`: the survey of a site's data set as JSON and as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from relay_core.data import Survey
from relay_core.metrics import table_row

FEW_IMAGES = 300
"""Number of images up to which a site is checked without progress lines."""


_SHOWN = 10


def survey_json(found: Survey, previews: Sequence[str]) -> dict[str, Any]:
    """Return a survey as plain data; sizes are width x height, files are named below the site's folder."""
    report = found.report
    return {
        "ok": not found.problems,
        "layout": report.name,
        "counts": report.counts,
        "subjects": report.subjects,
        "class_shares": report.class_shares,
        "digests": report.digests,
        "sizes": _sizes(found),
        "duplicates": [list(files) for files in report.duplicates],
        "repeats": {split: [list(files) for files in groups] for split, groups in report.repeats.items()},
        "problems": [{"file": problem.file, "message": problem.message} for problem in found.problems],
        "previews": list(previews),
    }


def survey_text(found: Survey) -> str:
    """Return a survey without problems as text for a person."""
    report = found.report
    kwargs = found.decoder.kwargs
    groups_of_classes = [f"class {' or '.join(map(str, members))}" for members in kwargs.groups]
    classes = [*(f"class {i}" for i in range(kwargs.num_classes)), *groups_of_classes]
    head = ["split", "images", "patients", *classes]
    lines = [table_row(head), table_row(["---"] * len(head))]
    for split, count in report.counts.items():
        shares = [f"{share:.1%}" for share in report.class_shares[split]]
        lines.append(table_row([split, str(count), str(report.subjects[split]), *shares]))
    sizes = [f"{size} ({count})" for size, count in _sizes(found).items()]
    lines.append(f"\nsizes (width x height): {_first_items(sizes, ', ')}")
    groups: dict[str, Sequence[tuple[str, ...]]] = {"train and test have images with the same pixels": report.duplicates}
    groups |= {f"{split} has the same image more than once": files for split, files in report.repeats.items()}
    for warning, files in groups.items():
        shown = _first_items([" = ".join(names) for names in files], "\n  ")
        lines += [f"warning: {warning}:\n  {shown}"] if files else []
    return "\n".join(lines)


def _sizes(survey: Survey) -> dict[str, int]:
    return {f"{width}x{height}": count for (height, width), count in survey.report.sizes.items()}


def _first_items(items: list[str], separator: str) -> str:
    remainder = [f"and {len(items) - _SHOWN} more"] if len(items) > _SHOWN else []
    return separator.join([*items[:_SHOWN], *remainder])

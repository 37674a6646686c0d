"""What `relay preflight` prints: the survey of a site as JSON and as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from relay_core.data import Survey
from relay_core.metrics import table_row

FEW_IMAGES = 300
"""A site of more images says how far it is."""


_SHOWN = 10


def survey_json(found: Survey, previews: Sequence[str]) -> dict[str, Any]:
    """A survey as plain data; sizes are width x height, files are named below the site's folder."""
    report = found.report
    return {
        "ok": not found.problems,
        "layout": report.name,
        "counts": report.counts,
        "subjects": report.subjects,
        "class_shares": report.class_shares,
        "sizes": _sizes(found),
        "duplicates": [list(files) for files in report.duplicates],
        "repeats": {split: [list(files) for files in groups] for split, groups in report.repeats.items()},
        "problems": [{"file": problem.file, "message": problem.message} for problem in found.problems],
        "previews": list(previews),
    }


def survey_text(found: Survey) -> str:
    """The same of a site that can be used, for a person."""
    report = found.report
    classes = [f"class {i}" for i in range(len(report.class_shares["train"]))]
    head = ["split", "images", "patients", *classes]
    lines = [table_row(head), table_row(["---"] * len(head))]
    for split, count in report.counts.items():
        shares = [f"{share:.1%}" for share in report.class_shares[split]]
        lines.append(table_row([split, str(count), str(report.subjects[split]), *shares]))
    sizes = [f"{size} ({count})" for size, count in _sizes(found).items()]
    lines.append(f"\nsizes (width x height): {_some(sizes, ', ')}")
    groups: dict[str, Sequence[tuple[str, ...]]] = {"train and test have images with the same pixels": report.duplicates}
    groups |= {f"{split} has the same image more than once": files for split, files in report.repeats.items()}
    for what, files in groups.items():
        shown = _some([" = ".join(names) for names in files], "\n  ")
        lines += [f"warning: {what}:\n  {shown}"] if files else []
    return "\n".join(lines)


def _sizes(found: Survey) -> dict[str, int]:
    return {f"{width}x{height}": count for (height, width), count in found.report.sizes.items()}


def _some(items: list[str], separator: str) -> str:
    more = [f"and {len(items) - _SHOWN} more"] if len(items) > _SHOWN else []
    return separator.join([*items[:_SHOWN], *more])
